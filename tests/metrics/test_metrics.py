"""Metrics against pysodmetrics, scikit-learn, SciPy and counting by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cluster

from unseg_jax import metrics

pytestmark = pytest.mark.quick


def blob(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


RNG = np.random.default_rng(0)
TRUTH = blob(40, 53, 18, 20, 11)
NOISE = RNG.random((40, 53))
SOFT = np.clip(0.7 * blob(40, 53, 20, 24, 12) + 0.3 * NOISE, 0, 1)
EMPTY, FULL = np.zeros((40, 53), bool), np.ones((40, 53), bool)
MASKS = {
    "close": blob(40, 53, 20, 24, 12),
    "far": blob(40, 53, 35, 45, 6),
    "inverse": ~TRUTH,
    "equal": TRUTH,
    "full": FULL,
    "pixel": blob(40, 53, 18, 20, 0.5),
    "noise": NOISE < 0.3,
}
TRUTHS = {
    "disc": TRUTH,
    "large": blob(40, 53, 20, 20, 25),
    "dot": MASKS["pixel"],
    "noise": NOISE > 0.8,
}
MAPS = {
    "soft": SOFT,
    "noise": NOISE,
    "constant": np.full((40, 53), 0.4),
    "float32": SOFT.astype("f4"),
}
PAIRS = {f"{m}-{t}": ((MASKS | MAPS)[m], TRUTHS[t]) for m in MASKS | MAPS for t in TRUTHS}
PAIRS |= {"soft-empty": (SOFT, EMPTY), "soft-full": (SOFT, FULL)}
PAIRS |= {"close-empty": (MASKS["close"], EMPTY), "close-full": (MASKS["close"], FULL)}


def test_overlap_against_sets():
    for mask, truth in itertools.product(MASKS.values(), TRUTHS.values()):
        ours, theirs = set(np.flatnonzero(mask)), set(np.flatnonzero(truth))
        assert metrics.iou(mask, truth) == pytest.approx(len(ours & theirs) / len(ours | theirs))
        both = 2 * len(ours & theirs) / (len(ours) + len(theirs))
        assert metrics.dice(mask, truth) == pytest.approx(both)
        accuracy = 1 - len(ours ^ theirs) / mask.size
        assert metrics.pixel_accuracy(mask, truth) == pytest.approx(accuracy)


@pytest.mark.parametrize("metric", [metrics.iou, metrics.dice, metrics.max_f])
def test_empty_masks(metric):
    assert metric(EMPTY, EMPTY) == 1
    assert metric(EMPTY, TRUTH) == metric(TRUTH, EMPTY) == metric(EMPTY.astype(float), TRUTH) == 0


def test_empty_masks_in_the_other_metrics():
    assert metrics.pixel_accuracy(EMPTY, EMPTY) == metrics.s_measure(EMPTY, EMPTY) == 1
    assert metrics.mae(EMPTY, EMPTY) == metrics.s_measure(FULL, EMPTY) == 0
    assert metrics.e_measure(EMPTY, EMPTY) == pytest.approx(EMPTY.size / (EMPTY.size - 1))
    assert metrics.e_measure(FULL, EMPTY) == 0


def test_masks_may_be_integers_or_floats():
    for scaled in (TRUTH.astype(np.uint8), TRUTH.astype(np.uint8) * 255, TRUTH * 0.9):
        assert metrics.iou(scaled, TRUTH) == 1
    assert metrics.iou(TRUTH * 0.4, TRUTH) == 0
    assert metrics.s_measure(TRUTH.astype(np.uint8) * 255, TRUTH) == pytest.approx(1)


def test_s_measure_of_an_object_in_the_last_corner():
    """Three of the four quarters around its centroid are empty."""
    corner = np.zeros((6, 8), bool)
    corner[-1, -1] = True
    assert metrics.s_measure(corner, corner) == pytest.approx(1)
    assert metrics.s_measure(corner[::-1], corner) < 0.6


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"shape \(40, 53\) with a truth of shape \(2, 2\)"):
        metrics.iou(TRUTH, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="non-empty"):
        metrics.s_measure(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        metrics.mae(SOFT * 255, TRUTH)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        metrics.max_f(np.full_like(SOFT, np.nan), TRUTH)
    with pytest.raises(ValueError, match="not one of adaptive"):
        metrics.e_measure(SOFT, TRUTH, "best")


@pytest.mark.parametrize(("prediction", "truth"), PAIRS.values(), ids=PAIRS)
def test_scores_are_those_of_pysodmetrics(prediction, truth):
    sod = pytest.importorskip("py_sod_metrics")
    with pytest.warns(UserWarning, match="FmeasureV2"):
        oracles = sod.Fmeasure(), sod.MAE(), sod.Emeasure(), sod.Smeasure()
    theirs = {}
    for oracle in oracles:
        oracle.step(prediction.astype(np.float64), truth, normalize=False)
        theirs |= oracle.get_results()
    adaptive, curve = theirs["em"]["adp"], theirs["em"]["curve"]
    assert metrics.e_measure(prediction, truth) == pytest.approx(adaptive, abs=1e-12)
    found = metrics.s_measure(prediction, truth)
    if truth.all() or not truth.any():
        assert found == pytest.approx(theirs["sm"], abs=1e-12)
        return
    assert found == pytest.approx(theirs["sm"], abs=1e-9)
    assert metrics.e_measure(prediction, truth, "mean") == pytest.approx(curve.mean(), abs=1e-12)
    assert metrics.e_measure(prediction, truth, "max") == pytest.approx(curve.max(), abs=1e-12)
    curve = theirs["fm"]["curve"]
    np.testing.assert_allclose(metrics.f_curve(prediction, truth), curve, atol=1e-12)
    assert metrics.max_f(prediction, truth) == pytest.approx(curve.max(), abs=1e-12)
    assert metrics.mae(prediction, truth) == pytest.approx(theirs["mae"], abs=1e-12)


def test_box_iou_by_hand():
    assert metrics.box_iou((0, 0, 4, 4), (2, 2, 6, 6)) == pytest.approx(4 / 28)
    assert metrics.box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert metrics.box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 1
    boxes = RNG.integers(0, 12, (20, 4))
    boxes[:, 2:] += boxes[:, :2] + 1
    grid = metrics.box_iou(boxes[:, None], boxes[None])
    for (i, one), (j, other) in itertools.product(enumerate(boxes), repeat=2):
        drawn = []
        for left, top, right, bottom in (one, other):
            canvas = np.zeros((40, 40), bool)
            canvas[top:bottom, left:right] = True
            drawn.append(canvas)
        assert grid[i, j] == pytest.approx(metrics.iou(*drawn))


def test_corloc():
    box = (0, 0, 10, 10)
    assert metrics.corloc(box, [(20, 20, 30, 30), (0, 0, 10, 5)]) == 1
    assert metrics.corloc(box, [(0, 0, 10, 4)]) == 0
    assert metrics.corloc(box, (0, 0, 10, 4), threshold=0.4) == 1
    assert metrics.corloc(None, []) == 1
    assert metrics.corloc(None, [box]) == 0
    assert metrics.corloc(box, []) == 0


LABELS = RNG.integers(0, 5, (30, 31))
PARTITIONS = {
    "random": (LABELS, RNG.integers(0, 3, (30, 31))),
    "refined": (LABELS, LABELS // 2),
    "renamed": (LABELS, np.array([3, -1, 900000, 2, 7])[LABELS]),
    "one": (LABELS, np.zeros_like(LABELS)),
    "ones": (np.ones_like(LABELS), np.zeros_like(LABELS)),
    "singletons": (np.arange(30), np.arange(30)[::-1]),
    "bool": (LABELS > 2, LABELS > 3),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_partitions_against_scikit_learn(name):
    labels, truth = PARTITIONS[name]
    flat = truth.ravel(), labels.ravel()
    expected = cluster.normalized_mutual_info_score(*flat), cluster.adjusted_rand_score(*flat)
    found = metrics.nmi(labels, truth), metrics.ari(labels, truth)
    assert found == metrics.nmi_and_ari(labels, truth) == pytest.approx(expected, abs=1e-12)


def test_partitions_leave_out_masked_pixels():
    mask = LABELS != 2
    truth = LABELS // 2
    disturbed = np.where(mask, truth, 5)
    for metric in (metrics.nmi, metrics.ari, metrics.nmi_and_ari):
        kept = metric(LABELS[mask], truth[mask])
        assert metric(LABELS, disturbed, mask) == pytest.approx(kept)
    for metric in (metrics.nmi, metrics.ari):
        assert metric(LABELS, truth, np.zeros_like(mask)) == 1
    with pytest.raises(ValueError, match="same shape"):
        metrics.nmi(LABELS, LABELS[1:])


def test_bootstrap_interval_against_scipy():
    values = RNG.beta(2, 1, 80)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = metrics.bootstrap_interval(values, samples=10000)
    np.testing.assert_allclose((low, high), theirs, atol=0.004)
    narrow = metrics.bootstrap_interval(values, samples=10000, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    drawn = metrics.bootstrap_interval(values, 3)
    assert metrics.bootstrap_interval(values, 3) == drawn != metrics.bootstrap_interval(values, 4)
    assert metrics.bootstrap_interval([0.5]) == (0.5, 0.5)
    assert np.isnan(metrics.bootstrap_interval([])).all()
    with pytest.raises(ValueError, match="finite"):
        metrics.bootstrap_interval([0.1, np.nan])


def test_many_scores_take_the_normal_distribution(monkeypatch):
    values, others = RNG.beta(2, 1, (2, 5000))
    others += 0.2 / len(values) ** 0.5  # about one standard error apart
    drawn = metrics.bootstrap_interval(values), metrics.paired_sign_flip_test(values, others)
    monkeypatch.setattr(metrics.statistics, "_MANY", 4999)
    normal = metrics.bootstrap_interval(values), metrics.paired_sign_flip_test(values, others)
    width = drawn[0][1] - drawn[0][0]
    np.testing.assert_allclose(normal[0], drawn[0], atol=width / 20)
    assert normal[1].p_value == pytest.approx(drawn[1].p_value, abs=0.04)
    assert normal[1].low != drawn[1].low
    assert metrics.paired_sign_flip_test(values, values).p_value == 1


def test_paired_sign_flip_test():
    first = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.9, 0.8, 0.7])
    second = first - np.array([0.1, 0.05, 0.0, -0.02, 0.1, 0.08, 0.1, 0.07])
    found = metrics.paired_sign_flip_test(first, second, samples=20000)
    assert (found.wins, found.ties, found.losses) == (6, 1, 1)
    assert found.mean == pytest.approx(0.06)
    assert found.low < 0.06 < found.high
    # The exact test: all 2**8 sign flips.
    differences = first - second
    flips = np.array(list(itertools.product((-1, 1), repeat=8))) @ differences / 8
    exact = np.mean(np.abs(flips) >= abs(differences.mean()) - 1e-12)
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert metrics.paired_difference(first, first).p_value == 1  # the earlier name
    with pytest.raises(ValueError, match="cannot pair 8 scores with 7"):
        metrics.paired_sign_flip_test(first, second[1:])


def test_risk_coverage_is_the_mean_error_of_the_surest():
    rng = np.random.default_rng(0)
    confidences, scores = rng.random(30).round(1), rng.random(30)
    curve = metrics.risk_coverage(confidences, scores)
    # Over many orders of equally sure ones, as written out.
    means = np.zeros(30)
    for _ in range(4000):
        order = np.lexsort((rng.random(30), -confidences))
        means += np.cumsum(1 - scores[order]) / np.arange(1, 31)
    np.testing.assert_allclose(curve, means / 4000, atol=0.02)
    assert curve[-1] == pytest.approx(1 - scores.mean())
    lost = metrics.risk_coverage([np.nan, 0.1], [0.0, 1.0])
    assert lost.tolist() == [0.0, 0.5]
