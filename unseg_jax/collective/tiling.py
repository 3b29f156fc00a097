"""Large images in tiles: each is seen at the method's size, and all of an image are cut alike.

An object that is a few patches of the whole image fills a tile. Tiles overlap and are blended, so
that none shows its border. What is foreground is not decided in each tile, because many hold
nothing else: the threshold of an image is that of the tiles which their own splits best.

Which images are seen closer without being asked is decided here too: see `stream_closer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.collective import set_scorer
from unseg_jax.collective.cues import CLEAR, clearness, otsu
from unseg_jax.collective.segmenter import SCORED
from unseg_jax.data.decoding import as_iterable
from unseg_jax.data.loader import batches
from unseg_jax.errors import ImageError
from unseg_jax.export.drawing import shrink_image
from unseg_jax.postprocess.margins import interpolate, margin_confidence, refine_margins
from unseg_jax.postprocess.objects import MIN_AREA
from unseg_jax.registry import resolve
from unseg_jax.segmentation import TWICE_NOTE, Segmentation
from unseg_jax.segmenter import BatchSegmenter, Work
from unseg_jax.segmenter.device import WithFeatures
from unseg_jax.segmenter.finishing import not_finite
from unseg_jax.segmenter.streaming import name_of, stream_batches

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float16

    from unseg_jax.data.decoding import Picture, Source

Box = tuple[int, int, int, int]

# Tiles of an image are this share of their side apart, or nearer.
_STEP = 0.75
# Pixels of the result for a side of a tile: what edges are refined at.
_SIDE = 256
# Side of the tiles that are taken by default; doubled while an image is more than six tiles long.
_UNASKED, _MOST = 1024, 6


class TileResult(NamedTuple):
    """What the device gives back for a batch of tiles.

    Attributes:
        scores: (B, h, w) float32, not yet compared with a threshold.
        valid: (B, h, w) bool, False on the frame.
        thresholds: (B,) float32, Otsu's of each tile.
        clearness: (B,) float32, the variance between the two sides of it (what Otsu maximises).
        finite: (B,) bool, False where features are not finite numbers.
    """

    scores: Float[Array, "b h w"]
    valid: Bool[Array, "b h w"]
    thresholds: Float[Array, " b"]
    clearness: Float[Array, " b"]
    finite: Bool[Array, " b"]


class _Tiles(NamedTuple):
    """An image on its way to the device."""

    name: str
    picture: Picture
    boxes: list[Box]
    prepared: list[np.ndarray]


def tile_boxes(height: int, width: int, side: int) -> list[Box]:
    """Tiles that cover an image, row by row, evenly spaced, each overlapping the next by a quarter
    of its side or more.

    Returns:
        (left, top, right, bottom) of each; all of one size, which is `side` × `side` unless the
        image is smaller.

    >>> tile_boxes(100, 170, 100)
    [(0, 0, 100, 100), (70, 0, 170, 100)]
    """
    rows, columns = _starts(height, side), _starts(width, side)
    tall, wide = min(side, height), min(side, width)
    return [(left, top, left + wide, top + tall) for top in rows for left in columns]


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The pixels (h, w, 3) of a box."""
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = 1 + int(np.ceil((length - side) / (_STEP * side)))
    return [int(start) for start in np.linspace(0, length - side, count).round()]


def apply_tiles(method, how, key, fitted, features, grid, record_every) -> TileResult:
    """The scorer on tiles, without a threshold; see `device.Apply`."""

    def one(features):
        _, scores, valid = set_scorer.score(fitted.scorer, features, grid)
        threshold = otsu(scores, valid)
        return scores, valid, threshold, clearness(scores, valid, threshold)

    scores, valid, thresholds, clear = jax.vmap(one)(features)
    finite = jnp.isfinite(features).all((1, 2)) & jnp.isfinite(scores).all(1)
    shape = (-1, *grid)
    return TileResult(scores.reshape(shape), valid.reshape(shape), thresholds, clear, finite)


def stream_tiles(
    segmenter: BatchSegmenter, images: Source | Iterable[Source], full_pixels: bool
) -> Iterator[Segmentation | ImageError]:
    """Each image in tiles of `method.tile` pixels; see `BatchSegmenter.stream`."""
    read = functools.partial(_read_tiles, segmenter, full_pixels)
    entries = enumerate(as_iterable(images))
    loaded = batches(entries, read, 1, workers=segmenter.reading.workers, ahead=1)
    with contextlib.closing(loaded):
        for (outcome,) in loaded:
            if outcome.error is not None:
                if not isinstance(outcome.error, ImageError):
                    raise outcome.error
                yield outcome.error
                continue
            assert outcome.value is not None
            try:
                yield _segment_tiles(segmenter, outcome.value)
            except ImageError as error:
                yield error


def _read_tiles(segmenter: BatchSegmenter, full_pixels: bool, entry) -> _Tiles:
    index, source = entry
    picture = segmenter.reading.read(source)
    height, width, _ = picture.pixels.shape
    boxes = tile_boxes(height, width, segmenter.method.tile)
    prepared = [segmenter.prepare(cut(picture.pixels, box)) for box in boxes]
    if not full_pixels:
        # A copy, so that the decoded image is let go.
        picture = dataclasses.replace(picture, pixels=shrink_image(picture.pixels))
    return _Tiles(name_of(source, index), picture, boxes, prepared)


def _segment_tiles(segmenter: BatchSegmenter, image: _Tiles) -> Segmentation:
    full, boxes, size = image.picture.size, image.boxes, segmenter.at_once
    method, fitted = segmenter.method, segmenter.fitted
    parts = [
        jax.device_get(segmenter.run(image.prepared[start : start + size], size=size))
        for start in range(0, len(boxes), size)
    ]
    found: Any = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    features = None
    if isinstance(found, WithFeatures):
        found, tiles = found
        features = join(np.asarray(tiles), boxes, full)
    if not found.finite.all():
        raise not_finite(image.name, segmenter.backbone_name)
    threshold = choose_threshold(found.thresholds, found.clearness)
    if not np.isfinite(threshold):
        threshold = float(fitted.scorer.threshold)
    margins = np.where(found.valid, found.scores - threshold, set_scorer.FRAME_SCORE)
    refined = [
        refine_margins(pixels, one, method)
        for pixels, one in zip(image.prepared, margins, strict=True)
    ]
    scale = min(1.0, _SIDE / max(boxes[0][2], boxes[0][3]))
    blended = blend(refined, boxes, full, scale)
    mask = blended > 0
    return Segmentation.of(
        mask,
        mask,
        size=full,
        num_clusters=len(np.unique(mask)),
        confidence=margin_confidence(blended),
        notes=image.picture.notes,
        losses=np.zeros(0, np.float32),
        evidence=np.clip(blended, -1, 1),
        pixels=image.picture.pixels,
        patch_features=features,
        # A speck is one of a tile, not of the image.
        min_area=MIN_AREA * min(1.0, method.tile**2 / (full[0] * full[1])),
        method=method.name,
        backbone=segmenter.backbone_name,
        id=image.name,
    )


def stream_closer(
    segmenter: BatchSegmenter, images: Source | Iterable[Source], full_pixels: bool
) -> Iterator[Segmentation | ImageError]:
    """Images whole, and those that ask for it once more: in tiles, or at twice the size. These are
    decoded twice; see `BatchSegmenter.stream`."""
    begun: deque[Source] = deque()

    def remembered():
        for source in as_iterable(images):
            begun.append(source)
            yield source

    # Results from the first that is to be seen at twice the size on, which is done in batches.
    waiting: list[tuple[Source, Segmentation | ImageError]] = []
    for found in stream_batches(segmenter, remembered(), full_pixels):
        source = begun.popleft()
        if isinstance(found, Segmentation) and found.look_closer == "tiles":
            found = _see_tiles(segmenter, source, found, full_pixels)
        if not (waiting or _asks_twice(found)):
            yield found
            continue
        waiting.append((source, found))
        if len(waiting) == segmenter.at_once:
            yield from _see_twice(segmenter, waiting, full_pixels)
            waiting = []
    yield from _see_twice(segmenter, waiting, full_pixels)


def _asks_twice(found: Segmentation | ImageError) -> bool:
    return isinstance(found, Segmentation) and found.look_closer == "scales"


def _see_tiles(
    segmenter: BatchSegmenter, source: Source, found: Segmentation, full_pixels: bool
) -> Segmentation:
    """What tiles of a large image show, if anything, instead of what was found in the whole."""
    side = tile_side(max(found.size))
    tiled = segmenter.but(method=resolve(segmenter.method, tile=side), work=TILED)
    (closer,) = tiled.stream([source], full_pixels=full_pixels)
    if not (isinstance(closer, Segmentation) and closer.objects):
        return found
    return dataclasses.replace(closer, id=found.id, notes=(*closer.notes, tiled_note(side)))


def _see_twice(
    segmenter: BatchSegmenter,
    results: list[tuple[Source, Segmentation | ImageError]],
    full_pixels: bool,
) -> Iterator[Segmentation | ImageError]:
    """Results, instead of some what is found in their images at two sizes, if anything."""
    work = segmenter.work._replace(stream=stream_batches)
    twice = segmenter.but(method=resolve(segmenter.method, scales=2), work=work)
    again = [source for source, found in results if _asks_twice(found)]
    closer = twice.stream(again, full_pixels=full_pixels) if again else iter(())
    for _, found in results:
        other = next(closer) if _asks_twice(found) else None
        if isinstance(found, Segmentation) and isinstance(other, Segmentation) and other.objects:
            notes = (*other.notes, TWICE_NOTE)
            found = dataclasses.replace(other, id=found.id, notes=notes)
        yield found


TILED = Work(apply_tiles, stream=stream_tiles)
CLOSER = SCORED._replace(stream=stream_closer)


def tile_side(longest: int) -> int:
    """Side of the tiles of an image that is `longest` pixels long, where none was asked for.

    >>> [tile_side(longest) for longest in (2000, 6144, 12000, 40000)]
    [1024, 1024, 2048, 8192]
    """
    side = _UNASKED
    while side * _MOST < longest:
        side *= 2
    return side


def tiled_note(side: int) -> str:
    """What is said of an image that was seen in tiles by default."""
    return f"what was found in the whole image is small, so it was seen in tiles of {side} pixels."


def choose_threshold(thresholds: np.ndarray, clear: np.ndarray) -> float:
    """One threshold for an image.

    Args:
        thresholds: (T,) Otsu's of each tile; infinite where a tile is all frame.
        clear: (T,) the variance between the two sides of each.

    Returns:
        The mean over the tiles whose split is at least half as clear as the clearest one's, which
        are those that hold an object and its surroundings; infinity if there is none.
    """
    usable = np.isfinite(thresholds)
    if not usable.any():
        return float("inf")
    counted = usable & (clear >= CLEAR * clear[usable].max())
    return float(thresholds[counted].mean())


def blend(
    margins: list[np.ndarray], boxes: list[Box], size: tuple[int, int], scale: float
) -> Float[np.ndarray, "h w"]:
    """Margins of tiles as one map of the image.

    Args:
        margins: (any, any) float32 of each tile.
        boxes: (left, top, right, bottom) of each in the image.
        size: (H, W) of the image.
        scale: pixels of the map for a pixel of the image, at most 1.

    Returns:
        (h, w) float32 of H·scale and W·scale, rounded; each tile counts less towards its edges.
    """
    height, width = (max(1, round(side * scale)) for side in size)
    total, weight = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for one, (left, top, right, bottom) in zip(margins, boxes, strict=True):
        rows = slice(round(top * scale), max(round(top * scale) + 1, round(bottom * scale)))
        columns = slice(round(left * scale), max(round(left * scale) + 1, round(right * scale)))
        shape = total[rows, columns].shape
        window = np.outer(*(_window(length) for length in shape))
        total[rows, columns] += window * interpolate(one, shape)
        weight[rows, columns] += window
    return total / np.maximum(weight, 1e-6)


def join(
    tiles: Float16[np.ndarray, "t h w d"], boxes: list[Box], size: tuple[int, int]
) -> Float16[np.ndarray, "r c d"]:
    """Features of tiles as one grid over the image; where tiles overlap, those of the last."""
    _, tall, wide, width = tiles.shape
    left, top, right, bottom = boxes[0]
    free = size[0] - (bottom - top), size[1] - (right - left)
    rows, columns = round(size[0] * tall / (bottom - top)), round(size[1] * wide / (right - left))
    joined = np.zeros((rows, columns, width), tiles.dtype)
    for tile, (left, top, _, _) in zip(tiles, boxes, strict=True):
        row = round(top / max(1, free[0]) * (rows - tall))
        column = round(left / max(1, free[1]) * (columns - wide))
        joined[row : row + tall, column : column + wide] = tile
    return joined


def _window(length: int) -> np.ndarray:
    """(length,) 1 in the middle half, falling linearly towards both ends, never 0."""
    place = (np.arange(length, dtype=np.float32) + 0.5) / length
    return np.minimum(1.0, 4 * np.minimum(place, 1 - place))
