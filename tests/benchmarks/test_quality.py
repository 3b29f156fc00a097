"""The measure of each choice: its default is the library itself, and left-out sets stay out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from benchmarks import quality, quality_sets, quality_variants, tables
from unseg_jax.collective import evidence, scoring
from unseg_jax.data import Dataset, Item

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
    ground = material[np.zeros(64, int)] + rng.normal(size=(count, 64, 24)) / np.sqrt(24)
    pixels = np.kron(truths, np.ones((1, 2, 2)))[..., None] * np.full(3, 255)
    return quality_sets.Set(
        features,
        coarse.astype(np.float16),
        np.array(truths),
        GRID,
        (4, 4),
        keys=features[..., ::-1],
        early=features**2,
        pixels=pixels.astype(np.uint8),
        background=(ground + material[3] * 0.5).astype(np.float16),
    )


@pytest.fixture(scope="module")
def bench():
    return quality.Bench({"a": _set(0), "b": _set(1)}, seeds=(0,))


def test_the_row_of_the_library_is_what_the_library_does(bench):
    one, chosen = bench.sets["a"], quality.Choices(**quality.LIBRARY)
    scorer, _ = scoring.fit_scorer([one.fine], [GRID], key=jax.random.key(0))
    theirs = [scoring.score(scorer, jnp.asarray(image), GRID)[0] for image in one.fine]
    ours = bench.margins("a", chosen, 0)
    # The library keeps the convolution in half precision.
    np.testing.assert_allclose(ours.reshape(10, -1), np.stack(theirs), atol=5e-3)
    assert bench.score("a", chosen, 0).mean() > 0.8


@pytest.mark.parametrize(
    "change",
    [
        {"head": "conv"},
        {"head": "mlp", "agreed": True},
        {"head": "conv", "agreed": True, "mixed": True},
        {"head": "conv", "mixed": True, "coarse": 0.5},
        {"coarse": 0.5},
        {"diffused": 1},
        {"cues": ("again", "centre")},
        {"cues": ("own",)},
        {"features": "fine+keys"},
        {"features": "early", "whitened": True},
        {"centred": "image"},
        {"centred": "nothing"},
    ],
)
def test_changes_change_something(bench, change):
    changed = dataclasses.replace(quality.Choices(), **change)
    found = bench.margins("a", changed, 0)
    assert found.shape == (10, *GRID)
    assert np.isfinite(found).all()
    assert not np.array_equal(found, bench.margins("a", quality.Choices(), 0))


def _changes():
    tables = quality.VARIANTS, quality.FURTHER, quality.EDGES
    return [pair for table in tables for pair in table.items()]


def test_every_variant_is_a_choice():
    assert quality.Choices().changed == {}
    for label, change in _changes():
        changed = quality.Choices(**change).changed
        assert changed.items() <= change.items(), label
        assert changed or label == "the linear scorer alone"


@pytest.mark.parametrize("refined", ["guided", "bilateral"])
def test_edges_move_to_those_of_the_image(bench, refined):
    changed = dataclasses.replace(quality.Choices(), refined=refined)
    before = bench.score("a", quality.Choices(), 0).mean()
    assert bench.score("a", changed, 0).mean() > before


def test_pieces_are_those_that_scipy_finds():
    mask = np.random.default_rng(0).random((12, 12)) < 0.6
    pieces, count = ndimage.label(mask)
    assert count > 1
    for piece in range(1, count + 1):
        place = int(np.flatnonzero(pieces == piece)[-1])
        found = quality_variants._piece_of(jnp.asarray(mask), place)
        np.testing.assert_array_equal(found, pieces == piece)


def test_proposals_of_an_image_with_two_objects_are_both():
    directions = np.eye(8)
    labels = np.zeros((8, 8), int)
    labels[2:4, 2:4], labels[5:7, 4:7] = 1, 2
    whole = jnp.asarray(directions[labels.ravel()] + 0.3, jnp.float32)
    whole /= jnp.linalg.norm(whole, axis=-1, keepdims=True)
    far = jnp.asarray(labels.ravel() > 0, jnp.float32)
    valid = jnp.ones(64, bool)
    start = jnp.asarray(labels.ravel(), jnp.float32)

    def cut(kept):
        share = evidence.border_of(valid.reshape(GRID)).ravel() / 28.0
        return evidence._normalised_cut(whole @ whole.T, kept, share * kept, start * kept)

    found = quality_variants._pieces(cut, far, valid, GRID, 3)
    np.testing.assert_allclose(found, far, atol=1e-6)


@pytest.mark.parametrize("cue", ["pieces", "masks"])
def test_proposals_alone_find_the_objects(bench, cue):
    assert bench.score("a", quality.Choices(cues=(cue,)), 0).mean() > 0.8


def test_clusters_are_counted_by_what_two_halves_agree_on(monkeypatch):
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(24, 24)))[0][:6]
    x = centres[rng.integers(6, size=(20, 50))] + 0.01 * rng.normal(size=(20, 50, 24))
    monkeypatch.setattr(quality_variants, "STABLE", (6, 12))
    count = quality_variants._stable_count(x.astype(np.float32), jax.random.key(0))
    assert count == 6


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
    taken, chosen = quality.choose(bench, ["a"], quality.VARIANTS, quality.Choices())
    assert taken == "better"
    assert chosen.nearest == 9
    assert set(seen) == {"a"}


def test_a_measurement_ends_in_a_table(bench, monkeypatch):
    monkeypatch.setattr(quality, "VARIANTS", {"two clusters": {"clusters": 2}})
    # Perfect edges make every score 1, of which there is no rank correlation.
    monkeypatch.setattr(quality, "EDGES", {"three clusters": {"clusters": 3}})
    monkeypatch.setattr(quality, "FURTHER", {"four clusters": {"clusters": 4}})
    monkeypatch.setattr(quality, "LIBRARY", {"clusters": 8})
    monkeypatch.setattr(quality, "SIZES", (5,))
    monkeypatch.setattr(quality, "PROBE_IMAGES", 5)
    result = quality.measure(bench, lambda line: None)
    lines = quality.table({**result, "seeds": [0], "images": {"a": 10, "b": 10}}).splitlines()
    assert any("the library" in line for line in lines)
    assert any("two clusters" in line for line in lines)
    assert result["probe"]["a"]["miou"] > 0.8
    assert any("called empty" in line for line in lines)


def test_images_are_told_from_crops_without_an_object(bench):
    found = quality.no_object(bench)["a"]
    assert found["crops"] == 10
    assert max(found["auc"].values()) == found["auc"][found["rule"]] > 0.9
    images, crops = found["called empty by chosen"]
    assert images < 0.2 < 0.8 < crops


def test_auc_by_hand():
    assert quality.auc(np.array([3.0, 2.0]), np.array([1.0, 0.0, 2.0])) == pytest.approx(5.5 / 6)


def test_frames_of_a_video_are_drawn_together():
    scores = np.repeat([0.2, 0.8], 50)
    low, high = quality.interval(scores)
    assert high - low < 0.2
    assert quality.interval(scores, np.repeat([7, 9], 50)) == [0.2, 0.8]


def test_a_frame_belongs_to_its_video():
    ids = ("1", "25", "26", "612")
    items = tuple(Item(name, f"{name}.jpg") for name in ids)
    found = quality_sets.sequences("cvc-clinicdb", Dataset("clinic", items))
    assert found.tolist() == [0, 0, 1, 28]
    assert quality_sets.sequences("ecssd", Dataset("ecssd", items)) is None


def test_the_largest_background_is_that_of_a_search_of_all_rectangles():
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth = rng.random((9, 12)) < 0.08
        areas = [
            (bottom - top) * (right - left)
            for top in range(9)
            for bottom in range(top + 3, 10)
            for left in range(12)
            for right in range(left + 4, 13)
            if not truth[top:bottom, left:right].any()
        ]
        box = quality_sets.largest_background(truth)
        if not areas:
            assert box is None
            continue
        top, left, bottom, right = box
        assert not truth[top:bottom, left:right].any()
        assert (bottom - top) * (right - left) == max(areas)
        assert bottom - top >= 3
        assert right - left >= 4


def test_methods_stand_beside_what_was_measured_here(tmp_path):
    (tmp_path / "bench").mkdir()
    for stem, method, miou in (
        ("a-honest-every", "deepcut", 0.25),
        ("a-published-every", "deepcut", 0.5),
        ("a-honest-every-too", "tokencut", 0.125),
        ("a-all", "collective", 0.75),
    ):
        summary = {"methods": {method: {"miou": miou}}}
        (tmp_path / "bench" / f"{stem}.json").write_text(json.dumps(summary))
    scores = {name: {"miou": 0.625} for name in ("a", "b")}
    result = {"probe": scores, "left_out": scores, "library": scores}
    result["images"] = {"a": 1, "b": 1}
    (tmp_path / "quality.json").write_text(json.dumps(result))
    table = tables.render("quality/methods", tmp_path)
    assert "| the library | 62.5 | 62.5 |" in table
    assert "| `collective`, all images at full size | 75.0 | – |" in table
    assert "| `deepcut` | 25.0 / 50.0 | – |" in table
    assert "tokencut" not in table


def test_iou_by_hand():
    masks = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], bool)
    truths = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], bool)
    assert quality.iou(masks, truths).tolist() == [1 / 3, 1.0]
