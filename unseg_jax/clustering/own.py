"""A loss and a layer of the user's own inside the loop: called as the protocols say, and checked.

Shapes and types are checked while JAX traces, so that nothing has run where they are wrong.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from unseg_jax.clustering.graphs import Graph
from unseg_jax.custom import GraphLayer, LossFunction, name_of
from unseg_jax.errors import printable
from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_LONGEST = 200  # characters of a user's error that are repeated


def make_loss(loss: LossFunction, graph: Graph):
    """The loss as a function of assignments (N, K); it gets rows of zeros for padded nodes.

    Raises:
        ValueError: when called, if the loss cannot be traced or gives no () float32.
    """

    def loss_of(assignments):
        assignments = jnp.where(graph.mask[:, None], assignments, 0.0)
        with _naming(f"the loss '{name_of(loss)}'", "(assignments, adjacency, mask=mask)"):
            value = loss(assignments, graph.adjacency, mask=graph.mask)
        if _kind_of(value) != ((), jnp.float32):
            raise ValueError(
                f"the loss '{name_of(loss)}' gives {_describe(value)}, where one float32 number "
                "is expected: return an array of shape ()."
            )
        return value

    return loss_of


def init_layer(layer: GraphLayer, key: Array, inputs: int, outputs: int) -> Any:
    """Fresh parameters of one layer.

    Raises:
        ValueError: it cannot be traced, or gives anything but float32 arrays.
    """
    with _naming(f"init of the layer '{name_of(layer)}'", "(key, inputs, outputs)"):
        params = layer.init(key, inputs, outputs)
    for leaf in jax.tree.leaves(params):
        kind = _kind_of(leaf)
        if kind is None or kind[1] != jnp.float32:
            raise ValueError(
                f"init of the layer '{name_of(layer)}' gives {_describe(leaf)} among the "
                "parameters, where float32 arrays are expected: return a tree of these."
            )
    return params


def prepare_layer(layer: GraphLayer, graph: Graph) -> Any:
    """What its layers read of the graph.

    Raises:
        ValueError: it cannot be traced.
    """
    with _naming(f"prepare of the layer '{name_of(layer)}'", "(graph)"):
        return layer.prepare(graph)


def apply_layer(
    layer: GraphLayer, params: Any, x: Float[Array, "n d"], prepared: Any, width: int
) -> Float[Array, "n f"]:
    """The layer's output, (N, width) float32.

    Raises:
        ValueError: it cannot be traced, or gives something else.
    """
    with _naming(f"apply of the layer '{name_of(layer)}'", "(params, x, prepared)"):
        out = layer.apply(params, x, prepared)
    expected = (len(x), width)
    if _kind_of(out) != (expected, jnp.float32):
        raise ValueError(
            f"apply of the layer '{name_of(layer)}' gives {_describe(out)} for {len(x)} nodes, "
            f"where a float32 array of shape {expected} is expected: return one row per node, of "
            "the width that init was given as outputs."
        )
    return out


def describe(method: Method) -> str:
    """ "the loss 'a.b' and the layer 'c.d'", as far as they are the user's own."""
    return " and ".join(f"the {kind} '{name_of(part)}'" for kind, part in method.own_parts.items())


@contextlib.contextmanager
def _naming(what, call):
    try:
        yield
    except Exception as error:  # the function is the user's
        detail = printable(str(error).strip().split("\n")[0].rstrip("."))[:_LONGEST]
        raise ValueError(
            f"{what} cannot be traced by JAX ({type(error).__name__}: {detail}); it is called with "
            f"{call}: take these, and write it with jax.numpy."
        ) from error


def _kind_of(value):
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return None if shape is None or dtype is None else (tuple(shape), dtype)


def _describe(value):
    kind = _kind_of(value)
    return f"a {type(value).__name__}" if kind is None else f"{kind[1]} of shape {kind[0]}"
