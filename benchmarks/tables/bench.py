"""What tables and `unseg-jax methods` show of the kept runs of `python -m unseg_jax.bench`."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import common
from benchmarks.tables.plots import TITLES
from unseg_jax.registry import METHODS

# A path of this machine, at the start of a text or of a word, also after "NAME:"; no URL.
_PATH = re.compile(r"(?:^|(?<=[\s:]))(?:/|~/|\.\./)(?!/)[^\s:]+")


def sets(folder: Path) -> str:
    """One row a set: `collective` on all of its images."""
    rows, backbones = [], set()
    for name, title in TITLES.items():
        summary = json.loads((folder / f"{name}-all.json").read_text())
        scores = summary["methods"]["collective"]
        backbones.add(summary["backbone"])
        row = [title, scores["images"], f"{100 * scores['miou']:.1f}", _interval(scores)]
        row += [f"{100 * scores['dice']:.1f}", _correlation(scores["confidence_correlation"])]
        rows.append(row)
    header = ["`collective`, honest protocol", "images", "mIoU", "95 %", "Dice", "confidence ρ"]
    return f"{common.table(header, rows)}\n\nBackbone: {', '.join(sorted(backbones))}."


def runs(folder: Path, pattern: str) -> str:
    """One row a data set and method of the kept summaries."""
    paths = sorted(folder.glob(f"{pattern}.json"))
    if not paths:
        raise SystemExit(f"no kept summary matches bench/{pattern}; see --keep-summary.")
    rows, backbones, protocols = [], set(), set()
    for path in paths:
        summary = json.loads(path.read_text())
        backbones.add(str(summary.get("backbone")))
        for method, scores in summary["methods"].items():
            protocols.add(scores["protocol"])
            rows.append(
                [
                    path.stem,
                    method,
                    scores.get("protocol_label", scores["protocol"]),
                    scores["images"],
                    scores.get("failed", 0),
                    f"{100 * scores['miou']:.1f}",
                    _interval(scores),
                    f"{100 * scores['dice']:.1f}",
                    _correlation(scores.get("confidence_correlation")),
                ]
            )
    header = ["data", "method", "protocol", "images", "failed", "mIoU", "95 %", "Dice"]
    header += ["confidence ρ"]
    return f"{common.table(header, rows)}\n\nBackbone: {', '.join(sorted(backbones))}."


def methods(folder: Path, pattern: str) -> str:
    """mIoU of each method on each data set, "honest / published" in a cell."""
    cells: dict[str, dict[str, dict[str, float]]] = {}
    names: dict[str, int] = {}
    for path in sorted(folder.glob(f"{pattern}.json")):
        summary = json.loads(path.read_text())
        dataset = summary["config"]["dataset"]
        for method, scores in summary["methods"].items():
            names[dataset] = scores["images"]
            cell = cells.setdefault(method, {}).setdefault(dataset, {})
            cell[scores["protocol"]] = scores["miou"]
    if not cells:
        raise SystemExit(f"no kept summary matches bench/{pattern}; see --keep-summary.")
    used = {protocol for row in cells.values() for cell in row.values() for protocol in cell}
    protocols = [protocol for protocol in ("honest", "published") if protocol in used]
    header = [f"mIoU, {' / '.join(protocols)}"]
    header += [f"{name}, {count} images" for name, count in names.items()]
    rows = [
        [method, *(_cell(row.get(name, {}), protocols) for name in names)]
        for method, row in cells.items()
    ]
    return common.table(header, rows)


def _cell(scores: dict[str, float], protocols: list[str]) -> str:
    values = [scores.get(protocol) for protocol in protocols]
    if all(value is None for value in values):
        return "–"
    return " / ".join("–" if value is None else f"{100 * value:.1f}" for value in values)


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(scores: dict[str, Any]) -> str:
    bounds = scores.get("miou_interval") or ()
    return "–".join(f"{100 * bound:.1f}" for bound in bounds if bound is not None)


def scores(results: Path = common.RESULTS) -> str:
    """mIoU under `honest` of each method on each data set, as `unseg-jax methods` reads it.

    The newest runs are taken first, which are those over all images; then those over every method
    on the same images; then those over the slow ones. A method whose settings have changed since
    is left out.
    """
    kept_scores: dict[str, dict[str, dict[str, float]]] = {}
    backbones, strides = set(), set()
    for kind in ("all", "honest-every", "honest-slow"):
        for path in sorted((results / "bench").glob(f"*-{kind}.json")):
            summary = json.loads(path.read_text())
            dataset = summary["config"]["dataset"]
            backbones |= {summary["backbone"]} - {""}
            for method, found in summary["methods"].items():
                record = summary["config"]["methods"][method]
                if method in METHODS and _is_current(record):
                    strides |= {record["stride"]} - {None}
                    kept = {"miou": round(found["miou"], 4), "images": found["images"]}
                    kept_scores.setdefault(method, {}).setdefault(dataset, kept)
    (backbone,), (stride,) = backbones, strides
    listed = {name: kept_scores[name] for name in METHODS if name in kept_scores}
    written = {"protocol": "honest", "backbone": backbone, "stride": stride, "methods": listed}
    return json.dumps(written, indent=1) + "\n"


# Chosen for all methods of a run, or no setting.
_RUN_FIELDS = ("source", "backbone", "stride", "code_overrides")


def _is_current(recorded: dict[str, Any]) -> bool:
    """Whether a run's record of a method agrees with the registry in all that has an effect."""
    now = json.loads(json.dumps(dataclasses.asdict(METHODS[recorded["name"]])))
    ignored = {*_RUN_FIELDS, *(() if now["layer"] == "gcn" else ("normalise",))}
    fields = now.keys() & recorded.keys() - ignored
    return all(now[field] == recorded[field] for field in fields)


def keep_summary(path: Path, name: str) -> None:
    """Copies a run's summary among the results, without paths of this machine."""
    summary = json.loads(path.read_text())
    target = common.RESULTS / "bench" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_without_paths(summary), indent=1) + "\n")
    print(f"kept {target.name}", file=sys.stderr)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str):
        return _PATH.sub(lambda match: Path(match[0]).name, value)
    return value
