"""The protocols of losses and layers, named and custom ones alike, and how each is named."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@runtime_checkable
class LossFunction(Protocol):
    """A loss of one graph: the signature that `unseg_jax.losses` have in common.

    A loss that also takes `degrees` is given the (N,) row sums of the adjacency, computed once.
    """

    def __call__(
        self,
        assignments: Float[Array, "n k"],
        adjacency: Float[Array, "n n"],
        /,
        *,
        mask: Bool[Array, " n"],
    ) -> Float[Array, ""]:
        """What is minimised.

        Args:
            assignments: S, (N, K) float32. Rows of real nodes sum to 1, of padded nodes to 0.
            adjacency: W, (N, N) float32, symmetric, zero in padded rows and columns.
            mask: (N,) bool of real nodes. There is padding in graphs of superpixels, in second
                stages and where `cluster` is given a `node_mask`; count nodes by `mask.sum()`.

        Returns:
            () float32.
        """
        ...


@runtime_checkable
class GraphLayer(Protocol):
    """A kind of graph layer. A frozen dataclass is the best form: equal ones share one program.

    `us.layers.GCN`, `GAT` and `ARMA` are such layers. A layer may also have:

    * `apply_first(params, prepared)`: what `apply` gives for the graph's own nodes, where `prepare`
      has computed a part of it. Without it, `apply` is called with `graph.nodes`.
    * `seeds: int`: how many seeds of dropout `apply` and `apply_first` take, as `seeds=`, (seeds,)
      uint32, for `us.layers.dropout`, or None in a deterministic pass. Without it, none.
    * `activated: bool`: True if the layer applies activation and dropout itself, so that none
      follow between layers.
    * `unused: tuple[str, ...]`: keys of parameters without a gradient, which get no weight decay.
    """

    def init(self, key: Array, inputs: int, outputs: int) -> Any:
        """Fresh parameters of one layer, a tree of float32 arrays.

        Args:
            key: a `jax.random.key`.
            inputs: width of the nodes that it gets.
            outputs: width of the nodes that it gives.
        """

    def prepare(self, graph: Any) -> Any:
        """What all layers of a head read of the graph: computed once, before the epochs.

        Args:
            graph: a `unseg_jax.Graph` of one image.

        Returns:
            A tree of arrays.
        """

    def apply(self, params: Any, x: Float[Array, "n d"], prepared: Any) -> Float[Array, "n f"]:
        """The layer, without activation and dropout, which are applied between layers.

        Args:
            params: from `init`.
            x: (N, inputs) float32.
            prepared: from `prepare`.

        Returns:
            (N, outputs) float32. Real nodes must not depend on padded ones, whose rows of x are
            not zero after the first layer; their rows and columns of the adjacency are.
        """
        ...


def is_hashable(value: Any) -> bool:
    """Whether a value can be static under `jax.jit`."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def name_of(part: Any) -> str:
    """The name of a loss or layer: its own, or module and qualified name of a user's.

    Arguments of `functools.partial` and fields of dataclasses are part of the name. A name with
    "<" in it may be that of several things: lambdas, functions in functions, and objects with
    values that have no name.

    >>> name_of("ncut")
    'ncut'
    >>> name_of(functools.partial(is_hashable, value=3))
    'unseg_jax.custom.is_hashable(value=3)'
    >>> name_of(lambda: None)
    'unseg_jax.custom.<lambda>'
    """
    if part is None or isinstance(part, (bool, int, float)):
        return repr(part)
    if isinstance(part, str):
        return part
    if type(part) in (list, tuple):
        return f"({', '.join(map(name_of, part))})"
    if isinstance(part, functools.partial):
        return name_of(part.func) + _arguments(part.args, part.keywords)
    if inspect.ismethod(part):
        return f"{name_of(part.__self__)}.{part.__name__}"
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return _dotted(type(part)) + _arguments((), fields)
    return _dotted(part) if hasattr(part, "__qualname__") else f"<{_dotted(type(part))}>"


def has_name(part: Any) -> bool:
    """Whether `name_of` tells a loss or layer from every other in one version of a program."""
    return "<" not in name_of(part)


def _arguments(args: tuple, keywords: Mapping[str, Any]) -> str:
    shown = [name_of(value) for value in args]
    shown += [f"{name}={name_of(value)}" for name, value in keywords.items()]
    return f"({', '.join(shown)})"


def _dotted(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"
