"""True masks: which stored values are the object, which are background, which are void.

The decision is made on the values that a file stores (palette index, grey level at full depth,
colour, alpha), never on their brightness after a conversion, and what is not plain is refused.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.data.opening import Source, opened, upright
from unseg_jax.data.truths import DEFAULT_RULE, NONZERO, VOID, MaskRule, Truth, Value, check_known
from unseg_jax.errors import ImageError

# Up to this, values beside 255 are taken for class numbers (Pascal VOC 20, Cityscapes 33).
_LARGEST_CLASS = 33
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_TRANSPARENT = -1  # beside the colour codes 0xRRGGBB
_LISTED = 8  # values that an error lists
# Soft edges (antialiasing, a JPEG saved as PNG): values in between are this close to both sides.
_EDGE = 8
# The share of a JPEG's pixels that may lie halfway between its two heaps.
_HALFWAY = 0.2
# Grey levels up to this hold class numbers where a threshold is far above them.
_LARGEST_LABEL = 15


def read_mask(
    source: Source, rule: int | MaskRule = DEFAULT_RULE, page: int | None = None
) -> Truth:
    """Reads a mask, upright.

    Args:
        source: see `Source`; arrays are bool, or numbers (H, W), or uint8 colours (H, W, 3 or 4).
        rule: which values are foreground; a number is a threshold.
        page: of a file with several, from 1.

    Returns:
        The `Truth`, at the mask's own size.

    Raises:
        ImageError: as `load_image`; and where the values do not say which of them is the object.
    """
    rule = rule if isinstance(rule, MaskRule) else MaskRule(threshold=int(rule))

    with opened(source, "mask", page) as found:
        truth = _of_array(found, rule) if isinstance(found, np.ndarray) else _of_image(found, rule)
    return check_known(truth)


def load_mask(
    source: Source, rule: int | MaskRule = DEFAULT_RULE, page: int | None = None
) -> np.ndarray:
    """The bool mask (H, W) of `read_mask`; False where void.

    >>> load_mask(np.array([[0, 38], [38, 0]], np.uint8)).tolist()
    [[False, True], [True, False]]

    Raises:
        ImageError: as `read_mask`.
    """
    return read_mask(source, rule, page).mask


def fit_mask(truth: Truth, size: tuple[int, int]) -> tuple[Truth, bool]:
    """Brings a truth to its image's size by the nearest neighbour.

    Args:
        truth: of any size.
        size: (height, width) in pixels.

    Returns:
        The truth of that size, and whether it had another.

    Raises:
        ImageError: all of it is void at that size.
    """
    if truth.shape == tuple(size):
        return truth, False

    def resized(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values.astype(np.uint8) if values.dtype == bool else values)
        image = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
        return np.asarray(image).astype(values.dtype)

    return check_known(truth.each(resized)), True


def _of_image(image: Image.Image, rule: MaskRule) -> Truth:
    if rule.threshold is not None:
        return _by_threshold(image, rule)
    return _judge(_stored(image, rule), rule)


def _of_array(array: np.ndarray, rule: MaskRule) -> Truth:
    for axis in (0, 2):
        if array.ndim == 3 and array.shape[axis] == 1:
            array = array.squeeze(axis)
    if array.dtype == bool and array.ndim == 2:
        return Truth(array)
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        return _of_image(Image.fromarray(array), rule)
    if array.ndim != 2:
        raise ImageError(
            "must have the shape (H, W): transpose it to (H, W, 3) if it holds colours."
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(f"is of type {array.dtype}: give bool or whole numbers.")
    if rule.threshold is not None:
        _check_levels(array, _LARGEST_LABEL, rule)
        return Truth(rule(array))
    return _judge(_Stored(array), rule)


@dataclasses.dataclass(frozen=True, eq=False)
class _Stored:
    """A mask as it is stored.

    Attributes:
        values: (H, W) numbers, or colours as 0xRRGGBB with −1 for transparent.
        colour: whether they are colours.
        black: values that are known to be background because of their colour or transparency.
        lossy: whether the file's format may have changed the values.
    """

    values: np.ndarray
    colour: bool = False
    black: tuple[int, ...] = (0,)
    lossy: bool = False

    def name(self, value: Any) -> Value:
        """What users call a value."""
        if self.colour:
            return "transparent" if value == _TRANSPARENT else f"#{int(value):06x}"
        return int(value) if float(value).is_integer() else float(value)


def _stored(image: Image.Image, rule: MaskRule) -> _Stored:
    lossy = image.format in _LOSSY
    transparency = image.info.get("transparency")
    image = upright(image)
    if image.mode == "P":
        return _Stored(np.asarray(image), black=_dark_indices(image, transparency))
    if image.mode == "1":
        # One bit is 0 and 1 to some and 0 and 255 to others.
        bright = 255 if isinstance(rule.values, tuple) and 255 in rule.values else 1
        return _Stored(np.where(np.asarray(image), np.uint8(bright), np.uint8(0)))
    if image.mode.startswith(("I", "F")) or (image.mode == "L" and transparency is None):
        return _Stored(np.asarray(image), lossy=lossy)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3]
    clear = alpha <= int(alpha.max()) // 2 if alpha.min() < alpha.max() else None
    rgb = rgba[..., :3]
    if clear is None and lossy:
        # Chroma noise aside, a grey JPEG is its luma; a coloured one is as bright as its colour.
        grey = int((rgb.max(2) - rgb.min(2)).max()) < 64
        return _Stored(np.asarray(image.convert("L")) if grey else rgb.max(2), lossy=True)
    if clear is None and (rgb == rgb[..., :1]).all():
        return _Stored(rgb[..., 0], lossy=lossy)
    codes = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    if clear is None:
        return _Stored(codes, colour=True, lossy=lossy)
    return _Stored(np.where(clear, _TRANSPARENT, codes), True, (_TRANSPARENT,), lossy)


def _dark_indices(image: Image.Image, transparency: Any) -> tuple[int, ...]:
    """Indices of a palette that are background: transparent ones, else black ones, else 0."""
    if isinstance(transparency, int):
        return (transparency,)
    if isinstance(transparency, bytes) and 0 in transparency:
        return tuple(index for index, alpha in enumerate(transparency) if alpha == 0)
    used = np.unique(np.asarray(image))
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    black = [int(index) for index in used if index < len(colours) and not colours[index].any()]
    # Where all or none of the colours in use is black, the palette says nothing.
    return tuple(black) if 0 < len(black) < len(used) and 0 not in black else (0,)


def _judge(stored: _Stored, rule: MaskRule) -> Truth:
    """Applies a rule to stored values."""
    if stored.values.dtype.kind == "f" and not np.isfinite(stored.values).all():
        raise ImageError("holds values that are not finite: save it as whole numbers.")
    if stored.lossy and not stored.colour:
        return _two_heaps(stored, rule)
    values, counts = _count(stored.values)
    names = [stored.name(value) for value in values]
    is_void = np.array([_is_void(name, names, rule) for name in names])
    valid = ~np.isin(stored.values, values[is_void]) if is_void.any() else None
    known, labels = values[~is_void], None
    if rule.values is not None:
        chosen = [value for value in known if _is_named(value, stored, rule)]
        mask = np.isin(stored.values, chosen)
        labels = np.where(mask, np.searchsorted(chosen, stored.values) + 1, 0).astype(np.int32)
    else:
        chosen, mask = _of_two(stored, known, counts[~is_void])
        mask = mask if valid is None else mask & valid
    foreground, void = (tuple(map(stored.name, part)) for part in (chosen, values[is_void]))
    return Truth(mask, valid, foreground, void, labels)


def _is_void(name: Value, names: Sequence[Value], rule: MaskRule) -> bool:
    if rule.void is not None:
        return name in rule.void
    if name != VOID or rule.values == NONZERO:
        return False
    if isinstance(rule.values, tuple):  # class numbers by name: 255 is void unless it is named
        return VOID not in rule.values and all(_is_class(value) for value in rule.values)
    others = [value for value in names if value != VOID]
    return len(others) > 1 and all(_is_class(value) for value in others)


def _is_class(value: Value) -> bool:
    return isinstance(value, int) and 0 <= value <= _LARGEST_CLASS


def _is_named(value: Any, stored: _Stored, rule: MaskRule) -> bool:
    if rule.values == NONZERO:
        return value not in stored.black
    assert isinstance(rule.values, tuple)
    name = stored.name(value)
    if stored.colour and not any(isinstance(value, str) for value in rule.values):
        raise ImageError(
            f"holds colours: name those of the object, as in foreground=({name!r},), or use "
            f"foreground='nonzero'."
        )
    return name in rule.values


def _of_two(
    stored: _Stored, values: np.ndarray, counts: np.ndarray
) -> tuple[list[Any], np.ndarray]:
    """The foreground of a mask that should have two values: the value, and the mask."""
    dark = np.isin(values, stored.black)
    if len(values) <= 2:
        bright = values[~dark]
        if len(bright) < 2:
            return list(bright), np.isin(stored.values, bright)
        low, high = values
        # Grey levels need not reach black and white; 255 beside a class number may be void.
        classes = high == VOID and low <= _LARGEST_CLASS
        if not stored.colour and not classes and low < 64 and 192 <= high <= 255:
            return [high], stored.values == high
    else:
        levels = _single_channel(stored)
        edges = None if levels is None else _soft_edges(levels)
        if levels is not None and edges is not None:
            return [edges[1]], levels > (float(edges[0]) + float(edges[1])) / 2
    order = np.argsort(-counts, kind="stable")
    shares = 100 * counts / counts.sum()
    shown = [f"{stored.name(values[at])} ({shares[at]:.3g} %)" for at in order[:_LISTED]]
    more = f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
    example = stored.name(values[order][~dark[order]][0])
    raise ImageError(
        f"holds {len(values)} values, {', '.join(shown)}{more}, and does not say which are the "
        f"object: name them, as in foreground=({example!r},), use foreground='nonzero' if it "
        f"numbers the objects, and name values to leave out with void=."
    )


def _single_channel(stored: _Stored) -> np.ndarray | None:
    """Grey levels, or the strongest channel where all colours are shades of one."""
    if not stored.colour:
        return stored.values
    if _TRANSPARENT in stored.black:
        return None
    codes = stored.values
    rgb = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255]).astype(np.int32)
    brightest = rgb[:, rgb.max(0) == rgb.max()][:, 0]
    top = rgb.max(0)
    shades = np.abs(rgb * brightest.max() - brightest[:, None, None] * top)
    return top if int(shades.max()) <= 2 * int(brightest.max()) else None


def _soft_edges(levels: np.ndarray) -> tuple[Any, Any] | None:
    """The two values between whose regions all others lie as a narrow border, if there are."""
    from scipy.ndimage import maximum_filter

    values, counts = _count(levels)
    upper = values > (float(values[0]) + float(values[-1])) / 2
    low = values[~upper][np.argmax(counts[~upper])]
    high = values[upper][np.argmax(counts[upper])]
    dark, bright = levels == low, levels == high
    between = ~(dark | bright)
    # Two values and one or two more are classes, however narrow.
    if len(values) < 5 or np.count_nonzero(between) > 0.5 * levels.size:
        return None
    size = 2 * _EDGE + 1
    near_both = [maximum_filter(side, size) for side in (dark, bright)]
    stray = np.count_nonzero(between & ~np.logical_and(*near_both))
    return (low, high) if stray <= 0.01 * np.count_nonzero(between) else None


def _two_heaps(stored: _Stored, rule: MaskRule) -> Truth:
    """The foreground of a lossy mask: its levels must gather around two, dark and bright."""
    levels = stored.values
    low, high = float(levels.min()), float(levels.max())
    span, middle = high - low, (low + high) / 2
    if rule.values not in (None, NONZERO) or rule.void:
        raise ImageError(
            "is stored with loss, so its values are not exact and cannot be named: leave out "
            "foreground= and void=, or save it as PNG."
        )
    if not span:
        if 64 <= low < 192:
            raise ImageError(f"is grey ({low:g}) all over: check how it was made.")
        return Truth(levels > 127, None, (int(high),) if high > 127 else ())
    if span < 32:
        raise ImageError(
            f"holds levels from {low:g} to {high:g} only, and a format with loss keeps no class "
            f"numbers: save it as PNG."
        )
    share = float((np.abs(levels - middle) < span / 4).mean())
    if share > _HALFWAY:
        raise ImageError(
            f"is stored with loss and its levels do not gather around two ({100 * share:.0f} % "
            f"lie halfway): save it as PNG, and name the object's values with foreground=."
        )
    return Truth(levels > (127 if low < 64 and high >= 192 else middle), None, (int(high),))


def _count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, ascending, and how often."""
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel())
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(values, return_counts=True)


def _by_threshold(image: Image.Image, rule: MaskRule) -> Truth:
    """Thresholded luma, as published data sets have it."""
    palette, lossy = image.mode == "P", image.format in _LOSSY
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image)
        if float(levels.max()) > _LARGEST_LABEL:
            levels = _deep_luma(levels)
    elif image.mode in ("1", "L") and "transparency" not in image.info:
        levels = np.asarray(image.convert("L"))
    else:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        levels = np.asarray(Image.alpha_composite(white, rgba).convert("L"))
    _check_levels(levels, 0 if lossy else (255 if palette else _LARGEST_LABEL), rule)
    return Truth(rule(levels))


def _check_levels(levels: np.ndarray, largest_label: int, rule: MaskRule) -> None:
    assert rule.threshold is not None
    largest = float(levels.max())
    if 0 < largest <= min(largest_label, rule.threshold):
        raise ImageError(
            f"holds class numbers up to {largest:g} and no grey levels: say which numbers are "
            f"foreground, such as foreground=(1,)."
        )


def _deep_luma(levels: np.ndarray) -> np.ndarray:
    """Grey levels of more than 8 bits divided by their type's full range; (H, W) uint8."""
    high = float(levels.max())
    if levels.dtype.kind != "f":
        full = 65535.0 if high <= 65535 else high
    else:
        full = 1.0 if high <= 1 else max(high, 255.0)
    return np.rint(levels.astype(np.float64) * 255 / full).astype(np.uint8)
