"""Parameters of the published PyTorch heads, turned into ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from unseg_jax.custom import name_of
from unseg_jax.method import Method
from unseg_jax.registry import resolve


def _transposed(array):
    """PyTorch keeps linear weights as (out, in)."""
    return array.T


def _kept(array):
    return array


# Published name → where in our tree, and the change of layout. {b} is "" for the first branch
# and 2, 3, … for the others; {b} and {l} are read as numbers.
_GRAPH_TABLES: dict[str, list[tuple[str, str, Callable]]] = {
    "gcn": [
        (r"convs(\d?)\.convs\.(\d+)\.lin\.weight", "kernel", _transposed),
        (r"convs(\d?)\.convs\.(\d+)\.bias", "bias", _kept),
    ],
    "gat": [
        (r"convs(\d?)\.convs\.(\d+)\.lin(?:_src)?\.weight", "kernel", _transposed),
        (r"convs(\d?)\.convs\.(\d+)\.bias", "bias", _kept),
        (r"convs(\d?)\.convs\.(\d+)\.att_src", "source", lambda array: array[0]),
        (r"convs(\d?)\.convs\.(\d+)\.att_dst", "target", lambda array: array[0]),
        (r"convs(\d?)\.convs\.(\d+)\.att_edge", "edge", lambda array: array[0]),
        (r"convs(\d?)\.convs\.(\d+)\.lin_edge\.weight", "edge_kernel", lambda array: array[:, 0]),
    ],
    "arma": [
        (r"convs(\d?)()\.init_weight", "initial", _kept),
        (r"convs(\d?)()\.weight", "recurrent", _kept),
        (r"convs(\d?)()\.root_weight", "root", _kept),
        (r"convs(\d?)()\.bias", "bias", lambda array: array[:, :, 0]),
    ],
}
_LEAVES = {kind: {leaf for _, leaf, _ in table} for kind, table in _GRAPH_TABLES.items()}
_DENSE = re.compile(r"mlp(\d?)\.(\d+)\.(weight|bias)")


def params_from_pytorch(state_dict: Mapping[str, Any], method: str | Method) -> dict[str, Any]:
    """Turns the state dict of a published `GNNpool` into `params` for `cluster`.

    Args:
        state_dict: {name: array}, NumPy arrays or PyTorch tensors, under the names of the
            published code (`convs.convs.0.lin.weight`, `convs2…`, `mlp.0.weight`, `mlp2.0.…`).
        method: name or `Method`; its `layer` says which layers to expect. How many branches,
            layers and clusters there are is read from the arrays.

    Returns:
        Nested dict of float32 arrays, as `unseg_jax.clustering.head` describes.

    Raises:
        ValueError: names that are missing or unexpected, all of them in one message, or a layer of
            your own.
    """
    method = resolve(method)
    if not isinstance(method.layer, str):
        raise ValueError(
            f"layer='{name_of(method.layer)}' is your own: parameters of published code are those "
            "of layer='gcn', 'gat' or 'arma'."
        )
    arrays = {name: _to_numpy(value) for name, value in state_dict.items()}
    branches: dict[int, dict[int, dict[str, Any]]] = {}
    dense: dict[int, dict[int, dict[str, Any]]] = {}
    unexpected = []
    for name, array in arrays.items():
        if match := _DENSE.fullmatch(name):
            module, index, kind = int(match[1] or 1), int(match[2]), match[3]
            leaf, value = ("kernel", array.T) if kind == "weight" else ("bias", array)
            dense.setdefault(module, {}).setdefault(index, {})[leaf] = jnp.asarray(value)
            continue
        for pattern, leaf, change in _GRAPH_TABLES[method.layer]:
            if match := re.fullmatch(pattern, name):
                branch, layer = int(match[1] or 1), int(match[2] or 0)
                value = jnp.asarray(change(array))
                branches.setdefault(branch, {}).setdefault(layer, {})[leaf] = value
                break
        else:
            unexpected.append(name)
    missing = _missing(branches, dense, _LEAVES[method.layer])
    if unexpected or missing:
        raise ValueError(
            f"these are not the parameters of a published {method.layer.upper()} head for "
            f"'{method.name}': missing {sorted(missing) or 'nothing'}, "
            f"unexpected {sorted(unexpected) or 'nothing'}."
        )
    return {
        "branches": [
            {
                "layers": [_trim(params, method) for _, params in sorted(branches[branch].items())],
                **({"project": dense[branch][0]} if branch > 1 else {}),
            }
            for branch in sorted(branches)
        ],
        "mlp": [params for _, params in sorted(dense[1].items())],
    }


def _missing(branches, dense, leaves) -> list[str]:
    missing = [
        f"branch {branch}, layer {layer}: {leaf}"
        for branch, layers in branches.items()
        for layer, params in layers.items()
        for leaf in leaves - params.keys()
    ]
    if not branches:
        missing.append("the graph layers (convs…)")
    missing += [f"mlp{branch}.0" for branch in branches if branch > 1 and branch not in dense]
    if len(dense.get(1, {})) != 2:
        missing.append("both linear layers of mlp")
    missing += [
        f"mlp{module if module > 1 else ''}.{index} {leaf}"
        for module, linears in dense.items()
        for index, params in linears.items()
        for leaf in {"kernel", "bias"} - params.keys()
    ]
    return missing


def _trim(params, method):
    """A one-layer ARMA keeps a recurrent weight in PyTorch that nothing uses."""
    if "recurrent" in params:
        used = method.arma_layers if method.arma_shared else params["root"].shape[0]
        params["recurrent"] = params["recurrent"][: used - 1]
    return params


def _to_numpy(value) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, np.float32)
