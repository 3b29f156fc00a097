"""How likely a mask is right: the four numbers by hand, and which weights a model takes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.collective import confidence, cues, segmenter, set_scorer
from unseg_jax.collective.confidence import FITTED, SHIPPED, STEERED, Weights
from unseg_jax.collective.shipped import load_shipped
from unseg_jax.postprocess.margins import margin_confidence
from unseg_jax.registry import resolve

GRID = (8, 9)


@pytest.fixture(scope="module")
def made(colours):
    """The scorer that ships, random features, and a function of weights and margins."""
    scorer = load_shipped(backbone=colours).scorer
    rng = np.random.default_rng(0)
    features = rng.normal(size=(72, 384)).astype(np.float32)
    features.reshape(*GRID, 384)[2:6, 3:6] += 2 * rng.normal(size=384)
    found = jax.jit(functools.partial(confidence.estimate, grid=GRID), static_argnums=0)
    return scorer, features, lambda *given: float(found(given[0], scorer, features, given[1]))


def _logit(chance: float) -> float:
    return np.log(chance / (1 - chance))


def test_the_four_numbers_by_hand(made):
    scorer, features, found = made
    margins = np.random.default_rng(1).normal(size=72).astype(np.float32)
    clipped = np.clip(margins, -1, 1)
    linear, convolved, valid = map(np.asarray, set_scorer.both_scores(scorer, features, GRID))
    whole = np.asarray(cues.project(features, scorer.projection)[1])
    border = np.asarray(cues.border_of(valid, cues.neighbours(GRID)))
    nearest = np.where(valid, -(whole @ whole[border].T).max(1), 0)
    nearest[valid] -= nearest[valid].mean()
    cut = np.asarray(cues.image_cues(whole, valid, cues.neighbours(GRID))[2])
    expected = [
        np.corrcoef(nearest, clipped)[0, 1],
        np.corrcoef(cut, clipped)[0, 1],
        float(cues.otsu((linear + convolved) / 2, valid)),
        margin_confidence(margins),
    ]
    for at, value in enumerate(expected):
        weights = Weights(*np.eye(4)[at].tolist(), offset=0.25)
        assert _logit(found(weights, margins)) - 0.25 == pytest.approx(value, abs=1e-4), at
    assert _logit(found(FITTED, margins)) == pytest.approx(
        np.dot(FITTED[:4], expected) + FITTED.offset, abs=1e-3
    )
    linear_and_convolved = (linear + convolved) / 2
    before = np.where(valid, linear_and_convolved - expected[2], set_scorer.FRAME_SCORE)
    steered = 0.7, expected[0], np.corrcoef(np.clip(before, -1, 1), clipped)[0, 1]
    steered = *steered, float(cues.otsu(clipped, valid)), 1.0
    chance = confidence.estimate_steered(scorer, 0.7, features, margins, GRID)
    assert _logit(float(chance)) == pytest.approx(np.dot(STEERED, steered), abs=1e-3)
    for nothing in (np.ones(72, np.float32), -np.ones(72, np.float32)):
        assert confidence.estimate_steered(scorer, 0.7, features, nothing, GRID) == 0


@pytest.mark.parametrize("weights", [SHIPPED, FITTED])
def test_a_mask_of_the_odd_patches_is_surer_than_the_rest(made, weights):
    _, _, found = made
    thing = np.full(GRID, -1.0, np.float32)
    thing[2:6, 3:6] = 1
    assert found(weights, thing.ravel()) > 0.1 + found(weights, -thing.ravel())
    for nothing in (np.ones(72, np.float32), -np.ones(72, np.float32)):
        assert found(weights, nothing) == 0


def test_each_kind_of_model_has_its_weights(colours, model):
    photograph = np.random.default_rng(0).integers(0, 255, (56, 70, 3), np.uint8)
    mask = np.zeros((56, 70), bool)
    mask[14:42, 20:50] = True
    shipped = load_shipped(backbone=colours)
    steered = shipped.refine([photograph], examples={0: mask})
    again = model.refine([photograph], examples={0: mask})
    for one, apply in (
        (shipped, segmenter.apply_shipped),
        (model, segmenter.apply_fitted),
        (steered, segmenter.apply_steered),
        (again, segmenter.apply_steered),
    ):
        assert one.segmenter().work.apply is apply
        assert one.segmenter(closer=True).work.apply is apply


def test_a_fit_hears_the_shipped_scorer_too(colours, photographs, model, short_training):
    own = dataclasses.replace(colours, name=resolve("collective").backbone)
    images = photographs(3)
    fitted = us.fit(images, backbone=own, image_size=56, resize="stretch", steps=0)
    applied = fitted.segmenter()
    second = applied.fitted.second
    np.testing.assert_array_equal(second.weights, load_shipped(backbone=own).scorer.weights)
    (found,) = applied(images[:1])
    features = np.asarray(applied.kept_features(applied.prepare(images[0])[None]))[0]
    grid, rows = features.shape[:2], features.reshape(-1, 384).astype(np.float32)
    margins = set_scorer.score(fitted.scorer, rows, grid)[0]
    first = confidence.estimate(FITTED, fitted.scorer, rows, margins, grid)
    shipped = set_scorer.score(second, rows, grid)[0]
    other = confidence.estimate(SHIPPED, second, rows, shipped, grid)
    both = np.sqrt(float(first) * float(other))
    assert found.confidence == pytest.approx(both, abs=0.01)
    assert abs(found.confidence - float(first)) > 0.02
    # Other features, and a model that is steered, have none.
    mask = np.zeros((64, 64), bool)
    mask[20:44, 20:44] = True
    steered = fitted.refine(images, examples={0: mask})
    for one in (model, steered):
        assert one.segmenter().fitted.second is None


def test_a_copy_of_the_shipped_model_is_weighed_as_it_is(colours, tmp_path):
    own = dataclasses.replace(colours, name=resolve("collective").backbone)
    load_shipped(backbone=own).save(tmp_path / "copy.safetensors")
    copy = us.load_model(tmp_path / "copy.safetensors", backbone=own).segmenter()
    assert copy.work.apply is segmenter.apply_shipped
    assert copy.fitted.second is None
