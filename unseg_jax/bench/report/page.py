"""`report.html` of a run: one file that needs no network, made from the run's folder alone."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.bench.folder import (
    REPORT,
    SUMMARY,
    file_stem,
    identity,
    json_bytes,
    open_store,
    read_config,
    read_records,
    read_sessions,
)
from unseg_jax.bench.report.summary import summarise
from unseg_jax.bench.score.protocols import Protocol
from unseg_jax.bench.score.published import published_scores
from unseg_jax.bench.score.scoring import SCORES, WORST
from unseg_jax.runs.store import Store

# Of more images than this, an even choice is listed, so that the page stays quick to open;
# tables and histograms always count all of them.
_LISTED = 5000
_COLUMNS = (
    ("miou", "mIoU", "mean over images of intersection over union"),
    ("miou_interval", "95 %", "bootstrap interval of the mean IoU"),
    ("median_iou", "median IoU", "median over images"),
    ("dice", "Dice", "mean Dice coefficient"),
    ("pixel_accuracy", "accuracy", "share of pixels that are right"),
    ("max_f", "max F", "F-measure, β² = 0.3"),
    ("mae", "MAE", "mean absolute error; less is better"),
    ("e_measure", "E", "enhanced alignment"),
    ("s_measure", "S", "structure measure"),
    ("corloc", "CorLoc", "share of images whose box has an IoU of at least 0.5"),
    ("nmi", "NMI", "parts against the true regions"),
    ("ari", "ARI", "parts against the true regions"),
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The per-image numbers that the page draws.

    Attributes:
        ids: of the images, sorted.
        methods: names.
        iou, dice: (methods, images); NaN where there is none.
        errors: method → image id → what went wrong.
    """

    ids: tuple[str, ...]
    methods: tuple[str, ...]
    iou: np.ndarray
    dice: np.ndarray
    errors: Mapping[str, Mapping[str, str]]


def collect_scores(records: Iterable[Mapping[str, Any]], methods: Sequence[str]) -> Scores:
    """The numbers of all records; of two with the same id and method the later one counts."""
    rows: dict[str, list[list[float]]] = {}
    errors: dict[str, dict[str, str]] = {method: {} for method in methods}
    order = {method: index for index, method in enumerate(methods)}
    for record in records:
        index = order.get(record["method"])
        if index is None:
            continue
        id = record["id"]
        row = rows.setdefault(id, [[np.nan] * len(methods), [np.nan] * len(methods)])
        for values, name in zip(row, ("iou", "dice"), strict=True):
            value = record.get(name)
            values[index] = np.nan if value is None else value
        errors[record["method"]].pop(id, None)
        if record.get("error"):
            errors[record["method"]][id] = record["error"]
    ids = tuple(sorted(rows))
    table = np.array([rows[id] for id in ids], float).reshape(len(ids), 2, len(methods))
    return Scores(ids, tuple(methods), table[:, 0].T, table[:, 1].T, errors)


def _render(folder: Path, summary: Mapping[str, Any]) -> str:
    """The page as HTML, of what is recorded in a run's folder."""
    import jinja2

    from unseg_jax.bench.report import charts

    config = summary["config"]
    scores = collect_scores(read_records(folder), list(config["methods"]))
    protocol = Protocol(**config["protocol"])
    pictures, shown = _embed(scores, folder / "thumbnails")
    listed = _listed(scores, set(shown))
    curves = {
        name: method["by_epoch"]
        for name, method in summary["methods"].items()
        if method.get("by_epoch")
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unseg_jax.bench.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "signed": signed}
    environment.globals |= {"series_style": charts.series_style}
    return environment.get_template("report.html").render(
        summary=summary,
        config=config,
        protocol=protocol,
        columns=_columns(summary),
        published=published_scores(config["dataset"]),
        best=best_values(summary, [key for key, _, _ in _COLUMNS]),
        matrix=difference_matrix(summary),
        methods=scores.methods,
        histograms=_histograms(summary, scores, protocol),
        curves=charts.curves(curves, scores.methods) if curves else None,
        by_epoch=curves,
        data=_script(_data(scores, listed, shown)),
        pictures=pictures,
        listed=len(listed),
        total=len(scores.ids),
        config_text=json.dumps(config, indent=2, ensure_ascii=False),
    )


def _score(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)


def _columns(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Columns that any method has a number for."""
    return [
        column
        for column in _COLUMNS
        if any(_has(method.get(column[0])) for method in summary["methods"].values())
    ]


def _has(value: Any) -> bool:
    return value[0] is not None if isinstance(value, list) else value is not None


def _histograms(
    summary: Mapping[str, Any], scores: Scores, protocol: Protocol
) -> list[tuple[str, Any, Mapping[str, Any]]]:
    from unseg_jax.bench.report import charts

    result = []
    for index, name in enumerate(scores.methods):
        values = scores.iou[index]
        values = values[~np.isnan(values)]
        if protocol.count_failures and len(values):
            # Failed images that would have had a score.
            failures = summary["methods"][name]["scored"] - len(values)
            values = np.concatenate([values, np.full(max(failures, 0), WORST[SCORES[0]])])
        if len(values):
            chart = charts.histogram(values.tolist(), index)
            result.append((name, chart, summary["methods"][name]))
    return result


def _embed(scores: Scores, folder: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Pictures of each image as text for a script element, and which image has which element."""
    pictures, shown = [], {}
    for id in scores.ids:
        stem = file_stem(id)
        paths = [folder / "image" / f"{stem}.jpg"]
        paths += [folder / kind / f"{stem}.png" for kind in ("truth", *scores.methods)]
        encoded = [path.read_bytes() if path.is_file() else b"" for path in paths]
        if encoded[0]:
            shown[id] = len(pictures)
            text = "|".join(base64.b64encode(data).decode() for data in encoded)
            pictures.append((f"picture-{shown[id]}", text))
    return pictures, shown


def _listed(scores: Scores, shown: set[str]) -> list[int]:
    """Positions of the images in the page's data: those with pictures and an even choice."""
    count = len(scores.ids)
    if count <= _LISTED:
        return list(range(count))
    even = set(np.linspace(0, count - 1, _LISTED).astype(int).tolist())
    return [index for index, id in enumerate(scores.ids) if index in even or id in shown]


def _data(scores: Scores, listed: Sequence[int], shown: Mapping[str, int]) -> dict[str, Any]:
    ids = [scores.ids[index] for index in listed]

    def plain(values: np.ndarray) -> list[list[float | None]]:
        return [
            [None if np.isnan(value) else round(float(value), 4) for value in row[list(listed)]]
            for row in values
        ]

    return {
        "methods": scores.methods,
        "ids": ids,
        "iou": plain(scores.iou),
        "dice": plain(scores.dice),
        "pictures": [shown.get(id, -1) for id in ids],
        "errors": {name: dict(errors) for name, errors in scores.errors.items() if errors},
    }


def _script(value: Any) -> Any:
    """JSON that is safe in a script element."""
    from markupsafe import Markup

    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def write_summary(path: Path, store: Store | None = None) -> dict[str, Any]:
    """Makes `summary.json` and `report.html` from a run's records.

    Args:
        path: the run's folder.
        store: of the folder, if it is open.

    Returns:
        The content of `summary.json`.

    Raises:
        BenchError: no run there, or files in the way that it did not write.
        WriteError: they cannot be written.
    """
    config = read_config(path)
    opened = open_store(path) if store is None else contextlib.nullcontext(store)
    with opened as own:
        own.check_free((SUMMARY, REPORT))
        records = read_records(path, identity(config))
        summary = summarise(records, config, read_sessions(path))
        own.write({SUMMARY: json_bytes(summary)})
        try:
            page = _render(path, summary)
        except Exception as error:  # the scores are safe, and the report can be made again
            warnings.warn(
                f"report.html was not written ({type(error).__name__}: {error}): make it again by "
                f"python -m unseg_jax.bench report {path}",
                stacklevel=2,
            )
        else:
            own.write({REPORT: page.encode()})
    return summary


def signed(value: float) -> str:
    """A difference, with a real minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def best_values(summary: Mapping[str, Any], keys: Iterable[str]) -> dict[str, set[str]]:
    """The methods with the best value of each column, if there is more than one method.

    Args:
        summary: as in `summary.json`.
        keys: names of scores; only single numbers are compared.
    """
    methods = summary["methods"]
    best: dict[str, set[str]] = {"images_per_second": set()}
    for key in ("images_per_second", *keys):
        values = {name: method.get(key) for name, method in methods.items()}
        values = {name: round(value, 3) for name, value in values.items() if _is_number(value)}
        if len(values) > 1:
            top = min(values.values()) if key == "mae" else max(values.values())
            best[key] = {name for name, value in values.items() if value == top}
    return best


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


# A difference of so much IoU has the matrix's full colour.
_FULL_DIFFERENCE = 0.3


def difference_matrix(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Differences of mean IoU of all pairs of methods, best method first; None for fewer than two.

    Pairs that were not tested, of very many methods, have the difference of their means alone.
    """
    means = {name: method["miou"] for name, method in summary["methods"].items()}
    names = sorted(
        (name for name, mean in means.items() if mean is not None), key=lambda name: -means[name]
    )
    if len(names) < 2:
        return None
    tested = {}
    for pair in summary["paired"]:
        tested[pair["first"], pair["second"]] = pair
        tested[pair["second"], pair["first"]] = _swapped(pair)
    rows = []
    for first in names:
        cells = [
            None if first == second else _cell(first, second, means, tested.get((first, second)))
            for second in names
        ]
        rows.append({"name": first, "cells": cells})
    return {"names": names, "rows": rows}


def _swapped(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The same pair with second minus first."""
    low, high = (None if end is None else -end for end in pair["interval"])
    return {
        **pair,
        "mean": -pair["mean"],
        "interval": [high, low],
        "wins": pair["losses"],
        "losses": pair["wins"],
    }


def _cell(first: str, second: str, means: Mapping[str, float], pair: Any) -> dict[str, Any]:
    mean = means[first] - means[second] if pair is None else pair["mean"]
    words = f"{first} − {second}: {signed(mean)}"
    if pair is None:
        words += ", the difference of their means (this pair was not tested)."
    else:
        low, high = pair["interval"]
        words += "" if low is None else f", 95 % interval {signed(low)} to {signed(high)}"
        words += f", p = {pair['p_value']:.3g}; better on {pair['wins']}, equal on {pair['ties']}, "
        words += f"worse on {pair['losses']} of {pair['images']} images."
    strength = round(55 * min(1.0, abs(mean) / _FULL_DIFFERENCE))
    return {
        "mean": mean,
        "words": words,
        "sign": "more" if mean >= 0 else "less",
        "strength": strength,
    }
