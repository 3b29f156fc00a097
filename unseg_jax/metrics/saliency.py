"""Metrics of salient object detection, as its common toolboxes compute them.

A prediction is a bool mask (H, W), or a soft map of floats in [0, 1] that is thresholded at
each of 256 grey levels or compared as it is. It is not stretched to the full range first. The
truth is a mask. Every metric is a few counts over the image, so a bool mask costs about as much
as an IoU.
"""

import numpy as np

from unseg_jax.metrics.overlap import as_mask, check_shapes

# MATLAB's eps, which the published definitions add to denominators.
_EPSILON = np.spacing(1.0)
_LEVELS = 256


def _inputs(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction), as_mask(truth)
    check_shapes(prediction, truth)
    if not np.issubdtype(prediction.dtype, np.floating):
        return as_mask(prediction), truth
    prediction = prediction.astype(np.float64, copy=False)
    low, high = prediction.min(), prediction.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"a soft prediction must lie in [0, 1], not in [{low:.4g}, {high:.4g}]; "
            "scale it, or pass a bool mask."
        )
    return prediction, truth


def mae(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error between map and truth, in [0, 1]; 0 is best.

    Example:
        >>> mae(np.array([[0.25, 1.0]]), np.array([[0, 1]]))
        0.125

    Args:
        prediction: (H, W) bool mask or float map in [0, 1].
        truth: (H, W) mask.
    """
    prediction, truth = _inputs(prediction, truth)
    if prediction.dtype == bool:
        return float(np.count_nonzero(prediction != truth) / truth.size)
    return float(np.abs(prediction - truth).mean())


def _counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(256,) true and all positives at the thresholds 255, 254, ..., 0 (map ≥ threshold/255)."""
    if prediction.dtype == bool:
        true = np.count_nonzero(prediction & truth)
        positive = np.count_nonzero(prediction)
        trues, positives = np.full(_LEVELS, true), np.full(_LEVELS, positive)
        trues[-1], positives[-1] = np.count_nonzero(truth), truth.size
        return trues, positives
    # One histogram over level and truth together is faster than two over selected pixels.
    levels = (prediction * 255).astype(np.uint8).astype(np.intp) + _LEVELS * truth
    histogram = np.bincount(levels.ravel(), minlength=2 * _LEVELS).reshape(2, _LEVELS)
    cumulated = np.cumsum(histogram[:, ::-1], axis=1)
    return cumulated[1], cumulated[0] + cumulated[1]


def f_curve(prediction: np.ndarray, truth: np.ndarray, beta_squared: float = 0.3) -> np.ndarray:
    """F-measure (1 + β²)PR / (β²P + R) at each threshold.

    Args:
        prediction: (H, W) bool mask or float map in [0, 1].
        truth: (H, W) mask.
        beta_squared: β², 0.3 in the salient object literature.

    Returns:
        (256,) float64 at the thresholds 255, 254, ..., 0 of the map in grey levels; 0 where
        there are no true positives. The maximum over its mean over a data set is the data set's
        maxF.

    Example:
        >>> f_curve(np.array([[0.2, 0.9]]), np.array([[False, True]]))[[0, 100, 255]].round(2)
        array([0.  , 1.  , 0.57])
    """
    trues, positives = _counts(*_inputs(prediction, truth))
    precision = trues / np.maximum(positives, 1)
    recall = trues / max(trues[-1], 1)
    numerator = (1 + beta_squared) * precision * recall
    return numerator / np.where(numerator == 0, 1, beta_squared * precision + recall)


def max_f(prediction: np.ndarray, truth: np.ndarray, beta_squared: float = 0.3) -> float:
    """The largest F-measure over the thresholds, in [0, 1] (Achanta et al., 2009).

    The lowest threshold takes every pixel, for a bool mask as for a map. Prediction and truth
    both empty give 1, one of them empty gives 0.

    Args:
        prediction: (H, W) bool mask or float map in [0, 1].
        truth: (H, W) mask.
        beta_squared: β².

    Example:
        >>> max_f(np.array([[0.2, 0.9]]), np.array([[False, True]]))
        1.0
    """
    prediction, truth = _inputs(prediction, truth)
    if not prediction.any() or not truth.any():
        return float(not prediction.any() and not truth.any())
    return float(f_curve(prediction, truth, beta_squared).max())


def e_measure(prediction: np.ndarray, truth: np.ndarray, kind: str = "adaptive") -> float:
    """Enhanced-alignment measure, Σ(1 + align)²/4 / (N − 1) (Fan et al., IJCAI 2018).

    As published it divides by N − 1, so that a perfect mask scores N/(N − 1).

    Args:
        prediction: (H, W) bool mask or float map in [0, 1].
        truth: (H, W) mask.
        kind: what to do with a soft map: "adaptive" cuts it at twice its mean; "mean" and "max"
            are over all 256 thresholds. A bool mask under "adaptive" is taken as it is.

    Raises:
        ValueError: an unknown kind, or what the other metrics raise.

    Example:
        >>> truth = np.eye(4, dtype=bool)
        >>> round(e_measure(truth, truth), 3), round(e_measure(~truth, truth), 3)
        (1.067, 0.0)
    """
    if kind not in ("adaptive", "mean", "max"):
        raise ValueError(f"kind={kind!r} is not one of adaptive, mean, max.")
    prediction, truth = _inputs(prediction, truth)
    if kind == "adaptive":
        if prediction.dtype != bool:
            prediction = prediction >= min(2 * prediction.mean(), 1)
        trues = np.array([np.count_nonzero(prediction & truth)])
        positives = np.array([np.count_nonzero(prediction)])
    else:
        trues, positives = _counts(prediction, truth)
    scores = _enhanced_alignment(trues, positives, int(np.count_nonzero(truth)), truth.size)
    return float(scores.max() if kind == "max" else scores.mean())


def _enhanced_alignment(
    trues: np.ndarray, positives: np.ndarray, true_size: int, size: int
) -> np.ndarray:
    """The E-measure from true and all positives (T,): a mask's pixels have only four different
    alignments with the truth, so the sum over pixels is one over four counts."""
    if true_size == 0:
        total = size - positives
    elif true_size == size:
        total = positives
    else:
        mean, true_mean = positives / size, true_size / size
        numbers = (
            trues,
            positives - trues,
            true_size - trues,
            size - positives - true_size + trues,
        )
        deviations = (
            (1 - mean, 1 - true_mean),
            (1 - mean, -true_mean),
            (-mean, 1 - true_mean),
            (-mean, -true_mean),
        )
        total = np.zeros(trues.shape)
        for number, (ours, theirs) in zip(numbers, deviations, strict=True):
            alignment = 2 * ours * theirs / (ours**2 + theirs**2 + _EPSILON)
            total += number * (alignment + 1) ** 2 / 4
    return total / max(size - 1, 1)


def s_measure(
    prediction: np.ndarray,
    truth: np.ndarray,
    alpha: float = 0.5,
    *,
    valid: np.ndarray | None = None,
) -> float:
    """Structure measure α·S_object + (1 − α)·S_region (Fan et al., ICCV 2017), in [0, 1].

    An empty truth gives one minus the mean of the map, a full truth the mean of the map.

    Args:
        prediction: (H, W) bool mask or float map in [0, 1].
        truth: (H, W) mask.
        alpha: weight of the object term.
        valid: (H, W) bool, False at pixels to leave out, of which some must remain; None keeps
            all.

    Example:
        >>> truth = np.eye(4, dtype=bool)
        >>> round(s_measure(truth, truth), 3)
        1.0
    """
    prediction, truth = _inputs(prediction, truth)
    valid = np.ones(truth.shape, bool) if valid is None else valid
    truth = truth & valid
    known, known_truth = prediction[valid], truth[valid]
    share = np.count_nonzero(truth) / known.size
    if share in (0, 1):
        mean = float(known.mean())
        return mean if share else 1 - mean
    by_object = _object_score(known, known_truth)
    return float(max(0.0, alpha * by_object + (1 - alpha) * _region(prediction, truth, valid)))


def _moments(values: np.ndarray) -> tuple[int, float, float]:
    """Number, mean, and sum of squared deviations."""
    if values.dtype == bool:
        ones = np.count_nonzero(values)
        return values.size, ones / values.size, ones * (values.size - ones) / values.size
    mean = float(values.mean())
    return values.size, mean, float(np.square(values - mean).sum())


def _object_score(prediction: np.ndarray, truth: np.ndarray) -> float:
    score = 0.0
    for region, inverted in ((truth, False), (~truth, True)):
        if prediction.dtype == bool:
            size = np.count_nonzero(region)
            ones = np.count_nonzero(prediction & region)
            mean, squares = ones / size, ones * (size - ones) / size
        else:
            size, mean, squares = _moments(prediction[region])
        mean = 1 - mean if inverted else mean
        deviation = np.sqrt(squares / (size - 1)) if size > 1 else 0.0
        score += 2 * mean / (mean**2 + 1 + deviation + _EPSILON) * size / truth.size
    return score


def _region(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """Structural similarity of the four quarters around the centroid of the truth, by area."""
    rows, columns = truth.sum(1), truth.sum(0)
    total, total_known = rows.sum(), np.count_nonzero(valid)
    # One past the rounded centroid, so that the centroid's own row and column go up and left.
    y = int(np.round(rows @ np.arange(rows.size) / total)) + 1
    x = int(np.round(columns @ np.arange(columns.size) / total)) + 1
    score = 0.0
    for vertical in (slice(0, y), slice(y, None)):
        for horizontal in (slice(0, x), slice(x, None)):
            known = valid[vertical, horizontal]
            quarter = truth[vertical, horizontal][known]
            if quarter.size:
                similarity = _similarity(prediction[vertical, horizontal][known], quarter)
                score += similarity * quarter.size / total_known
    return score


def _similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    size, mean, squares = _moments(prediction)
    _, true_mean, true_squares = _moments(truth)
    if prediction.dtype == bool:
        both = np.count_nonzero(prediction & truth)
        products = both - np.count_nonzero(prediction) * np.count_nonzero(truth) / size
    elif true_squares == 0:
        products = 0.0
    else:
        # Σ (p − p̄)(t − t̄) = Σ_{t=1} p − p̄ Σ t, because t is 0 or 1.
        products = float(np.sum(prediction, where=truth) - mean * np.count_nonzero(truth))
    scale = 1 / (size - 1 + _EPSILON)
    numerator = 4 * mean * true_mean * products * scale
    denominator = (mean**2 + true_mean**2) * (squares + true_squares) * scale
    if numerator != 0:
        return numerator / (denominator + _EPSILON)
    return float(denominator == 0)
