"""Tables of methods and weights, as text for the terminal, as Markdown, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from unseg_jax.errors import nearest
from unseg_jax.methods import METHODS, Method

_FORMATS = ("text", "markdown", "json")


def method_rows() -> list[dict[str, Any]]:
    """One row a method: what it is after, and the settings that set it apart."""
    return [_method_row(method) for method in METHODS.values()]


def _method_row(method: Method) -> dict[str, Any]:
    gnn = method.algorithm == "gnn"
    height, width = method.size
    patches = method.nodes == "patches"
    return {
        "name": method.name,
        "backbone": method.backbone if patches else method.nodes,
        "size": height if height == width else f"{height}x{width}",
        "stride": (method.stride or "patch") if patches else "-",
        "affinity": _affinity(method) if method.algorithm != "kmeans" else "-",
        "layers": _layers(method) if gnn else method.algorithm,
        "loss": method.loss if gnn else "-",
        "K": method.num_clusters,
        "epochs": _epochs(method) if gnn else "-",
        "source": method.source,
    }


def _affinity(method: Method) -> str:
    return f"{method.affinity} > {method.tau:g}" if method.tau else method.affinity


def _layers(method: Method) -> str:
    branches = " + ".join("-".join(map(str, widths)) for widths in method.branches)
    shape = ""
    if method.layer == "arma":
        shape = f" ({method.stacks}x{method.arma_layers})"
    return f"{method.layer} {branches}{shape}"


def _epochs(method: Method) -> str:
    if method.collective_epochs:
        return f"{method.collective_epochs} shared, {method.epochs} each"
    return str(method.epochs)


def weight_rows(weights: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a backbone, from `list_weights()`."""
    return [
        {
            "name": entry["name"],
            "here": "yes" if entry["cached"] else "no",
            "MB": round(entry["size"] / 1e6),
            "licence": entry["licence"],
            "verified": "yes" if entry["sha256"] else "no",
            "source": _short(entry["source"]),
        }
        for entry in weights
    ]


def difference_rows(tensors: Sequence[Any]) -> list[dict[str, Any]]:
    """One row a parameter, from `compare_weights(...).tensors`."""
    return [
        {
            "parameter": tensor.name,
            "shape": "x".join(map(str, tensor.shapes[0])) or "-",
            "max difference": f"{tensor.max_difference:.3g}",
            "cosine": f"{tensor.cosine:.6f}",
        }
        for tensor in tensors
    ]


def _short(source: str) -> str:
    """Where weights come from, with at most eight digits of a commit."""
    place, at, revision = source.partition("@")
    return place + at + revision[:8]


def format_table(rows: Sequence[dict[str, Any]], form: str = "text") -> str:
    """Rows with the same keys as a table.

    Args:
        rows: at least one.
        form: "text", "markdown" or "json".

    Raises:
        ValueError: another form.
    """
    if form not in _FORMATS:
        raise ValueError(f"there is no format '{form}'; {nearest(form, _FORMATS)}")
    if form == "json":
        return json.dumps(list(rows), indent=2)
    from tabulate import tabulate

    style = "github" if form == "markdown" else "plain"
    return tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True)
