"""Pixel values of any type to 8 bits: one rule for integers and floats, files and arrays."""

import dataclasses

import numpy as np

from unseg_jax.errors import ImageError

PERCENTILES = (0.1, 99.9)
"""Between these percentiles of its values an image is stretched."""

Range = tuple[float, float]
"""(low, high): the values that become black and white."""

# An image whose values span this share of what its type holds is not stretched.
_FULL = 0.5
# More values than this that are not finite, and the image is refused.
_MOST_MISSING = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """An image in 8 bits, and how it got there.

    Attributes:
        values: uint8, of the shape that was given.
        stretched: (low, high) that became 0 and 255, or None where the type's own range was kept.
        notes: what was done, a sentence each.
    """

    values: np.ndarray
    stretched: Range | None = None
    notes: tuple[str, ...] = ()


def to_eight_bits(values: np.ndarray, value_range: Range | None = None) -> Levels:
    """Brings pixel values to 0..255.

    uint8 stays as it is unless a range is given, and bool becomes 0 and 255. Values of any other
    type are divided by the type's full range where their percentiles (.1 and 99.9) span at least
    half of it, and are stretched from the one percentile to the other where they do not. The full
    range is 0..65535 for integers within it, 0..1 or else 0..255 for floats within them.

    Args:
        values: bool, integers or floats of any shape; the channels of a colour image share one
            range.
        value_range: (low, high) that become 0 and 255, instead of all this.

    Raises:
        ImageError: half of the values or more are not finite; the message names no image.
    """
    if values.dtype == bool:
        return Levels(values.astype(np.uint8) * np.uint8(255))
    if values.dtype == np.uint8 and value_range is None:
        return Levels(values)
    values, notes = _filled(values)
    if value_range is not None:
        return Levels(_scaled(values, value_range), value_range, notes)
    full = _full_range(values)
    low, high = _spread(values)
    if high - low >= _FULL * (full[1] - full[0]) or low == high:
        return Levels(_scaled(values, full), None, notes)
    said = f"values from {low:g} to {high:g} were stretched to 0..255."
    return Levels(_scaled(values, (low, high)), (low, high), (*notes, said))


def spread_of(values: np.ndarray) -> Range | None:
    """The percentiles that an image would be stretched between; None for 8 bits.

    Raises:
        ImageError: as `to_eight_bits`.
    """
    if values.dtype in (bool, np.uint8):
        return None
    return _spread(_filled(values)[0])


def _filled(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values that are not finite replaced by the median of the others."""
    if values.dtype.kind != "f":
        return values, ()
    finite = np.isfinite(values)
    missing = values.size - int(np.count_nonzero(finite))
    if not missing:
        return values, ()
    if missing == values.size:
        raise ImageError("holds no finite value: check how it was made.")
    if missing > _MOST_MISSING * values.size:
        raise ImageError(
            f"holds {missing} of {values.size} values that are not finite: fill them first."
        )
    filled = np.where(finite, values, np.median(values[finite]))
    said = f"{missing} values that are not finite were filled with the median of the others."
    return filled, (said,)


def _spread(values: np.ndarray) -> Range:
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if low == high:  # fewer than one pixel in a thousand differs: all of them count then
        low, high = float(values.min()), float(values.max())
    return low, high


def _full_range(values: np.ndarray) -> Range:
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        for top in (1.0, 255.0):
            if low >= 0 and high <= top:
                return 0.0, top
        return low, float(np.finfo(np.float64).max)
    if low >= 0 and high <= 65535:
        return 0.0, 65535.0
    limits = np.iinfo(values.dtype)
    return float(limits.min), float(limits.max)


def _scaled(values: np.ndarray, limits: Range) -> np.ndarray:
    low, high = limits
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
