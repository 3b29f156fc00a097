"""The separate objects of a mask: connected pieces of one label, each with a score of its own.

Host side, NumPy. Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive.
Neighbours are the four that share an edge.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from unseg_jax.data.decoding import resize_image
from unseg_jax.postprocess.components import Box, source_indices, upsample_labels
from unseg_jax.postprocess.guided import interpolate
from unseg_jax.postprocess.splitting import check_split, split_touching

MIN_AREA = 0.001
"""Share of the image's pixels below which a piece is a speck and no object."""
SMALL = 0.25
"""Share of the image's longer side below which a `typical_length` is small."""
SEVERAL = 3
"""As many small things are worth a closer look."""


@dataclasses.dataclass(frozen=True, eq=False)
class Object:
    """One object of an image.

    Attributes:
        mask: bool, cropped to the box: (bottom - top, right - left).
        box: (left, top, right, bottom) in pixels of the image.
        area: pixels of the mask.
        score: how clearly the object stands out, 0 to 1; see `find_objects`.
        label: the label of its pixels, from 1.
    """

    mask: np.ndarray
    box: Box
    area: int
    score: float
    label: int

    def __repr__(self) -> str:
        return (
            f"Object(box={self.box}, area={self.area}, score={self.score:.2f}, label={self.label})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """The 4-connected pieces of a mask, split where different labels touch; see `find_pieces`.

    Attributes:
        numbers: (h, w) int32, 0 outside of the mask, else the piece from 1.
        labels: (n,) the label of each piece.
        areas: (n,) pixels of each in the image.
        kept: (n,) bool, whether it is an object, or a speck.
        size: (H, W) of the image.
    """

    numbers: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    kept: np.ndarray
    size: tuple[int, int]

    @property
    def specks(self) -> int:
        """Pieces that are no object."""
        return int(np.count_nonzero(~self.kept))

    def shown(self, kept: bool) -> np.ndarray:
        """(h, w) bool: the pixels of the objects, or those of the specks."""
        return np.concatenate([[False], self.kept == kept])[self.numbers]


def piece_areas(mask: np.ndarray) -> np.ndarray:
    """(n,) pixels of each 4-connected piece of a mask (H, W)."""
    from scipy.ndimage import label

    numbers = np.zeros(mask.shape, np.int32)
    label(mask, output=numbers)
    return np.bincount(numbers.ravel())[1:]


def several_small(mask: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a mask (h, w) shows three things or more, without specks, that are small.

    Args:
        mask: of the image, perhaps of another size and aspect.
        size: (H, W) of the image.
    """
    areas = piece_areas(mask) * (size[0] * size[1] / mask.size)
    areas = areas[areas >= MIN_AREA * size[0] * size[1]]
    return len(areas) >= SEVERAL and typical_length(areas) < SMALL * max(size)


def typical_length(areas: np.ndarray) -> float:
    """Root of the area of one of the pieces: half of all their area lies in it and smaller ones.

    Args:
        areas: (n,) pixels of each, n at least 1.

    Example:
        >>> typical_length(np.array([1, 100, 1, 4, 1]))
        10.0
    """
    ordered = np.sort(areas)
    held = np.cumsum(ordered)
    return float(np.sqrt(ordered[np.searchsorted(held, held[-1] / 2)]))


def check_min_area(min_area: float) -> None:
    """Raises ValueError for what is neither a share of the image nor a number of pixels."""
    if not 0 <= min_area < float("inf"):
        raise ValueError(
            f"min_area={min_area} is no size: give a share of the image below 1, or pixels from 1."
        )


def find_pieces(
    mask: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    size: tuple[int, int] | None = None,
    min_area: float = MIN_AREA,
    split: str = "never",
    pixels: np.ndarray | None = None,
) -> Pieces:
    """Cuts a mask (h, w) into pieces; arguments as those of `find_objects`, which says more.

    Raises:
        ValueError: labels of another shape than the mask's, a size below the mask's, or a
            `min_area` that is neither a share nor pixels.
    """
    from scipy import ndimage

    mask = np.asarray(mask) != 0
    size = mask.shape if size is None else (int(size[0]), int(size[1]))
    if labels is not None and np.shape(labels) != mask.shape:
        raise ValueError(
            f"labels of shape {np.shape(labels)} do not fit a mask of {mask.shape}; resize them."
        )
    if size[0] < mask.shape[0] or size[1] < mask.shape[1]:
        raise ValueError(f"a mask of {mask.shape} is larger than size={size}; resize it.")
    check_min_area(min_area)
    check_split(split)
    numbers, names = np.zeros(mask.shape, np.int32), []
    for label, region in _regions(mask, labels):
        pieces = np.empty(mask.shape, np.int32)
        count = ndimage.label(region, output=pieces)
        numbers += pieces if not names else np.where(region, pieces + np.int32(len(names)), 0)
        names += [label] * int(count)  # type: ignore[arg-type]
    if split != "never":
        shown = None if pixels is None else resize_image(pixels, mask.shape)
        numbers, names = split_touching(numbers, names, split, shown)
    weights = None
    if size != mask.shape:
        # How many pixels of the image show each of the mask.
        rows, columns = (
            np.bincount(source_indices(*lengths), minlength=lengths[0])
            for lengths in zip(mask.shape, size, strict=True)
        )
        weights = np.multiply.outer(rows, columns).ravel()
    areas = np.bincount(numbers.ravel(), weights, len(names) + 1)[1:].astype(np.int64)
    least = min_area if min_area >= 1 else min_area * size[0] * size[1]
    return Pieces(numbers, np.array(names, np.int64), areas, areas >= least, size)


def find_objects(
    mask: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    size: tuple[int, int] | None = None,
    evidence: np.ndarray | None = None,
    confidence: float = 0.0,
    min_area: float = MIN_AREA,
    split: str = "never",
    pixels: np.ndarray | None = None,
) -> tuple[Object, ...]:
    """Cuts a mask into its objects: 4-connected pieces, split where different labels touch.

    An object's score is half the difference between the mean evidence inside the object and the
    mean evidence outside of the mask, so 1 where both are certain and 0 where the object cannot be
    told from the background. Without evidence, or where the mask leaves nothing outside, every
    object has the confidence of the image.

    Args:
        mask: (h, w) bool, True on the foreground.
        labels: (h, w) integers that split the foreground; None is one label.
        size: (H, W) of the image in pixels; None is (h, w). The objects are those of the mask
            resized to it by the nearest neighbour, as `upsample_labels` does.
        evidence: (any, any) floats in -1..1 over the image, positive on the foreground.
        confidence: of the whole image, 0 to 1.
        min_area: what an object has at least: below 1 a share of the image, else pixels of it.
        split: whether pieces are cut at their necks: "never", "auto" where all parts are convex, or
            "always"; see `unseg_jax.postprocess.splitting`.
        pixels: (any, any, 3) uint8, the image, by which "auto" sees gaps between many things that
            look alike; None goes by the shape of the mask alone.

    Returns:
        Objects, the largest first; equals in reading order.

    Raises:
        ValueError: labels of another shape than the mask's, a negative `min_area`, or an unknown
            `split`.

    >>> mask = np.array([[1, 1, 0, 1]] * 2, bool)
    >>> find_objects(mask, confidence=0.5)
    (Object(box=(0, 0, 2, 2), area=4, score=0.50, label=1), \
Object(box=(3, 0, 4, 2), area=2, score=0.50, label=1))
    """
    mask = np.asarray(mask) != 0
    size = mask.shape if size is None else size
    smaller = (min(mask.shape[0], size[0]), min(mask.shape[1], size[1]))
    if smaller != mask.shape:
        # Enlarging keeps pieces connected; reducing may not.
        mask = upsample_labels(mask, smaller)
        labels = None if labels is None else upsample_labels(labels, smaller)
    options = {"size": size, "min_area": min_area, "split": split, "pixels": pixels}
    pieces = find_pieces(mask, labels, **options)  # type: ignore[arg-type]
    return objects_of(pieces, evidence=evidence, confidence=confidence)


def objects_of(
    pieces: Pieces, *, evidence: np.ndarray | None = None, confidence: float = 0.0
) -> tuple[Object, ...]:
    """The kept pieces as objects; see `find_objects`."""
    from scipy import ndimage

    numbers, size = pieces.numbers, pieces.size
    chosen = np.flatnonzero(pieces.kept)
    if not len(chosen):
        return ()
    rows, columns = (source_indices(*lengths) for lengths in zip(numbers.shape, size, strict=True))
    scores = np.full(len(pieces.areas), confidence)
    if evidence is not None and not numbers.all():
        clearness = interpolate(np.clip(evidence, -1, 1), numbers.shape).ravel()
        means = np.bincount(numbers.ravel(), clearness) / np.bincount(numbers.ravel())
        scores = np.clip((means[1:] - means[0]) / 2, 0, 1)
    places = ndimage.find_objects(numbers)
    ends = np.array([[y.start, y.stop, x.start, x.stop] for y, x in places])
    down, across = np.searchsorted(rows, ends[:, :2]), np.searchsorted(columns, ends[:, 2:])
    order = chosen[np.lexsort((across[chosen, 0], down[chosen, 0], -pieces.areas[chosen]))]
    objects = []
    for index in order:
        crop = numbers[places[index]] == index + 1
        (top, bottom), (left, right) = down[index].tolist(), across[index].tolist()
        if size != numbers.shape:
            crop = crop[rows[top:bottom] - ends[index, 0]]
            crop = crop.take(columns[left:right] - ends[index, 2], 1)
        box = (left, top, right, bottom)
        area, label = int(pieces.areas[index]), int(pieces.labels[index])
        objects.append(Object(crop, box, area, float(scores[index]), label))
    return tuple(objects)


def _regions(mask: np.ndarray, labels: np.ndarray | None) -> list[tuple[int, np.ndarray]]:
    """Each label within the mask, and where it is."""
    if labels is None or not mask.any():
        return [(1, mask)]
    # What edge refinement added to the mask may carry label 0: it belongs to the first.
    labels = np.maximum(labels, 1)
    numbers = np.flatnonzero(np.bincount(labels[mask]))
    if len(numbers) == 1:
        return [(int(numbers[0]), mask)]
    return [(int(number), mask & (labels == number)) for number in numbers]
