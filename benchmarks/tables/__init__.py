"""Turns committed results into the tables of a Markdown file.

A table lies between `<!-- table:NAME -->` and `<!-- /table -->`; whatever stands there is replaced
by the table of benchmarks/results/NAME.json, where NAME is that of a benchmark, or `vit-avx2` and
the like for what it gave elsewhere. `NAME` may also be

* `versus_reference/quality`: the IoU part of that result;
* `objects/short`: of each row the share of objects found, their mean best IoU and the time;
* `optimisation/short`: of each head the published loop, the best dense PyTorch and ours;
* `bench` or `bench/GLOB`: one table of all benchmarks/results/bench/*.json (or of those that
  match), which are `summary.json` files of `python -m unseg_jax.bench`, one row a file and method;
* `million/plan`: what a million images take on each kind of device;
* `headline/quality` and `headline/speed`: sentences that open the results page;
* `bench/sets`: `collective` on all images of each set;
* `methods`: the registry, one row a method, as `unseg-jax methods` prints it;
* `methods/GLOB`: of those that match, one row a method and one column a data set, with mIoU under
  `honest` and under `published`.

It also writes the plots (docs/images/*.svg) and what `unseg-jax methods` shows,
`unseg_jax/cli/scores.json`.

    python -m benchmarks tables                 # README.md, docs/, scores.json, the plots
    python -m benchmarks tables --check         # fails if a table is out of date
    python -m benchmarks tables --keep-summary runs/horses/summary.json --as horses
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.accelerators import accelerator, compiled
from benchmarks.measure import (
    any_folder,
    common,
    host,
    limit,
    million,
    objects,
    optimisation,
    quality,
    scaling,
    slides,
    versus_reference,
    vit,
)
from benchmarks.tables import bench, plots
from benchmarks.tables.bench import keep_summary, scores
from unseg_jax.cli.listings import SCORES, format_table, method_rows

_MARKED = re.compile(r"(<!-- table:(?P<name>[\w/*.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    pages = [common.ROOT / "README.md", *sorted((common.ROOT / "docs").rglob("*.md"))]
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
    outputs = [(path, fill(path.read_text())) for path in options.files]
    for name, plot in plots.PLOTS.items():
        outputs.append((common.ROOT / f"docs/images/{name}.svg", plot(common.RESULTS)))
    outputs.append((SCORES, scores()))
    for path, after in outputs:
        if not path.is_file() or path.read_text() != after:
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
    if name in plots.HEADLINES:
        return plots.HEADLINES[name](results)
    if name == "million/plan":
        return million.plan(results)
    if name == "bench/sets":
        return bench.sets(results / "bench")
    if family == "bench":
        return bench.runs(results / "bench", part or "*")
    if name == "methods":
        return format_table(method_rows(), "markdown")
    if family == "methods":
        return bench.methods(results / "bench", part)
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
    "limit": limit.table,
    "million": million.table,
    "any_folder": any_folder.table,
    "objects": objects.table,
    "slides": slides.table,
    "quality": quality.table,
}


_PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "any_folder/confidence": any_folder.confidence_table,
    "versus_reference/quality": _quality,
    "objects/short": objects.short_table,
    "optimisation/short": optimisation.short_table,
}
