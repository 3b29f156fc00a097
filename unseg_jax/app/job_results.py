"""What is shown and downloaded of a finished run."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unseg_jax.app.sessions import Refused
from unseg_jax.app.work import FORMATS, MODEL, Job
from unseg_jax.files import encode_png

if TYPE_CHECKING:
    from unseg_jax.export.records import Entry

KINDS = ("overlay", "photograph", "mask", "labels", "cutout")
"""Pictures of an image."""
_SMALL = 480
_LARGE = 1600


def describe(job: Job, before: int) -> dict[str, Any]:
    """How far a run is, as plain values."""
    return {
        "number": job.number,
        "phase": job.phase,
        "before": before,
        "done": job.done,
        "total": job.total,
        "message": job.message,
    }


def summarise(job: Job) -> dict[str, Any]:
    """What a finished run found, as plain values.

    Returns:
        `number` of the run, `kept` (the numbers of all runs whose results are there), `settings`
        as `Settings` has them, `message`, `method`, `seconds`, `compile_seconds`, `fitted` (images
        that a model was fitted on, 0 for none), and `images`: for each a dict with `file`, and
        either `error` or what its `Record` holds, without masks, and `check`.
    """
    assert job.run is not None
    return {
        "number": job.number,
        "kept": list(job.session.runs),
        "settings": dataclasses.asdict(job.settings),
        "message": job.message,
        "method": job.method,
        "seconds": job.seconds,
        "compile_seconds": job.compile_seconds,
        "fitted": job.fitted,
        "images": [_image(job, entry) for entry in job.run.entries],
    }


def _image(job: Job, entry: Entry) -> dict[str, Any]:
    page = f" (page {entry.image.page})" if entry.image.page else ""
    name = {"file": entry.image.path.name + page}
    if entry.record is None:
        return {**name, "error": job.shown(entry.error)}
    record = dataclasses.asdict(entry.record)
    objects = [
        {field: item[field] for field in ("box", "area", "score", "label")}
        for item in record["objects"]
    ]
    kept = ("size", "coverage", "confidence", "labels", "notes")
    # JSON has no word for what is not finite.
    losses = [loss if math.isfinite(loss) else None for loss in record["losses"]]
    kept = {field: record[field] for field in ("name", *kept)}
    return {**name, **kept, "check": entry.record.check, "losses": losses, "objects": objects}


def picture(job: Job, index: int, kind: str, small: bool) -> tuple[bytes, str]:
    """A picture of an image of a run and its MIME type.

    Args:
        job: finished.
        index: of the image.
        kind: one of KINDS.
        small: at most 480 pixels, not 1,600, on the longer side.

    Raises:
        Refused: there is none.
        ImageError: the photograph cannot be read any more.
    """
    path = picture_file(job, index, kind)
    side = _SMALL if small else _LARGE
    if kind == "photograph":
        from unseg_jax.data.decoding import read_image

        assert job.run is not None
        source = job.run.entries[index].image.source
        shown = Image.fromarray(read_image(source, (side // 2, side // 2)).pixels)
    else:
        with Image.open(path) as file:
            shown = file.convert("RGBA" if kind == "cutout" else "RGB")
    # The nearest neighbour keeps the colours of labels apart.
    sharp = kind in ("mask", "labels")
    shown.thumbnail((side, side), Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)
    if kind in ("photograph", "overlay"):
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=88)
        return buffer.getvalue(), "image/jpeg"
    return encode_png(np.asarray(shown)), "image/png"


def picture_file(job: Job, index: int, kind: str) -> Path:
    """The file of a picture, at its full size.

    Raises:
        Refused: there is none.
    """
    assert job.run is not None
    entries = job.run.entries
    if kind not in KINDS or not 0 <= index < len(entries) or entries[index].error:
        raise Refused(404, "there is no such picture.")
    image = entries[index].image
    return image.path if kind == "photograph" else job.out / f"{image.name}_{kind}.png"


def pack(job: Job) -> Path:
    """Masks, parts, overlays, cut-outs, COCO and the table of objects as one zip, and the model
    if one was fitted; of a finished run.
    """
    from unseg_jax.export.formats import files_of

    assert job.run is not None
    assert job.plan is not None
    names = [name for entry in job.run.done for name in job.plan.names_of(entry.image)]
    names += files_of(FORMATS)
    names += [MODEL] if job.fitted else []
    path = job.out / "unseg_jax.zip"
    # PNG is compressed already, and pictures are nearly all of it.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.write(job.out / name, name)
    return path
