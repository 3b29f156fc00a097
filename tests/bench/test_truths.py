"""Void pixels count nowhere, and a run says what its true masks hold."""

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from unseg_jax import metrics
from unseg_jax.bench import run
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.score.image_records import TruthTally, make_record, score_mask, truth_fields
from unseg_jax.bench.score.protocols import resolve_protocol
from unseg_jax.data import MaskRule, Truth, fit_mask, read_mask
from unseg_jax.data.truths import NONZERO
from unseg_jax.segmenter import Segmentation

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("protocol", ["honest", "unsegmedgat"])
def test_void_pixels_count_in_no_score(protocol):
    truth = np.zeros((40, 50), bool)
    truth[10:25, 12:30] = True
    valid = np.ones_like(truth)
    valid[:, 30:36] = False
    valid[25:28] = False
    mask = truth ^ (RNG.random(truth.shape) < 0.1)
    scored = score_mask(mask, None, Truth(truth & valid, valid), resolve_protocol(protocol))
    # What is predicted where the truth is void changes nothing.
    for other in (mask | ~valid, mask & valid):
        again = score_mask(other, None, Truth(truth & valid, valid), resolve_protocol(protocol))
        assert again == scored
    ours, theirs = mask[valid], truth[valid]
    assert scored["iou"] == (ours & theirs).sum() / (ours | theirs).sum()
    assert scored["mae"] == np.mean(ours != theirs)
    assert scored["s_measure"] != pytest.approx(metrics.s_measure(mask, truth), abs=1e-6)


def test_s_measure_without_a_void_border_is_that_of_the_rest():
    mask, truth = RNG.random((2, 30, 40)) < 0.4
    valid = np.zeros((36, 45), bool)
    valid[:30, :40] = True
    padded = [np.pad(side, ((0, 6), (0, 5)), constant_values=True) for side in (mask, truth)]
    found = metrics.s_measure(*padded, valid=valid)
    assert found == pytest.approx(metrics.s_measure(mask, truth), abs=1e-12)


def test_objects_and_classes_are_those_that_the_mask_numbers():
    numbers = np.zeros((40, 60), np.uint8)
    numbers[5:15, 5:15], numbers[5:15, 15:25], numbers[25:35, 40:50] = 3, 9, 4
    truth = read_mask(numbers, MaskRule(values=NONZERO))
    assert truth.labels.tolist() == np.searchsorted([0, 3, 4, 9], numbers).tolist()
    half = fit_mask(truth, (20, 30))[0].crop((2, 2, 12, 10))
    assert half.labels.tolist() == truth.labels[1::2, 1::2][2:10, 2:12].tolist()
    mask = numbers > 0
    found = Segmentation.of(mask, np.where(numbers == 3, 1, mask * 2), method="deepcut", id="a")
    honest = resolve_protocol("honest")
    record = make_record(found, truth, honest, ("boundary", "objects", "classes"))
    # Objects 3 and 9 touch and are split by their labels; the last class has no cluster.
    assert [record[name] for name in ("ap", "ap50", "pq", "count_error")] == [1, 1, 1, 0]
    assert [record[name] for name in ("boundary_iou", "hd95", "nsd")] == [1, 0, 1]
    assert record["class_miou"] == pytest.approx((1 + 1 + 0.5) / 4, abs=1e-6)
    # A mask of one value has its pieces for objects: two of them here.
    plain = make_record(found, Truth(mask), honest, ("objects",))
    assert plain["count_error"] == pytest.approx(1 / 3, abs=1e-6)
    moved = Segmentation.of(np.roll(mask, 3, 1), mask, method="deepcut", id="a")
    record = make_record(moved, truth, honest, ("boundary",))
    assert record["hd95"] == pytest.approx(3 / np.hypot(40, 60), abs=1e-5)
    assert "ap" not in record
    assert set(make_record(found, truth, honest)) == set(record) - {"boundary_iou", "hd95", "nsd"}


def record(id, share, void=0.0, foreground=(1,), voids=()):
    fields = {"share": share, "void_share": void}
    return {"id": id, "truth": {**fields, "foreground": list(foreground), "void": list(voids)}}


def test_the_tally_counts_an_image_once_and_says_what_is_odd():
    tally = TruthTally()
    records = [record("a", 0, foreground=()), record("b", 1), record("c", 0.5, 0.1, voids=(255,))]
    for entry in [*records, *records, {"id": "d", "error": "no mask"}]:
        tally.add(entry)
    assert tally.notes() == [
        "1 of 3 true masks are empty.",
        "1 of 3 true masks are full.",
        "1 of 3 true masks have void pixels (255), which are left out of every score.",
    ]
    for known in ((1,), NONZERO, tuple(range(1, 256))):
        assert tally.error(known) is None
    assert "--foreground 7 occurs in none of the 3 true masks" in tally.error((1, 7))
    tally.add(record("e", 0.5, foreground=(255,)))
    assert "255 is void in some true masks and the object in others" in tally.notes()[-1]
    tally = TruthTally()
    for id in ("a", "b", "a"):
        tally.add({"id": id, "notes": ["values from 3 to 9 were stretched to 0..255."]})
    said = "2 images were changed while they were read, as a: values from 3 to 9 were stretched"
    assert tally.notes() == [f"{said} to 0..255."]


def test_fields_are_those_of_the_truth():
    valid = np.array([[True, True, False, False]])
    truth = Truth(np.array([[True, False, False, False]]), valid, (3,), (255,))
    fields = {"share": 0.5, "void_share": 0.5, "foreground": [3], "void": [255]}
    assert truth_fields(truth) == fields


def test_a_run_reads_class_masks_and_refuses_values_that_do_not_occur(
    data, settings, tiny_weights, tmp_path, capsys
):
    """Three images of the small data set, whose masks hold class 3 within a void rim."""
    folder = tmp_path / "classes"
    shutil.copytree(data / "images", folder / "images")
    (folder / "masks").mkdir()
    for path in sorted((data / "masks").iterdir()):
        mask = np.asarray(Image.open(path)) > 127
        grown = mask | np.roll(mask, 2, 0) | np.roll(mask, -2, 0)
        stored = np.where(mask, 3, np.where(grown, 255, 0)).astype(np.uint8)
        Image.fromarray(stored).save(folder / "masks" / path.name)
    given = functools.partial(settings, data=folder, limit=3)
    summary = run(given(tmp_path / "a"), quiet=True)
    assert summary["methods"]["vit-kmeans"]["failed"] == 0
    truths = summary["truths"]
    assert (truths["with_void"], truths["empty"], truths["error"]) == (3, 0, None)
    named = run(given(tmp_path / "b", foreground_values=(3,)), quiet=True)
    assert named["methods"]["vit-kmeans"]["miou"] == summary["methods"]["vit-kmeans"]["miou"]
    command = ["--data", folder, "--out", tmp_path / "c", "--backbone", tiny_weights, "--quiet"]
    command += ["--method", "vit-kmeans", "--image-size", 48, "--foreground", "4", "--foreground"]
    command += ["corner", "--metrics", "classes,boundary", "--limit", 3]
    assert main([*map(str, command)]) == 1
    found = json.loads((tmp_path / "c" / "summary.json").read_text())
    assert 0 <= found["methods"]["vit-kmeans"]["class_miou"] <= 1
    assert found["config"]["metrics"] == ["classes", "boundary"]
    assert found["methods"]["vit-kmeans"]["hd95"] == 1  # no truth has an outline
    assert "--foreground 4 occurs in none of the 3 true masks" in capsys.readouterr().err
