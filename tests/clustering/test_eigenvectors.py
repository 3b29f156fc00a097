"""Eigenvectors against a full decomposition in double precision."""

import jax
import numpy as np
import pytest
import scipy.linalg

from unseg_jax.clustering.eigenvectors import spectral_embedding


def patchlike(nodes=60, seed=0):
    """Affinities of noisy features around three directions, as ViT patches have them."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 16))
    features = centres[random.integers(3, size=nodes)] + 0.7 * random.normal(size=(nodes, 16))
    return np.maximum(features @ features.T, 0).astype(np.float32)


def grid_graph(rows=12, columns=10, seed=0):
    """4-neighbours of a grid with affinities over many orders of magnitude, as regions have."""
    random = np.random.default_rng(seed)
    index = np.arange(rows * columns).reshape(rows, columns)
    weights = np.zeros((rows * columns,) * 2, np.float32)
    for one, other in ((index[:-1], index[1:]), (index[:, :-1], index[:, 1:])):
        values = np.exp(-random.exponential(3.0, one.size))
        weights[one.ravel(), other.ravel()] = weights[other.ravel(), one.ravel()] = values
    return weights


def exact(weights, count):
    """The generalised eigenvectors after the first, by LAPACK."""
    weights = weights.astype(np.float64)
    degrees = np.diag(weights.sum(1))
    return scipy.linalg.eigh(degrees - weights, degrees)[1][:, 1 : count + 1]


def cosines(found, expected, degrees):
    """|cosine| of each pair of columns in the inner product of D, in which they are orthogonal."""
    found = np.asarray(found, np.float64)
    lengths = np.sqrt((degrees[:, None] * found**2).sum(0))
    return np.abs((degrees[:, None] * found * expected).sum(0)) / lengths


NODES = 128
embed = jax.jit(spectral_embedding, static_argnames=("count", "steps", "smoothing", "inverse"))


def find(weights, count, seed=0, **how):
    """Eigenvectors of a graph that is padded, so that all graphs share a program."""
    nodes = len(weights)
    padded = np.zeros((NODES, NODES), np.float32)
    padded[:nodes, :nodes] = weights
    found = np.asarray(embed(padded, np.arange(NODES) < nodes, count, jax.random.key(seed), **how))
    assert not found[nodes:].any()
    return found[:nodes]


@pytest.mark.parametrize("count", [1, 3])
def test_patch_graph(count):
    weights = patchlike()
    found = find(weights, count)
    assert cosines(found, exact(weights, count), weights.sum(1)).min() > 0.9999


@pytest.mark.parametrize(("make", "least"), [(grid_graph, 0.999), (patchlike, 0.9999)])
@pytest.mark.parametrize("count", [1, 3])
def test_smoothed_graph_by_the_inverse(make, least, count):
    weights = make()
    smoothed = weights + np.float32(1e-3 * weights.sum() / len(weights) ** 2)
    found = find(weights, count, smoothing=1e-3, inverse=True)
    assert cosines(found, exact(smoothed, count), smoothed.sum(1)).min() > least


def test_components_are_told_apart():
    sizes = (6, 5, 9, 7)
    rows = find(scipy.linalg.block_diag(*(np.ones((size, size)) for size in sizes)), 3)
    components = np.split(rows, np.cumsum(sizes)[:-1])
    assert max(np.ptp(component, axis=0).max() for component in components) < 1e-5
    means = np.stack([component.mean(0) for component in components])
    gaps = np.linalg.norm(means[:, None] - means, axis=-1)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.05


def test_negative_eigenvalues_are_found():
    """All eigenvalues of a complete graph without loops but the first are negative."""
    weights = np.ones((6, 6), np.float32) - np.eye(6, dtype=np.float32)
    weights[0, 1] = weights[1, 0] = 1.5
    values = scipy.linalg.eigh(np.diag(weights.sum(1)) - weights, np.diag(weights.sum(1)))[0]
    assert values[1] > 1
    vector = find(weights, 1, seed=1)[:, 0].astype(np.float64)
    quotient = vector @ weights @ vector / (vector**2 @ weights.sum(1))
    np.testing.assert_allclose(1 - quotient, values[1], rtol=1e-5)


@pytest.mark.parametrize("how", [{}, {"smoothing": 1e-3, "inverse": True}], ids=["", "inverse"])
def test_degenerate_graphs_stay_finite(how):
    for weights in (np.zeros((5, 5)), np.ones((5, 5)), np.eye(5)):
        assert np.isfinite(find(weights, 3, **how)).all()
