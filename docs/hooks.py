"""What MkDocs builds beside the written pages: a page per method, equations, tables of results.

Equations between `$$` become MathML, which browsers show without any script from elsewhere.
`<!-- results -->` in a page is replaced by benchmarks/README.md.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.method_notes import AFFINITIES, ALGORITHMS, LAYERS, LOSSES, NOTES  # noqa: E402
from unseg_jax.cli.tables import describe_scores, format_table, method_rows  # noqa: E402
from unseg_jax.method import FIELDS, OVERRIDES, Field, Method  # noqa: E402
from unseg_jax.registry import GROUPS, METHODS, TITLES  # noqa: E402

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Method)}


def on_files(files, config):
    """Adds the page of each method."""
    for method in METHODS.values():
        page = File.generated(config, f"methods/{method.name}.md", content=method_page(method))
        files.append(page)
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills generated tables and turns equations into MathML."""
    if "<!-- methods -->" in markdown:
        markdown = markdown.replace("<!-- methods -->", methods_table())
    if "<!-- fields -->" in markdown:
        markdown = markdown.replace("<!-- fields -->", fields_table())
    if "<!-- results -->" in markdown:
        markdown = markdown.replace("<!-- results -->", results_text())
    return re.sub(r"\$\$(.+?)\$\$", _equation, markdown, flags=re.DOTALL)


def _equation(match: re.Match) -> str:
    return convert(" ".join(match[1].split()), display="block")


def methods_table() -> str:
    """The registry as one table a group, each name a link to its page."""
    parts = []
    for group in GROUPS:
        rows = [{**row, "name": f"[{row['name']}]({row['name']}.md)"} for row in method_rows(group)]
        for row in rows:
            del row["group"]
        parts += [f"## {TITLES[group].capitalize()}", format_table(rows, "markdown")]
    return "\n\n".join([*parts, describe_scores()])


def fields_table() -> str:
    """The fields of `Method`, as their annotations say them."""
    rows = [
        {
            "field": f"`{field.name}`",
            "values": ", ".join(field.rule.choices) or _type_name(field),
            "default": "" if field.name == "name" else f"`{_DEFAULTS[field.name]!r}`",
            "meaning": field.words,
        }
        for field in FIELDS.values()
    ]
    return format_table(rows, "markdown")


def _type_name(field: Field) -> str:
    return " or ".join(getattr(kind, "__name__", str(kind)) for kind in field.kinds)


def results_text() -> str:
    """benchmarks/README.md without its title; links into the repository become plain text."""
    text = (ROOT / "benchmarks" / "README.md").read_text().partition("\n")[2]
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"`\1`", text)


def method_page(method: Method) -> str:
    """One page: source, equations, settings, what the code does otherwise, scores."""
    parts = [f"# {method.name}", f"Source: {method.source}."]
    parts += [f"```\nunseg-jax segment photos/ --method {method.name} --out found\n```"]
    note = NOTES.get(method.name)
    if note:
        parts.append(note)
    parts.append("## How it works")
    if method.algorithm != "kmeans":
        parts += ["**Affinity.** " + AFFINITIES[method.affinity]]
    if method.algorithm == "gnn":
        parts += ["**Graph layers.** " + LAYERS[method.layer], "**Loss.** " + LOSSES[method.loss]]
        parts.append(_optimisation(method))
    else:
        parts.append(ALGORITHMS[method.algorithm])
    parts += ["## Settings", _settings(method)]
    if method.code_overrides:
        rows = [
            {"field": f"`{name}`", "paper (default)": getattr(method, name), "code": value}
            for name, value in method.code_overrides
        ]
        parts += [
            "## What the published code does otherwise",
            'With `quirks="code"` (`--set quirks=code`) the published code is followed instead:',
            format_table(rows, "markdown"),
        ]
    scores = _scores(method.name)
    if scores:
        parts += [
            "## Scores",
            "Mean IoU in percent, the whole image unless the protocol says otherwise. The "
            "benchmark page says how each was measured.",
            format_table(scores, "markdown"),
        ]
    return "\n\n".join(parts) + "\n"


def _optimisation(method: Method) -> str:
    shared = ""
    if method.collective_epochs:
        shared = (
            f" First one head is trained on all images together: {method.collective_epochs} passes "
            f"with {method.collective_steps} steps per image."
        )
    return (
        f"**Optimisation.** {method.epochs} steps of AdamW per image, learning rate "
        f"{method.learning_rate:g}, weight decay {method.weight_decay:g}, dropout "
        f"{method.dropout:g}; K = {method.num_clusters}.{shared}"
    )


def _settings(method: Method) -> str:
    rows = [
        {"field": f"`{name}`", "value": f"`{getattr(method, name)}`", "default": f"`{default}`"}
        for name, default in _DEFAULTS.items()
        if name in OVERRIDES and getattr(method, name) != default
    ]
    if not rows:
        return "All fields have their defaults."
    return "Fields that differ from the defaults of `Method`:\n\n" + format_table(rows, "markdown")


def _scores(name: str) -> list[dict]:
    rows = []
    for path in sorted((ROOT / "benchmarks" / "results" / "bench").glob("*.json")):
        summary = json.loads(path.read_text())
        scores = summary.get("methods", {}).get(name)
        if scores and "miou" in scores:
            rows.append(
                {
                    "data": summary["config"]["dataset"],
                    "protocol": scores.get("protocol_label", scores["protocol"]),
                    "images": scores["images"],
                    "mIoU": f"{100 * scores['miou']:.1f}",
                    "Dice": f"{100 * scores['dice']:.1f}",
                    "seed": summary["config"].get("seed", 0),
                }
            )
    return rows
