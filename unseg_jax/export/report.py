"""The page that `unseg-jax segment` writes: what was found, what to check, and how it went.

It is one file without anything from elsewhere, so that it can be mailed and kept. Sorting and keep
or reject need its script; all else shows without.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unseg_jax.custom import name_of
from unseg_jax.errors import printable
from unseg_jax.export.drawing import palette
from unseg_jax.export.kinds import pack
from unseg_jax.export.object_summary import summarise_objects
from unseg_jax.export.records import FULL, UNSURE, Entry, Record, Run

_OFFERED = 3
# Examples of a kind by which the page finds it again, those that it shows, and their height.
_EXAMPLES, _CROPS, _CROP = 24, 5, 96


def render_report(
    run: Run, segmenter: Any, settings: Mapping[str, Any] | None = None, folder: str = ""
) -> str:
    """The page of a run as HTML.

    Args:
        run: from `segment_files`; links are to the files beside the page.
        segmenter: that it was done with; None if every image was done by an earlier run.
        settings: of the run; a method among them names what an earlier run did.
        folder: its name, for the title.
    """
    from urllib.parse import quote

    import jinja2

    def links(entry: Entry) -> list[tuple[str, str]]:
        start = len(entry.image.name)
        return [(_link_word(file[start:]), quote(file)) for file in entry.files]

    def target(entry: Entry, kind: str) -> str:
        overlay = f"{entry.image.name}_overlay.png"
        if kind == "photograph" or overlay not in entry.files:
            return quote(os.fsencode(entry.image.path.absolute()))
        return quote(overlay)

    done = sorted(run.done, key=lambda entry: not _check(entry.record))
    shown = [entry for entry in done if entry.pictures]
    records_shown = [entry.record for entry in shown if entry.record is not None]
    # What is not flagged may be wrong: a few are offered, the same whenever the page is made again.
    flagged = any(_check(entry.record) for entry in done)
    places = range(1, 1 if flagged else len(records_shown) + 1)
    offered = random.Random(len(shown)).sample(places, min(_OFFERED, len(places)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unseg_jax.export", "templates"),
        autoescape=True,
        trim_blocks=True,
    )
    headline = _headline(run)
    heading = " · ".join(filter(None, (printable(folder), datetime.date.today().isoformat())))
    records = [entry.record for entry in run.done if entry.record is not None]
    return environment.get_template("segment.html").render(
        title=f"{heading} · {headline}",
        headline=headline,
        heading=heading,
        **summarise_objects(records),
        sentence=_sentence(segmenter, settings or {}),
        facts=_facts(run, segmenter),
        failed=run.failed,
        left_out=run.left_out,
        changed=[record for record in records if record.notes],
        shown=shown,
        offered=[(place, records_shown[place - 1].file) for place in sorted(offered)],
        others=[entry for entry in done if not entry.pictures],
        **_kinds(run, shown),
        encode=lambda data: base64.b64encode(data).decode(),
        links=links,
        target=target,
        reason=_check,
        pieces=_pieces,
        count=_count,
        printable=lambda path: printable(str(path)),
        confidence=_confidence(segmenter, settings or {}),
        unsure=UNSURE,
        full=round(100 * FULL),
    )


def _kinds(run: Run, shown: Sequence[Entry]) -> dict[str, Any]:
    """What the template shows of kinds; `kinds` is empty where none were told."""
    if run.kinds is None:
        return {"kinds": []}
    told, found = run.kinds, []
    for number, (name, total) in enumerate(zip(told.names, told.counts, strict=True), 1):
        if not total and number not in told.dropped:
            continue
        members = [
            (entry, kinds.index(number))
            for entry in shown
            if entry.record is not None
            and number in (kinds := [item.get("kind") for item in entry.record.objects])
        ]
        members = members[:: max(1, len(members) // _EXAMPLES)][:_EXAMPLES]
        crops = [_crop(*one) for one in members[:_CROPS] if "photograph" in one[0].pictures]
        examples = json.dumps([[entry.image.name, at] for entry, at in members])
        found.append(
            {"number": number, "name": name, "count": total, "crops": crops, "examples": examples}
        )
    colours = palette(len(told.names) + 1).tolist()
    return {
        "kinds": found,
        "told": json.dumps(pack(told)),
        "names": json.dumps(told.names),
        "dropped": json.dumps(sorted(told.dropped)),
        "colour": lambda number: f"#{bytes(colours[number]).hex()}",
    }


def _crop(entry: Entry, at: int) -> bytes:
    """JPEG of an object, cut from the small photograph of its image."""
    from PIL import Image

    assert entry.record is not None
    (height, width), (left, top, right, bottom) = entry.record.size, entry.record.objects[at]["box"]
    with Image.open(io.BytesIO(entry.pictures["photograph"])) as photograph:
        across, down = photograph.width / width, photograph.height / height
        crop = photograph.crop(
            (
                math.floor(left * across),
                math.floor(top * down),
                math.ceil(right * across),
                math.ceil(bottom * down),
            )
        )
    crop.thumbnail((2 * _CROP, _CROP))
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _link_word(suffix: str) -> str:
    """What a link to a file is called: mask for _mask.png, geojson for .geojson."""
    return suffix.lstrip("_.").partition(".")[0]


def _pieces(record: Record) -> str:
    """The mask as JSON, for whoever exports decisions: see `unseg_jax.export.decisions`."""
    pieces = [{name: item[name] for name in ("box", "counts")} for item in record.objects]
    return json.dumps(pieces, separators=(",", ":"))


def _check(record: Record | None) -> str:
    return "" if record is None else record.check


def _headline(run: Run) -> str:
    records = [entry.record for entry in run.done if entry.record is not None]
    checks = sum(bool(record.check) for record in records)
    parts = [
        _count(len(run.done), "image"),
        _count(sum(len(record.objects) for record in records), "object"),
        f"{checks} to check" if checks or not records else "none looks broken",
    ]
    if run.failed:
        parts.append(f"{len(run.failed)} failed")
    return ", ".join(parts)


_REFINED = {"bilateral": "the bilateral solver", "guided": "the guided filter"}


def _sentence(segmenter: Any, settings: Mapping[str, Any]) -> str:
    """How the images were segmented; true for the kind of method."""
    if segmenter is None:
        name = settings.get("method") or "an earlier run"
        return f"Segmented by {name}; nothing was left to do in this run."
    method, steering = segmenter.method, getattr(segmenter.fitted, "steering", None)
    if steering is not None:
        count = int(steering.examples)
        marked = _count(count, "marked image") if count else "a word on what to look for"
        return f"{method.name}: one model, steered by {marked}, was applied to each image."
    if method.learns_from_set:
        how = "one model was fitted on a set of unlabelled images and applied to each image"
        if method.epochs and method.algorithm == "gnn":
            how += ", then optimised further on it"
    elif method.algorithm == "gnn":
        how = "a small graph network was optimised on each image on its own"
    else:
        how = "each image was clustered on its own, and nothing was trained"
    return f"{method.name}: {how}. No labels were used."


def _confidence(segmenter: Any, settings: Mapping[str, Any]) -> str:
    """What confidence means; true for the kind of method."""
    if segmenter is None:
        estimated = settings.get("method") in ("auto", "collective")
    else:
        method = segmenter.method
        estimated = method.foreground == "set" and not (method.collective_epochs or method.tile)
    if estimated:
        return (
            "Confidence is the estimated chance, 0 to 1, that a mask overlaps with the true one by "
            "half or more of what either covers. It was calibrated with the true masks of 18 sets "
            "of many kinds, and can be compared between runs."
        )
    return (
        "Confidence, from 0 to 1, says how clearly what was found stands out from the rest. "
        "Compare it within one run, not between methods or models."
    )


def _facts(run: Run, segmenter: Any) -> list[tuple[str, str]]:
    reused = sum(entry.reused for entry in run.done)
    facts = [("Images", f"{len(run.done)} done, {len(run.failed)} failed")]
    if run.specks:
        facts.append(("Specks left out", run.specks))
    if run.small_length and segmenter is not None and segmenter.may_tile:
        words = f"about {run.small_length} pixels long: segment with this object size, in tiles"
        facts.append(("Small objects", words))
    if reused:
        facts.append(("From an earlier run", _count(reused, "image")))
    if segmenter is None:
        return facts
    method, backbone = segmenter.method, segmenter.backbone
    height, width = method.size
    rows, columns = segmenter.grid
    seen = f"{width} × {height} pixels, {columns} × {rows} patches"
    if method.resize == "keep":
        seen += ", or as many in the image's own shape"
    facts += [("Method", method.name), ("Source", method.source)]
    if backbone is not None:
        facts += [
            ("Backbone", f"{backbone.name} ({backbone.source})"),
            ("Seen at", seen),
        ]
    if method.algorithm == "gnn" and method.epochs:
        facts.append(
            (
                "Graph network",
                f"{name_of(method.layer)}, {name_of(method.loss)} loss, {method.epochs} epochs",
            )
        )
    if segmenter.reading.value_range is not None:
        low, high = segmenter.reading.value_range
        facts.append(("Range", f"{low:g} became black and {high:g} white"))
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
