"""What was decided on the report of a run: which images are right, and what was marked."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from unseg_jax.data.folders import ImageFile
from unseg_jax.errors import InputError, printable
from unseg_jax.export.kinds import Kinds, unpack
from unseg_jax.export.rle import decode_rle

VERDICTS = ("keep", "reject", "undecided")
REASONS = ("", "inverted", "too much", "too little", "wrong thing")
_FORMAT = "unseg-jax decisions"
_MOST_PIXELS = 2**32


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided on one image.

    Attributes:
        name: of the image in its run.
        verdict: one of `VERDICTS`.
        reason: why it was rejected, one of `REASONS`.
        clicks: (x, y, whether on a thing), and strokes as (points, radius, whether on a thing), in
            pixels of the image.
        mask: (H, W) bool, what was found; None where the file does not hold it.
    """

    name: str
    verdict: str
    reason: str = ""
    clicks: tuple[tuple[Any, Any, bool], ...] = ()
    mask: np.ndarray | None = None

    @property
    def example(self) -> np.ndarray | None:
        """The mask that the image is an example of: as it was kept, or the inverted one."""
        if self.verdict == "keep":
            return self.mask
        return None if self.mask is None or self.reason != "inverted" else ~self.mask

    @property
    def left_out(self) -> bool:
        """Whether a fit does without the image."""
        return self.verdict == "reject" and self.example is None and not self.clicks


def read_decisions(path: str | os.PathLike) -> tuple[Decision, ...]:
    """The decisions that the report exported: JSON, or the CSV of earlier reports.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    return _read(path, parse_decisions, functools.partial(_from_csv, path))


def read_kinds(path: str | os.PathLike) -> Kinds | None:
    """The kinds that the report exported, with their names and those dropped; None without.

    Raises:
        InputError: see `read_decisions`.
    """
    return _read(path, parse_kinds, lambda text: None)


def _read(
    path: str | os.PathLike, parse: Callable[[Any], Any], from_csv: Callable[[str], Any]
) -> Any:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
        return parse(json.loads(text)) if text.startswith("{") else from_csv(text)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error}): export it again.") from None


def parse_decisions(content: Any) -> tuple[Decision, ...]:
    """Decisions from the JSON of the report.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError("it holds no decisions of unseg-jax")
    return tuple(map(_parsed, _list(content.get("images"))))


def parse_kinds(content: Any) -> Kinds | None:
    """Kinds from the JSON of the report; None where it decided on none.

    Raises:
        ValueError: it is something else.
    """
    stored = content.get("kinds")
    if stored is None:
        return None
    try:
        kinds, dropped = unpack(stored["told"]), frozenset(_list(stored["dropped"]))
        both = zip(_list(stored["names"]), kinds.names, strict=True)
        names = tuple(printable(given.strip(), 80) or name for given, name in both)
        if not dropped <= set(range(1, len(names) + 1)):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("its kinds cannot be used") from None
    return dataclasses.replace(kinds, names=names, dropped=dropped)


def kept_names(decisions: Iterable[Decision]) -> frozenset[str]:
    """Names of the images to keep.

    Raises:
        InputError: there are none.
    """
    kept = frozenset(one.name for one in decisions if one.verdict == "keep")
    if not kept:
        raise InputError("no image is kept: press Keep on some before you export decisions.")
    return kept


def marks_from(
    decisions: Iterable[Decision], images: Iterable[ImageFile]
) -> tuple[list[Any], dict[Any, np.ndarray], dict[Any, tuple]]:
    """What `unseg_jax.fit` takes: images without those that were rejected, examples and clicks.

    Raises:
        InputError: a decision on an image that is not there, or on no mask and no mark.
    """
    named = {image.name: image.source for image in images}
    examples, clicks, left_out = {}, {}, set()
    for one in decisions:
        if one.name not in named:
            raise InputError(
                f"'{printable(one.name)}' was decided on and is none of the {len(named)} images: "
                "give the folders and options that the report was made with."
            )
        source = named[one.name]
        left_out |= {source} if one.left_out else set()
        if one.example is not None:
            examples[source] = one.example
        if one.clicks:
            clicks[source] = one.clicks
    if not examples and not clicks:
        raise InputError("the decisions keep no mask and have no mark: there is nothing to learn.")
    return [one for one in named.values() if one not in left_out], examples, clicks


def _from_csv(path: Any, text: str) -> tuple[Decision, ...]:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if rows and not {"name", "decision"} <= rows[0].keys():
        raise InputError(
            f"{path} has no columns name and decision: export it from the report of a run."
        )
    return tuple(Decision(row["name"], row["decision"]) for row in rows)


def _parsed(image: Any) -> Decision:
    if not isinstance(image, dict) or not isinstance(image.get("name"), str):
        raise ValueError("an image has no name")
    name, verdict, reason = image["name"], image.get("decision"), image.get("reason", "")
    shown = printable(name, 80)
    if verdict not in VERDICTS or reason not in REASONS:
        raise ValueError(f"{shown}: neither decision nor reason is known")
    clicks: list[tuple[Any, Any, bool]] = []
    for click in _list(image.get("clicks", [])):
        if not isinstance(click, list) or len(click) != 3 or not isinstance(click[2], bool):
            raise ValueError(f"{shown}: a click is not [x, y, true] or [x, y, false]")
        clicks.append((float(click[0]), float(click[1]), click[2]))
    for stroke in _list(image.get("strokes", [])):
        try:
            points = [(float(x), float(y)) for x, y in stroke["points"]]
            clicks.append((points, float(stroke["radius"]), bool(stroke["thing"])))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{shown}: a stroke is not points, radius and thing") from None
    mask = None
    if "objects" in image:
        try:
            mask = mask_of(image["size"], image["objects"])
        except (KeyError, TypeError, ValueError, IndexError, MemoryError):
            raise ValueError(f"{shown}: its mask cannot be used") from None
    return Decision(name, verdict, reason, tuple(clicks), mask)


def mask_of(size: Any, objects: Any) -> np.ndarray:
    """(H, W) bool: the pieces of a `Record`, or of JSON, put together.

    Raises:
        ValueError, KeyError, TypeError, IndexError, MemoryError: they are something else.
    """
    height, width = size
    if not (isinstance(height, int) and isinstance(width, int) and height * width < _MOST_PIXELS):
        raise ValueError
    mask = np.zeros((height, width), bool)
    for item in objects:
        left, top, right, bottom = item["box"]
        piece = mask[top:bottom, left:right]
        if min(left, top) < 0 or piece.shape != (bottom - top, right - left):
            raise ValueError
        piece |= decode_rle({"size": piece.shape, "counts": item["counts"]})
    return mask


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return value
