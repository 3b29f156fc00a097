"""Eigenvectors against a full decomposition in double precision."""

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize("count", [1, 3])
def test_patch_graph(count):
    weights = patchlike()
    found = spectral_embedding(weights, jnp.ones(60, bool), count, jax.random.key(0))
    assert cosines(found, exact(weights, count), weights.sum(1)).min() > 0.9999


@pytest.mark.parametrize("count", [1, 3])
def test_graph_of_neighbours_by_the_inverse(count):
    weights = grid_graph()
    smoothed = weights + np.float32(1e-3 * weights.sum() / len(weights) ** 2)
    found = spectral_embedding(
        weights,
        jnp.ones(len(weights), bool),
        count,
        jax.random.key(0),
        smoothing=1e-3,
        inverse=True,
    )
    assert cosines(found, exact(smoothed, count), smoothed.sum(1)).min() > 0.999


@pytest.mark.parametrize("inverse", [False, True])
def test_padding_changes_nothing(inverse):
    weights = patchlike(40)
    padded = np.zeros((48, 48), np.float32)
    padded[:40, :40] = weights
    found = np.asarray(
        spectral_embedding(
            padded, jnp.arange(48) < 40, 1, jax.random.key(0), smoothing=1e-3, inverse=inverse
        )
    )
    smoothed = weights + np.float32(1e-3 * weights.sum() / 40**2)
    assert cosines(found[:40], exact(smoothed, 1), smoothed.sum(1)).min() > 0.9999
    assert not found[40:].any()


def test_components_are_told_apart():
    weights = scipy.linalg.block_diag(*(np.ones((size, size)) for size in (6, 5, 9)))
    found = spectral_embedding(weights.astype(np.float32), jnp.ones(20, bool), 2, jax.random.key(0))
    owner = np.repeat([0, 1, 2], (6, 5, 9))
    rows = np.asarray(found)
    for component in range(3):
        assert np.ptp(rows[owner == component], axis=0).max() < 1e-5
    means = np.stack([rows[owner == component].mean(0) for component in range(3)])
    gaps = np.linalg.norm(means[:, None] - means, axis=-1)[np.triu_indices(3, 1)]
    assert gaps.min() > 0.05


def test_negative_eigenvalues_are_found():
    """All eigenvalues of a complete graph without loops but the first are negative."""
    weights = np.ones((6, 6), np.float32) - np.eye(6, dtype=np.float32)
    weights[0, 1] = weights[1, 0] = 3.0
    found = spectral_embedding(weights, jnp.ones(6, bool), 1, jax.random.key(1))
    values = scipy.linalg.eigh(np.diag(weights.sum(1)) - weights, np.diag(weights.sum(1)))[0]
    vector = np.asarray(found[:, 0], np.float64)
    quotient = vector @ weights @ vector / (vector**2 @ weights.sum(1))
    np.testing.assert_allclose(1 - quotient, values[1], rtol=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
def test_degenerate_graphs_stay_finite(inverse):
    for weights in (np.zeros((5, 5)), np.ones((5, 5)), np.eye(5)):
        found = spectral_embedding(
            weights.astype(np.float32),
            jnp.arange(5) < 4,
            2,
            jax.random.key(0),
            steps=8,
            inverse=inverse,
        )
        assert np.isfinite(found).all()
