"""The layer and the loss of a method, named or your own: what they are, and how they are called.

Named ones obey the same protocols. Shapes and types are checked while JAX traces, so that nothing
has run where they are wrong.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from unseg_jax.clustering import layers, losses
from unseg_jax.clustering.graphs import Graph
from unseg_jax.custom import GraphLayer, LossFunction, name_of
from unseg_jax.errors import why
from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32


_LAYERS: dict[str, Callable[[Method], GraphLayer]] = {
    "gcn": lambda method: layers.GCN(method.normalise),
    "gat": lambda method: layers.GAT(method.heads, method.edge_features, method.layer_dropout),
    "arma": lambda method: layers.ARMA(
        method.stacks,
        method.arma_layers,
        method.arma_shared,
        method.inner_activation or method.activation,
        method.layer_dropout,
    ),
}
_LOSSES: dict[str, Callable[[Method], LossFunction]] = {
    "ncut": lambda method: losses.ncut,
    "cc": lambda method: losses.correlation_clustering,
    "modularity": lambda method: functools.partial(
        losses.modularity, quirks=method.quirks, collapse=method.collapse
    ),
}


def layer_of(method: Method) -> GraphLayer:
    """The layer of a method as an object, made from the method's fields where it is named."""
    layer = method.layer
    return _LAYERS[layer](method) if isinstance(layer, str) else layer


def loss_of(method: Method) -> LossFunction:
    """The loss of a method as a function, made from the method's fields where it is named."""
    loss = method.loss
    return _LOSSES[loss](method) if isinstance(loss, str) else loss


def make_loss(method: Method, graph: Graph) -> Callable[[Array], Array]:
    """The method's loss as a function of assignments (N, K), degrees computed beforehand.

    Raises:
        ValueError: when called, if the loss cannot be traced or gives no () float32.
    """
    loss = loss_of(method)
    known = {"degrees": graph.adjacency.sum(-1)} if _takes_degrees(loss) else {}

    def loss_of_assignments(assignments):
        assignments = jnp.where(graph.mask[:, None], assignments, 0.0)
        with _naming(loss, "the loss", "(assignments, adjacency, mask=mask)"):
            value = loss(assignments, graph.adjacency, mask=graph.mask, **known)
        if _kind_of(value) != ((), jnp.float32):
            raise ValueError(
                f"the loss '{name_of(loss)}' gives {_describe(value)}, where one float32 number "
                "is expected: return an array of shape ()."
            )
        return value

    return loss_of_assignments


def init_layer(layer: GraphLayer, key: Array, inputs: int, outputs: int) -> Any:
    """Fresh parameters of one layer.

    Raises:
        ValueError: it cannot be traced, or gives anything but float32 arrays.
    """
    with _naming(layer, "init of the layer", "(key, inputs, outputs)"):
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
    with _naming(layer, "prepare of the layer", "(graph)"):
        return layer.prepare(graph)


def apply_layer(
    layer: GraphLayer,
    params: Any,
    x: Float[Array, "n d"],
    prepared: Any,
    width: int,
    *,
    first: bool = False,
    draw: Callable[[int], UInt32[Array, " s"] | None] = lambda count: None,
) -> Float[Array, "n f"]:
    """The layer's output, (N, width) float32.

    Args:
        layer: called with what follows.
        params: from `init_layer`.
        x: (N, D) float32.
        prepared: from `prepare_layer`.
        width: of the output.
        first: whether x are the graph's own nodes, of which something may be prepared.
        draw: count → (count,) uint32 seeds of dropout; None in a deterministic pass.

    Raises:
        ValueError: it cannot be traced, or gives something else.
    """
    seeds = {"seeds": draw(layer_seeds(layer))} if layer_seeds(layer) else {}
    apply_first = getattr(layer, "apply_first", None) if first else None
    with _naming(layer, "apply of the layer", "(params, x, prepared)"):
        if apply_first is not None:
            out = apply_first(params, prepared, **seeds)
        else:
            out = layer.apply(params, x, prepared, **seeds)
    expected = (len(x), width)
    if _kind_of(out) != (expected, jnp.float32):
        raise ValueError(
            f"apply of the layer '{name_of(layer)}' gives {_describe(out)} for {len(x)} nodes, "
            f"where a float32 array of shape {expected} is expected: return one row per node, of "
            "the width that init was given as outputs."
        )
    return out


def layer_seeds(layer: GraphLayer) -> int:
    """How many seeds of dropout each call of `apply` takes."""
    return getattr(layer, "seeds", 0)


def is_activated(layer: GraphLayer) -> bool:
    """Whether the layer applies activation and dropout itself."""
    return getattr(layer, "activated", False)


def unused_params(layer: GraphLayer) -> tuple[str, ...]:
    """Names of parameters that the layer does not use."""
    return getattr(layer, "unused", ())


def describe(method: Method) -> str:
    """ "the loss 'a.b' and the layer 'c.d'", as far as they are the user's own."""
    return " and ".join(f"the {kind} '{name_of(part)}'" for kind, part in method.own_parts.items())


def _takes_degrees(loss):
    try:
        return "degrees" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # some callables have none
        return False


@contextlib.contextmanager
def _naming(part, what, call):
    try:
        yield
    except Exception as error:  # the function is the user's
        name = name_of(part)
        if name.startswith("unseg_jax.clustering."):
            raise
        raise ValueError(
            f"{what} '{name}' cannot be traced by JAX ({type(error).__name__}: {why(error)}); it "
            f"is called with {call}: take these, and write it with jax.numpy."
        ) from error


def _kind_of(value):
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return None if shape is None or dtype is None else (tuple(shape), dtype)


def _describe(value):
    kind = _kind_of(value)
    return f"a {type(value).__name__}" if kind is None else f"{kind[1]} of shape {kind[0]}"
