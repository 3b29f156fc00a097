"""What is marked in images of a set, read, checked, and laid on patches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from unseg_jax.data.masks import read_mask
from unseg_jax.errors import closest

if TYPE_CHECKING:
    from jaxtyping import Float, Float16

    from unseg_jax.data.decoding import Source
    from unseg_jax.data.reading_options import Reading
    from unseg_jax.data.truths import Truth

_RADIUS = 0.7  # standard deviation of what a click marks, in patches

Click = tuple[float, float, bool]
"""x and y in pixels of the image, from its left and its top, and whether a thing is there."""


class Stroke(NamedTuple):
    """A painted line: its points (x, y) and its radius in pixels, and whether a thing is there."""

    points: Sequence[tuple[float, float]]
    radius: float
    thing: bool


Mark = Click | Stroke | tuple[Sequence[tuple[float, float]], float, bool]
"""A click, or a stroke, which may be a plain tuple."""


class Marks(NamedTuple):
    """What is marked in one image: a mask, clicks and strokes, or both."""

    size: tuple[int, int]
    truth: Truth | None = None
    clicks: tuple[Click | Stroke, ...] = ()


class Marked(NamedTuple):
    """A marked image as it is learned from.

    Attributes:
        features: (1, h, w, d) of its patches.
        marks: what is marked.
        views: features and mask of the image as it is seen otherwise, see
            `unseg_jax.collective.example_views`; gone through once.
    """

    features: Float16[np.ndarray, "1 h w d"]
    marks: Marks
    views: Iterable[tuple[Float16[np.ndarray, "1 a b d"], Truth]] = ()


def read_marks(
    sources: Sequence[Source],
    reading: Reading,
    examples: Mapping[Any, Source] | None = None,
    clicks: Mapping[Any, Iterable[Mark]] | None = None,
) -> dict[int, Marks]:
    """The marks of images, by the index of their image in `sources`.

    Raises:
        ValueError: no marks, one of an image that is none of the set, a mask of another size, a
            click or stroke outside of its image, or nothing but foreground or background in all
            masks.
        ImageError: an image or a mask that cannot be read.
    """
    places = {_place(source): index for index, source in enumerate(sources)}
    marks: dict[int, Marks] = {}
    for path, mask in (examples or {}).items():
        index = _index_of(path, places, sources)
        truth, size = read_mask(mask), reading.read(sources[index]).size
        if truth.shape != tuple(size):
            raise ValueError(
                f"the mask of {path} has {truth.shape[1]} × {truth.shape[0]} pixels and the image "
                f"{size[1]} × {size[0]}: give one of the image's size."
            )
        marks[index] = Marks(size, truth)
    clicked = False
    for path, points in (clicks or {}).items():
        index = _index_of(path, places, sources)
        points = tuple(points)
        if not points:
            continue
        clicked = True
        known = marks.get(index) or Marks(reading.read(sources[index]).size)
        points = tuple(_checked(one, path, known.size) for one in points)
        marks[index] = known._replace(clicks=known.clicks + points)
    truths = [one.truth for one in marks.values() if one.truth is not None]
    if not clicked and not any(truth.mask.any() for truth in truths):
        raise ValueError("no example marks any foreground: mark an object in at least one image.")
    if not clicked and all(truth.known(truth.mask).all() for truth in truths):
        raise ValueError("all examples are foreground all over: leave some background unmarked.")
    return marks


def _checked(mark: Any, path: Any, size: tuple[int, int]) -> Click | Stroke:
    if np.ndim(mark[0]):
        points = tuple((float(x), float(y)) for x, y in mark[0])
        what, mark = "stroke", Stroke(points, float(mark[1]), bool(mark[2]))
        if not points or not 0 < mark.radius <= max(size):
            raise ValueError(
                f"a stroke on {path} has {len(points)} points and a radius of {mark.radius:g} "
                "pixels: give at least one point, and a radius within the image."
            )
    else:
        what, mark = "click", (float(mark[0]), float(mark[1]), bool(mark[2]))
        points = (mark[:2],)
    for x, y in points:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise ValueError(
                f"the {what} at {x:g}, {y:g} lies outside of {path}, which has "
                f"{size[1]} × {size[0]} pixels: give x and y from its top left."
            )
    return mark


def _index_of(path: Any, places: Mapping[Any, int], sources: Sequence[Source]) -> int:
    if isinstance(path, int) and 0 <= path < len(sources):
        return path
    index = None if _place(path) is None else places.get(_place(path))
    if index is None:
        match = closest(str(path), [str(source) for source in sources if _place(source)])
        hint = f"did you mean {match}?" if match else "give the path of one that is fitted."
        raise ValueError(f"the example {path} is not among the images: {hint}")
    return index


def _place(source: Any) -> tuple[Path, int | None] | None:
    """What tells a file, or a page of one, from others; None of what is no path."""
    if not isinstance(source, str | os.PathLike):
        return None
    return Path(source).expanduser().resolve(), getattr(source, "number", None)


def click_shares(
    x: float, y: float, size: tuple[int, int], grid: tuple[int, int]
) -> Float[np.ndarray, " n"]:
    """(N,) how much of a click falls to each patch, 1 in all: a Gaussian of patches around it."""
    places = [(np.arange(count) + 0.5) for count in grid]
    rows, columns = (
        np.exp(-(((place - at * count / length) / _RADIUS) ** 2) / 2)
        for place, at, count, length in zip(places, (y, x), grid, size, strict=True)
    )
    shares = np.outer(rows, columns).ravel()
    shares[shares < 0.1 * shares.max()] = 0
    return shares / shares.sum()


def mark_shares(
    mark: Click | Stroke, size: tuple[int, int], grid: tuple[int, int]
) -> Float[np.ndarray, " n"]:
    """(N,) how much of a mark falls to each patch, 1 in all: of a stroke what it covers."""
    if not isinstance(mark, Stroke):
        return click_shares(mark[0], mark[1], size, grid)
    points, radius, _ = mark
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    draw.line(list(points), 255, max(1, round(2 * radius)))
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    covered = canvas.convert("F").resize((grid[1], grid[0]), Image.Resampling.BOX)
    shares = np.asarray(covered, np.float64).ravel()
    return shares / shares.sum()


def patch_targets(truth: Truth, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) targets from -1 (none of a patch is marked) to 1 (all), and (N,) its known share."""
    rows, columns = (_overlaps(*sides) for sides in zip(truth.shape, grid, strict=True))
    valid = np.ones(truth.shape) if truth.valid is None else truth.valid
    mask, known = (rows @ part.astype(np.float64) @ columns.T for part in (truth.mask, valid))
    return (2 * mask / np.maximum(known, 1e-9) - 1).ravel(), known.ravel()


def _overlaps(length: int, count: int) -> np.ndarray:
    """(count, length) the share that each pixel has in each of equal parts of a side."""
    edges = np.linspace(0, length, count + 1)[:, None]
    pixels = np.arange(length)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(shared, 0) * count / length
