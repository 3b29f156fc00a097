"""Losses against NumPy written out, masked against compacted, and at their edges."""

import functools

import jax
import numpy as np
import pytest

from unseg_jax.clustering import losses

pytestmark = pytest.mark.quick

N, K = 9, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(1)
    assignments = rng.dirichlet(np.ones(K), size=N)
    weights = rng.uniform(size=(N, N))
    return assignments.astype(np.float32), (weights + weights.T).astype(np.float32)


def ncut(s, w):
    degrees = np.diag(w.sum(1))
    overlap = s.T @ s
    cut = -np.trace(s.T @ w @ s) / np.trace(s.T @ degrees @ s)
    target = np.eye(s.shape[1]) / np.sqrt(s.shape[1])
    return cut + np.linalg.norm(overlap / np.linalg.norm(overlap) - target)


def clustering(s, w):
    return -np.sum(w * (s @ s.T))


def modularity(s, w):
    degrees, twice_edges = w.sum(1), w.sum()
    b = w - np.outer(degrees, degrees) / twice_edges
    collapse = np.sqrt(s.shape[1]) / len(s) * np.linalg.norm(s.sum(0))
    return -np.trace(s.T @ b @ s) / twice_edges + collapse - 1


def modularity_code(s, w):
    degrees, edges = w.sum(1), w.sum()
    b = w - np.outer(degrees, degrees) / (2 * edges)
    collapse = np.sqrt(np.linalg.norm(np.eye(s.shape[1]))) / len(s) * np.linalg.norm(s.sum(1))
    return -np.trace(s.T @ b @ s) / (2 * edges) + collapse - 1


def modularity_quirks(assignments, adjacency, mask=None):
    return losses.modularity(assignments, adjacency, mask=mask, quirks="code", collapse="clusters")


CASES = {
    "ncut": (losses.ncut, ncut),
    "cc": (losses.correlation_clustering, clustering),
    "modularity": (losses.modularity, modularity),
    "modularity-code": (modularity_quirks, modularity_code),
}
each_loss = pytest.mark.parametrize(("ours", "formula"), CASES.values(), ids=CASES)


@functools.cache
def with_gradient(loss):
    return jax.jit(jax.value_and_grad(loss))


@each_loss
def test_value_and_gradient_are_those_of_the_formula(case, ours, formula):
    s, w = (array.astype(float) for array in case)
    value, gradient = with_gradient(ours)(*case)
    # Differentiated, a loss is computed by other code than where its value alone is asked for.
    found = [value, jax.jit(ours)(*case)]
    np.testing.assert_allclose(found, [formula(s, w)] * 2, rtol=1e-5, atol=1e-6)
    for index in [(0, 0), (3, 2), (8, 1)]:
        step = np.zeros_like(s)
        step[index] = 1e-5
        slope = (formula(s + step, w) - formula(s - step, w)) / 2e-5
        np.testing.assert_allclose(gradient[index], slope, rtol=2e-3, atol=1e-5)


@each_loss
def test_masked_is_compacted(case, ours, formula):
    s, w = case
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1, 0], bool)
    padded = np.where(mask[:, None] & mask, w, 0)
    masked, gradient = jax.device_get(with_gradient(ours)(s, padded, mask=mask))
    expected, slope = with_gradient(ours)(s[mask], w[mask][:, mask])
    np.testing.assert_allclose(masked, expected, rtol=1e-5)
    assert not gradient[~mask].any()
    np.testing.assert_allclose(gradient[mask], slope, rtol=1e-3, atol=1e-6)


@each_loss
def test_gradients_are_finite_at_the_edges(ours, formula):
    """One node, no edges, and one cluster."""
    for assignments, weights in (
        (np.ones((1, 1)), np.ones((1, 1))),
        (np.full((4, 2), 0.5), np.zeros((4, 4))),
        (np.eye(2)[[0, 0, 0, 0]], np.ones((4, 4))),
    ):
        arguments = assignments.astype(np.float32), weights.astype(np.float32)
        value, gradient = with_gradient(ours)(*arguments)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_within_differentiates_in_the_weights_too(case):
    s, w = case
    slope = jax.jit(jax.grad(losses.within, 1))(s, w)
    np.testing.assert_allclose(slope, s @ s.T, rtol=1e-5)


def test_perfect_halves_reach_the_least_cut():
    weights = np.kron(np.eye(2), np.ones((3, 3))).astype(np.float32)
    halves = np.repeat(np.eye(2), 3, axis=0).astype(np.float32)
    found = [jax.jit(loss)(halves, weights) for loss in (losses.ncut, losses.modularity)]
    expected = -0.5 + np.sqrt(2) / 6 * np.sqrt(18) - 1
    np.testing.assert_allclose(found, [-1, expected], atol=1e-6)
