"""How well single objects are found, and how well clusters match classes.

Objects are the numbers above 0 in a map of labels (H, W), or masks with an IoU for each pair.
"""

from collections.abc import Sequence

import numpy as np

from unseg_jax.metrics.partitions import contingency

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""The IoU thresholds .5, .55, ..., .95 over which COCO averages."""
_RECALLS = np.linspace(0, 1, 101)


def object_ious(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of each object with each true one: (N, M), in the order of their numbers.

    Args:
        labels, truth: (H, W) integers, 0 = background.

    Example:
        >>> object_ious(np.array([[0, 1, 1, 2]]), np.array([[5, 5, 5, 0]])).round(2)
        array([[0.67],
               [0.  ]])
    """
    # A row and a column of background are there even where no pixel is.
    labels, truth = (np.append(np.asarray(side).ravel(), 0) for side in (labels, truth))
    counts = contingency(labels, truth)
    counts[0, 0] -= 1
    unions = counts.sum(1)[:, None] + counts.sum(0) - counts
    return counts[1:, 1:] / np.maximum(unions, 1)[1:, 1:]


def average_precision(
    ious: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> float:
    """Average precision of the objects in some images, as COCO has it, in [0, 1].

    The surest object takes the true one that it overlaps most, of those that are left and that it
    overlaps enough. Precision, made to fall, is averaged over 101 recalls and the thresholds.

    Args:
        ious: of each image (N, M): of N objects found with M true ones; see `object_ious`.
        scores: of each image (N,), how sure each object is.
        thresholds: IoU from which an object counts as found; (0.5,) gives AP50.

    Returns:
        1 if there is no object, neither found nor true; 0 if there are none of one kind.

    Example:
        >>> average_precision([np.array([[0.8], [0.1]])], [np.array([0.9, 0.5])], (0.5,))
        1.0
    """
    total = sum(one.shape[1] for one in ious)
    sure = (
        np.concatenate([np.asarray(one, float) for one in scores]) if len(scores) else np.empty(0)
    )
    if not total or not sure.size:
        return float(not total and not sure.size)
    order = np.argsort(-sure, kind="stable")
    found = []
    for threshold in thresholds:
        hits = np.concatenate([_hits(*one, threshold) for one in zip(ious, scores, strict=True)])
        right = np.cumsum(hits[order])
        precision = right / np.arange(1, len(right) + 1)
        falling = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        found.append(falling[np.searchsorted(right / total, _RECALLS)].mean())
    return float(np.mean(found))


def _hits(ious: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Which of the objects of an image take a true one: (N,) bool."""
    left = np.ones(ious.shape[1], bool)
    hits = np.zeros(len(ious), bool)
    for index in np.argsort(-np.asarray(scores), kind="stable"):
        free = np.where(left, ious[index], -1.0)
        if free.size and free.max() >= min(threshold, 1 - 1e-10):
            # Of equal ones COCO takes the last.
            left[free.size - 1 - np.argmax(free[::-1])] = False
            hits[index] = True
    return hits


def panoptic_quality(labels: np.ndarray, truth: np.ndarray) -> float:
    """Panoptic quality of one class (Kirillov et al., CVPR 2019): the IoU of matched objects,
    summed, over their number and half of those that match nothing, in [0, 1].

    Objects match if their IoU is above ½.

    Args:
        labels, truth: (H, W) integers, 0 = background.

    Returns:
        1 if there is no object, neither found nor true.

    Example:
        >>> round(panoptic_quality(np.array([[1, 1, 1, 2]]), np.array([[1, 1, 0, 0]])), 3)
        0.444
    """
    ious = object_ious(labels, truth)
    matched = ious[ious > 0.5]
    return float(2 * matched.sum() / sum(ious.shape)) if sum(ious.shape) else 1.0


def count_error(found: int, true: int) -> float:
    """|found − true| over the larger of the two counts, in [0, 1]; 0 is best.

    Example:
        >>> count_error(3, 4)
        0.25
    """
    return abs(found - true) / max(found, true, 1)


def matched_miou(labels: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean IoU over the classes of the truth, each matched to a cluster of its own so that the sum
    is largest (Hungarian matching), in [0, 1]. A class that no cluster is left for counts 0.

    Args:
        labels, truth: integers of the same shape, of one image or of a whole set; the background
            is a class as any other.
        mask: bool of that shape, False at pixels to leave out.

    Example:
        >>> round(matched_miou(np.array([1, 1, 0, 2]), np.array([7, 7, 7, 3])), 3)
        0.833
    """
    from scipy.optimize import linear_sum_assignment

    counts = contingency(labels, truth, mask)
    if not counts.size:
        return 1.0
    ious = counts / (counts.sum(1)[:, None] + counts.sum(0) - counts)
    return float(ious[linear_sum_assignment(ious, maximize=True)].sum() / counts.shape[1])
