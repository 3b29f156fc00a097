"""The foreground vote against the published rule and against NumPy written out with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax import postprocess
from unseg_jax.postprocess.vote import RULES

pytestmark = pytest.mark.quick

foreground_labels = jax.jit(
    postprocess.foreground_labels, static_argnames=("num_clusters", "rule", "quirks")
)

# With two clusters "corner" is the published vote; for all others their number is nothing special.
every_rule = pytest.mark.parametrize(
    ("rule", "num_clusters"), [("corner", 2), *((rule, 3) for rule in RULES)]
)


def published(labels: np.ndarray) -> np.ndarray:
    """DeepCut's vote, written with its four indices."""
    h, w = labels.shape
    corners = labels[0, 0] + labels[h - 1, 0] + labels[0, w - 1] + labels[h - 1, w - 1]
    return 1 - labels if corners > 2 else labels


def corner_written_out(labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """Most corners, then most border, is background; the others by descending size."""
    h, w = labels.shape
    scores = []
    for cluster in range(num_clusters):
        corners = sum(labels[y, x] == cluster for y in (0, h - 1) for x in (0, w - 1))
        border = sum(
            labels[y, x] == cluster
            for y in range(h)
            for x in range(w)
            if y in (0, h - 1) or x in (0, w - 1)
        )
        scores.append((corners, border))
    present = [cluster for cluster in range(num_clusters) if (labels == cluster).any()]
    background = max(present, key=lambda cluster: (*scores[cluster], -cluster))
    others = [cluster for cluster in present if cluster != background]
    others.sort(key=lambda cluster: (-(labels == cluster).sum(), cluster))
    result = np.zeros_like(labels)
    for number, cluster in enumerate(others, 1):
        result[labels == cluster] = number
    return result


def disc(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < radius**2


@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (4, 1), (1, 1), (2, 2)])
def test_two_clusters_follow_the_published_vote(shape):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (64, *shape)).astype(np.int32)
    labels[0], labels[1] = 0, 1
    found = jax.jit(jax.vmap(lambda one: foreground_labels(one, 2)))(labels)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [published(one) for one in labels])


def test_two_corners_of_four_do_not_swap():
    labels = np.zeros((4, 4), np.int32)
    labels[0, 0] = labels[3, 3] = 1
    np.testing.assert_array_equal(foreground_labels(labels, 2), labels)
    labels[0, 3] = 1
    np.testing.assert_array_equal(foreground_labels(labels, 2), 1 - labels)


def test_more_clusters_against_loops():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, (200, 5, 6)).astype(np.int32)
    labels[:50][labels[:50] == 2] = 0  # an empty cluster
    labels[0] = 3  # a single one
    found = jax.jit(jax.vmap(lambda one: foreground_labels(one, 5)))(labels)
    np.testing.assert_array_equal(found, [corner_written_out(one, 5) for one in labels])


def test_code_takes_the_published_sum_for_any_number_of_clusters():
    labels = np.array([[3, 0, 0], [1, 2, 1], [0, 0, 0]], np.int32)
    swapped = np.array([[3, 1, 1], [0, 2, 0], [1, 1, 1]])
    np.testing.assert_array_equal(foreground_labels(labels, 4, quirks="code"), swapped)
    labels[0, 0] = 2
    np.testing.assert_array_equal(foreground_labels(labels, 4, quirks="code"), labels)


@every_rule
def test_every_rule_finds_a_disc_under_any_numbering(rule, num_clusters):
    truth = disc(5, 7, 1.8)
    attention = np.where(truth, 1.0, 0.1).astype(np.float32)
    for inside in range(num_clusters):
        labels = np.where(truth, inside, (inside + 1) % num_clusters).astype(np.int32)
        found = foreground_labels(labels, num_clusters, rule, class_attention=attention)
        np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("rule", RULES)
def test_one_cluster_that_fills_the_image_is_background(rule):
    labels = np.full((5, 7), 1, np.int32)
    attention = np.full((5, 7), 0.3, np.float32)
    found = foreground_labels(labels, 3, rule, class_attention=attention)
    np.testing.assert_array_equal(found, np.zeros((5, 7)))


def test_border_outvotes_corners():
    """An object in two corners, as a horse between both edges: the border rule still finds it."""
    labels = np.ones((6, 6), np.int32)
    labels[4:] = 0
    labels[5, 1:5] = 1
    np.testing.assert_array_equal(foreground_labels(labels, 2, "border"), 1 - labels)


def test_attention_takes_every_cluster_above_the_mean():
    labels = np.repeat(np.arange(4, dtype=np.int32), 3).reshape(4, 3)
    attention = np.array([0.1, 0.9, 0.8, 0.2], np.float32)[labels]
    found = foreground_labels(labels, 4, "attention", class_attention=attention)
    np.testing.assert_array_equal(found, np.array([0, 1, 2, 0])[labels])


def test_parts_are_numbered_by_size():
    labels = np.zeros((6, 8), np.int32)
    labels[1, 1:3], labels[2:5, 2:6] = 1, 2
    found = foreground_labels(labels, 3)
    np.testing.assert_array_equal(found, np.array([0, 2, 1])[labels])


@every_rule
def test_padding_changes_nothing(rule, num_clusters):
    rng = np.random.default_rng(2)
    h, w = 5, 7
    for _ in range(10):
        labels = rng.integers(0, num_clusters, (8, 9)).astype(np.int32)
        attention = rng.random((8, 9)).astype(np.float32)
        mask = np.zeros((8, 9), bool)
        mask[:h, :w] = True
        padded = np.asarray(
            foreground_labels(labels, num_clusters, rule, class_attention=attention, mask=mask)
        )
        bare = foreground_labels(
            labels[:h, :w], num_clusters, rule, class_attention=attention[:h, :w]
        )
        np.testing.assert_array_equal(padded[:h, :w], bare)
        assert not padded[~mask].any()


def test_soft_assignments_weigh_the_border():
    """Border patches that are only just of cluster 1 are outvoted by certain ones of cluster 0."""
    labels = np.ones((4, 4), np.int32)
    labels[:, 0] = 0
    certainty = np.where(labels == 1, 0.51, 1.0)
    assignments = np.where(np.arange(2) == labels[..., None], certainty[..., None], 0.0)
    assignments[..., 0] = 1 - assignments[..., 1]
    hard = foreground_labels(labels, 2, "border")
    soft = foreground_labels(labels, 2, "border", assignments=jnp.asarray(assignments))
    np.testing.assert_array_equal(hard, 1 - labels)
    np.testing.assert_array_equal(soft, labels)


def test_errors_say_what_to_do():
    labels = np.zeros((2, 2), int)
    with pytest.raises(ValueError, match="'set' cannot be voted on within one image; use one of"):
        foreground_labels(labels, 2, "set")
    with pytest.raises(ValueError, match="pass class_attention"):
        foreground_labels(labels, 2, "attention")
