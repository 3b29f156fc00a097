"""Affinities and normalisations against NumPy written out, and masked graphs against compacted."""

import jax
import numpy as np
import pytest

from unseg_jax.clustering import graphs
from unseg_jax.registry import resolve

pytestmark = pytest.mark.quick

affinity = jax.jit(graphs.affinity, static_argnums=1, static_argnames="grid")
build_graph = jax.jit(graphs.build_graph, static_argnums=1)
gcn_propagation = jax.jit(graphs.gcn_propagation, static_argnames="normalise")

N, D = 12, 5
KINDS = [
    ("ncut", {"tau": 0.0}),
    ("ncut", {"tau": 0.8}),
    ("cc", {"alpha": 3.0}),
    ("dmon", {"tau": 0.3}),
    ("cosine", {"tau": 0.3}),
]


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def written_out(kind, features, tau=0.0, alpha=3.0):
    weights = np.zeros((len(features), len(features)))
    largest = max(float(a @ b) for a in features for b in features)
    for i, a in enumerate(features):
        for j, b in enumerate(features):
            product = float(a @ b)
            cosine = product / np.linalg.norm(a) / np.linalg.norm(b)
            weights[i, j] = {
                "ncut": product / largest if product > tau else 0.0,
                "cc": product - largest / alpha,
                "dmon": float(cosine >= tau),
                "cosine": cosine if cosine >= tau else 0.0,
            }[kind]
    return weights


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_affinity_is_its_formula(features, kind, fields):
    method = resolve("deepcut-cc", affinity=kind, **fields)
    ours = affinity(features, method)
    np.testing.assert_allclose(ours, written_out(kind, features, **fields), atol=1e-5)


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_masked_affinity_is_the_compacted_one(features, kind, fields):
    method = resolve("deepcut-cc", affinity=kind, neighbours=3, **fields)
    mask = np.ones(N, bool)
    mask[[1, 4, 5, 11]] = False
    masked = np.asarray(build_graph(features, method, mask).adjacency)
    compacted = affinity(features[mask], method)
    np.testing.assert_allclose(masked[mask][:, mask], compacted, atol=1e-6)
    assert not masked[~mask].any()
    assert not masked[:, ~mask].any()


@pytest.mark.parametrize("count", [0, 2, N])
def test_nearest_neighbours_keeps_the_strongest_both_ways(features, count):
    weights = written_out("ncut", features)
    kept = jax.jit(graphs.nearest_neighbours, static_argnums=1)(weights, count)
    expected = np.eye(N, dtype=bool)
    for i in range(N):
        order = [j for j in np.argsort(-weights[i]) if j != i][:count]
        expected[i, order] = expected[order, i] = True
    np.testing.assert_array_equal(np.asarray(kept) != 0, expected & (weights != 0))


def test_spatial_decay_is_a_gaussian_of_the_distance_on_the_grid():
    alike, method = np.ones((12, 2), np.float32), resolve("deepcut", spatial_decay=2.0)
    decay = np.asarray(affinity(alike, method, grid=(3, 4)))
    # Patch 0 lies at (0, 0) and patch 11 at (2, 3).
    np.testing.assert_allclose(decay[0, [0, 11]], [1, np.exp(-13 / 8)], rtol=1e-6)
    with pytest.raises(ValueError, match="grid"):
        affinity(alike, method)


def test_gcn_propagation_adds_loops_only_where_there_are_none(features):
    weights = written_out("cc", features).astype(np.float32)
    ours = gcn_propagation(weights, np.ones(N, bool))
    edges = np.maximum(weights, 0)
    np.testing.assert_array_equal(gcn_propagation(weights, None, normalise=False), edges)
    assert (np.diag(edges) == 0).any()
    assert (np.diag(edges) > 0).any()
    edges[np.diag_indices(N)] = np.where(np.diag(edges) > 0, np.diag(edges), 1)
    scale = 1 / np.sqrt(edges.sum(1))
    np.testing.assert_allclose(ours, scale[:, None] * edges * scale, atol=1e-6)


def test_isolated_nodes_give_finite_propagation():
    weights = np.zeros((3, 3), np.float32)
    assert np.isfinite(jax.jit(graphs.arma_propagation)(weights)).all()
    np.testing.assert_array_equal(gcn_propagation(weights, np.ones(3, bool)), np.eye(3))


def test_attention_edges_have_the_mean_as_self_loop():
    weights = np.array([[9, 2, 0], [2, 9, 4], [0, 4, 9]], np.float32)
    edges, neighbours = jax.jit(graphs.gat_edges)(weights)
    np.testing.assert_allclose(edges, [[2, 2, 0], [2, 3, 4], [0, 4, 4]])
    np.testing.assert_array_equal(neighbours, [[1, 1, 0], [1, 1, 1], [0, 1, 1]])


def test_colour_affinity_says_what_to_do():
    with pytest.raises(ValueError, match="superpixels"):
        affinity(np.ones((3, 2)), resolve("slic-ncut"))
