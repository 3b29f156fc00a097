"""What a set teaches the model that ships: against the equations in plain NumPy."""

import dataclasses

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import unseg_jax as us
from unseg_jax.collective import agreeing, equations, fitting, self_teaching, steering
from unseg_jax.collective.model import load_model
from unseg_jax.collective.set_scorer import score
from unseg_jax.collective.spreading import spread

GRID = (8, 8)


def _held(rank=9, width=51, seed=0):
    rng = np.random.default_rng(seed)
    return self_teaching.Held(
        rng.normal(size=(width, rank)).astype(np.float32), rng.normal(size=rank).astype(np.float32)
    )


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(1).normal(size=(5, 8, 8, 48)).astype(np.float16)


def _other(scorer):
    """A scorer that finds something else."""
    return scorer._replace(weights=-0.5 * np.asarray(scorer.weights), kernel=0 * scorer.kernel)


def _expected(scorer, held, other, features, certain):
    """The minimum of the objective, each patch a row."""
    read = equations.read_batch(scorer, features)
    rows, gaps, weights = [], [], []
    for image, prior, columns in zip(features, read.prior, read.columns, strict=True):
        whitened = np.asarray(columns, float) @ np.asarray(held.basis, float) - held.origin
        taught = self_teaching.teach_itself(prior, columns, held)
        found = np.asarray(spread(taught, whitened.astype(np.float32)))
        beside = np.asarray(score(other, image.reshape(64, 48), GRID)[0])
        inside = (found >= certain) & (beside >= certain)
        outside = (found <= -certain) & (beside <= -certain)
        rows.append(whitened)
        gaps.append(np.where(inside, 1, -1) - np.asarray(prior, float))
        weights.append(np.stack([inside, outside]))
    rows, gaps, weights = np.concatenate(rows), np.concatenate(gaps), np.concatenate(weights, 1)
    assert weights.sum(1).min() > 0
    ratio = weights[0].sum() / weights.sum()
    each = weights[0] / ratio**0.5 + weights[1] / (1 - ratio) ** 0.5
    each *= 10 / each.sum()
    # As least squares of stacked rows, not as normal equations.
    stacked = np.concatenate([rows * each[:, None] ** 0.5, np.eye(rows.shape[1])])
    wanted = np.concatenate([gaps * each**0.5, np.zeros(rows.shape[1])])
    return np.linalg.lstsq(stacked, wanted, rcond=None)[0]


@pytest.fixture
def certain(monkeypatch):
    """Sets the margin from which a patch is sure."""

    def set_to(value):
        monkeypatch.setattr(agreeing, "CERTAIN", value)
        agreeing._sides.clear_cache()
        return value

    yield set_to
    agreeing._sides.clear_cache()


def test_what_both_are_sure_of_teaches(model, features, certain):
    held, other, least = _held(), _other(model.scorer), certain(0.02)
    batches = [features[:2], features[2:]]
    found = agreeing.taught_by_set(model.scorer, held, other, batches)
    expected = _expected(model.scorer, held, other, features, least)
    np.testing.assert_allclose(found.taught, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_array_equal(found.basis, held.basis)


def test_where_both_are_sure_of_nothing_alike_nothing_is_taught(model, features, certain):
    certain(9.0)
    found = agreeing.taught_by_set(model.scorer, _held(), _other(model.scorer), [features])
    assert found.taught is None


def test_images_go_on_from_what_the_set_taught(model, features):
    held = _held()
    read = equations.read_batch(model.scorer, features[:1])
    prior, columns = read.prior[0], read.columns[0]
    taught = held._replace(taught=np.random.default_rng(2).normal(size=9).astype(np.float32))
    rows = np.asarray(columns) @ held.basis - held.origin
    found = self_teaching.teach_itself(prior, columns, taught)
    moved = np.asarray(prior) + rows @ taught.taught
    expected = self_teaching.teach_itself(moved.astype(np.float32), columns, held)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # As coefficients of the columns it is the same.
    same = steering.steering_of(taught, 48)
    np.testing.assert_allclose(
        np.asarray(columns) @ same.everywhere, rows @ taught.taught, atol=1e-3
    )
    assert (same.examples, same.held) == (0, None)


@pytest.fixture(scope="module")
def joined(model, photographs):
    """A fit on photographs where the model of the other tests is the one that ships."""
    ready = dataclasses.replace(model, held=_held(), shipped=True, head=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unseg_jax.collective.convolution._STEPS", 1)
        patch.setattr(fitting, "is_of_shipped", lambda method, backbone: True)
        patch.setattr(fitting, "load_shipped", lambda backbone: ready)
        options = {"backbone": model.backbone, "image_size": 64}
        yield lambda **more: us.fit(photographs(5, 3), **options, **more), ready


def test_a_fit_joins_the_model_that_ships(joined, photographs, tmp_path):
    fit, ready = joined
    found = fit()
    assert found.scorer is ready.scorer
    assert (found.images, found.head, found.shipped) == (5, None, False)
    assert found.held.taught is not None
    images = photographs(2, 7)
    plain = dataclasses.replace(found, held=found.held._replace(taught=None))
    masks, others = ([one.evidence for one in by.segment(images)] for by in (found, plain))
    assert not np.array_equal(masks, others)
    path = tmp_path / "model.safetensors"
    found.save(path)
    again = load_model(path, backbone=found.backbone)
    np.testing.assert_array_equal(again.held.taught, found.held.taught)
    again.save(path)
    np.testing.assert_array_equal(load_file(path)["held/taught"], found.held.taught)
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
    save_file(load_file(path) | {"held/taught": np.zeros(3, np.float32)}, path, facts)
    with pytest.raises(ValueError, match="'held/taught'"):
        load_model(path, backbone=found.backbone)


def test_what_the_set_taught_stays_where_clicks_refine(joined, photographs):
    found, image = joined[0](), photographs(1, 7)[0]
    more = found.held._replace(taught=5 * found.held.taught)  # than what clicks may change
    found = dataclasses.replace(found, held=more)
    # A click where its patch is surely right changes nothing.
    before = found.segment(image)[0].evidence
    y, x = np.unravel_index(before.argmin(), before.shape)
    clicked = found.refine([image], clicks={0: [(int(x), int(y), False)]})
    assert clicked.held.taught is None
    after = clicked.segment(image)[0].evidence
    np.testing.assert_allclose(after, before, atol=0.05)
    lost = dataclasses.replace(clicked, steering=None).segment(image)[0].evidence
    assert np.abs(lost - before).max() > 0.2


def test_what_needs_a_fit_alone_gets_it(joined, monkeypatch):
    fit, ready = joined
    for alone in (fit(steps=1), fit(tile=64), fit(epochs=2, steps=1)):
        assert alone.scorer is not ready.scorer
        assert alone.held is None
    monkeypatch.setattr(fitting, "share_framed", lambda images: 1.0)
    assert fit().held is None
