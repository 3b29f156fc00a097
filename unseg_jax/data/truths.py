"""What a mask's values mean: the rule that tells the object, and the truth that comes of it."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from unseg_jax.errors import ImageError

Value = int | float | str
"""A stored value: a number, or "#rrggbb" for a colour and "transparent"."""

NONZERO = "nonzero"
"""As `foreground='nonzero'`: everything but 0, as in masks that number the objects."""
VOID = 255
"""The value that class masks give to pixels that no class is known of."""
_VALUE = re.compile(r"(?P<first>\d+)(-(?P<last>\d+))?|(?P<word>transparent|#[0-9a-f]{6})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """Which values of a mask are foreground.

    Without any field set, a mask must have two values, of which the one that is not the
    background's (0, black, transparent) is foreground.

    Attributes:
        threshold: grey levels (0..255, deeper ones scaled to it, colours as their luma) above
            this are foreground; the rule of many published data sets.
        values: exactly these stored values are foreground; or `NONZERO`, all but 0.
        void: these stored values are left out of every score; None leaves out 255 in class
            masks, an empty tuple nothing.
    """

    threshold: int | None = None
    values: tuple[Value, ...] | str | None = None
    void: tuple[Value, ...] | None = None

    def __call__(self, levels: np.ndarray) -> np.ndarray:
        """Applies a threshold or values to (H, W) numbers; gives bool (H, W)."""
        if self.threshold is not None:
            return levels > self.threshold
        if self.values is None or self.values == NONZERO:
            return levels != 0
        return np.isin(levels, self.values)

    def __str__(self) -> str:
        if self.threshold is not None:
            return f"value > {self.threshold}"
        if self.values is None:
            return "the value of two that is not the background's"
        if self.values == NONZERO:
            return "value other than 0"
        return "value in {" + ", ".join(_runs(self.values)) + "}"


DEFAULT_RULE = MaskRule()
"""Two values; the one that is not 0, black or transparent is foreground."""

LUMA_RULE = MaskRule(threshold=127)
"""Grey levels above 127 are foreground, as many published data sets have it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What a mask says.

    Attributes:
        mask: (H, W) bool, True on the object; False where void.
        valid: (H, W) bool, False where void and left out of every score; None if nothing is.
        foreground: stored values that are foreground and occur in this mask.
        void: stored values that are void and occur in this mask.
        labels: (H, W) int32, 0 = background, else which of `foreground` it is, from 1; None
            where the rule names no values.
    """

    mask: np.ndarray
    valid: np.ndarray | None = None
    foreground: tuple[Value, ...] = ()
    void: tuple[Value, ...] = ()
    labels: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def share(self) -> float:
        """Share of the valid pixels that are foreground, in [0, 1]."""
        return float(self.known(self.mask).mean())

    @property
    def void_share(self) -> float:
        """Share of all pixels that are void, in [0, 1)."""
        return 0.0 if self.valid is None else 1 - float(self.valid.mean())

    def known(self, values: np.ndarray) -> np.ndarray:
        """The entries of (H, W) values where the truth is known; all of them if nothing is void."""
        return values if self.valid is None else values[self.valid]

    def crop(self, box: Sequence[int]) -> "Truth":
        """The part within (left, top, right, bottom).

        Raises:
            ImageError: all of that part is void.
        """
        left, top, right, bottom = box
        return check_known(self.each(lambda values: values[top:bottom, left:right]))

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> "Truth":
        """The same with mask, valid and labels changed alike."""
        found = {name: getattr(self, name) for name in ("mask", "valid", "labels")}
        return dataclasses.replace(
            self, **{name: None if old is None else change(old) for name, old in found.items()}
        )


def parse_values(text: str) -> tuple[Value, ...] | str | None:
    """The mask values in a text such as "1,3", "128-255", "#ff0000" or "nonzero"; None if none.

    >>> parse_values("0,2-4")
    (0, 2, 3, 4)
    >>> parse_values("corner") is None
    True
    """
    text = text.strip().lower()
    if text == NONZERO:
        return NONZERO
    values: list[Value] = []
    for part in text.split(","):
        match = _VALUE.fullmatch(part.strip())
        if match is None:
            return None
        if match["word"]:
            values.append(match["word"])
            continue
        first = int(match["first"])
        last = int(match["last"] or first)
        if not (first <= last < 2**16 or match["last"] is None):
            return None
        values += range(first, last + 1)
    return tuple(values)


def parse_void(text: str) -> tuple[Value, ...]:
    """The values that are void; "none" for no value.

    Raises:
        ValueError: anything else.
    """
    values = () if text.strip().lower() == "none" else parse_values(text)
    if values is None or isinstance(values, str):
        raise ValueError(f"void={text!r} names no mask values: write such as 255, or none.")
    return values


def check_known(truth: Truth) -> Truth:
    """The truth itself; raises ImageError if all of it is void."""
    if truth.valid is not None and not truth.valid.any():
        raise ImageError("the mask is void at every pixel: leave its image out.")
    return truth


def _runs(values: Sequence[Value]) -> Iterator[str]:
    """Values as text, with neighbours of three and more as "first-last"."""
    # Numbers that follow one another have the same distance to their places.
    distances = (value - at if isinstance(value, int) else value for at, value in enumerate(values))
    for _, run in itertools.groupby(zip(distances, values, strict=True), lambda pair: pair[0]):
        names = [str(value) for _, value in run]
        yield from (f"{names[0]}-{names[-1]}",) if len(names) > 2 else names
