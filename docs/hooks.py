"""What MkDocs builds beside the written pages: pages of methods and notebooks, equations.

Equations between `$$` become MathML, which browsers show without any script from elsewhere.
Plots (SVG) are put into the page itself, where they follow its theme.
"""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.method_notes import (  # noqa: E402
    AFFINITIES,
    ALGORITHMS,
    COLLECTIVE,
    LAYERS,
    LOSSES,
    NOTES,
)
from unseg_jax.cli.listings import describe_scores, format_table, method_rows  # noqa: E402
from unseg_jax.method import FIELDS, OVERRIDES, Field, Method  # noqa: E402
from unseg_jax.registry import GROUPS, METHODS, TITLES  # noqa: E402

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Method)}
_BLOCK = re.compile(r"<pre>.*?</pre>", re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
_PLOT = re.compile(r"!\[([^\]]*)\]\((?:\.\./)*images/(\w+)\.svg\)")


def on_config(config):
    """Links to the repository and its issues, where the build is told of it as on GitHub."""
    repository = os.environ.get("GITHUB_REPOSITORY")
    if repository:
        # Not `repo_url`: for that, the theme's script asks GitHub for stars.
        url = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
        config.nav += [{"Repository": url}, {"Report an issue": f"{url}/issues"}]
    return config


def on_files(files, config):
    """Adds the page of each method, and the page and the file of each notebook."""
    for method in METHODS.values():
        page = File.generated(config, f"methods/{method.name}.md", content=method_page(method))
        files.append(page)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        content = notebook_page(json.loads(path.read_text()))
        content += f"\n[Download this notebook]({path.name})\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills generated tables and turns equations into MathML."""
    if "<!-- methods -->" in markdown:
        markdown = markdown.replace("<!-- methods -->", methods_table())
    if "<!-- fields -->" in markdown:
        markdown = markdown.replace("<!-- fields -->", fields_table())
    markdown = _PLOT.sub(_inline_plot, markdown)
    return re.sub(r"\$\$(.+?)\$\$", _equation, markdown, flags=re.DOTALL)


def on_page_content(html, page, config, files):
    """Keeps short names, and options of commands, on one line."""
    html = re.sub(r"<code>([^<\n]{1,32})</code>", r'<code class="whole">\1</code>', html)
    return _BLOCK.sub(lambda block: _OPTION.sub(r'<span class="whole">\1</span>', block[0]), html)


def _equation(match: re.Match) -> str:
    return convert(" ".join(match[1].split()), display="block")


def methods_table() -> str:
    """The registry as one table a group, each name a link to its page."""
    parts = []
    for group in GROUPS:
        rows = [dict(row) for row in method_rows(group)]
        for row in rows:
            if METHODS[row["name"]].foreground == "set":
                # It optimises no graph network.
                row |= {"layers": "ridge and convolution", "loss": "-", "K": "-", "epochs": "-"}
            # Short cells on one line keep the rows low.
            for name in ("affinity", "layers"):
                row[name] = row[name].replace(" ", "\N{NO-BREAK SPACE}")
            row["name"] = f"[{row['name']}]({row['name']}.md)"
            del row["group"], row["backbone"]
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


def _inline_plot(match: re.Match) -> str:
    """The SVG itself in the place of its image, so that it follows the theme of the page."""
    drawing = (ROOT / "docs" / "images" / f"{match[2]}.svg").read_text()
    drawing = drawing.replace("aria-label=", f'aria-description="{match[1]}" aria-label=', 1)
    return '<figure class="plot">' + drawing.replace("\n", "") + "</figure>"


def notebook_page(notebook: dict) -> str:
    """A notebook with its outputs: what was printed, and pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            pictures = [kind for kind in data if kind.startswith("image/")]
            if pictures:
                encoded = "".join("".join(data[pictures[0]]).split())
                picture = f"![What the code above shows](data:{pictures[0]};base64,{encoded})"
                parts.append(picture)
            elif printed := "".join(data["text/plain"]).rstrip():
                parts.append(f"``` {{ .text .output }}\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def method_page(method: Method) -> str:
    """One page: source, equations, settings, what the code does otherwise, scores."""
    source = method.source.partition(":")[0] if method.foreground == "set" else method.source
    parts = [f"# {method.name}", f"Source: {source}."]
    parts += [f"```\nunseg-jax segment photos/ --method {method.name} --out found\n```"]
    note = NOTES.get(method.name)
    if note:
        parts.append(note)
    parts += [_pictures(method), "## How it works"]
    if method.foreground == "set":
        parts.append(COLLECTIVE)
    elif method.algorithm == "kmeans":
        parts.append(ALGORITHMS[method.algorithm])
    elif method.algorithm == "gnn":
        parts.append("**Affinity.** " + AFFINITIES[method.affinity])
        parts += ["**Graph layers.** " + LAYERS[method.layer], "**Loss.** " + LOSSES[method.loss]]
        parts.append(_optimisation(method))
    else:
        parts.append("**Affinity.** " + AFFINITIES[method.affinity])
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
        parts.append(
            "## Scores\n\nMean IoU in percent. [Quality](../results/quality.md) says how it was "
            "measured. Compare numbers within a table only: the images differ from one to the next."
        )
    for title, rows in scores.items():
        parts += [f"### {title}", format_table(rows, "markdown")]
    return "\n\n".join(parts) + "\n"


def _pictures(method: Method) -> str:
    """What it finds in the four photographs of all methods, and where it fails."""
    record = json.loads((ROOT / "docs" / "images" / "pictures.json").read_text())
    ious = record["ious"][method.name]
    listed = ", ".join(f"{name} {value:.2f}" for name, value in ious.items())
    failed = [name for name, value in ious.items() if value < 0.5]
    verdict = f"Below 0.5, which we call a failure: {', '.join(failed)}." if failed else ""
    fitted = " It is fitted on these four alone." if method.learns_from_set else ""
    return (
        f"![Masks of {method.name} on four photographs](../images/methods/{method.name}.webp)\n\n"
        "*Every method on the same four photographs of scikit-image, one call, nothing chosen."
        f"{fitted} IoU with outlines drawn by hand: {listed}. {verdict}*"
    )


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


_RUNS = {
    "all": "All images of each set",
    "every": "The first 40 images of each set",
    "slow": "Two images of each set",
    "cropped": "60 images, cropped to the true box",
    "whole": "60 images, whole",
}
"""How the name of a kept run ends, and which images it is over."""


def _scores(name: str) -> dict[str, list[dict]]:
    """Which images → a row a data set, one column a protocol: no column mixes images."""
    found: dict[str, dict[str, dict]] = {}
    for path in sorted((ROOT / "benchmarks" / "results" / "bench").glob("*.json")):
        kind = path.stem.rpartition("-")[2]
        summary = json.loads(path.read_text())
        scores = summary.get("methods", {}).get(name)
        # Beside the other methods there is an earlier version of `collective`.
        if not scores or "miou" not in scores or (name == "collective" and kind != "all"):
            continue
        data = summary["config"]["dataset"]
        row = found.setdefault(_RUNS[kind], {}).setdefault(data, {"data": data})
        row["images"] = scores["images"]
        row[scores.get("protocol_label", scores["protocol"])] = f"{100 * scores['miou']:.1f}"
    return {title: list(rows.values()) for title, rows in found.items()}
