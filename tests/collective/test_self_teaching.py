"""What holds an image that teaches itself: against the equations in plain NumPy."""

import dataclasses

import numpy as np
import pytest

from unseg_jax.collective import confidence, equations, self_teaching
from unseg_jax.collective.spreading import spread
from unseg_jax.collective.steering import with_earlier_blocks
from unseg_jax.method import override


def _held(rank=8, width=20):
    rng = np.random.default_rng(0)
    basis, origin = rng.normal(size=(width, rank)), rng.normal(size=rank)
    return self_teaching.Held(basis.astype(np.float32), origin.astype(np.float32))


@pytest.mark.parametrize("sure", ["nothing", "background", "all"])
def test_an_image_that_is_sure_of_one_side_or_none_stays_finite(sure):
    columns = np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32)
    low, high = {"nothing": (-0.19, 0.19), "background": (-1, 0.19), "all": (-1, 1)}[sure]
    margins = np.linspace(low, high, 64, dtype=np.float32)
    found = np.asarray(self_teaching.teach_itself(margins, columns, _held()))
    assert np.isfinite(found).all()
    assert (np.abs(found - margins).max() > 1e-3) == (sure != "nothing")
    unheard = np.asarray(self_teaching.teach_itself(margins, columns, _held(), 0.0))
    np.testing.assert_array_equal(unheard, margins)


def test_what_holds_is_the_identity_in_its_rows():
    """The rows are those of the system, whitened by the matrix that is held."""
    rng = np.random.default_rng(0)
    columns = np.concatenate([rng.normal(size=(400, 7)), np.ones((400, 1))], 1)
    system = equations.System(columns.T @ columns / 400)
    rows = system.of(columns)
    matrix = np.cov(rng.normal(size=(8, 50))) + np.eye(8)
    held = self_teaching.hold(system, matrix)
    white = columns @ np.asarray(held.basis, float) - np.asarray(held.origin)
    expected = rows @ np.linalg.inv(matrix) @ rows.T
    np.testing.assert_allclose(white @ white.T, expected, atol=1e-4)


def test_a_model_is_held_by_what_it_is_sure_of_in_images(model):
    """Inside and outside count alike, all images together as much as examples, three times."""
    features = np.random.default_rng(0).normal(size=(3, 8, 8, 48)).astype(np.float16)
    held = self_teaching.hold_found(model.scorer, [features[:2], features[2:]])
    read = equations.read_batch(model.scorer, features)
    prior = np.asarray(read.prior, float).ravel()
    columns = np.asarray(read.columns, float).reshape(192, 51)
    inside, outside = prior >= 0.2, prior <= -0.2
    assert min(inside.sum(), outside.sum(), (~inside & ~outside).sum()) > 0
    ratio = inside.sum() / (inside | outside).sum()
    weights = inside / ratio**0.5 + outside / (1 - ratio) ** 0.5
    weights /= weights.sum()
    system = equations.System(columns.T @ columns / 192)
    rows = system.of(columns)
    # λ and μ are those of three examples.
    ridge = 0.3 * np.mean(np.var(columns[:, :48], 0)) * np.eye(51)
    ridge[-1, -1] = 1e-3
    matrix = 3 * (rows.T @ np.diag(weights) @ rows + 0.03 * rows.T @ rows / 192 + ridge)
    white = columns @ np.asarray(held.basis, float) - np.asarray(held.origin)
    expected = rows @ np.linalg.solve(matrix, rows.T)
    np.testing.assert_allclose(white @ white.T, expected, rtol=1e-3, atol=1e-3)


def test_images_in_which_nothing_is_sure_hold_nothing(model, monkeypatch):
    features = np.random.default_rng(0).normal(size=(1, 8, 8, 48)).astype(np.float16)
    monkeypatch.setattr(self_teaching, "CERTAIN", 1.1)
    with pytest.raises(ValueError, match="nothing is sure"):
        self_teaching.hold_found(model.scorer, [features])


def test_each_image_teaches_itself_and_its_margins_spread(model, photographs):
    wide = with_earlier_blocks(model.method, model.backbone)
    held = _held(rank=5, width=48 * len(wide.blocks) + 3)
    itself = dataclasses.replace(model, held=held, shipped=True)
    applied = itself.segmenter(epochs=0)
    view = applied.prepare(photographs(1)[0])
    features = np.asarray(applied.kept_features(view[None]))[0].reshape(64, -1)
    found = applied.run([view])
    patches = equations.read_patches(model.scorer, features, (8, 8), 1)
    taught = self_teaching.teach_itself(patches.prior, patches.columns, held)
    expected = np.asarray(spread(taught, self_teaching.rows_of(patches.columns, held)))
    np.testing.assert_allclose(np.ravel(found.margins[0]), expected, atol=2e-3)
    assert np.abs(expected - np.asarray(patches.prior)).max() > 0.05
    # The confidence judges what was found before, and falls as far as the mask has changed.
    weights, plain = confidence.SHIPPED, features.astype(np.float32)
    chance = confidence.estimate(weights, model.scorer, plain, patches.prior, (8, 8))
    before, after = np.asarray(patches.prior) > 0, expected > 0
    share = (before & after).sum() / (before | after).sum()
    assert 0 < share < 1
    assert float(found.confidence[0]) == pytest.approx(float(chance) * share**0.5, abs=2e-3)
    # Tiles share one threshold, and take neither.
    tiles = dataclasses.replace(itself, method=override(model.method, tile=32, epochs=0))
    assert tiles.segmenter().fitted.held is None
