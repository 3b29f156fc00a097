"""The measure of each choice: its default is the library itself, and left-out sets stay out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import quality
from unseg_jax.collective import evidence

GRID = (8, 8)


def _set(seed, count=10):
    """Images with a square object of one material on a ground of another."""
    rng = np.random.default_rng(seed)
    material = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    features, truths = [], []
    for _ in range(count):
        mask = np.zeros(GRID, bool)
        top, left = rng.integers(2, 4, 2)
        mask[top : top + 3, left : left + 3] = True
        image = material[mask.astype(int).ravel()] + rng.normal(size=(64, 24)) / np.sqrt(24)
        features.append(image + material[3] * 0.5)
        truths.append(np.kron(mask, np.ones((16, 16), bool)))
    features = np.array(features, np.float16)
    coarse = features.reshape(count, 4, 2, 4, 2, 24).mean((2, 4)).reshape(count, 16, 24)
    return quality.Set(features, coarse.astype(np.float16), np.array(truths), GRID, (4, 4))


@pytest.fixture(scope="module")
def bench():
    return quality.Bench({"a": _set(0), "b": _set(1)}, seeds=(0,))


def test_the_default_is_what_the_library_does(bench):
    one = bench.sets["a"]
    scorer, _ = evidence.fit_scorer([one.fine], [GRID], key=jax.random.key(0))
    theirs = [np.asarray(evidence.score(scorer, jnp.asarray(image))[0]) for image in one.fine]
    ours = bench.margins("a", quality.Choices(), 0)
    np.testing.assert_allclose(ours.reshape(10, -1), theirs, atol=1e-5)
    assert bench.score("a", quality.Choices(), 0).mean() > 0.8


@pytest.mark.parametrize(
    "change", [{"head": "conv"}, {"coarse": 0.5}, {"diffused": 1}, {"cues": ("again", "centre")}]
)
def test_changes_change_something(bench, change):
    changed = dataclasses.replace(quality.Choices(), **change)
    found = bench.margins("a", changed, 0)
    assert found.shape == (10, *GRID)
    assert np.isfinite(found).all()
    assert not np.array_equal(found, bench.margins("a", quality.Choices(), 0))


def test_every_variant_is_a_choice():
    default = quality.Choices()
    for label, change in quality.VARIANTS.items():
        assert dataclasses.replace(default, **change) != default, label


def test_scores_are_kept(bench, tmp_path, monkeypatch):
    one = quality.Bench(bench.sets, (0,), tmp_path)
    scores = one.score("a", quality.Choices(), 0)
    again = quality.Bench(bench.sets, (0,), tmp_path)
    monkeypatch.setattr(again, "margins", None)  # what is kept is not computed
    np.testing.assert_array_equal(again.score("a", quality.Choices(), 0), scores)
    with pytest.raises(TypeError):
        again.score("a", quality.Choices(nearest=2), 0)


def test_what_is_chosen_does_not_see_the_set_left_out(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(quality, "VARIANTS", {"worse": {"nearest": 1}, "better": {"nearest": 9}})
    worth = {1: 0.1, 5: 0.5, 9: 0.9}

    def score(name, chosen, seed):
        seen.append(name)
        return np.array([worth[chosen.nearest]])

    monkeypatch.setattr(bench, "score", score)
    taken, chosen = quality.choose(bench, ["a"])
    assert taken == "better"
    assert chosen.nearest == 9
    assert set(seen) == {"a"}


def test_a_measurement_ends_in_a_table(bench, monkeypatch):
    monkeypatch.setattr(quality, "VARIANTS", {"two clusters": {"clusters": 2}})
    monkeypatch.setattr(quality, "SIZES", (5,))
    monkeypatch.setattr(quality, "PROBE_IMAGES", 5)
    result = quality.measure(bench, lambda line: None)
    lines = quality.table({**result, "images": {"a": 10, "b": 10}}).splitlines()
    assert any("as it is" in line for line in lines)
    assert any("two clusters" in line for line in lines)
    assert result["probe"]["a"]["miou"] > 0.8


def test_iou_by_hand():
    masks = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], bool)
    truths = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], bool)
    assert quality.iou(masks, truths).tolist() == [1 / 3, 1.0]
