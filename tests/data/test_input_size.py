"""Sizes that keep an image's aspect ratio: close to it, no more patches, few shapes."""

import math

import pytest

from unseg_jax.data.input_size import InputSize
from unseg_jax.registry import resolve
from unseg_jax.segmenter import BatchSegmenter

pytestmark = pytest.mark.quick

SHAPES = [(h, w) for h in (1, 9, 300, 375, 1000, 2848) for w in (1, 10, 300, 400, 640, 4288)]


@pytest.mark.parametrize("size", [(392, 392), (280, 280), (224, 448), (14, 14)])
def test_sizes_are_close_to_the_shape_and_hold_no_more_patches(size):
    input_size = InputSize(size, "keep", 14)
    most = size[0] * size[1]
    for height, width in SHAPES:
        found = input_size.size_for(height, width)
        assert all(side >= 14 and side % 14 == 0 for side in found)
        assert found[0] * found[1] <= most
        assert all(side <= least for side, least in zip(found, input_size.at_least, strict=True))
        if most > 14**2:
            assert found[0] * found[1] >= 0.9 * most
            wanted = math.log(min(max(width / height, 1 / 3), 3))
            if size == (392, 392):
                assert abs(math.log(found[1] / found[0]) - wanted) < math.log(1.2)


def test_turned_images_have_turned_sizes_and_there_are_at_most_eleven_shapes():
    input_size = InputSize((392, 392), "keep", 14)
    for height, width in SHAPES:
        if height != width:
            assert input_size.size_for(height, width) == input_size.size_for(width, height)[::-1]
    assert len({input_size.size_for(100, width) for width in range(10, 1000)}) == 11


def test_stretch_is_the_size_that_the_method_states():
    input_size = InputSize.of(resolve("deepcut", image_size=(70, 98)), 14)
    assert {input_size.size_for(*shape) for shape in SHAPES} == {(70, 98)}
    assert input_size.at_least == (70, 98)
    segmenter = BatchSegmenter(resolve("pixel-ncut", image_size=(70, 98)), None)
    assert segmenter.input_size == InputSize((70, 98), "stretch", 1)
    assert segmenter.framing == segmenter.input_size  # the earlier name
    with pytest.raises(ValueError, match="resize='crop' is not one of stretch, keep"):
        resolve("deepcut", resize="crop")
