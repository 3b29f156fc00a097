"""Layers as planes, and results as labels."""

import numpy as np
import pytest

from unseg_jax.napari.planes import labels_of, planes_of
from unseg_jax.segmentation import Segmentation

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("shape", "rgb", "count", "plane"),
    [
        ((5, 6), False, 1, (5, 6)),
        ((5, 6, 3), True, 1, (5, 6, 3)),
        ((4, 5, 6), False, 4, (5, 6)),
        ((2, 4, 5, 6, 4), True, 8, (5, 6, 4)),
    ],
)
def test_planes_come_in_order_or_are_refused(shape, rgb, count, plane):
    data = np.arange(np.prod(shape)).reshape(shape)
    planes = planes_of(data, rgb)
    assert [part.shape for part in planes] == [plane] * count
    np.testing.assert_array_equal(np.stack(planes).reshape(shape), data)
    for shape, rgb in (((5,), False), ((5, 3), True), ((0, 5, 6), False)):
        with pytest.raises(ValueError, match="holds no plane"):
            planes_of(np.zeros(shape), rgb)


def test_labels_show_objects_parts_or_the_mask():
    labels = np.zeros((6, 8), int)
    labels[1:3, 1:3] = 2
    labels[2:5, 4:8] = 1
    first = Segmentation.of(labels > 0, labels)
    second = Segmentation.of(labels > 9, 0 * labels)
    stack = labels_of([first, second], (2,), "parts")
    np.testing.assert_array_equal(stack, [labels, 0 * labels])
    np.testing.assert_array_equal(labels_of([first], (), "mask"), labels > 0)
    # The larger object is number 1.
    expected = np.select([labels == 1, labels == 2], [1, 2])
    np.testing.assert_array_equal(labels_of([first], (), "objects"), expected)
    for shape, kind, said in (
        ((), "boxes", "one of objects, parts, mask"),
        ((2,), "mask", "planes"),
    ):
        with pytest.raises(ValueError, match=f"not .*{said}"):
            labels_of([first], shape, kind)
