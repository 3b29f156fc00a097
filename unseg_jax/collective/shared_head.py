"""One graph neural network for a whole set: the training that precedes the per-image loop.

`train` is UnSegMedGATc's T0: the graph loss alone, a few steps per image, image after image, one
optimiser for all. `distil` teaches a head the margins of `unseg_jax.collective.set_scorer`, so that
the per-image loop can go on from them. Both use the library's own head, losses and optimiser.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

from unseg_jax.batching import map_batch
from unseg_jax.clustering import graphs, head
from unseg_jax.clustering.loop import init_key, make_objective, make_optimiser
from unseg_jax.clustering.optimiser import descend
from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32

    from unseg_jax.clustering.head import Params

# Margins are about 1 well inside and outside the object.
_SHARPNESS = 4.0


def start(key: Array, method: Method, width: int) -> tuple[Params, Any]:
    """Fresh parameters for features of that width, and the state of their optimiser."""
    params = head.init_head(init_key(key), method, width)
    return params, make_optimiser(method, params).init(params)


@functools.partial(jax.jit, static_argnames=("method", "grid"))
def train(
    params: Params,
    state: Any,
    features: Float[Array, "b n d"],
    seeds: UInt32[Array, "b t s"],
    *,
    method: Method,
    grid: tuple[int, int],
) -> tuple[Params, Any, Float[Array, "b t"]]:
    """A few steps on each image of a batch in turn, the parameters passed on from one to the next.

    Args:
        params, state: from `start`, or from the batch before.
        features: (B, N, D).
        seeds: (B, steps, sites) uint32 of dropout, from `dropout_seeds`; their second axis
            sets the number of steps per image.
        method: static.
        grid: (h, w), static.

    Returns:
        Parameters, optimiser state, and (B, steps) losses, each before its step.
    """
    optimiser = make_optimiser(method, params)

    def image(carry, inputs):
        features, seeds = inputs
        graph = graphs.build_graph(features, method, grid=grid)
        objective = make_objective(method, graph, head.prepare_head(method, graph))

        def step(carry, seeds):
            params, state, loss, _ = descend(objective, optimiser, *carry, seeds)
            return (params, state), loss

        return jax.lax.scan(step, carry, seeds)

    (params, state), losses = jax.lax.scan(image, (params, state), (features, seeds))
    return params, state, losses


@functools.partial(jax.jit, static_argnames=("method",))
def distil(
    params: Params,
    state: Any,
    nodes: Float[Array, "b n r"],
    cosines: Float[Array, "b n c"],
    margins: Float[Array, "b n"],
    *,
    method: Method,
) -> tuple[Params, Any, Float[Array, ""]]:
    """One step on a batch: cross-entropy to the margins' labels.

    The graph loss has no part in it: its balance term asks for clusters of equal size, which
    objects are not.

    Args:
        params, state: from `start`, or from the step before.
        nodes: (B, N, R) what the head reads.
        cosines: (B, N, C) rows of length 1 whose products are the affinities.
        margins: (B, N) above 0 is foreground, which becomes cluster 1.
        method: with two clusters, static.

    Returns:
        Parameters, optimiser state, loss before the step.
    """

    from optax import sigmoid_binary_cross_entropy

    def objective(params):
        def image(inputs):
            nodes, cosines, margins = inputs
            graph = graphs.build_graph(nodes, method, adjacency=graphs.affinity(cosines, method))
            prepared = head.prepare_head(method, graph)
            logits = head.apply_head(params, prepared, method)
            targets = jax.nn.sigmoid(_SHARPNESS * margins)
            return sigmoid_binary_cross_entropy(logits[:, 1] - logits[:, 0], targets).mean()

        return map_batch(image, (nodes, cosines, margins)).mean(), None

    params, state, loss, _ = descend(objective, make_optimiser(method, params), params, state)
    return params, state, loss
