"""The tiny graph neural network that assigns nodes to clusters: one description for all systems.

A head is one or more parallel branches of graph layers. The outputs of all but the first are
projected to the first one's width and summed; then activation, linear, activation, dropout and
linear give the logits of the clusters.

Parameters are nested dicts of arrays:
`{"branches": [{"layers": [...], "project"?: linear}], "mlp": [linear, linear]}`.
How many branches there are, and how deep and wide, is read from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from unseg_jax.clustering import layers, parts
from unseg_jax.clustering.graphs import Graph
from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32

Params = dict[str, Any]


def init_head(key: Array, method: Method, inputs: int) -> Params:
    """Fresh parameters: Glorot uniform graph layers, PyTorch's default for linear layers.

    Args:
        key: a `jax.random.key`.
        method: its `layer`, `branches`, `mlp_width`, `num_clusters` and layer shapes are read.
        inputs: D, the width of the node features.
    """
    branches = []
    layer = parts.layer_of(method)
    width = method.branches[0][-1]
    for index, widths in enumerate(method.branches):
        branch_key, project_key = jax.random.split(jax.random.fold_in(key, index))
        sizes = (inputs, *widths)
        branch: Params = {
            "layers": [
                parts.init_layer(
                    layer, jax.random.fold_in(branch_key, depth), *sizes[depth : depth + 2]
                )
                for depth in range(len(widths))
            ]
        }
        if index:
            branch["project"] = layers.init_linear(project_key, widths[-1], width)
        branches.append(branch)
    first, last = jax.random.split(jax.random.fold_in(key, len(branches)))
    return {
        "branches": branches,
        "mlp": [
            layers.init_linear(first, width, method.mlp_width),
            layers.init_linear(last, method.mlp_width, method.num_clusters),
        ],
    }


def prepare_head(method: Method, graph: Graph) -> dict[str, Any]:
    """What a head needs of a graph and does not change while it is optimised."""
    prepared = parts.prepare_layer(parts.layer_of(method), graph)
    return {"nodes": graph.nodes, "prepared": prepared}


def count_seeds(method: Method) -> int:
    """How many dropout seeds `apply_head` takes for one forward pass."""
    layer = parts.layer_of(method)
    sites = parts.layer_seeds(layer) + (not parts.is_activated(layer))
    return 1 + sum(1 + sites * len(widths) for widths in method.branches)


def apply_head(
    params: Params,
    prepared: dict[str, Any],
    method: Method,
    seeds: UInt32[Array, " s"] | None = None,
) -> Float[Array, "n k"]:
    """Logits of the clusters, (N, K) float32.

    Args:
        params: from `init_head` or `params_from_pytorch`.
        prepared: from `prepare_head`.
        method: activations and dropout rates are read.
        seeds: (`count_seeds(method)`,) uint32 for dropout; None is the deterministic pass.
    """
    activation = layers.ACTIVATIONS[method.activation]
    mlp_activation = layers.ACTIVATIONS[method.mlp_activation or method.activation]
    left = None if seeds is None else list(seeds)

    def draw(count):
        return None if left is None else jnp.stack([left.pop() for _ in range(count)])

    total = None
    for index, branch in enumerate(params["branches"]):
        out = _apply_branch(branch["layers"], prepared, method, index, draw)
        if "project" in branch:
            out = mlp_activation(layers.linear(branch["project"], out))
            out = _drop(out, method.dropout, draw)
        total = out if total is None else total + out
    hidden = mlp_activation(layers.linear(params["mlp"][0], activation(total)))
    hidden = _drop(hidden, method.dropout, draw)
    return layers.linear(params["mlp"][1], hidden)


def assign(
    params: Params,
    prepared: dict[str, Any],
    method: Method,
    seeds: UInt32[Array, " s"] | None = None,
) -> Float[Array, "n k"]:
    """Soft assignment S: softmax of the logits, (N, K) float32, rows summing to 1."""
    return jax.nn.softmax(apply_head(params, prepared, method, seeds), axis=-1)


def describe_params(params: Params, method: Method) -> dict[str, Any]:
    """The fields of `Method` that the shapes of some parameters settle."""
    facts: dict[str, Any] = {
        "num_clusters": params["mlp"][-1]["bias"].shape[-1],
        "mlp_width": params["mlp"][0]["bias"].shape[-1],
    }
    if not isinstance(method.layer, str):
        return facts
    facts["branches"] = tuple(
        tuple(layer["bias"].shape[-1] for layer in branch["layers"])
        for branch in params["branches"]
    )
    layer = params["branches"][0]["layers"][0]
    if "initial" in layer:
        facts |= {"layer": "arma", "stacks": layer["initial"].shape[-3]}
        if not method.arma_shared:
            facts["arma_layers"] = layer["root"].shape[-4]
    elif "edge_kernel" in layer:
        facts |= {"layer": "gat", "heads": layer["source"].shape[-2]}
    else:
        facts["layer"] = "gcn"
    return facts


def _apply_branch(branch, prepared, method, index, draw):
    layer = parts.layer_of(method)
    inner = layers.ACTIVATIONS[method.inner_activation or method.activation]
    x = prepared["nodes"]
    for depth, (params, width) in enumerate(zip(branch, method.branches[index], strict=True)):
        if depth and not parts.is_activated(layer):
            x = _drop(inner(x), method.layer_dropout, draw)
        x = parts.apply_layer(
            layer, params, x, prepared["prepared"], width, first=depth == 0, draw=draw
        )
    return x


def _drop(x, rate, draw):
    seeds = draw(1)
    return layers.dropout(x, rate, None if seeds is None else seeds[0])
