"""Arrays of any shape, type and layout: a result of the right form, or one sentence."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unseg_jax.data import load_image, load_mask
from unseg_jax.errors import ImageError
from unseg_jax.postprocess import find_objects, upsample_labels

SLOW = [HealthCheck.too_slow]
FAST = settings(max_examples=75, deadline=None, derandomize=True, suppress_health_check=SLOW)
DTYPES = ("bool", "uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64")
SHAPES = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 3, 4])),
)


@st.composite
def arrays(draw):
    """Any array, contiguous or not, writable or not, of complex numbers or text as well."""
    dtype = draw(st.sampled_from([*DTYPES, "complex64", "<U2", "datetime64[s]", ">u2"]))
    array = draw(hnp.arrays(np.dtype(dtype), draw(SHAPES)))
    if array.ndim and draw(st.booleans()):
        array = array[::-1] if draw(st.booleans()) else array.T
    if draw(st.booleans()):
        array = array.copy()
        array.flags.writeable = False
    return array


@FAST
@given(arrays())
def test_an_image_is_pixels_and_a_mask_bools_or_one_sentence(array):
    before = array.copy()
    for load, dtype, axes in ((load_image, np.uint8, 3), (load_mask, bool, 2)):
        try:
            found = load(array)
        except ImageError as error:
            said = str(error)
            assert len(said.splitlines()) == 1
            assert said.endswith(".")
        else:
            assert (found.dtype, found.ndim) == (dtype, axes)
            assert 0 not in found.shape
            assert axes == 2 or found.shape[2] == 3
        np.testing.assert_array_equal(array, before)


MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


@FAST
@given(MASKS, st.integers(1, 25), st.integers(1, 25))
def test_objects_are_the_mask_and_lie_apart(mask, height, width):
    size = (height, width)
    items = find_objects(mask, size=size, min_area=0.0)
    painted = np.zeros(size, int)
    for item in items:
        left, top, right, bottom = item.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert item.mask.shape == (bottom - top, right - left)
        assert item.area == item.mask.sum() > 0
        painted[top:bottom, left:right] += item.mask
    np.testing.assert_array_equal(painted, upsample_labels(mask, size).astype(int))
    assert [item.area for item in items] == sorted((i.area for i in items), reverse=True)
