"""One way of reading: its checks, its range of a set, and its agreement with that of a model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseg_jax.data.reading_options import PLAIN, Reading

RANGES = st.tuples(*[st.floats(-1e6, 1e6)] * 2).filter(lambda pair: pair[0] < pair[1])
READINGS = st.builds(Reading, st.none() | RANGES)


@settings(max_examples=30)
@given(READINGS, st.none() | READINGS)
def test_a_model_is_used_with_its_own_range_or_not_at_all(asked, fitted):
    assert Reading.from_json(asked.to_json()) == asked
    known = fitted is not None
    if known and asked.value_range not in (None, fitted.value_range):
        with pytest.raises(ValueError, match="the model was fitted with the range"):
            asked.agreeing(fitted)
    else:
        expected = fitted.value_range if known else asked.value_range
        assert asked.agreeing(fitted).value_range == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value_range": (5, 5)}, "low end below"),
        ({"value_range": "image"}, "must be"),
        ({"value_range": (0, float("nan"))}, "must be"),
        ({"workers": 0}, "workers=0"),
        ({"page": 0}, "page=0"),
    ],
)
def test_what_no_reading_can_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Reading(**fields)


def test_the_range_of_a_set_is_measured_once():
    images = [np.array([[low, high]], np.uint16) for low, high in ((10, 500), (90, 700))]
    measured = Reading("set", workers=2).measured(images)
    assert measured.value_range == pytest.approx((10.49, 699.39))
    assert measured.workers == 2
    assert measured.measured([]) == measured
    assert measured.read(images[0]).stretched == measured.value_range
    assert PLAIN.measured(images) is PLAIN
