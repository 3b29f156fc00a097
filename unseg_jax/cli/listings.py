"""Tables of methods and weights, as text for the terminal, as Markdown, or as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unseg_jax.errors import nearest
from unseg_jax.method import Group, Method
from unseg_jax.registry import GROUPS, METHODS, TITLES

_FORMATS = ("text", "markdown", "json")
SCORES = Path(__file__).with_name("scores.json")
"""Measured scores of the methods; `python -m benchmarks tables` writes the file."""


def method_rows(group: Group | None = None) -> list[dict[str, Any]]:
    """One row a method: its group, its score, and the settings that set it apart.

    Args:
        group: only those of this one of `unseg_jax.registry.GROUPS`.
    """
    groups = GROUPS.values() if group is None else (GROUPS[group],)
    return [_method_row(METHODS[name]) for names in groups for name in names]


@functools.cache
def read_scores() -> dict[str, Any]:
    """What `SCORES` holds: the protocol, and method → data set → "miou", "images"."""
    return json.loads(SCORES.read_text("utf-8"))


def describe_scores() -> str:
    """A sentence that says what the scores of `method_rows` are."""
    found = read_scores()
    return (
        f"mIoU in percent: protocol {found['protocol']}, the mean over {', '.join(_data_sets())}; "
        f"images: how many were scored; backbone {found['backbone']}, stride {found['stride']}; "
        "-: not measured with these settings."
    )


def _data_sets() -> list[str]:
    """Those on which the published methods were scored, so that one can compare."""
    return list(read_scores()["methods"]["deepcut"])


def _score(name: str) -> dict[str, Any]:
    scores = read_scores()["methods"].get(name, {})
    kept = [scores[dataset] for dataset in _data_sets() if dataset in scores]
    if len(kept) < len(_data_sets()):
        return {"mIoU": "-", "images": "-"}
    mean = sum(score["miou"] for score in kept) / len(kept)
    return {"mIoU": f"{100 * mean:.1f}", "images": sum(score["images"] for score in kept)}


def list_methods_as_text() -> str:
    """The methods in groups, each with its score, and what the scores are."""
    rows = method_rows()
    # What `auto` is for a set.
    auto = {**rows[0], "name": "auto"}
    auto["source"] = "collective, fitted beforehand, or on a set with a black frame"
    head, *lines = format_table([_without_group(row) for row in (auto, *rows)]).split("\n")
    # `auto` stands with the first group.
    groups = [rows[0]["group"], *(row["group"] for row in rows)]
    text = [head]
    for number, (group, line) in enumerate(zip(groups, lines, strict=True)):
        if number == 0 or group != groups[number - 1]:
            text += ["", TITLES[group]]
        text.append(line)
    return "\n".join([*text, "", describe_scores()])


def _without_group(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "group"}


def _method_row(method: Method) -> dict[str, Any]:
    gnn = method.algorithm == "gnn"
    height, width = method.size
    patches = method.nodes == "patches"
    return {
        "name": method.name,
        "group": method.group,
        **_score(method.name),
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
