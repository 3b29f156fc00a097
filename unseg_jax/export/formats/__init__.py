"""File formats of results, one module a family.

A module of FORMATS has one of two functions:

* `encode(found)` gives the files of one image, as suffix → content; `SUFFIXES` lists them;
* `encode_set(records)` gives the files of a whole run, as name → content; `FILES` lists them.

One that needs a package of its own has `check()`, which raises ImportError without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unseg_jax.errors import nearest
from unseg_jax.export.formats import (
    coco,
    cutout,
    geojson,
    imagej,
    label_studio,
    mask,
    npz,
    png,
    table,
    tiff,
    yolo,
)
from unseg_jax.export.formats.cutout import CUTOUT, Cutout
from unseg_jax.export.records import Record, record_of
from unseg_jax.files import write_bytes

__all__ = ["CUTOUT", "FORMATS", "Cutout", "Record", "check_formats", "record_of", "save"]

FORMATS: dict[str, Any] = {
    "png": png,
    "mask": mask,
    "coco": coco,
    "geojson": geojson,
    "yolo": yolo,
    "tiff": tiff,
    "npz": npz,
    "cutout": cutout,
    "csv": table,
    "imagej": imagej,
    "label-studio": label_studio,
}


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in the order of FORMATS.

    Raises:
        ValueError: an unknown name.
        ImportError: a package that a format needs is missing.
    """
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"there is no format '{name}'; {nearest(name, FORMATS)}")
        if hasattr(FORMATS[name], "check"):
            FORMATS[name].check()
    # The three pictures of "png" have the mask among them.
    given = set(names) - ({"mask"} if "png" in names else set())
    return tuple(name for name in FORMATS if name in given)


def encode_image(found: Any, formats: Sequence[str], how: Cutout = CUTOUT) -> dict[str, bytes]:
    """Suffix → content of the files of one image, in the formats that have some."""
    content: dict[str, bytes] = {}
    for name in formats:
        if name == "cutout":
            content |= cutout.encode(found, how)
        elif hasattr(FORMATS[name], "encode"):
            content |= FORMATS[name].encode(found)
    return content


def encode_run(
    records: Sequence[Record], formats: Sequence[str], label_studio_url: str = ""
) -> dict[str, bytes]:
    """Name → content of the files of a whole run, in the formats that have some."""
    content: dict[str, bytes] = {}
    for name in formats:
        if name == "label-studio":
            content |= label_studio.encode_set(records, label_studio_url)
        elif hasattr(FORMATS[name], "encode_set"):
            content |= FORMATS[name].encode_set(records)
    return content


WITH_KINDS = {
    form.SUFFIXES[0]: form.with_kinds for form in FORMATS.values() if hasattr(form, "with_kinds")
}
"""Suffix → (content, objects with kinds) → content, of the files of an image that hold classes."""


def suffixes_of(formats: Sequence[str], how: Cutout = CUTOUT) -> tuple[str, ...]:
    """Ends of the names of the files of one image, as far as they are the same for all."""
    suffixes: list[str] = []
    for name in formats:
        suffixes += how.suffixes if name == "cutout" else getattr(FORMATS[name], "SUFFIXES", ())
    return tuple(suffixes)


def files_of(formats: Sequence[str]) -> tuple[str, ...]:
    """Names of the files of a whole run."""
    return tuple(file for name in formats for file in getattr(FORMATS[name], "FILES", ()))


def save(found: Any, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Writes one `Segmentation` into a folder; see `Segmentation.save`."""
    formats = check_formats(formats)
    record = record_of(found, measured="csv" in formats)
    content = {record.name + suffix: data for suffix, data in encode_image(found, formats).items()}
    content |= encode_run([record], formats)
    for name, data in content.items():
        write_bytes(folder / name, data)
    return [folder / name for name in content]
