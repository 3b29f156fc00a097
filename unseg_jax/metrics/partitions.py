"""How well two partitions of the same pixels agree, independent of the label numbers."""

import numpy as np

# Labels below this are counted as they are; sorting them first would cost more.
_DIRECT = 4096


def contingency(
    labels: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """How many pixels have each pair of labels: (K, C), in the order of the labels that occur."""
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.shape != truth.shape:
        raise ValueError(
            f"cannot compare labels of shape {labels.shape} with labels of shape {truth.shape}; "
            "both must have the same shape."
        )
    if mask is not None:
        labels, truth = labels[np.asarray(mask)], truth[np.asarray(mask)]
    rows, columns = _codes(labels.ravel()), _codes(truth.ravel())
    if not rows.size:
        return np.zeros((0, 0), np.int64)
    width = int(columns.max()) + 1
    counts = np.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width)
    counts = counts.reshape(-1, width)
    return counts[counts.any(1)][:, counts.any(0)]


def _codes(labels: np.ndarray) -> np.ndarray:
    """Small non-negative integers, one per label."""
    if labels.size and np.issubdtype(labels.dtype, np.integer):
        low, high = int(labels.min()), int(labels.max())
        if high - low < _DIRECT:
            return labels.astype(np.int64) - low
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def nmi(labels: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Normalised mutual information 2·I(L; T) / (H(L) + H(T)), in [0, 1].

    1 if both are a single cluster or there are no pixels; 0 if only one is a single cluster.

    Example:
        >>> nmi(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
        1.0

    Args:
        labels, truth: integer labels of the same shape.
        mask: bool of that shape, False at pixels to leave out.
    """
    return _nmi(contingency(labels, truth, mask))


def _nmi(counts: np.ndarray) -> float:
    if max(counts.shape) <= 1:
        return 1.0
    joint = counts / counts.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    seen = joint > 0
    information = np.sum(joint[seen] * np.log(joint[seen] / np.outer(rows, columns)[seen]))
    entropies = -np.sum(rows * np.log(rows)) - np.sum(columns * np.log(columns))
    return float(np.clip(2 * information / entropies, 0, 1))


def ari(labels: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Rand index adjusted for chance (Hubert and Arabie, 1985), in [−½, 1]; 0 is chance.

    1 if both are a single cluster, both all singletons, or there are no pixels.

    Example:
        >>> ari(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
        1.0

    Args:
        labels, truth: integer labels of the same shape.
        mask: bool of that shape, False at pixels to leave out.
    """
    return _ari(contingency(labels, truth, mask))


def _ari(counts: np.ndarray) -> float:
    counts = counts.astype(np.float64)
    pairs, ours, theirs = (
        float(np.sum(sizes * (sizes - 1) / 2)) for sizes in (counts, counts.sum(1), counts.sum(0))
    )
    total = counts.sum() * (counts.sum() - 1) / 2
    expected = ours * theirs / total if total else 0.0
    largest = (ours + theirs) / 2
    if largest == expected:
        return 1.0
    return float((pairs - expected) / (largest - expected))


def nmi_and_ari(
    labels: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> tuple[float, float]:
    """`nmi` and `ari` of the same labels, in little more than the time of one.

    Args:
        labels, truth: integer labels of the same shape.
        mask: bool of that shape, False at pixels to leave out.

    Example:
        >>> nmi_and_ari(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
        (1.0, 1.0)
    """
    counts = contingency(labels, truth, mask)
    return _nmi(counts), _ari(counts)
