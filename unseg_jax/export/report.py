"""The page that `unseg-jax segment` writes: what went in, what was found, and how it went.

It is one file without scripts or anything from elsewhere, so that it can be mailed and kept.
"""

from __future__ import annotations

import base64
import math
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from unseg_jax.export.run import Run
    from unseg_jax.segmenter import Segmenter

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee4;
  --page: #f6f7f9; --card: #ffffff; --accent: #0072b2; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #9aa5b1; --line: #343b43;
  --page: #15181c; --card: #1e2227; --accent: #56b4e9; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; }
h2 { margin: 2rem 0 .75rem; font-size: 1.15rem; }
a { color: var(--accent); }
p.lead { margin: 0 0 1.25rem; color: var(--soft); max-width: 70ch; }
dl.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0; }
dl.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .5rem .9rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 38rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem; }
.card h3 { margin: 0 0 .6rem; font-size: 1rem; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
.row img { display: block; width: 100%; height: 13rem; object-fit: contain;
  background: var(--page); border-radius: 4px; }
.numbers { display: flex; justify-content: space-between; align-items: end; gap: 1rem;
  margin-top: .6rem; color: var(--soft); font-size: .85rem; }
.numbers b { color: var(--ink); font-weight: 600; }
figure { margin: 0; text-align: right; font-size: .75rem; }
figure svg { display: block; width: 9rem; height: 2.6rem; }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 1.5;
  vector-effect: non-scaling-stroke; }
table { border-collapse: collapse; background: var(--card); width: 100%; }
th, td { text-align: left; padding: .4rem .7rem; border: 1px solid var(--line);
  overflow-wrap: anywhere; }
.bad { color: var(--bad); }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">Each image, what was found in it, and its parts in their colours (black is
background). The box frames the object's largest piece. No labels were seen, and each image was
optimised on its own. A click opens a picture at its full size.</p>
<dl class="facts">
{% for name, value in facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl>
{% if failed %}
<h2 class="bad">Not done</h2>
<table><thead><tr><th>File</th><th>Why, and what to do</th></tr></thead><tbody>
{% for entry in failed %}<tr><td>{{ entry.image.path }}</td><td>{{ entry.error }}</td></tr>
{% endfor %}</tbody></table>
{% endif %}
{% if shown %}
<h2>What was found</h2>
<div class="cards">
{% for entry in shown %}{% set found = entry.segmentation %}{% set name = entry.image.name %}
<section class="card">
<h3>{{ name }}</h3>
<div class="row">
{% for kind in ("photograph", "overlay", "labels") %}
<a href="{{ link(name, '_labels.png' if kind == 'labels' else '_overlay.png') }}">
<img loading="lazy" alt="{{ kind }} of {{ name }}"
 src="data:image/webp;base64,{{ encode(entry.thumbnails[kind]) }}"></a>
{% endfor %}</div>
<div class="numbers"><span>
{{ entry.size[1] }} × {{ entry.size[0] }} pixels · object
<b>{{ "%.0f" | format(100 * entry.coverage) }} %</b>
{%+ if entry.parts > 1 %}· <b>{{ entry.parts }}</b> parts {% endif %}
· confidence <b>{{ "%.2f" | format(found.confidence) }}</b><br>
{% if found.box %}box {{ found.box | join(", ") }}{% else %}no object{% endif %} ·
<a href="{{ link(name, '_mask.png') }}">mask</a>
<a href="{{ link(name, '_labels.png') }}">labels</a>
<a href="{{ link(name, '_overlay.png') }}">overlay</a>
</span>{% set curve = polyline(found.losses) %}{% if curve %}
<figure><svg viewBox="0 0 100 30" preserveAspectRatio="none" role="img"
 aria-label="loss over the epochs"><polyline points="{{ curve }}"/></svg>
loss {{ "%.4g" | format(found.loss) }}</figure>
{% endif %}</div>
</section>
{% endfor %}</div>
{% endif %}
{% if others %}
<h2>Further images</h2>
<table><thead><tr><th>Image</th><th>Object</th><th>Confidence</th><th>Files</th></tr></thead>
<tbody>
{% for entry in others %}<tr><td>{{ entry.image.name }}</td>
<td>{{ "%.0f" | format(100 * entry.coverage) }} %</td>
<td>{{ "%.2f" | format(entry.segmentation.confidence) }}</td>
<td><a href="{{ link(entry.image.name, '_mask.png') }}">mask</a>
<a href="{{ link(entry.image.name, '_labels.png') }}">labels</a>
<a href="{{ link(entry.image.name, '_overlay.png') }}">overlay</a></td></tr>
{% endfor %}</tbody></table>
{% endif %}
</body>
</html>
"""


def render_report(run: Run, segmenter: Segmenter) -> str:
    """The page of a run as HTML.

    Args:
        run: from `segment_files`; links are to the files beside the page.
        segmenter: that it was done with.
    """
    from urllib.parse import quote

    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(_PAGE).render(
        title=f"{segmenter.method.name}: {_count(len(run.done), 'image')} segmented",
        facts=_facts(run, segmenter),
        failed=run.failed,
        shown=[entry for entry in run.done if entry.thumbnails],
        others=[entry for entry in run.done if not entry.thumbnails],
        encode=lambda data: base64.b64encode(data).decode(),
        link=lambda name, suffix: quote(os.fspath(name) + suffix),
        polyline=polyline,
    )


def _facts(run: Run, segmenter: Segmenter) -> list[tuple[str, str]]:
    method, backbone = segmenter.method, segmenter.backbone
    height, width = method.size
    rows, columns = segmenter.grid
    facts = [("Method", method.name), ("After", method.source)]
    if backbone is not None:
        facts += [
            ("Backbone", f"{backbone.name} ({backbone.source})"),
            ("Seen at", f"{width} × {height} pixels, {columns} × {rows} patches"),
        ]
    if method.algorithm == "gnn":
        facts.append(
            ("Graph network", f"{method.layer}, {method.loss} loss, {method.epochs} epochs")
        )
    if method.refine != "none":
        facts.append(("Edges refined by", f"{method.refine} solver"))
    facts += [
        ("Images", f"{len(run.done)} done, {len(run.failed)} not"),
        ("Speed", f"{run.images_per_second:.3g} images a second"),
        ("Compiled in", f"{run.compile_seconds:.1f} s"),
    ]
    return facts


def polyline(losses: np.ndarray) -> str:
    """Points of an SVG polyline of a loss curve in a box of 100 × 30; "" if there is none."""
    values = [float(loss) for loss in losses]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = []
    for index, value in enumerate(values):
        x = 100 * index / (len(values) - 1)
        y = 1 + 28 * (high - value) / span
        points.append(f"{x:.1f},{y:.1f}")
    return " ".join(points)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
