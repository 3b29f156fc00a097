"""Outlines against erosion as published, and against the distances of all pairs of pixels."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from unseg_jax import metrics

pytestmark = pytest.mark.quick


def blobs(seed, shape=(37, 52)):
    rng = np.random.default_rng(seed)
    return [gaussian_filter(rng.normal(size=shape), 3) > level for level in (0.0, 0.02)]


def outline(mask):
    return np.argwhere(mask & ~binary_erosion(mask))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [0.001, 0.02, 0.08])
def test_boundary_iou_is_that_of_the_published_code(seed, width):
    mask, truth = blobs(seed)
    pixels = max(1, round(width * np.hypot(*mask.shape)))
    square = np.ones((3, 3), bool)
    rims = [
        side ^ binary_erosion(np.pad(side, 1), square, iterations=pixels)[1:-1, 1:-1]
        for side in (mask, truth)
    ]
    expected = np.logical_and(*rims).sum() / np.logical_or(*rims).sum()
    assert metrics.boundary_iou(mask, truth, width) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_all_pairs(seed):
    mask, truth = blobs(seed)
    pairs = cdist(outline(mask), outline(truth))
    both = np.concatenate([pairs.min(1), pairs.min(0)])
    assert metrics.hd95(mask, truth) == pytest.approx(np.percentile(both, 95), abs=1e-9)
    for tolerance in (0, 1, 2.5):
        found = metrics.surface_dice(mask, truth, tolerance)
        assert found == pytest.approx((both <= tolerance + 1e-9).mean(), abs=1e-12)


def test_empty_masks_agree_with_empty_ones_alone():
    mask, empty = np.ones((3, 4), bool), np.zeros((3, 4), bool)
    for name, best, worst in (("boundary_iou", 1, 0), ("hd95", 0, 5), ("surface_dice", 1, 0)):
        score = getattr(metrics, name)
        assert score(mask, mask) == score(empty, empty) == best
        assert score(mask, empty) == score(empty, mask) == worst
        with pytest.raises(ValueError, match="the same, non-empty shape"):
            score(mask, empty[:2])
