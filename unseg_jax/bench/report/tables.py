"""Tables over several runs: methods by data sets, and one run against another."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from unseg_jax.bench.run_folder import read_records
from unseg_jax.errors import BenchError
from unseg_jax.metrics import paired_sign_flip_test

FORMATS = {"markdown": "github", "latex": "latex_raw", "csv": ""}
_BOLD = {"markdown": "**{}**", "latex": r"\textbf{{{}}}", "csv": "{}"}
_SPREAD = {"markdown": " ± ", "latex": r" $\pm$ ", "csv": " ± "}
_LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its summary, and by method and image the IoU, 0 where it failed."""

    folder: Path
    summary: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float]]

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the run."""
        return self.summary["config"]

    def mean(self, method: str) -> float | None:
        """The mean IoU as the protocol counts it."""
        return self.summary["methods"].get(method, {}).get("miou")

    @property
    def set(self) -> str:
        """Name of the data set, and of the protocol if it is not honest."""
        protocol = self.config["protocol"]["name"]
        name = self.config["dataset"]
        return name if protocol == "honest" else f"{name}, {protocol}"


def table(folders: Sequence[Path], form: str = "markdown") -> str:
    """Mean IoU in per cent of methods (rows) on sets (columns).

    Runs of the same set with several seeds become mean ± standard deviation over the seeds. The
    best of a set is bold; so is what cannot be told from it, by a paired sign-flip test over
    the images at the 5 % level.

    Args:
        folders: of finished runs.
        form: "markdown", "latex" or "csv".

    Raises:
        BenchError: a folder without a finished run, or runs of one set over different images.
        ValueError: an unknown form.
    """
    if form not in FORMATS:
        raise ValueError(f"format '{form}' is not known: choose {', '.join(FORMATS)}.")
    return tabulated([_read(folder) for folder in folders], form)[form]


def tabulated(runs: Sequence[Run], *forms: str) -> dict[str, str]:
    """`table` of runs that are read, in some formats."""
    sets: dict[str, list[Run]] = {}
    for run in runs:
        sets.setdefault(run.set, []).append(run)
        first = sets[run.set][0]
        if run.config["ids_sha256"] != first.config["ids_sha256"]:
            raise BenchError(
                f"{run.folder} and {first.folder} hold different images of {run.set}: compare runs "
                "with the same --limit and --split."
            )
    columns = {name: _column(found) for name, found in sets.items()}
    methods = dict.fromkeys(name for column in columns.values() for name in column)
    return {
        form: _render(
            ["method", *columns],
            [
                [name, *(_cell(column, name, form) for column in columns.values())]
                for name in methods
            ],
            form,
        )
        for form in forms
    }


def compare(first: Path, second: Path) -> str:
    """Each method of two runs over the same images: mean IoU in per cent, and the difference.

    Args:
        first, second: folders of finished runs, such as those of two versions.

    Raises:
        BenchError: a folder without a finished run, or no method and image in common.
    """
    before, after = _read(first), _read(second)
    rows = []
    for method in (name for name in before.scores if name in after.scores):
        old, new = before.scores[method], after.scores[method]
        ids = [id for id in old if id in new]
        if not ids:
            continue
        pairs = np.array([[new[id], old[id]] for id in ids])
        found = paired_sign_flip_test(pairs[:, 0], pairs[:, 1])
        rows.append(
            (
                method,
                str(len(ids)),
                *(f"{100 * value:.1f}" for value in pairs.mean(0)[::-1]),
                f"{100 * found.mean:+.1f}",
                f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
                f"{found.wins}, {found.losses}",
                f"{found.p_value:.3f}",
            )
        )
    if not rows:
        raise BenchError(f"{first} and {second} have no method and image in common.")
    header = ("method", "images", str(first), str(second), "difference", "95 %")
    return _render([*header, "better, worse", "p"], rows, "markdown")


def _read(folder: Path) -> Run:
    path = Path(folder) / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BenchError(f"{folder} holds no run that can be read: {path} is needed.") from error
    if not summary.get("complete"):
        raise BenchError(f"the run in {folder} is not finished: resume it with --resume first.")
    scores: dict[str, dict[str, float]] = {name: {} for name in summary["methods"]}
    for record in read_records(Path(folder)):
        scores[record["method"]][record["id"]] = record["iou"] or 0.0
    return Run(Path(folder), summary, scores)


def _column(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """By method: the means of its runs, its IoU by image, and whether it is among the best."""
    column: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(name for run in runs for name in run.scores):
        chosen = [run for run in runs if run.mean(method) is not None]
        if not chosen:
            continue
        ids = sorted(chosen[0].scores[method])  # the order that methods are paired in
        images = np.mean([[run.scores[method].get(id, 0.0) for id in ids] for run in chosen], 0)
        column[method] = {"means": [run.mean(method) for run in chosen], "images": images}
    if column:
        best = max(column, key=lambda method: np.mean(column[method]["means"]))
        # Of one run alone, its summary has tested most pairs.
        tested = {
            (pair["first"], pair["second"]): pair["p_value"]
            for pair in (runs[0].summary["paired"] if len(runs) == 1 else ())
        }
        for method, entry in column.items():
            p_value = tested.get((best, method), tested.get((method, best)))
            if p_value is None and method != best:
                p_value = paired_sign_flip_test(column[best]["images"], entry["images"]).p_value
            entry["best"] = p_value is None or p_value >= _LEVEL
    return column


def _cell(column: dict[str, dict[str, Any]], method: str, form: str) -> str:
    if method not in column:
        return "–" if form != "latex" else "--"
    means = np.multiply(column[method]["means"], 100)
    text = f"{means.mean():.1f}"
    if len(means) > 1:
        text += f"{_SPREAD[form]}{means.std(ddof=1):.1f}"
    return _BOLD[form].format(text) if column[method]["best"] else text


def _render(header: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    if form == "csv":
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        return buffer.getvalue().rstrip("\n")
    if form == "latex":
        escaped = [[re.sub("([_&%#])", r"\\\1", text) for text in row] for row in (header, *rows)]
        header, *rows = escaped
    align = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, FORMATS[form], colalign=align, disable_numparse=True)
