"""One pass of a user's own loss and layer over a made-up graph, before any image is read."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering import head, parts
from unseg_jax.clustering.graphs import Graph
from unseg_jax.custom import name_of
from unseg_jax.method import Method


@functools.lru_cache(maxsize=64)
def check_own_parts(method: Method, nodes: int, width: int) -> None:
    """Raises what is wrong with the user's own loss and layer, if the method has any.

    Both are traced for graphs of that size, and run once, with their gradients, on a graph of two
    groups that are not linked and a padded node.

    Args:
        method: its head and loss are read.
        nodes: N.
        width: D, of the node features.

    Raises:
        ValueError: one of them cannot be traced, gives something of another shape or type, or
            values or gradients that are not finite.
    """
    if method.algorithm != "gnn":
        return
    for field, part in method.own_parts.items():
        graph, assignments = _made_up(method, nodes, width)
        if field == "loss":
            finite = _try_loss(graph, assignments, method=method)
        else:
            finite = _try_layer(graph, method=method)
        for what, good in zip(("value", "gradient"), jax.device_get(finite), strict=True):
            if not good:
                raise ValueError(
                    f"the {what} of the {field} '{name_of(part)}' is not finite before the first "
                    "step, on a graph of two groups that are not linked and a padded node: keep "
                    "divisors, logarithms and roots away from 0."
                )


def _made_up(method, nodes, width):
    rng = np.random.default_rng(0)
    mask = np.arange(nodes) < max(1, nodes - 1)
    group = np.arange(nodes) % 2
    features = rng.normal(size=(2, width))[group] + 0.1 * rng.normal(size=(nodes, width))
    # What correlation clustering sees between groups is negative.
    apart = -1.0 if method.affinity == "cc" else 0.0
    adjacency = np.where(group[:, None] == group, 1.0, apart) * (mask[:, None] & mask)
    nodes = (features * mask[:, None]).astype(np.float32)
    assignments = rng.uniform(1, 2, (len(mask), method.num_clusters)).astype(np.float32)
    assignments /= assignments.sum(-1, keepdims=True)
    return Graph(nodes, adjacency.astype(np.float32), mask), assignments


@functools.partial(jax.jit, static_argnames="method")
def _try_loss(graph, assignments, *, method):
    loss_of = parts.make_loss(method, graph)
    return [jnp.isfinite(leaf).all() for leaf in jax.value_and_grad(loss_of)(assignments)]


@functools.partial(jax.jit, static_argnames="method")
def _try_layer(graph, *, method):
    params = head.init_head(jax.random.key(0), method, graph.nodes.shape[1])
    prepared = head.prepare_head(method, graph)

    def clearness(params):
        assignments = head.assign(params, prepared, method)
        return jnp.sum(jnp.where(graph.mask[:, None], assignments, 0.0) ** 2)

    value, gradient = jax.value_and_grad(clearness)(params)
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]
    return jnp.isfinite(value), jnp.stack(leaves).all()
