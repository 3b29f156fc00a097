"""The separate objects of a mask: connected pieces of one label, each with a score of its own.

Host side, NumPy. Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive.
Neighbours are the four that share an edge.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from unseg_jax.postprocess.components import Box, scale_box, source_indices, upsample_labels

MIN_AREA = 0.001
"""Share of the image's pixels below which a piece is a speck and no object."""


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


def find_objects(
    mask: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    size: tuple[int, int] | None = None,
    evidence: np.ndarray | None = None,
    confidence: float = 0.0,
    min_area: float = MIN_AREA,
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
        min_area: share of the image, 0 to 1, that an object has at least.

    Returns:
        Objects, the largest first; equals in reading order.

    Raises:
        ValueError: labels of another shape than the mask's, or a share outside of 0..1.

    >>> mask = np.array([[1, 1, 0, 1]] * 2, bool)
    >>> find_objects(mask, confidence=0.5)
    (Object(box=(0, 0, 2, 2), area=4, score=0.50, label=1), \
Object(box=(3, 0, 4, 2), area=2, score=0.50, label=1))
    """
    from scipy import ndimage

    mask = np.asarray(mask) != 0
    if labels is not None and np.shape(labels) != mask.shape:
        raise ValueError(
            f"labels of shape {np.shape(labels)} do not fit a mask of {mask.shape}; resize them."
        )
    if not 0 <= min_area <= 1:
        raise ValueError(f"min_area={min_area} is a share of the image: give 0 to 1.")
    if not mask.any():
        return ()
    size = mask.shape if size is None else size
    if size[0] < mask.shape[0] or size[1] < mask.shape[1]:
        # Enlarging keeps pieces connected; reducing may not.
        mask = upsample_labels(mask, size)
        labels = None if labels is None else upsample_labels(labels, size)
    rows, columns = source_indices(mask.shape[0], size[0]), source_indices(mask.shape[1], size[1])
    # How many pixels of the image show each row and column of the mask.
    heights = np.bincount(rows, minlength=mask.shape[0])
    widths = np.bincount(columns, minlength=mask.shape[1])
    clearness = None if evidence is None or mask.all() else _resize(evidence, mask.shape)
    outside = 0.0 if clearness is None else float(clearness[~mask].mean())
    objects = []
    for label, region in _regions(mask, labels):
        pieces, count = ndimage.label(region)  # type: ignore[misc]
        if not count:
            continue
        for number, place in enumerate(ndimage.find_objects(pieces), 1):
            crop = pieces[place] == number
            area = int(heights[place[0]] @ crop @ widths[place[1]])
            ends = (place[1].start, place[0].start, place[1].stop, place[0].stop)
            box = scale_box(ends, mask.shape, size)
            if box is None or area == 0 or area < min_area * size[0] * size[1]:
                continue
            score = confidence
            if clearness is not None:
                score = min(1.0, max(0.0, (float(clearness[place][crop].mean()) - outside) / 2))
            left, top, right, bottom = box
            if size != mask.shape:
                crop = crop[rows[top:bottom] - ends[1]][:, columns[left:right] - ends[0]]
            objects.append(Object(crop, box, area, float(score), label))
    return tuple(sorted(objects, key=lambda it: (-it.area, it.box[1], it.box[0])))


def _regions(mask: np.ndarray, labels: np.ndarray | None) -> list[tuple[int, np.ndarray]]:
    """Each label within the mask, and where it is."""
    if labels is None:
        return [(1, mask)]
    # What edge refinement added to the mask may carry label 0: it belongs to the first.
    labels = np.maximum(labels, 1)
    numbers = np.flatnonzero(np.bincount(labels[mask]))
    if len(numbers) == 1:
        return [(int(numbers[0]), mask)]
    return [(int(number), mask & (labels == number)) for number in numbers]


def _resize(evidence: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.clip(np.asarray(evidence, np.float32), -1, 1))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
