"""Images and masks from wherever they come to arrays: decoding, resizing, thresholds.

Every image becomes RGB uint8 (H, W, 3) the way it is meant to be looked at: EXIF orientation
applied, transparency composited on white, 16-bit grey scaled to 8. Whatever goes wrong becomes
one `ImageError` that names the image and says what to do.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.errors import ImageError

Source = Any
"""What images and masks are read from: a path, a PIL image, an array, the bytes of an encoded
image, or an object whose `read()` gives such bytes or an array (an open file, a record)."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
# A JPEG is decoded at no less than this multiple of the size that is asked for, so that what
# the decoder averages is well below what the LANCZOS filter averages afterwards.
_DRAFT_MARGIN = 2
# Lossless masks whose largest value lies below this hold class numbers, not grey levels.
_LARGEST_LABEL = 15


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: RGB uint8 (h, w, 3).
        size: (height, width) of the image itself, upright; larger than `pixels` where a JPEG
            was decoded at a reduced size.
    """

    pixels: np.ndarray
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """Which values of a mask are foreground; called with an array, it gives a bool array.

    Attributes:
        threshold: grey levels (0..255) above this are foreground, unless `values` is given.
        values: exactly these values are foreground.
    """

    threshold: int = 127
    values: tuple[int, ...] | None = None

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        if self.values is None:
            return mask > self.threshold
        return np.isin(mask, self.values)

    def __str__(self) -> str:
        if self.values is None:
            return f"value > {self.threshold}"
        return "value in {" + ", ".join(map(str, self.values)) + "}"


DEFAULT_RULE = MaskRule()
"""Grey levels above 127 are foreground."""


def read_image(source: Source, at_least: tuple[int, int] | None = None) -> Picture:
    """Decodes an image to upright RGB.

    Args:
        source: see `Source`; arrays are uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        at_least: (height, width) that is needed. A JPEG more than twice as large is then
            decoded at a half, quarter or eighth of its size, never below twice this one, which
            is several times faster. Other images are decoded in full.

    Raises:
        ImageError: not found, not an image, truncated, empty, of another type than uint8, or
            larger than Pillow's limit for decompression bombs.
    """
    source = _content(source)
    if isinstance(source, np.ndarray):
        pixels = _rgb_of_array(source)
        return Picture(pixels, pixels.shape[:2])
    if isinstance(source, Image.Image):
        at_least = None  # draft mode would change the caller's image
    return _decode(source, "image", lambda image: _upright_rgb(image, at_least))


def load_image(source: Source, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of `read_image`: RGB uint8 (H, W, 3).

    Raises:
        ImageError: as `read_image`.
    """
    return read_image(source, at_least).pixels


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


def load_mask(source: Source, threshold: int | MaskRule = 127) -> np.ndarray:
    """Reads a mask, upright.

    Args:
        source: see `Source`; arrays are bool, which are returned as they are, or integers
            (H, W), (H, W, 1) or (H, W, 3).
        threshold: grey levels above this are foreground; or a rule, which sees the grey levels
            (0..255; colours as their luma), or, if it lists values, the values as stored
            (palette indices, 16-bit values).

    Returns:
        bool (H, W).

    Raises:
        ImageError: as `read_image`; and where a threshold meets a lossless mask that holds
            class numbers instead of grey levels, which it would call empty.
    """
    rule = threshold if isinstance(threshold, MaskRule) else MaskRule(int(threshold))
    content = _content(source)
    if isinstance(content, np.ndarray):
        values, largest_label = _mask_of_array(content), _LARGEST_LABEL
    else:
        stored = rule.values is not None
        values, largest_label = _decode(content, "mask", lambda image: _mask_values(image, stored))
    if values.dtype == bool:
        return values
    largest = int(values.max())
    if rule.values is None and 0 < largest <= min(largest_label, rule.threshold):
        raise ImageError(
            f"mask {describe(source)} holds class numbers up to {largest} and no grey levels: "
            f"say which numbers are foreground, such as foreground=(1,) or --foreground 1."
        )
    return rule(values)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Brings a mask to its image's size by the nearest neighbour.

    Args:
        mask: bool (H, W).
        size: (height, width) in pixels.

    Returns:
        The bool mask of that size, and whether it had another.
    """
    height, width = size
    if mask.shape == (height, width):
        return mask, False
    image = Image.fromarray(mask.astype(np.uint8))
    resized = image.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(bool), True


def describe(source: Source) -> str:
    """What messages call a source: its path, or what kind of thing it is."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, np.ndarray):
        return f"given as an array of shape {source.shape}"
    if isinstance(source, bytes):
        return f"given as {len(source)} bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"given as a PIL image {source.size}")
    return str(getattr(source, "name", source))


def _content(source: Source) -> Any:
    """The source as something that `_decode` takes, or an array."""
    if isinstance(source, str | os.PathLike | bytes | Image.Image | np.ndarray):
        return source
    if hasattr(source, "read"):
        content = source.read()
        return _Named(content, describe(source)) if isinstance(content, bytes) else content
    if hasattr(source, "__array__"):
        return np.asarray(source)
    raise ImageError(
        f"an image of type {type(source).__name__} cannot be read: give a path, a PIL image or a "
        f"uint8 array (H, W, 3) or (H, W)."
    )


class _Named(bytes):
    """Bytes that remember what they were read from, for messages."""

    name: str

    def __new__(cls, content: bytes, name: str):
        self = super().__new__(cls, content)
        self.name = name
        return self


def _decode(source: Any, kind: str, convert: Callable[[Image.Image], Any]) -> Any:
    """Opens the source and converts it, with every failure as one `ImageError`."""
    name = source.name if isinstance(source, _Named) else describe(source)
    try:
        if isinstance(source, Image.Image):
            _check_size(source)
            return convert(source)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            _check_size(image)
            return convert(image)
    except ImageError as error:
        raise ImageError(f"{kind} {name} {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{kind} {name} is too large to decode safely (Pillow's limit is {limit:.0f} million "
            f"pixels, times two): reduce it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you "
            f"trust it."
        ) from None
    except FileNotFoundError:
        raise ImageError(f"{kind} {name} was not found: check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image: name the files in it.") from None
    except PermissionError:
        raise ImageError(f"{kind} {name} may not be read: check its permissions.") from None
    except MemoryError:
        raise ImageError(f"{kind} {name} does not fit into memory: reduce it first.") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        raise ImageError(f"{kind} {name} {_damage(source, error)}") from error


def _damage(source: Any, error: Exception) -> str:
    if isinstance(source, bytes):
        empty = not source
    else:
        empty = isinstance(source, str | os.PathLike) and Path(source).stat().st_size == 0
    if empty:
        return "is empty (0 bytes): copy or download it again."
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image that Pillow can read: convert it to PNG or JPEG."
    if "truncated" in str(error).lower():
        return "is truncated: copy or download it again."
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return f"cannot be decoded ({reason}): copy or download it again, or convert it to PNG."


def _check_size(image: Image.Image) -> None:
    if 0 in image.size:
        raise ImageError(f"has zero size {image.size}: leave it out.")


def _upright_rgb(image: Image.Image, at_least: tuple[int, int] | None) -> Picture:
    orientation = _orientation(image)
    turned = orientation >= 5
    width, height = image.size
    if at_least is not None and image.format == "JPEG":
        wanted = [_DRAFT_MARGIN * side for side in at_least]
        image.draft(None, tuple(wanted if turned else wanted[::-1]))  # type: ignore[arg-type]
    pixels = _rgb(image)
    if orientation in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[orientation](pixels))
    return Picture(pixels, (width, height) if turned else (height, width))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        grey = _grey8(np.asarray(image))
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _grey8(grey: np.ndarray) -> np.ndarray:
    """Grey levels of more than 8 bits as uint8 (H, W).

    Whole numbers up to 65535 are 16-bit levels; floats up to 1 are fractions, up to 255 are
    8-bit levels; anything else is stretched from its smallest to its largest value.
    """
    levels = grey.astype(np.float64)
    if not np.isfinite(levels).all():
        raise ImageError("holds values that are not finite: convert it to 8 or 16 bits.")
    low, high = float(levels.min()), float(levels.max())
    whole = np.issubdtype(grey.dtype, np.integer)
    if low < 0 or high > (65535 if whole else 255):
        levels, full = levels - low, high - low
    else:
        full = 65535 if whole else (1 if high <= 1 else 255)
    return np.rint(levels * 255 / full).astype(np.uint8)


def _rgb_of_array(array: np.ndarray) -> np.ndarray:
    name = describe(array)
    if 0 in array.shape:
        raise ImageError(f"image {name} has zero size: leave it out.")
    if array.dtype != np.uint8:
        raise ImageError(
            f"image {name} is of type {array.dtype}: give uint8 values 0..255, such as "
            f"(255 * image).astype('uint8') for fractions."
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"image {name} must have the shape (H, W), (H, W, 3) or (H, W, 4).")
    if array.shape[2] == 4:
        return _rgb(Image.fromarray(array))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _mask_of_array(array: np.ndarray) -> np.ndarray:
    name = describe(array)
    if 0 in array.shape:
        raise ImageError(f"mask {name} has zero size: leave it out.")
    if array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise ImageError(f"mask {name} is of type {array.dtype}: give bool or whole numbers.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        array = np.asarray(Image.fromarray(array).convert("L"))
    if array.ndim != 2:
        raise ImageError(f"mask {name} must have the shape (H, W).")
    return array


def _mask_values(image: Image.Image, stored: bool) -> tuple[np.ndarray, int]:
    """Values (H, W) of a mask, and up to which value they may be class numbers.

    Lossy files hold no class numbers; a palette may give one any colour.
    """
    orientation = _orientation(image)
    lossy = image.format in ("JPEG", "MPO", "WEBP")
    largest_label = 0 if lossy else (255 if image.mode == "P" else _LARGEST_LABEL)
    deep = image.mode.startswith(("I", "F"))
    if image.mode == "L" or (stored and (deep or image.mode == "P")):
        values = np.asarray(image)
    elif image.mode == "1":
        values = np.asarray(image.convert("L"))
    elif deep and np.asarray(image).max() <= _LARGEST_LABEL:
        values = np.asarray(image)  # class numbers would vanish when scaled to 8 bits
    else:
        values = np.asarray(Image.fromarray(_rgb(image)).convert("L"))
    if orientation in _UPRIGHT:
        values = np.ascontiguousarray(_UPRIGHT[orientation](values))
    return values, largest_label


def as_iterable(images: Source | Iterable[Source]) -> Iterable[Source]:
    """One image or many, as many."""
    if isinstance(images, (str, Path)) or hasattr(images, "convert"):
        return [images]
    # Any array library's: NumPy's, JAX's, PyTorch's.
    if hasattr(images, "dtype") and hasattr(images, "ndim"):
        array = np.asarray(images)
        return [array] if array.dtype != object and array.ndim <= 3 else array
    return images
