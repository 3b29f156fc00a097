"""Reading images: what `opening` opened becomes upright RGB of 8 bits, and is resized.

Every image becomes RGB uint8 (H, W, 3) the way it is meant to be looked at: EXIF orientation
applied, transparency composited on white, more than 8 bits brought to 8 by one rule for all types.
Whatever goes wrong becomes one `ImageError` that names the image and says what to do.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.data.opening import (
    UNREADABLE,
    Page,
    Source,
    as_array,
    has_pages,
    is_single,
    opened,
    page_numbers,
    upright,
)
from unseg_jax.errors import ImageError

Range = tuple[float, float]
"""(low, high): the values that become black and white."""

# Between these percentiles of its values an image is stretched, unless they span at least this
# share of what its type holds.
_PERCENTILES, _FULL = (0.1, 99.9), 0.5
# An image with a larger share of values that are not finite is refused.
_MOST_MISSING = 0.5
_ORIENTATION_TAG = 0x0112
# A JPEG is decoded at no less than this multiple of the size that is asked for, so that what
# the decoder averages is well below what the LANCZOS filter averages afterwards.
_DRAFT_MARGIN = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image.

    Attributes:
        pixels: RGB uint8 (h, w, 3).
        size: (height, width) of the image itself, upright; larger than `pixels` where a JPEG
            was decoded at a reduced size.
        stretched: (low, high), the stored values that became 0 and 255; None where the range of
            the image's type was kept.
        notes: what was done to the image that a user should know, a sentence each.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    stretched: Range | None = None
    notes: tuple[str, ...] = ()


def read_image(
    source: Source,
    at_least: tuple[int, int] | None = None,
    *,
    page: int | None = None,
    value_range: Range | None = None,
) -> Picture:
    """Decodes an image to upright RGB.

    Args:
        source: see `Source`; arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or have their
            channels first where that is unambiguous; bool, integers or floats.
        at_least: (height, width) that is needed. A JPEG more than twice as large is then
            decoded at a half, quarter or eighth of its size, never below twice this one, which
            is several times faster. Other images are decoded in full.
        page: of a file with several, from 1; None is the first, with a note.
        value_range: (low, high) that become 0 and 255; None takes those of the image's type, or
            stretches the image, between its percentiles .1 and 99.9, where those span less than
            half of it. That range is 0..65535 for integers within it, and 0..1 or else 0..255
            for floats within them; uint8 is never stretched.

    Raises:
        ImageError: not found, not an image, damaged, empty, wholly transparent, or larger than
            Pillow's limit for decompression bombs.
        ValueError: a range whose low end is not below its high end.

    >>> read_image(np.array([[0, 1000], [2000, 4000]], np.uint16), value_range=(0, 4000)).stretched
    (0, 4000)
    """
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ValueError(f"value_range={value_range} must have its low end below its high end.")
    if isinstance(source, Image.Image | Mapping | tuple):
        at_least = None  # draft mode would change the caller's image

    with opened(source, "image", page) as found:
        if isinstance(found, np.ndarray):
            return _of_array(found, value_range)
        several = page is None and not isinstance(source, Page) and has_pages(found)
        notes = ("the first of several pages was read.",) if several else ()
        picture = _upright_rgb(found, at_least, value_range)
        return dataclasses.replace(picture, notes=notes + picture.notes)


def load_image(
    source: Source,
    at_least: tuple[int, int] | None = None,
    *,
    page: int | None = None,
    value_range: Range | None = None,
) -> np.ndarray:
    """The pixels of `read_image`, which says what the arguments are: RGB uint8 (H, W, 3).

    Raises:
        ImageError: as `read_image`.
    """
    return read_image(source, at_least, page=page, value_range=value_range).pixels


def measure_range(sources: Sequence[Source], sample: int = 64) -> Range | None:
    """The range of a whole set, so that equal values are equally bright in all its images.

    Args:
        sources: the images of the set; those that cannot be read are passed over.
        sample: how many of them are decoded, evenly spread.

    Returns:
        (low, high), the smallest .1 and the largest 99.9 percentile; None where all are 8 bits
        deep or constant.
    """
    spreads = []
    for index in np.unique(np.linspace(0, len(sources) - 1, min(sample, len(sources))).astype(int)):
        with contextlib.suppress(ImageError), opened(sources[index], "image") as found:
            spread = _spread_of(found)
            spreads += [] if spread is None else [spread]
    low = min((low for low, _ in spreads), default=0.0)
    high = max((high for _, high in spreads), default=0.0)
    return (low, high) if low < high and math.isfinite(high - low) else None


def resize_image(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes with Pillow's LANCZOS filter, as the published systems do.

    Args:
        rgb: uint8 (H, W, 3).
        size: (height, width) in pixels.

    Returns:
        uint8 (height, width, 3); `rgb` itself where it already has that size.
    """
    height, width = size
    if rgb.shape[:2] == (height, width):
        return rgb
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def as_iterable(images: Source | Iterable[Source]) -> Iterable[Source]:
    """One image or many, as many; the file of several pages is many.

    Raises:
        ImageError: neither a source nor an iterable of them.
    """
    if isinstance(images, str | Path):
        return [Page(Path(images), number) for number in page_numbers(images)] or [images]
    if is_single(images):
        return [images]
    if hasattr(images, "columns"):
        raise ImageError("a table is no image: give its column of paths, as in table['image'].")
    if getattr(getattr(images, "dtype", None), "kind", "") in ("O", "T", "U"):
        held: Any = images
        return list(np.atleast_1d(held))  # paths, as in a pandas Series
    array = as_array(images)
    if array is not None:
        return [array] if array.ndim <= 3 else array
    if isinstance(images, Iterable):
        return images
    if hasattr(images, "__getitem__"):
        return (images[index] for index in range(len(images)))  # a data set of PyTorch
    raise ImageError(f"an image {UNREADABLE.format(type(images).__name__)}")


def _upright_rgb(
    image: Image.Image, at_least: tuple[int, int] | None, value_range: Range | None
) -> Picture:
    low_bytes = _low_bytes(image)  # before the EXIF data, which decode a PNG
    turned = _orientation(image) >= 5
    width, height = image.size
    if at_least is not None and image.format == "JPEG":
        needed = [_DRAFT_MARGIN * side for side in at_least]
        image.draft(None, tuple(needed if turned else needed[::-1]))  # type: ignore[arg-type]
    channels = _channels(upright(image))
    if low_bytes is not None:
        low = _channels(upright(low_bytes))
        channels = channels.astype(np.uint16) * np.uint16(256) + low
    picture = _of_array(channels, value_range)
    return dataclasses.replace(picture, size=(width, height) if turned else (height, width))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _low_bytes(image: Image.Image) -> Image.Image | None:
    """The lower bytes of a PNG or TIFF of 16 bits per channel, which Pillow decodes without them.

    The file is opened again and unpacked as if its bytes were in the other order.
    """
    tiles = getattr(image, "tile", None)
    if not tiles or image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA"):
        return None
    other = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
    arguments = tiles[0].args
    rawmode, *rest = (arguments,) if isinstance(arguments, str) else arguments
    channels, _, order = rawmode.partition(";")
    if channels not in ("RGB", "RGBA") or order not in other:
        return None
    file, page = image.fp, image.tell()  # type: ignore[attr-defined]
    image.load()
    file.seek(0)
    again = Image.open(file, formats=[image.format])
    again.seek(page)
    swapped = f"{channels};{other[order]}"
    arguments = (swapped, *rest) if rest else swapped
    again.tile = [tile._replace(args=arguments) for tile in again.tile]  # type: ignore[attr-defined]
    return again


def _channels(image: Image.Image) -> np.ndarray:
    """An image as (H, W) levels of any type, or uint8 (H, W, 3) or (H, W, 4)."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _of_array(array: np.ndarray, value_range: Range | None) -> Picture:
    if array.dtype.kind not in "buif":
        raise ImageError(f"is of type {array.dtype}: give bool, integers or floats.")
    array = _channels_last(array)
    colours, alpha = array[..., :3], array[..., 3:]
    pixels, stretched, notes = _to_eight_bits(colours, value_range)
    if alpha.shape[2]:
        pixels = _on_white(pixels, _to_eight_bits(alpha, _alpha_range(alpha))[0])
    pixels = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    return Picture(pixels, pixels.shape[:2], stretched, notes)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W) and (C, H, W) as (H, W, C), with C of 1, 3 or 4."""
    if array.ndim == 2:
        return array[..., None]
    for axis in (2, 0):
        if array.ndim == 3 and array.shape[axis] in (1, 3, 4):
            return np.moveaxis(array, axis, 2)
    raise ImageError(
        "must have the shape (H, W), (H, W, 3) or (H, W, 4): transpose it so that its channels "
        "come last, as in image.transpose(1, 2, 0)."
    )


def _alpha_range(alpha: np.ndarray) -> Range | None:
    if alpha.dtype.kind == "f":
        return (0.0, 1.0) if float(alpha.max()) <= 1 else (0.0, 255.0)
    return None if alpha.dtype in (bool, np.uint8) else (0.0, float(np.iinfo(alpha.dtype).max))


def _on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if not alpha.any():
        raise ImageError("is wholly transparent: leave it out, or remove its alpha channel.")
    if alpha.min() == 255:
        return pixels
    image = Image.fromarray(np.concatenate([pixels, alpha], axis=2))
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _to_eight_bits(
    values: np.ndarray, value_range: Range | None
) -> tuple[np.ndarray, Range | None, tuple[str, ...]]:
    """uint8 of any values, (low, high) that became 0 and 255 if they were chosen, and notes."""
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255), None, ()
    if values.dtype == np.uint8 and value_range is None:
        return values, None, ()
    values, notes = _filled(values)
    if value_range is None:
        full, (low, high) = _full_range(values), _spread(values)
        if high - low >= _FULL * (full[1] - full[0]) or low == high:
            return _scaled(values, full), None, notes
        value_range = low, high
        notes = (*notes, f"values from {low:g} to {high:g} were stretched to 0..255.")
    return _scaled(values, value_range), value_range, notes


def _spread_of(found: Image.Image | np.ndarray) -> Range | None:
    """The percentiles that an image would be stretched between; None for 8 bits."""
    if isinstance(found, Image.Image) and not found.mode.startswith(("I", "F")):
        return None
    values = np.asarray(found)
    return None if values.dtype in (bool, np.uint8) else _spread(_filled(values)[0])


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
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    if low == high:  # fewer than one pixel in a thousand differs: all of them count then
        low, high = float(values.min()), float(values.max())
    return low, high


def _full_range(values: np.ndarray) -> Range:
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    for top in (1.0, 255.0) if floats else (65535.0,):
        if low >= 0 and high <= top:
            return 0.0, top
    if floats:
        return low, float(np.finfo(np.float64).max)
    limits = np.iinfo(values.dtype)
    return float(limits.min), float(limits.max)


def _scaled(values: np.ndarray, limits: Range) -> np.ndarray:
    low, high = limits
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
