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
    return Graph(jnp.asarray(nodes), jnp.asarray(weights), jnp.asarray(mask))


def assert_same(graph, other):
    jax.tree.map(np.testing.assert_array_equal, graph, other)


def test_there_and_back_is_exact():
    graph = random_batch(signed=True)
    assert_same(from_jraph(to_jraph(graph)), graph)


def test_one_graph_comes_back_as_a_batch_of_one():
    graph = jax.tree.map(lambda values: values[2], random_batch())
    assert_same(from_jraph(to_jraph(graph)), jax.tree.map(lambda values: values[None], graph))


def test_masked_nodes_between_real_ones_are_moved_to_the_end():
    graph = random_batch()
    shuffled = np.array([3, 5, 0, 1, 4, 2])
    moved = Graph(
        graph.nodes[:, shuffled],
        graph.adjacency[:, shuffled][:, :, shuffled],
        graph.mask[:, shuffled],
    )
    back = from_jraph(to_jraph(moved))
    for index, count in enumerate(COUNTS):
        order = shuffled[shuffled < count]
        np.testing.assert_array_equal(back.nodes[index, :count], graph.nodes[index, order])
        np.testing.assert_array_equal(
            back.adjacency[index, :count, :count], graph.adjacency[index][np.ix_(order, order)]
        )
        np.testing.assert_array_equal(back.mask[index], np.arange(SIZE) < count)


def test_padding_is_jraphs_own():
    graphs = to_jraph(random_batch())
    nodes = jraph.get_node_padding_mask(graphs)
    edges = jraph.get_edge_padding_mask(graphs)
    assert int(nodes.sum()) == sum(COUNTS)
    np.testing.assert_array_equal(edges, np.asarray(graphs.edges[:, 0]) != 0)
    np.testing.assert_array_equal(jraph.get_graph_padding_mask(graphs), [True] * 3 + [False])
    unpadded = jraph.unpad_with_graphs(graphs)
    assert_same(from_jraph(unpadded), random_batch())


def test_shapes_are_static_under_jit():
    graph = random_batch()
    traced = jax.jit(to_jraph)(graph)
    assert traced.edges.shape == (3 * SIZE**2, 1)
    assert_same(from_jraph(traced), graph)
    exact = to_jraph(graph)
    assert len(exact.edges) < len(traced.edges)
    assert (len(exact.edges) & (len(exact.edges) - 1)) == 0


def test_edge_budget():
    graph = random_batch()
    count = int((graph.adjacency != 0).sum())
    assert_same(from_jraph(to_jraph(graph, num_edges=count)), graph)
    with pytest.raises(ValueError, match=f"these graphs have {count} edges"):
        to_jraph(graph, num_edges=count - 1)


def test_jraphs_sums_are_the_dense_propagation():
    graph = random_batch()
    propagation = jax.vmap(gcn_propagation)(graph.adjacency, graph.mask)
    expected = np.asarray(propagation @ graph.nodes)

    def with_loops(adjacency, mask):
        diagonal = jnp.diagonal(adjacency)
        return adjacency + jnp.diag(jnp.where(mask & (diagonal == 0), 1.0, 0.0))

    looped = Graph(graph.nodes, jax.vmap(with_loops)(graph.adjacency, graph.mask), graph.mask)
    graphs = to_jraph(looped)
    weights, total = graphs.edges[:, 0], len(graphs.nodes)
    degrees = jraph.segment_sum(weights, graphs.receivers, total)
    scale = jnp.where(degrees > 0, 1 / jnp.sqrt(jnp.where(degrees > 0, degrees, 1)), 0)

    def sent(nodes):
        return nodes * scale[:, None]

    network = jraph.GraphNetwork(
        update_edge_fn=lambda edges, sender, receiver, globals_: edges * sender,
        update_node_fn=lambda nodes, sender, receiver, globals_: receiver * scale[:, None],
    )
    sums = jax.jit(network)(graphs._replace(nodes=sent(graphs.nodes)))
    sparse = from_jraph(graphs._replace(nodes=sums.nodes))
    np.testing.assert_allclose(sparse.nodes, expected, rtol=1e-5, atol=1e-6)


def test_graphs_made_by_jraph():
    one = jraph.GraphsTuple(
        nodes=np.ones((3, 2), np.float32),
        edges=None,
        senders=np.array([0, 1, 1]),
        receivers=np.array([1, 0, 2]),
        n_node=np.array([3]),
        n_edge=np.array([3]),
        globals=None,
    )
    expected = np.array([[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]], np.float32)
    batch = from_jraph(jraph.batch([one, one]))
    assert batch.mask.all()
    np.testing.assert_array_equal(batch.adjacency, [expected, expected])
    padded = from_jraph(jraph.pad_with_graphs(one, 8, 8, 4), num_nodes=4)
    np.testing.assert_array_equal(padded.mask, [[True, True, True, False]])
    blank = one._replace(nodes=np.zeros((3, 2), np.float32), edges=np.zeros((3, 1), np.float32))
    assert from_jraph(blank, padded=False).nodes.shape == (1, 3, 2)


def test_errors_name_the_remedy():
    graphs = to_jraph(random_batch())
    with pytest.raises(ValueError, match="a graph has 6 nodes"):
        from_jraph(graphs, num_nodes=5)
    with pytest.raises(ValueError, match=r"graphs\.nodes must be one array"):
        from_jraph(graphs._replace(nodes={"colour": graphs.nodes}))
    with pytest.raises(ValueError, match="one weight per edge"):
        from_jraph(graphs._replace(edges=jnp.ones((len(graphs.edges), 2))))
