"""`report.html` of a run: one file that needs no network, made from the run's folder alone."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.bench.report import charts, tables
from unseg_jax.bench.report.summary import summarise
from unseg_jax.bench.run_folder import (
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
from unseg_jax.bench.score.image_records import WORST
from unseg_jax.bench.score.protocols import Protocol
from unseg_jax.bench.score.published import published_scores
from unseg_jax.metrics import rank_correlation, risk_coverage
from unseg_jax.runs.result_store import ResultStore

# Of more images than this, an even choice is listed, so that the page stays quick to open;
# tables and histograms always count all of them.
_LISTED = 5000
_COLUMNS = (
    ("miou", "mIoU", "mean over images of intersection over union"),
    ("miou_interval", "95 %", "bootstrap interval of the mean IoU"),
    ("median_iou", "median IoU", "median over images"),
    ("dice", "Dice", "mean Dice coefficient"),
    ("pixel_accuracy", "acc.", "share of pixels that are right"),
    ("max_f", "max F", "F-measure, β² = 0.3"),
    ("mae", "MAE", "mean absolute error; less is better"),
    ("e_measure", "E", "enhanced alignment"),
    ("s_measure", "S", "structure measure"),
    ("corloc", "CorLoc", "share of images whose box has an IoU of at least 0.5"),
    ("nmi", "NMI", "parts against the true regions"),
    ("ari", "ARI", "parts against the true regions"),
    ("boundary_iou", "B-IoU", "boundary IoU, within 2 % of the image's diagonal"),
    (
        "hd95",
        "HD95",
        "95th percentile of the outlines' distances over the diagonal; less is better",
    ),
    ("nsd", "NSD", "share of the outlines within 2 px of each other"),
    ("ap", "AP", "average precision of objects, IoU .5 to .95, mean over images"),
    ("ap50", "AP50", "average precision of objects at IoU .5, mean over images"),
    ("pq", "PQ", "panoptic quality of objects"),
    ("count_error", "count", "error of the number of objects, as a share; less is better"),
    ("class_miou", "K-mIoU", "mean IoU over classes, clusters matched to them"),
)


# What the page draws of each record; the size is that of the true object, as a share.
_DRAWN: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "iou": lambda record: record.get("iou"),
    "dice": lambda record: record.get("dice"),
    "confidence": lambda record: record.get("confidence"),
    "size": lambda record: (record.get("truth") or {}).get("share"),
    "seconds": lambda record: (
        (record.get("seconds") or 0) + (record.get("shared_seconds") or 0) or None
    ),
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """The per-image numbers that the page draws.

    Attributes:
        ids: of the images, sorted.
        methods: names.
        values: name of a number → (methods, images), NaN where there is none.
        errors: method → image id → what went wrong.
    """

    ids: tuple[str, ...]
    methods: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    errors: Mapping[str, Mapping[str, str]]


def collect_scores(records: Iterable[Mapping[str, Any]], methods: Sequence[str]) -> Scores:
    """The numbers of all records; of two with the same id and method the later one counts."""
    rows: dict[str, np.ndarray] = {}
    errors: dict[str, dict[str, str]] = {method: {} for method in methods}
    order = {method: index for index, method in enumerate(methods)}
    for record in records:
        index, id = order.get(record["method"]), record["id"]
        if index is None:
            continue
        row = rows.setdefault(id, np.full((len(_DRAWN), len(methods)), np.nan))
        row[:, index] = [np.nan if (v := read(record)) is None else v for read in _DRAWN.values()]
        errors[record["method"]].pop(id, None)
        if record.get("error"):
            errors[record["method"]][id] = record["error"]
    ids = tuple(sorted(rows))
    table = np.array([rows[id] for id in ids]).reshape(len(ids), len(_DRAWN), len(methods))
    values = {name: table[:, place].T for place, name in enumerate(_DRAWN)}
    return Scores(ids, tuple(methods), values, errors)


def _render(folder: Path, summary: Mapping[str, Any]) -> str:
    """The page as HTML, of what is recorded in a run's folder."""
    import jinja2

    config = summary["config"]
    scores = collect_scores(read_records(folder), list(config["methods"]))
    protocol = Protocol(**config["protocol"])
    pictures, shown = _embed(scores, folder / "thumbnails")
    listed = _listed(scores, set(shown))
    by_epoch = {
        name: method["by_epoch"]
        for name, method in summary["methods"].items()
        if method.get("by_epoch")
    }
    counted = _counted(summary, scores, protocol)
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
        tables=_tables(folder, summary, scores),
        published=published_scores(config["dataset"]),
        best=best_values(summary, [key for key, _, _ in _COLUMNS]),
        matrix=difference_matrix(summary),
        methods=scores.methods,
        histograms=[
            (name, charts.histogram(ious.tolist(), place), summary["methods"][name])
            for place, (name, (ious, _)) in enumerate(counted.items())
            if len(ious)
        ],
        curves=_epochs(by_epoch, scores.methods) if by_epoch else None,
        losses=[
            (name, charts.loss_curve(found, place, f"Loss of {name} against epoch"), found)
            for place, (name, method) in enumerate(summary["methods"].items())
            if (found := method.get("loss_by_epoch"))
        ],
        risks=_risks(counted, scores.methods),
        by_epoch=by_epoch,
        data=_script(_data(scores, listed, shown)),
        pictures=pictures,
        listed=len(listed),
        total=len(scores.ids),
        config_text=json.dumps(config, indent=2, ensure_ascii=False),
    )


def _epochs(by_epoch: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> Any:
    lines = {
        name: charts.Line(
            found["epochs"],
            found["miou"],
            found["epochs"].index(found["best_epoch"]),
            f"best {found['best_miou']:.3f} at epoch {found['best_epoch']}",
        )
        for name, found in by_epoch.items()
    }
    label = "Mean IoU against epoch; the table below has the numbers"
    return charts.curves(lines, methods, "epoch", label)


def _counted(
    summary: Mapping[str, Any], scores: Scores, protocol: Protocol
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method the IoU and confidence of all images, failed ones as the protocol counts them."""
    found = {}
    for index, name in enumerate(scores.methods):
        pairs = np.array([scores.values[key][index] for key in ("iou", "confidence")])
        pairs = pairs[:, ~np.isnan(pairs[0])]
        if protocol.count_failures and pairs.size:
            # Failed images that would have had a score.
            failed = max(summary["methods"][name]["scored"] - pairs.shape[1], 0)
            pairs = np.hstack([pairs, np.full((2, failed), [[WORST["iou"]], [np.nan]])])
        found[name] = (pairs[0], pairs[1])
    return found


# Points of a risk-coverage curve, which is smooth.
_POINTS = 200


def _risks(counted: Mapping[str, tuple[np.ndarray, np.ndarray]], methods: Sequence[str]) -> Any:
    """Risk-coverage curves and the area under each; None without confidences."""
    lines, areas = {}, {}
    for name, (ious, confidences) in counted.items():
        if np.isfinite(confidences).any():
            risk = risk_coverage(confidences, ious)
            places = np.unique(np.linspace(0, len(risk) - 1, _POINTS).astype(int))
            lines[name] = charts.Line(((places + 1) / len(risk)).tolist(), risk[places].tolist())
            areas[name] = float(risk.mean())
    if not lines:
        return None
    label = "Mean error of the surest images against their share"
    return charts.curves(lines, methods, "share of the images, the surest first", label), areas


def _tables(folder: Path, summary: Mapping[str, Any], scores: Scores) -> dict[str, str]:
    """What `bench table` prints of this run, by format; nothing of an unfinished one."""
    if not summary["complete"]:
        return {}
    ious = {
        name: dict(zip(scores.ids, np.nan_to_num(row).tolist(), strict=True))
        for name, row in zip(scores.methods, scores.values["iou"], strict=True)
    }
    return tables.tabulated([tables.Run(folder, summary, ious)], *tables.FORMATS)


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


def _embed(scores: Scores, folder: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Pictures of each image as text for a script element, and which image has which element."""
    pictures, shown = [], {}
    pictured = {path.stem for path in (folder / "image").glob("*.jpg")}
    for id in scores.ids if pictured else ():
        stem = file_stem(id)
        if stem not in pictured:
            continue
        paths = [folder / "image" / f"{stem}.jpg"]
        paths += [folder / kind / f"{stem}.png" for kind in ("truth", *scores.methods)]
        encoded = [path.read_bytes() if path.is_file() else b"" for path in paths]
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
    drawn = {
        name: [
            [None if np.isnan(value) else round(float(value), 4) for value in row[list(listed)]]
            for row in values
        ]
        for name, values in scores.values.items()
    }
    return {
        "methods": scores.methods,
        "ids": ids,
        **drawn,
        "rho": {
            name: list(map(rank_correlation, scores.values[name], scores.values["iou"]))
            for name in ("confidence", "size", "seconds")
        },
        "pictures": [shown.get(id, -1) for id in ids],
        "errors": {name: dict(errors) for name, errors in scores.errors.items() if errors},
    }


def _script(value: Any) -> Any:
    """JSON that is safe in a script element."""
    from markupsafe import Markup

    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def write_summary(path: Path, store: ResultStore | None = None) -> dict[str, Any]:
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
            top = min(values.values()) if WORST.get(key) else max(values.values())
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
        tested[pair["first"], pair["second"]] = pair, 1
        tested[pair["second"], pair["first"]] = pair, -1
    rows = []
    for first in names:
        cells = [
            None
            if first == second
            else _cell(first, second, means, *tested.get((first, second), ()))
            for second in names
        ]
        rows.append({"name": first, "cells": cells})
    return {"names": names, "rows": rows}


def _cell(
    first: str, second: str, means: Mapping[str, float], pair: Any = None, sign: int = 1
) -> dict[str, Any]:
    """The difference first − second; `sign` is −1 if the pair was tested the other way round."""
    mean = means[first] - means[second] if pair is None else sign * pair["mean"]
    words = f"{first} − {second}: {signed(mean)}"
    if pair is None:
        words += ", the difference of their means (this pair was not tested)."
    else:
        if None not in pair["interval"]:
            low, high = sorted(sign * end for end in pair["interval"])
            words += f", 95 % interval {signed(low)} to {signed(high)}"
        wins, losses = (pair["wins"], pair["losses"])[::sign]
        words += f", p = {pair['p_value']:.3g}; better on {wins}, equal on {pair['ties']}, "
        words += f"worse on {losses} of {pair['images']} images."
    return {
        "mean": mean,
        "words": words,
        "sign": "more" if mean >= 0 else "less",
        "strength": round(55 * min(1.0, abs(mean) / _FULL_DIFFERENCE)),
    }
