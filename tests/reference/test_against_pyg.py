"""unseg_jax against our PyTorch + PyG writing of the published loops, on random graphs."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the 'reference' extra")
pytest.importorskip("torch_geometric", reason="needs the 'reference' extra")

import torch
import torch_geometric.nn as geometric

import unseg_jax as us
from benchmarks.reference import pyg_heads
from unseg_jax import registry
from unseg_jax.clustering import graphs, head, layers, parts

from .conftest import features

pytestmark = pytest.mark.pytorch

NODES, WIDTH, EPOCHS = 60, 24, 15
# Name of the PyG head → method and overrides of ours.
METHODS = {
    "deepcut": ("deepcut", {}),
    "deepcut-cc": ("deepcut-cc", {}),
    "unseggnet": ("unseggnet", {}),
    "unseggnet-ncut": ("unseggnet", {"loss": "ncut", "affinity": "ncut", "tau": 0.0}),
    "unsegarmanet": ("unsegarmanet", {}),
    "unsegarmanet-ncut": ("unsegarmanet", {"loss": "ncut", "affinity": "ncut", "tau": 0.0}),
    "unsegmedgat": ("unsegmedgat", {}),
    "unsegmedgat-isic": ("unsegmedgat-isic", {}),
}


def made(name, seed):
    """A head of PyG, and nodes, their affinities and initial parameters for it."""
    published = pyg_heads.HEADS[name]
    nodes = features(seed, NODES, WIDTH)
    state = pyg_heads.initial_state(published, WIDTH, seed=seed)
    return published, nodes, pyg_heads.affinity(nodes, published), state


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", METHODS)
def test_loop(name, seed):
    published, nodes, weights, state = made(name, seed)
    expected = pyg_heads.run(
        nodes, published, state=state, adjacency=weights, epochs=EPOCHS, dropout=0.0
    )

    method, overrides = METHODS[name]
    found = us.cluster(
        nodes,
        method=method,
        adjacency=weights,
        params=us.params_from_pytorch(state, method),
        epochs=EPOCHS,
        learning_rate=published.learning_rate,
        dropout=0.0,
        quirks="code",
        **overrides,
    )

    tolerance = 1e-3 if published.layer == "gat" else 1e-4
    # The signed loss of correlation clustering passes through zero: judged by its range.
    slack = tolerance * np.abs(expected.losses).max() if published.loss == "cc" else 0.0
    np.testing.assert_allclose(found.losses, expected.losses, rtol=tolerance, atol=slack)
    assert np.mean(np.asarray(found.labels) == expected.labels) >= 0.995


@pytest.mark.parametrize("name", METHODS)
def test_first_gradients(name):
    published, nodes, weights, state = made(name, 2)
    # With nearly even assignments the terms of the gradient cancel, and rounding is what is left.
    state["mlp.3.weight"] *= 10
    expected = pyg_heads.run(
        nodes, published, state=state, adjacency=weights, epochs=1, dropout=0.0
    ).gradients
    # Parameters that the published loss does not reach have no gradient there: zero here.
    expected = {name: expected.get(name, np.zeros_like(value)) for name, value in state.items()}

    base, overrides = METHODS[name]
    params = us.params_from_pytorch(state, base)
    method = registry.resolve(base, dropout=0.0, quirks="code", **overrides)
    method = registry.resolve(method, **head.describe_params(params, method))

    @jax.jit
    def gradient(params):
        graph = graphs.build_graph(nodes, method, adjacency=weights)
        prepared = head.prepare_head(method, graph)
        loss_of = parts.make_loss(method, graph)
        return jax.grad(lambda params: loss_of(head.assign(params, prepared, method)))(params)

    found = gradient(params)
    expected = us.params_from_pytorch(expected, base)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale + 1e-9)


def graph_with_gaps(seed=0, loops=False):
    """A random symmetric affinity of which half the entries, and the diagonal, are missing."""
    generator = np.random.default_rng(seed)
    weights = np.triu(generator.random((NODES, NODES)), 1)
    weights *= generator.random((NODES, NODES)) < 0.5
    weights = (weights + weights.T + loops * np.eye(NODES)).astype(np.float32)
    return features(seed, NODES, WIDTH), weights


def by_pyg(layer, nodes, weights):
    """What a layer of PyG gives, and its parameters by name."""
    torch.nn.init.normal_(layer.bias)
    with torch.inference_mode():
        found = layer(torch.from_numpy(nodes), *pyg_heads.edges(weights)).numpy()
    return found, {name: value.detach().numpy() for name, value in layer.named_parameters()}


@pytest.mark.parametrize("loops", [False, True])
def test_gcn_layer(loops):
    nodes, weights = graph_with_gaps(loops=loops)
    torch.manual_seed(0)
    expected, values = by_pyg(geometric.GCNConv(WIDTH, 7), nodes, weights)
    params = {"kernel": values["lin.weight"].T, "bias": values["bias"]}
    found = layers.gcn(params, nodes, graphs.gcn_propagation(weights, np.ones(NODES, bool)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_gat_layer(heads):
    nodes, weights = graph_with_gaps(1)
    torch.manual_seed(1)
    layer = geometric.GATConv(WIDTH, 6, heads=heads, edge_dim=1)
    expected, values = by_pyg(layer, nodes, weights)
    names = {"source": "att_src", "target": "att_dst", "edge": "att_edge"}
    params = {ours: values[theirs][0] for ours, theirs in names.items()}
    params |= {"kernel": values["lin.weight"].T, "bias": values["bias"]}
    params["edge_kernel"] = values["lin_edge.weight"][:, 0]
    found = layers.gat(params, nodes, *graphs.gat_edges(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_arma_layer(shared):
    nodes, weights = graph_with_gaps(2)
    torch.manual_seed(2)
    layer = geometric.ARMAConv(
        WIDTH, 5, num_stacks=3, num_layers=4, shared_weights=shared, act=torch.nn.SELU()
    )
    expected, values = by_pyg(layer, nodes, weights)
    names = {"initial": "init_weight", "recurrent": "weight", "root": "root_weight"}
    params = {ours: values[theirs] for ours, theirs in names.items()}
    params["bias"] = values["bias"][:, :, 0]
    propagation = graphs.arma_propagation(weights)
    found = layers.arma(
        params, nodes, propagation @ nodes, propagation, layers=4, activation="selu"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
