"""Layers against NumPy written out edge by edge, and dropout's own properties.

(PyTorch Geometric's layers are the oracle in tests/reference.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax.clustering import graphs, layers

N, D, F = 7, 4, 6


dropout = jax.jit(layers.dropout, static_argnums=1)
random_bits = jax.jit(layers.random_bits, static_argnums=1)


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(2)
    weights = rng.uniform(-1, 1, size=(N, N))
    weights = (weights + weights.T).astype(np.float32)
    weights[5, :] = weights[:, 5] = 0  # an isolated node
    return rng.normal(size=(N, D)).astype(np.float32), weights


def test_gcn(graph):
    x, weights = graph

    @jax.jit
    def run(key):
        params = layers.init_gcn(key, D, F) | {"bias": jnp.arange(F) / 10}
        propagation = graphs.gcn_propagation(weights, jnp.ones(N, bool))
        return params, layers.gcn(params, x, propagation), layers.gcn(params, propagation @ x)

    p, *ours = jax.device_get(run(jax.random.key(0)))
    edges = np.maximum(weights, 0)
    for i in range(N):
        edges[i, i] = edges[i, i] or 1
    expected = np.zeros((N, F))
    for i in range(N):
        for j in range(N):
            scale = np.sqrt(edges[i].sum() * edges[j].sum())
            expected[i] += edges[i, j] / scale * (x[j] @ p["kernel"])
    expected += p["bias"]
    np.testing.assert_allclose(ours, [expected, expected], atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_gat(graph, heads):
    x, weights = graph

    @jax.jit
    def run(key):
        params = layers.init_gat(key, D, F, heads)
        return params, layers.gat(params, x, *graphs.gat_edges(weights))

    p, ours = jax.device_get(run(jax.random.key(1)))
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

    @jax.jit
    def run(key):
        params = layers.init_arma(key, D, F, stacks=stacks, layers=depth, shared=shared)
        propagation = graphs.arma_propagation(weights)
        facts = {"layers": depth, "activation": "relu"}
        return params, layers.arma(params, x, propagation @ x, propagation, **facts)

    p, ours = jax.device_get(run(jax.random.key(2)))
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
    params = jax.jit(layers.init_gcn, static_argnums=(1, 2))(jax.random.key(3), 300, 100)
    limit = np.sqrt(6 / 400)
    assert np.abs(params["kernel"]).max() <= limit
    assert np.std(params["kernel"]) == pytest.approx(limit / np.sqrt(3), rel=0.02)
    linear = jax.jit(layers.init_linear, static_argnums=(1, 2))(jax.random.key(4), 100, 300)
    assert np.abs(linear["kernel"]).max() <= 0.1
    assert np.std(linear["kernel"]) == pytest.approx(0.1 / np.sqrt(3), rel=0.02)
    # Drawn flat, they are as JAX draws them.
    shaped = jax.random.uniform(jax.random.key(3), (300, 100), jnp.float32, -limit, limit)
    np.testing.assert_allclose(params["kernel"], shaped, atol=1e-7)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = np.ones((400, 500), np.float32)
    for rate in (0.2, 0.4):
        out = np.asarray(dropout(x, rate, np.uint32(7)))
        assert (out == 0).mean() == pytest.approx(rate, abs=3e-3)
        assert out.mean() == pytest.approx(1, abs=5e-3)
    assert layers.dropout(x, 0.5, None) is x


def test_dropout_is_independent_between_seeds_and_neighbours():
    bits = np.stack([random_bits(np.uint32(seed), (300, 300)) for seed in (1, 2, 12345)])
    kept = (bits >= 2**31).astype(float) - 0.5
    for a in range(3):
        for b in range(a):
            assert abs(np.mean(kept[a] * kept[b]) * 4) < 0.015
    assert abs(np.mean(kept[:, 1:] * kept[:, :-1]) * 4) < 0.015
    assert abs(np.mean(kept[:, :, 1:] * kept[:, :, :-1]) * 4) < 0.015
    assert np.abs(kept.mean(1)).max() < 0.15


def test_padding_rows_leave_dropout_as_it_is():
    padded = np.asarray(dropout(np.ones((8, 3)), 0.5, np.uint32(3)))
    np.testing.assert_array_equal(padded[:5], dropout(np.ones((5, 3)), 0.5, np.uint32(3)))


@pytest.mark.parametrize("multiply", [layers.fixed_product, layers.product, layers.propagate])
def test_products_and_their_gradients(graph, multiply):
    x, weights = graph
    rng = np.random.default_rng(3)
    kernel, nodes, cotangent = (rng.normal(size=(n, F)).astype(np.float32) for n in (D, N, N))
    # What is propagated is symmetric.
    left, right = (weights, nodes) if multiply is layers.propagate else (x, kernel)
    out, gradients = jax.vjp(multiply, left, right)
    in_left, in_right = gradients(cotangent)
    np.testing.assert_allclose(out, np.einsum("nd,df->nf", left, right), atol=1e-5)
    np.testing.assert_allclose(in_left, np.einsum("nf,df->nd", cotangent, right), atol=1e-5)
    np.testing.assert_allclose(in_right, np.einsum("nd,nf->df", left, cotangent), atol=1e-5)


def test_elu_and_its_gradient():
    x = np.array([-100, -5, -1e-3, -1e-8, 0, 1e-8, 3], np.float32)
    exact = x.astype(np.float64)
    out, slopes = jax.jit(jax.vmap(jax.value_and_grad(layers.elu)))(x)
    np.testing.assert_allclose(out, np.where(exact > 0, exact, np.expm1(exact)), atol=1.2e-7)
    slope = np.where(exact > 0, 1, np.exp(np.minimum(exact, 0)))
    np.testing.assert_allclose(slopes, slope, atol=1.2e-7)
