"""Collages with known objects, made of images with masks: where objects touch, and where not.

An object is what a mask cuts out of its image, if it is one piece and does not touch the image's
edge. A background is the largest part of another image of the set that its mask leaves free, at
the collage's size. So every texture comes from a photograph, every truth is exact, and no labelled
object is hidden in the background; unlabelled ones may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = (300, 400)
"""(height, width) of a collage in pixels."""
COUNTS = (2, 3, 4)
"""Objects of a collage, in turn."""
SIDES = (0.25, 0.5)
"""The longer side of an object, as a share of the collage's width: uniform between these."""
GAP = 16
"""Pixels at least between objects that do not touch: a little more than a patch."""
MARGIN = 6
"""Pixels between an object's box and the edge of the collage."""
OVERLAP = 0.04
"""Share of an object that may cover the one it touches."""
CONTACT = 10
"""Pixels at least along which objects touch."""
_LEAST_SIDE = 60
_LEAST_FREE = 0.12
_ASPECTS = (0.75, 2.4)
_CELLS = 24
_TRIES = 40


@dataclasses.dataclass(frozen=True, eq=False)
class Cutout:
    """An object, cropped to its box.

    Attributes:
        pixels: (h, w, 3) uint8.
        mask: (h, w) bool.
        source: number of the image that it is cut out of.
    """

    pixels: np.ndarray
    mask: np.ndarray
    source: int


@dataclasses.dataclass(frozen=True, eq=False)
class Collage:
    """An image made of objects.

    Attributes:
        image: (H, W, 3) uint8.
        truths: (n, H, W) bool, what can be seen of each object; no pixel belongs to two.
    """

    image: np.ndarray
    truths: np.ndarray


def read_parts(source: str | Path) -> tuple[list[Cutout], list[tuple[int, np.ndarray]]]:
    """What a data set with masks gives for collages.

    Args:
        source: as `unseg_jax.data.open_dataset` takes it.

    Returns:
        The objects; and the backgrounds, each with the number of its image.
    """
    from unseg_jax.data import fit_mask, load_image, open_dataset, read_mask

    dataset = open_dataset(source)
    cutouts, backgrounds = [], []
    for number, item in enumerate(dataset.items):
        image = load_image(item.image)
        truth, _ = fit_mask(read_mask(item.mask, dataset.rule), image.shape[:2])
        cutout = cut_out(image, truth.mask, number)
        if cutout is not None:
            cutouts.append(cutout)
        box = free_box(truth.mask)
        if box is not None:
            left, top, right, bottom = box
            backgrounds.append((number, _resize(image[top:bottom, left:right], SIZE)))
    return cutouts, backgrounds


def cut_out(image: np.ndarray, mask: np.ndarray, source: int = 0) -> Cutout | None:
    """The object of an image (H, W, 3) with its mask (H, W); None if it is in pieces, touches the
    edge, or is too small to be enlarged."""
    pieces, count = ndimage.label(mask)  # type: ignore[misc]
    if not count:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    largest = 1 + int(np.argmax(sizes))
    rows, columns = ndimage.find_objects(pieces)[largest - 1]
    ends = (rows.start, columns.start, mask.shape[0] - rows.stop, mask.shape[1] - columns.stop)
    sides = (rows.stop - rows.start, columns.stop - columns.start)
    if sizes.max() < 0.95 * sizes.sum() or min(ends) < 1 or max(sides) < _LEAST_SIDE:
        return None
    return Cutout(image[rows, columns], pieces[rows, columns] == largest, source)


def free_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the largest part of an image that its mask (H, W) leaves free.

    Looked for on 24 × 24 cells, a cell away from the mask, between 3:4 and 2.4:1. None where it is
    less than an eighth of the image.
    """
    height, width = mask.shape
    rows = np.linspace(0, height, _CELLS + 1).astype(int)
    columns = np.linspace(0, width, _CELLS + 1).astype(int)
    held = np.add.reduceat(np.add.reduceat(mask.astype(int), rows[:-1], 0), columns[:-1], 1) > 0
    held = ndimage.binary_dilation(held, np.ones((3, 3)))
    summed = np.pad(held.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, bottoms = np.triu_indices(_CELLS + 1, 1)
    inside = summed[bottoms] - summed[tops]
    inside = inside[:, bottoms] - inside[:, tops]
    heights = (rows[bottoms] - rows[tops])[:, None]
    widths = (columns[bottoms] - columns[tops])[None]
    fits = (widths >= _ASPECTS[0] * heights) & (widths <= _ASPECTS[1] * heights)
    areas = np.where((inside == 0) & fits, heights * widths, 0)
    best = np.unravel_index(np.argmax(areas), areas.shape)
    if areas[best] < _LEAST_FREE * height * width:
        return None
    down, across = int(best[0]), int(best[1])
    box = (columns[tops[across]], rows[tops[down]], columns[bottoms[across]], rows[bottoms[down]])
    return (int(box[0]), int(box[1]), int(box[2]), int(box[3]))


def build(
    cutouts: Sequence[Cutout],
    backgrounds: Sequence[tuple[int, np.ndarray]],
    count: int,
    *,
    touching: bool,
    seed: int,
) -> list[Collage]:
    """So many collages; the same for the same seed.

    Args:
        cutouts, backgrounds: as `read_parts` gives them.
        count: of collages; they hold 2, 3 and 4 objects in turn.
        touching: every object touches one before it, and may cover a little of it; else no two
            are nearer than `GAP`.
        seed: of all chance.
    """
    rng = np.random.default_rng(seed)
    made: list[Collage] = []
    while len(made) < count:
        wanted = COUNTS[len(made) % len(COUNTS)]
        chosen = [cutouts[index] for index in rng.permutation(len(cutouts))[:wanted]]
        taken = {cutout.source for cutout in chosen}
        free = [picture for number, picture in backgrounds if number not in taken]
        collage = paste(free[rng.integers(len(free))], chosen, touching=touching, rng=rng)
        if collage is not None:
            made.append(collage)
    return made


def paste(
    background: np.ndarray,
    cutouts: Iterable[Cutout],
    *,
    touching: bool,
    rng: np.random.Generator,
) -> Collage | None:
    """One collage, or None where an object found no place.

    Args:
        background: (H, W, 3) uint8.
        cutouts: of which half are mirrored.
        touching: see `build`.
        rng: of sizes, places and mirroring.
    """
    image = background.astype(np.float32)
    truths: list[np.ndarray] = []
    for cutout in cutouts:
        placed = _place(cutout, truths, background.shape[:2], touching, rng)
        if placed is None:
            return None
        pixels, mask = placed
        # Half a pixel of softness: a hard edge would be a cue of its own.
        alpha = ndimage.gaussian_filter(mask.astype(np.float32), 0.6)[..., None]
        image = alpha * pixels + (1 - alpha) * image
        truths = [truth & ~mask for truth in truths] + [mask]
    return Collage(np.round(image).astype(np.uint8), np.stack(truths))


def _place(cutout, truths, size, touching, rng):
    """Pixels and mask of an object on the whole collage, or None."""
    side = rng.uniform(*SIDES) * size[1]
    mirrored = rng.random() < 0.5
    occupied = np.logical_or.reduce(truths) if truths else np.zeros(size, bool)
    distance = ndimage.distance_transform_edt(~occupied) if truths else None
    grown = ndimage.binary_dilation(occupied)
    while side >= _LEAST_SIDE:
        pixels, mask = _scaled(cutout, side, mirrored)
        room = (size[0] - mask.shape[0] - MARGIN, size[1] - mask.shape[1] - MARGIN)
        if min(room) > MARGIN:
            for _ in range(_TRIES):
                if touching and truths:
                    corner = _slide(
                        mask, occupied, grown, truths[rng.integers(len(truths))], room, rng
                    )
                else:
                    corner = tuple(int(rng.integers(MARGIN, length)) for length in room)
                    if distance is not None and corner is not None:
                        window = _window(corner, mask)
                        corner = corner if distance[window][mask].min() > GAP else None
                if corner is not None:
                    window = _window(corner, mask)
                    whole, canvas = np.zeros(size, bool), np.zeros((*size, 3), np.float32)
                    whole[window], canvas[window] = mask, pixels
                    return canvas, whole
        side *= 0.9
    return None


def _slide(mask, occupied, grown, anchor, room, rng):
    """Moves an object out of another one in a straight line until it only touches it."""
    angle = rng.uniform(0, 2 * np.pi)
    most = OVERLAP * min(mask.sum(), anchor.sum())
    centre = np.argwhere(anchor).mean(0) - np.array(mask.shape) / 2
    for length in range(0, max(occupied.shape), 2):
        corner = centre + length * np.array([np.sin(angle), np.cos(angle)])
        corner = (round(float(corner[0])), round(float(corner[1])))
        if not all(MARGIN <= place < end for place, end in zip(corner, room, strict=True)):
            if length > max(mask.shape):
                return None
            continue
        behind = occupied[_window(corner, mask)] & mask
        if behind.sum() > most:
            continue
        around = grown[_window(corner, mask)] & mask & ~behind
        return corner if around.sum() >= CONTACT else None
    return None


def _window(corner, mask):
    return np.s_[corner[0] : corner[0] + mask.shape[0], corner[1] : corner[1] + mask.shape[1]]


def _scaled(cutout, side, mirrored):
    """Pixels and mask with the longer side of so many pixels."""
    scale = side / max(cutout.mask.shape)
    size = tuple(max(1, round(length * scale)) for length in cutout.mask.shape)
    # What the mask leaves out takes the colour of the nearest pixel inside, so that resizing
    # brings no background across the edge.
    nearest = ndimage.distance_transform_edt(
        ~cutout.mask, return_distances=False, return_indices=True
    )
    filled = cutout.pixels[tuple(nearest)]
    share = Image.fromarray(cutout.mask.astype(np.float32))
    mask = np.asarray(share.resize((size[1], size[0]), Image.Resampling.BOX)) > 0.5
    pieces, count = ndimage.label(mask)  # type: ignore[misc]
    if count > 1:
        mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    pixels = _resize(filled, size)
    return (pixels[:, ::-1], mask[:, ::-1]) if mirrored else (pixels, mask)


def _resize(pixels, size):
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))
