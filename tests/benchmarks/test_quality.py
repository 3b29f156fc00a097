"""The measure of quality: it scores what the library does, and its statistics are right."""

import json

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.measure import quality, quality_sets
from unseg_jax.data import Dataset, Item

GRID = (8, 8)


@pytest.fixture(scope="module")
def one():
    """Images with a square object of one material on a ground of another."""
    rng, count = np.random.default_rng(0), 8
    material = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    features, truths = [], []
    for _ in range(count):
        mask = np.zeros(GRID, bool)
        top, left = rng.integers(2, 4, 2)
        mask[top : top + 3, left : left + 3] = True
        image = material[mask.astype(int).ravel()] + rng.normal(size=(64, 24)) / np.sqrt(24)
        features.append(image + material[3] * 0.5)
        truths.append(np.kron(mask, np.ones((16, 16), bool)))
    ground = material[np.zeros(64, int)] + rng.normal(size=(count, 64, 24)) / np.sqrt(24)
    pixels = np.kron(truths, np.ones((1, 2, 2)))[..., None] * np.full(3, 255)
    return quality_sets.Set(
        np.array(features, np.float16),
        np.array(truths),
        GRID,
        pixels=pixels.astype(np.uint8),
        background=(ground + material[3] * 0.5).astype(np.float16),
    )


def test_a_measurement_ends_in_a_table(one, monkeypatch):
    monkeypatch.setattr(quality, "SIZES", (5,))
    monkeypatch.setattr(quality, "PROBE_IMAGES", 5)
    result = quality.measure({"a": one}, (0,), lambda line: None)
    table = quality.table({**result, "seeds": [0], "images": {"a": 8}})
    assert "| 5 images |" in table
    assert "called empty" in table
    assert result["probe"]["a"]["miou"] > 0.8
    plain = result["library"]["a"]["miou"]
    assert plain > 0.8
    # Edges move to those of the image, which are the truth's.
    assert all(found["a"]["miou"] > plain for found in result["edges"].values())
    # Images are told from crops without an object.
    found = result["no_object"]["a"]
    assert found["crops"] == 8
    assert max(found["auc"].values()) == found["auc"][found["rule"]] > 0.9
    images, crops = found["called empty by chosen"]
    assert images < 0.2 < 0.8 < crops


def test_statistics_by_hand():
    assert quality.auc(np.array([3.0, 2.0]), np.array([1.0, 0.0, 2.0])) == pytest.approx(5.5 / 6)
    masks = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], bool)
    truths = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], bool)
    assert quality.iou(masks, truths).tolist() == [1 / 3, 1.0]
    # Frames of a video are drawn together.
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


def test_the_table_of_methods_has_what_was_measured_alike(tmp_path):
    (tmp_path / "bench").mkdir()
    for stem, method, miou in (
        ("a-honest-every", "deepcut", 0.25),
        ("a-published-every", "deepcut", 0.5),
        ("a-honest-every-too", "tokencut", 0.125),
        ("b-honest-every", "collective", 0.75),
    ):
        summary = {"methods": {method: {"miou": miou, "images": 4}}}
        (tmp_path / "bench" / f"{stem}.json").write_text(json.dumps(summary))
    (tmp_path / "quality.json").write_text(json.dumps({"images": {"a": 1, "b": 1}}))
    table = tables.render("quality/methods", tmp_path)
    assert "| mIoU, honest / published | a, 4 images |" in table
    assert "| `deepcut` | 25.0 / 50.0 |" in table
    # What is kept of `collective` beside them is an earlier version.
    assert "collective" not in table
    assert "tokencut" not in table
