"""Summaries against means written out."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from unseg_jax.bench.report.summary import format_table, summarise
from unseg_jax.bench.score.image_records import SCORES, loss_epochs
from unseg_jax.bench.score.protocols import resolve_protocol
from unseg_jax.registry import METHODS

pytestmark = pytest.mark.quick


def config(names=("deepcut",), protocol="honest", images=4, every=0):
    return {
        "protocol": dataclasses.asdict(resolve_protocol(protocol)),
        "methods": {name: dataclasses.asdict(METHODS[name]) for name in names},
        "images": images,
        "shard": [0, 1],
        "seed": 0,
        "every": every,
        "backbone": "tiny",
    }


def record(id, iou, method="deepcut", **fields):
    scores = dict.fromkeys(SCORES, iou)
    return {"id": id, "method": method, **scores, "error": None, "seconds": 0.5, **fields}


def failure(id, method="deepcut"):
    return {"id": id, "method": method, **dict.fromkeys(SCORES), "error": "broken"}


RECORDS = [record("a", 0.9), record("b", 0.5), failure("c"), record("d", 0.4)]


def summarised(records, name="deepcut", **given):
    return summarise(records, config(**given))["methods"][name]


def test_a_failure_counts_as_nothing_found_but_under_published_rules():
    found = summarised(RECORDS)
    assert found["miou"] == pytest.approx(1.8 / 4)
    assert found["mae"] == pytest.approx((1.8 + 1.0) / 4)
    assert found["median_iou"] == pytest.approx(0.45)
    assert (found["images"], found["failed"], found["protocol"]) == (4, 1, "honest")
    low, high = found["miou_interval"]
    assert 0 <= low < found["miou"] < high <= 0.9
    found = summarised(RECORDS, protocol="published")
    assert found["miou"] == pytest.approx(0.6)
    assert (found["images"], found["failed"], found["protocol"]) == (4, 1, "published")
    failures = summarise(RECORDS, config())["failures"]
    assert failures == [{"id": "c", "method": "deepcut", "error": "broken"}]
    # Of the metrics that were asked for it has the worst.
    given = [record("a", 0.9, hd95=0.2, pq=0.5), failure("b")]
    found = summarise(given, config(images=2) | {"metrics": ["boundary", "objects"]})
    deepcut = found["methods"]["deepcut"]
    assert deepcut["hd95"] == pytest.approx((0.2 + 1) / 2)
    assert deepcut["pq"] == pytest.approx(0.25)
    assert "class_miou" not in deepcut
    assert "hd95" not in summarised(given, images=2)


def test_images_without_a_truth_have_no_score():
    unscored = {**failure("e"), "scored": False}
    found = summarised([*RECORDS, unscored], images=5)
    assert found["miou"] == pytest.approx(1.8 / 4)
    assert (found["images"], found["failed"], found["scored"]) == (5, 2, 4)
    blind = [{**record("a", None), "scored": False}, unscored]
    found = summarised(blind, images=2)
    assert (found["miou"], found["scored"], found["failed"]) == (None, 0, 1)
    summary = summarise([record("a", None), record("b", None)], config(images=2))
    found = summary["methods"]["deepcut"]
    assert (found["miou"], found["images"]) == (None, 2)
    assert "–" in format_table(summary)


def test_max_f_is_the_best_threshold_of_the_whole_set():
    """Of masks there are two: the mask's own, and the one that takes every pixel."""
    given = [record("a", 0.9, f_everything=0.3), record("b", 0.1, f_everything=0.8)]
    found = summarised(given, images=2)
    assert found["f_measure"] == pytest.approx(0.5)
    assert found["max_f"] == pytest.approx(0.55)


def test_confidence_is_correlated_with_iou_by_ranks():
    ious, confidences = [0.9, 0.5, 0.4, 0.4, 0.7], [0.8, 0.1, 0.3, 0.2, 0.2]
    given = [
        record(str(index), value, confidence=confidence)
        for index, (value, confidence) in enumerate(zip(ious, confidences, strict=True))
    ]
    found = summarised([*given, failure("f")])["confidence_correlation"]
    assert found == pytest.approx(spearmanr(ious, confidences).statistic, abs=1e-6)
    # Nothing can be said of two images, or where all are equally sure.
    for few in (given[:2], [record(str(index), index / 4, confidence=1.0) for index in range(4)]):
        assert summarised(few)["confidence_correlation"] is None


def test_each_image_counts_once_in_any_order():
    summary = summarise([record("a", 0.1), *RECORDS], config())
    assert summary["methods"]["deepcut"]["miou"] == pytest.approx(1.8 / 4)
    assert summary["complete"]
    assert not summarise(RECORDS[:3], config())["complete"]
    assert summarise(RECORDS, config()) == summarise(RECORDS[::-1], config())


def test_methods_are_compared_on_the_same_images():
    names = ("deepcut", "vit-kmeans")
    ious = zip("abd", (0.8, 0.5, 0.6), strict=True)
    other = [record(id, value, "vit-kmeans") for id, value in ious]
    (pair,) = summarise(RECORDS + other, config(names, "published"))["paired"]
    assert (pair["first"], pair["second"], pair["images"]) == (*names, 3)
    assert pair["mean"] == pytest.approx(np.mean([0.1, 0.0, -0.2]), abs=1e-6)
    assert (pair["wins"], pair["ties"], pair["losses"]) == (1, 1, 1)


def test_many_methods_are_compared_with_the_best():
    names = tuple(METHODS)[:12]
    records = [
        record(id, 0.05 * rank + 0.01 * place, name)
        for rank, name in enumerate(names)
        for place, id in enumerate("abcd")
    ]
    paired = summarise(records, config(names))["paired"]
    assert {pair["first"] for pair in paired} == {names[-1]}
    assert len(paired) == 11


def test_losses_become_a_mean_and_quartiles():
    assert loss_epochs(5) == [0, 1, 2, 3, 4]
    kept = loss_epochs(500)
    assert (kept[0], kept[-1], len(kept)) == (0, 499, 24)
    assert set(np.diff(kept)) == {21, 22}
    rows = np.random.default_rng(0).normal(size=(9, 10))
    given = [record(str(i), 0.5, loss_by_epoch=row.tolist()) for i, row in enumerate(rows)]
    # The later record of an image counts, and a loss that is not finite is no part of a curve.
    given += [record("0", 0.5, loss_by_epoch=[1.0] * 10), record("x", 0.5, loss_by_epoch=[None])]
    found = summarised(given, images=10)["loss_by_epoch"]
    rows[0] = 1.0
    assert found["epochs"] == list(range(10))
    np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["low"], np.sort(rows, 0)[2], atol=1e-6)
    np.testing.assert_allclose(found["high"], np.sort(rows, 0)[6], atol=1e-6)
    assert "loss_by_epoch" not in summarised(RECORDS)


def test_epochs_give_a_curve_its_best_and_where_it_settles():
    rows = {"a": [0.1, 0.6, 0.505, 0.5], "b": [0.3, 0.8, 0.505, 0.5]}
    records = [record(id, 0.5, iou_by_epoch=row, seconds=2.0) for id, row in rows.items()]
    given = config(images=2, every=5)
    given["methods"]["deepcut"]["epochs"] = 15
    found = summarise(records, given)["methods"]["deepcut"]["by_epoch"]
    assert found["epochs"] == [0, 5, 10, 15]
    assert found["miou"] == pytest.approx([0.2, 0.7, 0.505, 0.5])
    assert (found["best_epoch"], found["best_miou"]) == (5, pytest.approx(0.7))
    assert found["converged_epoch"] == 10
    # 15 epochs take these 2 seconds.
    assert found["converged_seconds"] == pytest.approx(2.0 * 10 / 15)
    # The last epoch is recorded though it is no multiple.
    given = config(images=2, every=10)
    given["methods"]["deepcut"]["epochs"] = 25
    found = summarise(records, given)["methods"]["deepcut"]["by_epoch"]
    assert (found["epochs"], found["best_epoch"]) == ([0, 10, 20, 25], 10)
