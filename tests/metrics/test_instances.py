"""Objects against pycocotools and against every way of matching."""

import contextlib
import io
import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unseg_jax import metrics


def scene(rng, size=60):
    """Numbered squares, and the same moved, resized, left out and added to."""
    truth, found = np.zeros((2, size, size), np.int32)
    for number, (row, column) in enumerate(itertools.product(range(2, 50, 16), repeat=2), 1):
        truth[row : row + 12, column : column + 12] = 10 * number
        if rng.random() < 0.8:
            top, left = row + rng.integers(-2, 3), column + rng.integers(-2, 3)
            found[top : top + rng.integers(6, 13), left : left + rng.integers(6, 13)] = number
    found[-3:, -3:] = 99
    return found, truth


def coco_ap(scenes, scores):
    images = [{"id": index, "height": 60, "width": 60} for index in range(len(scenes))]
    annotations, results = [], []
    for index, (found, truth) in enumerate(scenes):
        for side, kept in ((truth, annotations), (found, results)):
            for number in np.unique(side)[1:]:
                code = coco_masks.encode(np.asfortranarray(side == number, np.uint8))
                entry = {"image_id": index, "category_id": 1, "segmentation": code}
                entry |= {"id": len(kept) + 1, "iscrowd": 0, "area": int((side == number).sum())}
                kept.append(entry)
        order = np.unique(found)[1:]
        for entry, score in zip(results[len(results) - len(order) :], scores[index], strict=True):
            entry["score"] = float(score)
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:2]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    scenes = [scene(rng) for _ in range(4)]
    scores = [rng.random(len(np.unique(found)) - 1).round(1) for found, _ in scenes]  # with ties
    ious = [metrics.object_ious(*pair) for pair in scenes]
    ap, ap50 = coco_ap(scenes, scores)
    assert metrics.average_precision(ious, scores) == pytest.approx(ap, abs=1e-9)
    assert metrics.average_precision(ious, scores, (0.5,)) == pytest.approx(ap50, abs=1e-9)
    assert 0 < ap < ap50 < 1


@pytest.mark.quick
def test_panoptic_quality_is_that_of_the_definition():
    found, truth = scene(np.random.default_rng(0))
    matched, hit, taken = 0.0, 0, set()
    for number in np.unique(found)[1:]:
        for other in np.unique(truth)[1:]:
            iou = metrics.iou(found == number, truth == other)
            if iou > 0.5:
                matched, hit, taken = matched + iou, hit + 1, taken | {other}
    ours, theirs = len(np.unique(found)) - 1, len(np.unique(truth)) - 1
    expected = matched / (hit + (ours - hit) / 2 + (theirs - len(taken)) / 2)
    assert metrics.panoptic_quality(found, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.quick
def test_nothing_found_is_right_where_there_is_nothing():
    empty, full = np.zeros((4, 4), int), np.ones((4, 4), int)
    for found, truth, score in ((empty, empty, 1), (full, empty, 0), (empty, full, 0)):
        ious = metrics.object_ious(found, truth)
        assert ious.shape == (found.max(), truth.max())
        assert metrics.panoptic_quality(found, truth) == score
        assert metrics.average_precision([ious], [np.ones(len(ious))]) == score
        assert metrics.count_error(*ious.shape) == 1 - score
    assert metrics.object_ious(full, full).tolist() == [[1.0]]


@pytest.mark.quick
@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_matched_miou_is_the_best_of_all_matchings(clusters):
    rng = np.random.default_rng(clusters)
    truth = rng.integers(0, 3, (20, 20))
    labels = np.where(rng.random((20, 20)) < 0.6, (truth + 1) % clusters, 7)
    labels[:5] = rng.integers(0, clusters, (5, 20))
    valid = rng.random((20, 20)) < 0.9
    names = list(np.unique(labels[valid]))
    names += [-1] * (3 - len(names))
    best = max(
        sum(
            metrics.iou((labels == name)[valid][None], (truth == value)[valid][None])
            for value, name in enumerate(chosen)
        )
        for chosen in itertools.permutations(names, 3)
    )
    assert metrics.matched_miou(labels, truth, valid) == pytest.approx(best / 3, abs=1e-12)
