"""How well two masks or boxes cover each other.

Masks are (H, W): bool, or integers whose non-zero entries are the mask, or floats above ½. Two
empty masks agree fully (1); an empty one and one that is not do not agree at all (0).
"""

import numpy as np


def as_mask(values: np.ndarray) -> np.ndarray:
    """(H, W) bool of a mask in any of its forms; no copy if it is bool already."""
    values = np.asarray(values)
    if values.dtype == bool:
        return values
    return values > 0.5 if np.issubdtype(values.dtype, np.floating) else values != 0


def as_masks(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as bool.

    Raises:
        ValueError: masks of different or no size.
    """
    mask, truth = as_mask(mask), as_mask(truth)
    check_shapes(mask, truth)
    return mask, truth


def check_shapes(mask: np.ndarray, truth: np.ndarray) -> None:
    """Raises ValueError if the two differ in shape or have no pixels."""
    if mask.shape != truth.shape or not mask.size:
        raise ValueError(
            f"cannot compare a mask of shape {mask.shape} with a truth of shape {truth.shape}; "
            "both must have the same, non-empty shape."
        )


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union |M ∩ T| / |M ∪ T|, in [0, 1].

    Example:
        >>> iou(np.array([[1, 1, 0]]), np.array([[0, 1, 1]]))
        0.3333333333333333
    """
    mask, truth = as_masks(mask, truth)
    intersection = np.count_nonzero(mask & truth)
    union = np.count_nonzero(mask) + np.count_nonzero(truth) - intersection
    return float(intersection / union) if union else 1.0


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient 2|M ∩ T| / (|M| + |T|), the F₁ score, in [0, 1].

    Example:
        >>> dice(np.array([[1, 1, 0]]), np.array([[0, 1, 1]]))
        0.5
    """
    mask, truth = as_masks(mask, truth)
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(mask & truth) / total) if total else 1.0


def pixel_accuracy(mask: np.ndarray, truth: np.ndarray) -> float:
    """Share of the pixels on which both agree, in [0, 1].

    Example:
        >>> pixel_accuracy(np.array([[1, 1, 0, 0]]), np.array([[0, 1, 0, 0]]))
        0.75
    """
    mask, truth = as_masks(mask, truth)
    return float(np.count_nonzero(mask == truth) / mask.size)


def box_iou(boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (left, top, right, bottom), right and bottom exclusive.

    Args:
        boxes: (..., 4).
        true_boxes: (..., 4), broadcast against `boxes`.

    Returns:
        (...) float64 in [0, 1]; a 0-d array for two single boxes. Two boxes without area agree
        fully if they are the same box.

    Example:
        >>> float(box_iou(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])))
        0.3333333333333333
    """
    boxes, true_boxes = np.asarray(boxes, np.float64), np.asarray(true_boxes, np.float64)
    corner = np.maximum(boxes[..., :2], true_boxes[..., :2])
    opposite = np.minimum(boxes[..., 2:], true_boxes[..., 2:])
    intersection = np.prod(np.maximum(opposite - corner, 0), -1)
    union = _area(boxes) + _area(true_boxes) - intersection
    same = (boxes == true_boxes).all(-1).astype(np.float64)
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), same)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)


def corloc(box, true_boxes, threshold: float = 0.5) -> float:
    """Correct localisation of one image: 1 if the box overlaps any true box by `threshold` or
    more, else 0. Its mean over images is CorLoc (Vo et al., 2020).

    Args:
        box: (left, top, right, bottom), or None for no detection.
        true_boxes: (M, 4) boxes, or one box; may be empty.
        threshold: least IoU that counts.

    Returns:
        1.0 or 0.0; no box where there is no true box is 1.0.

    Example:
        >>> corloc((0, 0, 4, 4), [(0, 0, 4, 3), (9, 9, 10, 10)])
        1.0
    """
    true_boxes = np.asarray(true_boxes, np.float64).reshape(-1, 4)
    if box is None or not len(true_boxes):
        return float(box is None and not len(true_boxes))
    return float(box_iou(np.asarray(box), true_boxes).max() >= threshold)
