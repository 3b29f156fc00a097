"""Graphs to jraph and back; jraph's sparse sums as the oracle of the dense propagation."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from unseg_jax.clustering.graphs import Graph, gcn_propagation
from unseg_jax.interop.jraph import from_jraph, to_jraph

COUNTS = (5, 2, 6)
SIZE = 6

jitted = jax.jit(to_jraph, static_argnames="num_edges")


def random_batch(signed=False):
    random = np.random.default_rng(0)
    nodes = random.normal(size=(3, SIZE, 4)).astype(np.float32)
    weights = random.normal(size=(3, SIZE, SIZE)).astype(np.float32)
    weights = weights + weights.transpose(0, 2, 1)
    if not signed:
        weights = np.maximum(weights, 0)
    mask = np.arange(SIZE) < np.array(COUNTS)[:, None]
    nodes *= mask[..., None]
    weights *= mask[:, :, None] & mask[:, None, :]
    return Graph(nodes, weights, mask)


def assert_same(graph, other):
    jax.tree.map(np.testing.assert_array_equal, graph, other)


def test_there_and_back_is_exact():
    graph = random_batch(signed=True)
    count = int((graph.adjacency != 0).sum())
    default, traced, exact = to_jraph(graph), jitted(graph), jitted(graph, num_edges=count)
    for there in (default, traced, exact):
        assert_same(from_jraph(there), graph)
    # Shapes are static under jit, and powers of two otherwise.
    assert len(traced.edges) == 3 * SIZE**2
    assert len(default.edges) == 2 ** (count - 1).bit_length()
    with pytest.raises(ValueError, match=f"these graphs have {count} edges"):
        to_jraph(graph, num_edges=count - 1)
    one = jax.tree.map(lambda values: values[2], graph)  # comes back as a batch of one
    assert_same(from_jraph(jitted(one)), jax.tree.map(lambda values: values[None], one))


def test_masked_nodes_between_real_ones_are_moved_to_the_end():
    graph = random_batch()
    shuffled = np.array([3, 5, 0, 1, 4, 2])
    nodes, adjacency, mask = (leaf[:, shuffled] for leaf in jax.tree.leaves(graph))
    back = from_jraph(jitted(Graph(nodes, adjacency[:, :, shuffled], mask)))
    for index, count in enumerate(COUNTS):
        order = shuffled[shuffled < count]
        np.testing.assert_array_equal(back.nodes[index, :count], graph.nodes[index, order])
        np.testing.assert_array_equal(
            back.adjacency[index, :count, :count], graph.adjacency[index][np.ix_(order, order)]
        )
        np.testing.assert_array_equal(back.mask[index], np.arange(SIZE) < count)


def test_padding_is_jraphs_own():
    graphs = jitted(random_batch())
    assert int(jraph.get_node_padding_mask(graphs).sum()) == sum(COUNTS)
    edges = jraph.get_edge_padding_mask(graphs)
    np.testing.assert_array_equal(edges, np.asarray(graphs.edges[:, 0]) != 0)
    np.testing.assert_array_equal(jraph.get_graph_padding_mask(graphs), [True] * 3 + [False])
    assert_same(from_jraph(jraph.unpad_with_graphs(graphs)), random_batch())


def test_jraphs_sums_are_the_dense_propagation():
    graph = random_batch()
    expected = jax.vmap(gcn_propagation)(graph.adjacency, graph.mask) @ graph.nodes
    loops = np.eye(SIZE) * (np.einsum("bii->bi", graph.adjacency) == 0)[..., None]
    looped = graph.adjacency + loops * graph.mask[..., None]
    graphs = jitted(Graph(graph.nodes, looped.astype(jnp.float32), graph.mask))
    degrees = jraph.segment_sum(graphs.edges[:, 0], graphs.receivers, len(graphs.nodes))
    scale = jnp.where(degrees > 0, 1 / jnp.sqrt(jnp.where(degrees > 0, degrees, 1)), 0)[:, None]
    network = jraph.GraphNetwork(
        update_edge_fn=lambda edges, sender, receiver, globals_: edges * sender,
        update_node_fn=lambda nodes, sender, receiver, globals_: receiver * scale,
    )
    sums = jax.jit(network)(graphs._replace(nodes=graphs.nodes * scale))
    sparse = from_jraph(graphs._replace(nodes=sums.nodes))
    np.testing.assert_allclose(sparse.nodes, expected, rtol=1e-5, atol=1e-6)


def test_graphs_made_by_jraph():
    ends = {"senders": np.array([0, 1, 1]), "receivers": np.array([1, 0, 2])}
    counts = {"n_node": np.array([3]), "n_edge": np.array([3])}
    nodes = np.ones((3, 2), np.float32)
    one = jraph.GraphsTuple(nodes=nodes, edges=None, globals=None, **ends, **counts)
    expected = np.array([[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]], np.float32)
    batch = from_jraph(jraph.batch([one, one]))
    assert batch.mask.all()
    np.testing.assert_array_equal(batch.adjacency, [expected, expected])
    padded = from_jraph(jraph.pad_with_graphs(one, 8, 8, 4), num_nodes=4)
    np.testing.assert_array_equal(padded.mask, [[True, True, True, False]])
    blank = one._replace(nodes=np.zeros((3, 2), np.float32), edges=np.zeros((3, 1), np.float32))
    assert from_jraph(blank, padded=False).nodes.shape == (1, 3, 2)
    for graphs, options, says in (
        (one, {"num_nodes": 2}, "a graph has 3 nodes"),
        (one._replace(nodes={"colour": nodes}), {}, r"graphs\.nodes must be one array"),
        (one._replace(edges=np.ones((3, 2))), {}, "one weight per edge"),
    ):
        with pytest.raises(ValueError, match=says):
            from_jraph(graphs, **options)
