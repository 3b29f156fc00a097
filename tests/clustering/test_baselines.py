"""Baselines against scikit-learn, SciPy and the papers' formulas written out in NumPy."""

import functools

import jax
import numpy as np
import pytest
import scipy.linalg
from sklearn import cluster as sklearn_cluster
from sklearn.metrics import adjusted_rand_score

from unseg_jax.clustering import baselines
from unseg_jax.clustering.baselines import ALGORITHMS
from unseg_jax.clustering.graphs import build_graph
from unseg_jax.registry import METHODS, resolve

kmeans = jax.jit(baselines.kmeans, static_argnums=2, static_argnames=("iterations", "restarts"))

graph_of = jax.jit(build_graph, static_argnums=1)

NAMES = ("vit-kmeans", "deep-spectral", "tokencut", "spectral-ncut")


def blobs(nodes=48, clusters=3, width=8, spread=0.6, seed=0):
    random = np.random.default_rng(seed)
    owner = np.sort(random.integers(clusters, size=nodes))
    centres = 2 * random.normal(size=(clusters, width))
    noise = spread * random.normal(size=(nodes, width))
    return (centres[owner] + noise).astype(np.float32), owner


def method_named(name, **overrides):
    """The registered method on a graph of features, whatever its own nodes are."""
    if METHODS[name].affinity == "colour":
        overrides.setdefault("affinity", "cosine")
    return resolve(name, **overrides)


@functools.partial(jax.jit, static_argnames="method")
def assign(features, mask, key, method):
    graph = build_graph(features, method, mask)
    return ALGORITHMS[method.algorithm](graph, method, key)


def labels_of(features, method, real=None, padding=48):
    """Labels of the real nodes; those after them, and padding, hold what means nothing."""
    real = len(features) if real is None else real
    padded = np.pad(features, ((0, padding), (0, 0)), constant_values=7)
    mask = np.arange(len(padded)) < real
    assignments = np.asarray(assign(padded, mask, jax.random.key(0), method))
    assert assignments.shape == (len(padded), method.num_clusters)
    assert assignments.dtype == np.float32
    np.testing.assert_array_equal(assignments.sum(1), mask)
    np.testing.assert_array_equal(assignments.max(1), mask)
    return assignments[:real].argmax(1)


def same_division(labels, expected):
    return adjusted_rand_score(labels, expected) == 1.0


def test_every_algorithm_has_a_method():
    found = {method.algorithm for method in METHODS.values()} - {"gnn"}
    assert found == set(ALGORITHMS)


def test_kmeans_is_as_good_as_scikit_learns():
    features, _ = blobs(200, 6, spread=1.5)
    assignments = np.asarray(kmeans(features, np.ones(200, bool), 5, jax.random.key(0)))
    centres = (assignments.T @ features) / assignments.sum(0)[:, None]
    inertia = ((features - assignments @ centres) ** 2).sum()
    theirs = sklearn_cluster.KMeans(5, n_init=10, random_state=0).fit(features)
    assert inertia <= 1.01 * theirs.inertia_


def test_kmeans_keeps_precision_far_from_the_origin():
    features, owner = blobs(200, 5, spread=0.1)
    found = kmeans(features + 1e4, np.ones(200, bool), 5, jax.random.key(0))
    assert same_division(np.asarray(found).argmax(1), owner)


def test_deep_spectral_is_the_second_eigenvector_cut_at_zero():
    features, _ = blobs(spread=1.5)
    weights = np.maximum(features @ features.T, 0).astype(np.float64)
    degrees = weights.sum(1)
    laplacian = np.eye(len(weights)) - weights / np.sqrt(np.outer(degrees, degrees))
    expected = np.linalg.eigh(laplacian)[1][:, 1] > 0
    assert same_division(labels_of(features, resolve("deep-spectral")), expected)


def test_tokencut_is_its_paper_in_numpy():
    features, _ = blobs(clusters=2, spread=1.5, seed=3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    joined = np.where(unit @ unit.T > 0.2, 1.0, 1e-5)
    degrees = np.diag(joined.sum(1))
    vector = scipy.linalg.eigh(degrees - joined, degrees, subset_by_index=[1, 1])[1][:, 0]
    expected = vector > vector.mean()
    if not expected[np.argmax(np.abs(vector))]:
        expected = ~expected
    np.testing.assert_array_equal(labels_of(features, resolve("tokencut")), expected)


def test_tokencut_says_that_it_divides_in_two():
    with pytest.raises(ValueError, match="num_clusters=3"):
        labels_of(blobs()[0], resolve("tokencut", num_clusters=3))


def test_spectral_ncut_finds_the_least_cut_of_its_eigenvector():
    features, _ = blobs(clusters=2, spread=1.2, seed=1)
    method = method_named("spectral-ncut")
    weights = np.asarray(graph_of(features, method).adjacency, np.float64)
    smoothed = weights + 1e-3 * weights.sum() / len(weights) ** 2
    degrees = np.diag(smoothed.sum(1))
    vector = scipy.linalg.eigh(degrees - smoothed, degrees)[1][:, 1]

    def normalised_cut(side):
        cut = weights[side][:, ~side].sum()
        return cut / weights[side].sum() + cut / weights[~side].sum()

    best = min(normalised_cut(vector > value) for value in np.sort(vector)[:-1])
    found = labels_of(features, method) == 1
    assert normalised_cut(found) <= 1.02 * best


@pytest.mark.parametrize("name", ["vit-kmeans", "deep-spectral", "spectral-ncut"])
def test_more_clusters_than_two(name):
    features, owner = blobs(spread=0.2)
    labels = labels_of(features, method_named(name, num_clusters=3))
    assert same_division(labels, owner)
    if name == "spectral-ncut":
        weights = np.asarray(graph_of(features, method_named(name)).adjacency)
        weights = np.maximum(weights, 1e-4)  # scikit-learn warns of graphs in several pieces
        theirs = sklearn_cluster.SpectralClustering(
            3, affinity="precomputed", random_state=0
        ).fit_predict(weights)
        assert same_division(labels, theirs)


@pytest.mark.parametrize(
    ("name", "clusters"),
    [(name, count) for name in NAMES for count in (1, 2, 3) if name != "tokencut" or count == 2],
)
def test_degenerate_images(name, clusters):
    """One colour, nothing at all, one node, fewer distinct rows than clusters."""
    method = method_named(name, num_clusters=clusters)
    ones = np.ones((48, 8), np.float32)
    two_rows = ones.copy()
    two_rows[:, 3:] = 0
    two_rows[24:, 1:3] = (-1, 0)
    for features in (ones, 0 * ones, two_rows):
        labels_of(features, method)
    for real in (0, 1):
        labels_of(two_rows, method, real)
    if clusters == 2:
        labels_of(ones[:1], method, padding=0)
        assert same_division(labels_of(two_rows, method), np.arange(48) >= 24)


def test_kmeans_starts_where_its_key_says():
    """From one start without updates."""
    features, _ = blobs(200, 6, spread=1.5)
    found = {
        np.asarray(kmeans(features, np.ones(200, bool), 5, key, iterations=0, restarts=1)).tobytes()
        for key in jax.random.split(jax.random.key(0), 4)
    }
    assert len(found) == 4
