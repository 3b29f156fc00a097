"""Components, boxes and resizing against OpenCV and scikit-image."""

import numpy as np
import pytest
from skimage import measure

from unseg_jax.postprocess import (
    bounding_box,
    component_boxes,
    fill_holes,
    largest_component,
    object_box,
    scale_box,
    upsample_labels,
)

pytestmark = pytest.mark.quick

SIZES = [(7, 5), (49, 64), (480, 641), (1, 1), (35, 35), (3, 2), (100, 213)]


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(0)
    return [rng.random((20, 31)) < density for density in (0.1, 0.4, 0.6, 0.9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", [(7, 5), (28, 28), (35, 45), (1, 3)])
def test_resizing_is_that_of_opencv(grid, size):
    cv2 = pytest.importorskip("cv2")
    labels = np.arange(grid[0] * grid[1], dtype=np.float64).reshape(grid)
    expected = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(upsample_labels(labels, size), expected.reshape(size))


def test_resizing_keeps_leading_axes_and_dtype():
    labels = np.random.default_rng(0).integers(0, 4, (2, 3, 4, 5)).astype(np.int32)
    found = upsample_labels(labels, (9, 11))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[1, 2], upsample_labels(labels[1, 2], (9, 11)))
    with pytest.raises(ValueError, match="at least 1"):
        upsample_labels(labels, (0, 4))


def test_largest_component_and_boxes(masks):
    for mask in masks:
        regions = measure.regionprops(measure.label(mask, connectivity=1))
        regions.sort(key=lambda region: -region.area)
        largest = np.zeros_like(mask)
        largest[tuple(regions[0].coords.T)] = True
        np.testing.assert_array_equal(largest_component(mask), largest)
        boxes = [(r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]) for r in regions]
        assert object_box(mask) == boxes[0]
        assert component_boxes(mask) == boxes
        assert component_boxes(mask, 3) == boxes[: sum(r.area >= 3 for r in regions)]
        whole = measure.regionprops(mask.astype(int))[0].bbox
        assert bounding_box(mask) == (whole[1], whole[0], whole[3], whole[2])


def test_diagonal_neighbours_are_apart():
    mask = np.eye(3, dtype=bool)
    np.testing.assert_array_equal(largest_component(mask), np.diag([True, False, False]))
    assert component_boxes(mask) == [(0, 0, 1, 1), (1, 1, 2, 2), (2, 2, 3, 3)]


def test_nothing_in_the_mask():
    empty = np.zeros((3, 4), bool)
    assert not largest_component(empty).any()
    assert bounding_box(empty) is None
    assert object_box(empty) is None
    assert component_boxes(empty) == []


def test_fill_holes(masks):
    ndimage = pytest.importorskip("scipy.ndimage")
    ring = np.zeros((6, 6), bool)
    ring[1:5, 1:5] = True
    ring[2:4, 2:4] = False
    for mask in [*masks, ring, ~ring, np.ones((3, 3), bool), np.zeros((3, 3), bool)]:
        np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_scaled_box_is_the_box_of_the_resized_mask():
    rng = np.random.default_rng(3)
    for _ in range(100):
        grid, size = rng.integers(1, 20, 2), rng.integers(1, 90, 2)
        mask = rng.random(grid) < 0.2
        expected = bounding_box(upsample_labels(mask, tuple(size)))
        left, top, right, bottom = box = bounding_box(mask) or (0, 0, 0, 0)
        if (size >= grid).all() and right and bottom:
            assert scale_box(box, tuple(grid), tuple(size)) == expected
        # A smaller map may miss the mask's own edges, never those of the box's pixels.
        solid = np.zeros(grid, bool)
        solid[top:bottom, left:right] = True
        expected = bounding_box(upsample_labels(solid, tuple(size)))
        assert scale_box(box, tuple(grid), tuple(size)) == expected
    assert scale_box(None, (2, 2), (4, 4)) is None
