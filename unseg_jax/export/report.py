"""The page that `unseg-jax segment` writes: what was found, what to check, and how it went.

It is one file without scripts or anything from elsewhere, so that it can be mailed and kept.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from unseg_jax.export.run import Entry, Record, Run

UNSURE = 0.25
"""Confidence below which an image is to be checked."""
FULL = 0.9
"""Share of the image from which on a mask is to be checked."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee4;
  --page: #f6f7f9; --card: #ffffff; --accent: #0072b2; --bad: #b3261e; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #9aa5b1; --line: #343b43;
  --page: #15181c; --card: #1e2227; --accent: #56b4e9; --bad: #ff8a80; --warn: #f0b040; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 2rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.4rem; }
h2 { margin: 1.5rem 0 .75rem; font-size: 1.1rem; }
a { color: var(--accent); }
p.lead { margin: .15rem 0 .6rem; color: var(--soft); max-width: 75ch; font-size: .9rem; }
details { margin: 0 0 1rem; color: var(--soft); font-size: .9rem; }
dl.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; margin: .5rem 0; }
dt { font-size: .8rem; }
dd { margin: 0; font-weight: 600; color: var(--ink); overflow-wrap: anywhere; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 36rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
.card.check { border-color: var(--warn); }
.card h3 { margin: .6rem .8rem 0; font-size: .95rem; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: 2px; background: var(--line); }
.pictures a { flex: 1 1 min(100%, 17rem); min-width: 0; background: var(--page); }
.pictures img { display: block; width: 100%; height: 100%; max-height: 26rem;
  object-fit: contain; }
.numbers { margin: .2rem .8rem .7rem; color: var(--soft); font-size: .85rem; }
.numbers b { color: var(--ink); font-weight: 600; }
.tag { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); width: 100%; }
th, td { text-align: left; padding: .4rem .7rem; border: 1px solid var(--line);
  overflow-wrap: anywhere; }
.bad { color: var(--bad); }
@media (max-width: 30rem) { body { padding: .6rem .5rem 1rem; } h1 { font-size: 1.2rem; } }
</style>
</head>
<body>
<h1>{{ headline }}</h1>
<p class="lead">{{ sentence }}</p>
<details><summary>How it was done</summary>
<p>The background is dimmed and each object outlined. To check are images without an object, with
a confidence below {{ unsure }}, or with a mask over more than {{ full }} % of them; they come
first. A click opens a picture at its full size.</p>
<dl class="facts">
{% for name, value in facts %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl></details>
{% if failed %}
<h2 class="bad">Failed</h2>
<div class="scroll"><table><thead><tr><th>File</th><th>Why, and what to do</th></tr></thead><tbody>
{% for entry in failed %}<tr><td>{{ entry.image.path }}</td><td>{{ entry.error }}</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% if shown %}
<div class="cards">
{% for entry in shown %}{% set record = entry.record %}{% set why = reason(record) %}
<section class="card{{ ' check' if why }}">
<div class="pictures">
{% for kind in ("photograph", "overlay") %}{% if kind in entry.pictures %}
<a href="{{ target(entry, kind) }}">
<img loading="lazy" alt="{{ kind }} of {{ record.file }}"
 src="data:image/jpeg;base64,{{ encode(entry.pictures[kind]) }}"></a>
{% endif %}{% endfor %}</div>
<h3>{{ record.file }}</h3>
<p class="numbers">{% if why %}<span class="tag">check: {{ why }}</span> · {% endif %}
<b>{{ count(record.objects | length, "object") }}</b> ·
<b>{{ "%.0f" | format(100 * record.coverage) }} %</b> of the image
{%+ if record.labels > 1 %}· <b>{{ record.labels }}</b> parts {% endif %}
· confidence <b>{{ "%.2f" | format(record.confidence) }}</b>
· {{ record.size[1] }} × {{ record.size[0] }} pixels
{% for word, link in links(entry) %}· <a href="{{ link }}">{{ word }}</a>
{% endfor %}</p>
</section>
{% endfor %}</div>
{% endif %}
{% if others %}
<h2>More images</h2>
<div class="scroll"><table><thead><tr><th>Image</th><th>Objects</th><th>Covered</th>
<th>Confidence</th><th>Files</th></tr></thead>
<tbody>
{% for entry in others %}<tr><td>{{ entry.record.file }}</td>
<td>{{ entry.record.objects | length }}</td>
<td>{{ "%.0f" | format(100 * entry.record.coverage) }} %</td>
<td>{{ "%.2f" | format(entry.record.confidence) }}</td>
<td>{% for word, link in links(entry) %}<a href="{{ link }}">{{ word }}</a>
{% endfor %}</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
</body>
</html>
"""


def render_report(
    run: Run, segmenter: Any, output: Any, settings: Mapping[str, Any] | None = None
) -> str:
    """The page of a run as HTML.

    Args:
        run: from `segment_files`; links are to the files beside the page.
        segmenter: that it was done with; None if every image was done by an earlier run.
        output: what was written, an `Output`.
        settings: of the run; a method among them names what an earlier run did.
    """
    from urllib.parse import quote

    import jinja2

    from unseg_jax.export.formats import suffixes_of

    suffixes = suffixes_of(output.formats)

    def links(entry: Entry) -> list[tuple[str, str]]:
        name = os.fspath(entry.image.name)
        return [(_link_word(suffix), quote(name + suffix)) for suffix in suffixes]

    def target(entry: Entry, kind: str) -> str:
        if kind == "photograph" or "_overlay.png" not in suffixes:
            return quote(os.fspath(entry.image.path.absolute()))
        return quote(entry.image.name + "_overlay.png")

    done = sorted(run.done, key=lambda entry: not _reason(entry.record))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    headline = _headline(run)
    return environment.from_string(_PAGE).render(
        title=headline,
        headline=headline,
        sentence=_sentence(segmenter, settings or {}),
        facts=_facts(run, segmenter),
        failed=run.failed,
        shown=[entry for entry in done if entry.pictures],
        others=[entry for entry in done if not entry.pictures],
        encode=lambda data: base64.b64encode(data).decode(),
        links=links,
        target=target,
        reason=_reason,
        count=_count,
        unsure=UNSURE,
        full=round(100 * FULL),
    )


def _link_word(suffix: str) -> str:
    """What a link to a file is called: mask for _mask.png, geojson for .geojson."""
    return suffix.lstrip("_.").partition(".")[0]


def _reason(record: Record | None) -> str:
    """Why an image is to be checked; "" if it is not."""
    if record is None:
        return ""
    if not record.objects:
        return "no object"
    if record.coverage > FULL:
        return "nearly all of the image"
    return "unsure" if record.confidence < UNSURE else ""


def _headline(run: Run) -> str:
    records = [entry.record for entry in run.done if entry.record is not None]
    parts = [
        _count(len(run.done), "image"),
        _count(sum(len(record.objects) for record in records), "object"),
        f"{sum(bool(_reason(record)) for record in records)} to check",
    ]
    if run.failed:
        parts.append(f"{len(run.failed)} failed")
    return ", ".join(parts)


_REFINED = {"bilateral": "the bilateral solver", "guided": "the guided filter"}


def _sentence(segmenter: Any, settings: Mapping[str, Any]) -> str:
    """How the images were segmented; true for the kind of method."""
    if segmenter is None:
        name = settings.get("method") or "an earlier run"
        return f"Segmented by {name}, without labels; nothing was left to do in this run."
    method = segmenter.method
    if method.learns_from_set:
        how = "one model was fitted on a set of unlabelled images and applied to each image"
        if method.epochs and method.algorithm == "gnn":
            how += ", then optimised further on it"
    elif method.algorithm == "gnn":
        how = "a small graph network was optimised on each image on its own"
    else:
        how = "each image was clustered on its own, and nothing was trained"
    return f"{method.name}: {how}. No labels were used."


def _facts(run: Run, segmenter: Any) -> list[tuple[str, str]]:
    reused = sum(entry.reused for entry in run.done)
    facts = [("Images", f"{len(run.done)} done, {len(run.failed)} failed")]
    if reused:
        facts.append(("From an earlier run", _count(reused, "image")))
    if segmenter is None:
        return facts
    method, backbone = segmenter.method, segmenter.backbone
    height, width = method.size
    rows, columns = segmenter.grid
    facts += [("Method", method.name), ("Source", method.source)]
    if backbone is not None:
        facts += [
            ("Backbone", f"{backbone.name} ({backbone.source})"),
            ("Seen at", f"{width} × {height} pixels, {columns} × {rows} patches"),
        ]
    if method.algorithm == "gnn" and method.epochs:
        facts.append(
            ("Graph network", f"{method.layer}, {method.loss} loss, {method.epochs} epochs")
        )
    if method.refine != "none":
        facts.append(("Edges refined by", _REFINED[method.refine]))
    losses = [entry.record.losses[-1] for entry in run.done if entry.record and entry.record.losses]
    if losses and all(map(math.isfinite, losses)):
        facts.append(("Mean final loss", f"{np.mean(losses):.4g}"))
    return [
        *facts,
        ("Speed", f"{run.images_per_second:.3g} images per second"),
        ("Compiled in", f"{run.compile_seconds:.1f} s"),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
