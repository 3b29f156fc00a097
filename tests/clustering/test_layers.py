"""Layers against NumPy written out edge by edge, and dropout's own properties.

(PyTorch Geometric's layers are the oracle in tests/reference.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax.clustering import graphs, layers

N, D, F = 7, 4, 6


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(2)
    weights = rng.uniform(-1, 1, size=(N, N))
    weights = (weights + weights.T).astype(np.float32)
    weights[5, :] = weights[:, 5] = 0  # an isolated node
    return rng.normal(size=(N, D)).astype(np.float32), weights


def test_gcn(graph):
    x, weights = graph
    params = layers.init_gcn(jax.random.key(0), D, F)
    params["bias"] = jnp.arange(F) / 10
    propagation = graphs.gcn_propagation(weights, jnp.ones(N, bool))
    edges = np.maximum(weights, 0)
    for i in range(N):
        edges[i, i] = edges[i, i] or 1
    expected = np.zeros((N, F))
    for i in range(N):
        for j in range(N):
            scale = np.sqrt(edges[i].sum() * edges[j].sum())
            expected[i] += edges[i, j] / scale * (x[j] @ params["kernel"])
    expected += params["bias"]
    np.testing.assert_allclose(layers.gcn(params, x, propagation), expected, atol=1e-5)
    np.testing.assert_allclose(layers.gcn(params, propagation @ x), expected, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_gat(graph, heads):
    x, weights = graph
    params = layers.init_gat(jax.random.key(1), D, F, heads)
    edges, neighbours = graphs.gat_edges(jnp.asarray(weights))
    ours = layers.gat(params, x, edges, neighbours)
    p = jax.tree.map(np.asarray, params)
    width = F // heads
    hidden = (x @ p["kernel"]).reshape(N, heads, width)
    edge_kernel = p["edge_kernel"].reshape(heads, width)
    expected = np.zeros((N, heads, width))
    for h in range(heads):
        for i in range(N):
            incoming = [j for j in range(N) if j != i and weights[j, i] > 0]
            features = {j: weights[j, i] for j in incoming}
            features[i] = np.mean([features[j] for j in incoming]) if incoming else 0.0
            logits = {}
            for j, feature in features.items():
                logit = p["source"][h] @ hidden[j, h] + p["target"][h] @ hidden[i, h]
                logit += p["edge"][h] @ (edge_kernel[h] * feature)
                logits[j] = logit if logit > 0 else 0.2 * logit
            total = sum(np.exp(logit) for logit in logits.values())
            for j, logit in logits.items():
                expected[i, h] += np.exp(logit) / total * hidden[j, h]
    expected = expected.reshape(N, F) + p["bias"]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_arma(graph, shared):
    x, weights = graph
    stacks, depth = 2, 3
    params = layers.init_arma(jax.random.key(2), D, F, stacks=stacks, layers=depth, shared=shared)
    propagation = graphs.arma_propagation(jnp.asarray(weights))
    ours = layers.arma(params, x, propagation @ x, propagation, layers=depth, activation="relu")
    p = jax.tree.map(np.asarray, params)
    edges = np.maximum(weights, 0)
    degrees = edges.sum(1)
    scale = np.where(degrees > 0, 1 / np.sqrt(np.where(degrees > 0, degrees, 1)), 0)
    laplacian = scale[:, None] * edges * scale
    outputs = []
    for s in range(stacks):
        out = x
        for t in range(depth):
            kernel = p["initial"][s] if t == 0 else p["recurrent"][0 if shared else t - 1, s]
            root = x @ p["root"][0 if shared else t, s]
            out = np.maximum(laplacian @ out @ kernel + root + p["bias"][0 if shared else t, s], 0)
        outputs.append(out)
    np.testing.assert_allclose(ours, np.mean(outputs, 0), atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="do not divide"):
        layers.init_gat(jax.random.key(0), D, 6, 4)


def test_glorot_and_linear_ranges():
    params = layers.init_gcn(jax.random.key(3), 300, 100)
    limit = np.sqrt(6 / 400)
    assert np.abs(params["kernel"]).max() <= limit
    assert np.std(params["kernel"]) == pytest.approx(limit / np.sqrt(3), rel=0.02)
    linear = layers.init_linear(jax.random.key(4), 100, 300)
    assert np.abs(linear["kernel"]).max() <= 0.1
    assert np.std(linear["kernel"]) == pytest.approx(0.1 / np.sqrt(3), rel=0.02)
    arma = layers.init_arma(jax.random.key(5), 3, 2, stacks=2)
    shaped = jax.random.uniform(jax.random.split(jax.random.key(5), 3)[0], (2, 3, 2))
    limit = np.sqrt(6 / 5)
    np.testing.assert_allclose(arma["initial"], (2 * shaped - 1) * limit, atol=1e-6)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = jnp.ones((400, 500))
    for rate in (0.2, 0.4):
        out = np.asarray(layers.dropout(x, rate, jnp.uint32(7)))
        assert (out == 0).mean() == pytest.approx(rate, abs=3e-3)
        assert out.mean() == pytest.approx(1, abs=5e-3)
    assert layers.dropout(x, 0.5, None) is x


def test_dropout_is_independent_between_seeds_and_neighbours():
    bits = np.stack([layers.random_bits(jnp.uint32(seed), (300, 300)) for seed in (1, 2, 12345)])
    kept = (bits >= 2**31).astype(float) - 0.5
    for a in range(3):
        for b in range(a):
            assert abs(np.mean(kept[a] * kept[b]) * 4) < 0.015
    assert abs(np.mean(kept[:, 1:] * kept[:, :-1]) * 4) < 0.015
    assert abs(np.mean(kept[:, :, 1:] * kept[:, :, :-1]) * 4) < 0.015
    assert np.abs(kept.mean(1)).max() < 0.15


def test_padding_rows_leave_dropout_as_it_is():
    x = jnp.ones((5, 3))
    padded = layers.dropout(jnp.ones((8, 3)), 0.5, jnp.uint32(3))
    np.testing.assert_array_equal(padded[:5], layers.dropout(x, 0.5, jnp.uint32(3)))


@pytest.mark.parametrize("multiply", [layers.fixed_product, layers.product])
def test_products_and_their_gradients(graph, multiply):
    x, _ = graph
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(D, F)).astype(np.float32)
    cotangent = rng.normal(size=(N, F)).astype(np.float32)
    out, gradients = jax.vjp(multiply, x, kernel)
    in_x, in_kernel = gradients(cotangent)
    np.testing.assert_allclose(out, np.einsum("nd,df->nf", x, kernel), atol=1e-5)
    np.testing.assert_allclose(in_x, np.einsum("nf,df->nd", cotangent, kernel), atol=1e-5)
    np.testing.assert_allclose(in_kernel, np.einsum("nd,nf->df", x, cotangent), atol=1e-5)


def test_propagation_and_its_gradients(graph):
    x, weights = graph
    cotangent = np.random.default_rng(4).normal(size=(N, D)).astype(np.float32)
    out, gradients = jax.vjp(layers.propagate, weights, x)
    in_weights, in_x = gradients(cotangent)
    np.testing.assert_allclose(out, np.einsum("nm,md->nd", weights, x), atol=1e-5)
    np.testing.assert_allclose(in_x, np.einsum("nm,nd->md", weights, cotangent), atol=1e-5)
    np.testing.assert_allclose(in_weights, np.einsum("nd,md->nm", cotangent, x), atol=1e-5)


def test_elu_and_its_gradient():
    x = np.array([-100, -5, -1e-3, -1e-8, 0, 1e-8, 3], np.float32)
    exact = x.astype(np.float64)
    out, gradient = jax.vjp(layers.elu, x)
    np.testing.assert_allclose(out, np.where(exact > 0, exact, np.expm1(exact)), atol=1.2e-7)
    slope = np.where(exact > 0, 1, np.exp(np.minimum(exact, 0)))
    np.testing.assert_allclose(gradient(jnp.ones(len(x)))[0], slope, atol=1.2e-7)
