"""Our dense, padded graphs as jraph's sparse ones, and back.

Conversion is for people who have jraph models, and for tests; nothing on the way from images to
masks goes through it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from unseg_jax.clustering.graphs import Graph

if TYPE_CHECKING:
    import jraph


def to_jraph(graph: Graph, *, num_edges: int | None = None) -> jraph.GraphsTuple:
    """The graphs of a batch as one padded `jraph.GraphsTuple`.

    Real nodes come first, graph by graph, in their order; then one padding graph takes up what is
    left, as `jraph.pad_with_graphs` would leave it, so that jraph's padding masks hold. For B
    graphs of N nodes there are always B·N + 1 nodes and `num_edges` edges: the shapes are static
    and the function runs under `jax.jit`.

    Args:
        graph: nodes (B, N, D) or (N, D), which is taken as a batch of one.
        num_edges: length of the edge arrays. None is the number of entries that are not zero,
            rounded up to a power of two so that few shapes occur; under `jax.jit`, where that
            number is unknown, it is B·N².

    Returns:
        nodes (B·N + 1, D) float32; edges (num_edges, 1) float32, the non-zero entries of W
        (negative ones too: keep `edges > 0` for what a graph neural network sees); senders and
        receivers (num_edges,) int32; n_node and n_edge (B + 1,) int32; globals None.

    Raises:
        ValueError: `num_edges` is less than the number of edges (outside of `jax.jit`; inside,
            the edges in excess are left out, last graph first).
        ImportError: jraph is not installed.
    """
    try:
        import jraph
    except ImportError:
        raise ImportError(
            "handing graphs to jraph needs the package jraph; pip install jraph"
        ) from None

    nodes, adjacency, mask = jax.tree.map(
        lambda values, rank: values if values.ndim == rank + 1 else values[None],
        (graph.nodes, graph.adjacency, graph.mask),
        (2, 2, 1),
    )
    edges = (adjacency != 0) & mask[:, :, None] & mask[:, None, :]
    if isinstance(edges, Tracer):
        budget = edges.size if num_edges is None else num_edges
    else:
        count = int(edges.sum())
        budget = 1 << max(count - 1, 0).bit_length() if num_edges is None else num_edges
        if count > budget:
            raise ValueError(
                f"num_edges={num_edges} is too small: these graphs have {count} edges; "
                "pass at least that many."
            )

    return jraph.GraphsTuple(**_packed(nodes, adjacency, mask, edges, budget=budget), globals=None)


def from_jraph(
    graphs: jraph.GraphsTuple, *, num_nodes: int | None = None, padded: bool | None = None
) -> Graph:
    """The dense, padded form of a `jraph.GraphsTuple`; on the host, as sizes are in the data.

    Args:
        graphs: nodes one array (ΣN, D); edges weights (ΣE,) or (ΣE, 1), or None for 1 each.
            Weights of several edges between the same nodes add up, and the symmetric part is
            taken: an edge in one direction alone counts half in each.
        num_nodes: N; None is the largest number of nodes in a graph.
        padded: whether the last graph with nodes, and empty ones after it, are padding. None
            finds out: it is taken for padding where its nodes and any weights are all zero, as
            `to_jraph` and `jraph.pad_with_graphs` leave them.

    Returns:
        `Graph` with nodes (B, N, D), adjacency (B, N, N), mask (B, N), always with the batch
        axis. What `to_jraph` made comes back with each graph's real nodes at its front.

    Raises:
        ValueError: nodes or edges of another form, or a graph with more than `num_nodes` nodes.
    """
    nodes, weights = _node_features(graphs.nodes), _edge_weights(graphs)
    node_counts, edge_counts = np.asarray(graphs.n_node), np.asarray(graphs.n_edge)
    node_ends, edge_ends = np.cumsum(node_counts), np.cumsum(edge_counts)
    last = int(np.flatnonzero(node_counts)[-1]) if node_counts.any() else -1
    if padded is None and last >= 0:
        padded = not (
            nodes[node_ends[last] - node_counts[last] : node_ends[last]].any()
            or (
                graphs.edges is not None
                and weights[edge_ends[last] - edge_counts[last] : edge_ends[last]].any()
            )
        )
    count = last if padded else len(node_counts)
    node_counts, edge_counts = node_counts[:count], edge_counts[:count]
    largest = int(node_counts.max(initial=0))
    size = largest if num_nodes is None else num_nodes
    if largest > size:
        raise ValueError(
            f"num_nodes={size} is too small: a graph has {largest} nodes; pass at least that many."
        )

    mask = np.arange(size) < node_counts[:, None]
    dense_nodes = np.zeros((count, size, nodes.shape[1]), np.float32)
    dense_nodes[mask] = nodes[: node_counts.sum()]
    owner = np.repeat(np.arange(count), edge_counts)
    starts = np.cumsum(node_counts) - node_counts
    ends = (
        np.asarray(end)[: len(owner)] - starts[owner] for end in (graphs.receivers, graphs.senders)
    )
    adjacency = np.zeros((count, size, size), np.float32)
    np.add.at(adjacency, (owner, *ends), weights[: len(owner)])
    adjacency = 0.5 * (adjacency + adjacency.transpose(0, 2, 1))
    return Graph(jnp.asarray(dense_nodes), jnp.asarray(adjacency), jnp.asarray(mask))


@functools.partial(jax.jit, static_argnames="budget")
def _packed(nodes, adjacency, mask, edges, *, budget: int):
    """The fields of the tuple, all but `globals`: one program instead of dozens of operations."""
    batch, size, width = nodes.shape
    total = batch * size
    # Where each node goes: real ones to the front, in order. The rest share the padding graph.
    real = mask.reshape(-1)
    place = jnp.where(real, jnp.cumsum(real) - 1, total)
    flat = jnp.zeros((total + 1, width), jnp.float32)
    flat = flat.at[place].add(jnp.where(real[:, None], nodes.reshape(total, width), 0.0))

    counts = jnp.minimum(jnp.cumsum(edges.sum((1, 2))), budget)
    index = jnp.nonzero(edges, size=budget, fill_value=0)
    kept = jnp.arange(budget) < counts[-1]
    weights = jnp.where(kept, adjacency[index], 0.0).astype(jnp.float32)
    receivers, senders = (
        jnp.where(kept, place[index[0] * size + end], total).astype(jnp.int32) for end in index[1:]
    )
    node_counts = mask.sum(1)
    edge_counts = jnp.diff(counts, prepend=0)
    return {
        "nodes": flat,
        "edges": weights[:, None],
        "senders": senders,
        "receivers": receivers,
        "n_node": _with_rest(node_counts, total + 1),
        "n_edge": _with_rest(edge_counts, budget),
    }


def _with_rest(counts, total: int):
    """The counts of the real graphs, then that of the padding graph."""
    return jnp.concatenate([counts, total - counts.sum(keepdims=True)]).astype(jnp.int32)


def _node_features(nodes: Any) -> np.ndarray:
    if not hasattr(nodes, "ndim") or nodes.ndim != 2:
        raise ValueError(
            "graphs.nodes must be one array (number of nodes, features): stack or flatten it first."
        )
    return np.asarray(nodes, np.float32)


def _edge_weights(graphs: Any) -> np.ndarray:
    count, weights = len(graphs.senders), graphs.edges
    if weights is None:
        return np.ones(count, np.float32)
    if not hasattr(weights, "shape") or weights.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"graphs.edges must be one weight per edge, of shape ({count},) or ({count}, 1): "
            "reduce the edge features to that first."
        )
    return np.asarray(weights, np.float32).reshape(count)
