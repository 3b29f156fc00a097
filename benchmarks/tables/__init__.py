"""Turns committed results into the tables of a Markdown file.

A table lies between `<!-- table:NAME -->` and `<!-- /table -->`; whatever stands there is replaced
by the table of benchmarks/results/NAME.json, where NAME is that of a benchmark, or `vit-avx2` and
the like for what it gave elsewhere. `NAME` may also be

* `versus_reference/quality`: the IoU part of that result;
* `objects/short`: of each row the share of objects found, their mean best IoU and the time;
* `optimisation/short`: of each head the published loop, the best dense PyTorch and ours;
* `bench` or `bench/GLOB`: one table of all benchmarks/results/bench/*.json (or of those that
  match), which are `summary.json` files of `python -m unseg_jax.bench`, one row a file and method;
* `methods`: the registry, one row a method, as `unseg-jax methods` prints it;
* `methods/GLOB`: of those that match, one row a method and one column a data set, with mIoU under
  `honest` and under `published`.

It also writes `unseg_jax/cli/scores.json`, what `unseg-jax methods` shows.

    python -m benchmarks tables     # README.md, benchmarks/README.md, docs/folder.md, scores.json
    python -m benchmarks tables --check         # fails if a table is out of date
    python -m benchmarks tables --keep-summary runs/horses/summary.json --as horses
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.accelerators import accelerator, compiled
from benchmarks.measure import (
    common,
    host,
    objects,
    optimisation,
    quality,
    scaling,
    slides,
    versus_reference,
    vit,
)
from unseg_jax.cli.tables import SCORES, format_table, method_rows
from unseg_jax.registry import METHODS

# A path of this machine, at the start of a text or of a word, also after "NAME:"; no URL.
_PATH = re.compile(r"(?:^|(?<=[\s:]))(?:/|~/|\.\./)(?!/)[^\s:]+")
_MARKED = re.compile(r"(<!-- table:(?P<name>[\w/*.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    pages = [common.ROOT / page for page in ("README.md", "benchmarks/README.md", "docs/folder.md")]
    parser.add_argument("files", nargs="*", type=Path, default=pages)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it would")
    parser.add_argument("--keep-summary", type=Path, help="a summary.json to keep as a result")
    parser.add_argument("--as", dest="name", help="the name it is kept under")
    options = parser.parse_args()
    if options.keep_summary:
        if not options.name:
            parser.error("--keep-summary needs --as NAME.")
        keep_summary(options.keep_summary, options.name)
    stale = []
    outputs = [(path, path.read_text(), fill) for path in options.files]
    outputs.append((SCORES, SCORES.read_text() if SCORES.is_file() else "", lambda _: scores()))
    for path, before, make in outputs:
        after = make(before)
        if after != before:
            stale.append(path.name)
            if not options.check:
                path.write_text(after)
    if options.check and stale:
        raise SystemExit(
            f"tables are out of date in {', '.join(stale)}; run python -m benchmarks tables."
        )


def fill(text: str, results: Path = common.RESULTS) -> str:
    """The text with every marked table made anew.

    Raises:
        SystemExit: a marked table whose result is missing or that nobody knows.
    """
    return _MARKED.sub(
        lambda match: f"{match[1]}{render(match['name'], results)}\n{match[3]}", text
    )


def render(name: str, results: Path = common.RESULTS) -> str:
    """The table of one result, with the line that says how it was made."""
    family, _, part = name.partition("/")
    if family == "bench":
        return _bench(results / "bench", part or "*")
    if name == "methods":
        return format_table(method_rows(), "markdown")
    if family == "methods":
        return _methods(results / "bench", part)
    if name == "quality/methods":
        return quality.methods_table(_read(results / "quality.json"), results / "bench")
    benchmark = family.partition("-")[0]
    if benchmark not in _TABLES:
        raise SystemExit(f"no table '{name}'; known are bench, methods, {', '.join(_TABLES)}.")
    result = _read(results / f"{family}.json")
    body = _PARTS.get(name, _TABLES[benchmark])(result)
    return f"{body}\n\n{provenance(result)}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        benchmark = path.stem.partition("-")[0]
        raise SystemExit(f"no result {path.name}: run python -m benchmarks {benchmark} first.")
    return json.loads(path.read_text())


_SHOWN = ("python", "jax", "libtpu", "jax-cuda12-pjrt")


def provenance(result: dict[str, Any]) -> str:
    """Where, with what and how a result was measured."""
    machine, found = result["machine"], {}
    for side in result.get("versions", {}).values():
        for package in ("jax", "torch", "torch-geometric"):
            if package in side:
                found.setdefault(package, side[package])
    ours = result.get("versions", {}).get("jax side", {})
    found |= {package: ours[package] for package in _SHOWN if package in ours}
    listed = ", ".join(f"{package} {version}" for package, version in sorted(found.items()))
    processor = result.get("device")
    if processor in (None, "cpu"):
        vectors = f", {machine['vectors']}" if machine.get("vectors") else ""
        processor = f"{machine['cpu']}, {machine['cores']} cores{vectors}"
    return (
        f"<sub>`{_command(result)}` · {processor} · {listed} · commit {result['commit']}, "
        f"{result['date']}</sub>"
    )


def _command(result: dict[str, Any]) -> str:
    """How it is measured today: results name the script that measured them by its path."""
    return re.sub(r"^python benchmarks/(\w+)\.py", r"python -m benchmarks \1", result["command"])


def _versus(result: dict[str, Any]) -> str:
    blocks = [
        f"**{name}**\n\n{versus_reference.table(measured)}"
        for name, measured in result["settings"].items()
    ]
    if result.get("standins"):
        names = ", ".join(result["standins"])
        blocks.append(f"Stand-ins took the place of {names}, which the published files import.")
    return "\n\n".join(blocks)


def _quality(result: dict[str, Any]) -> str:
    quality = result.get("quality")
    if not quality:
        raise SystemExit("versus_reference.json holds no comparison of masks.")
    return f"{versus_reference.quality_table(quality)}\n\nFeatures: {quality['features']}."


_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "versus_reference": _versus,
    "optimisation": optimisation.table,
    "scaling": scaling.table,
    "vit": vit.table,
    "accelerator": accelerator.table,
    "compiled": compiled.table,
    "host": host.table,
    "objects": objects.table,
    "slides": slides.table,
    "quality": quality.table,
}


def _bench(folder: Path, pattern: str) -> str:
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


def _methods(folder: Path, pattern: str) -> str:
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
    methods: dict[str, dict[str, dict[str, float]]] = {}
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
                    methods.setdefault(method, {}).setdefault(dataset, kept)
    (backbone,), (stride,) = backbones, strides
    listed = {name: methods[name] for name in METHODS if name in methods}
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


_PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "versus_reference/quality": _quality,
    "objects/short": objects.short_table,
    "optimisation/short": optimisation.short_table,
}
