"""Reading back what `unseg-jax segment` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unseg_jax.errors import InputError
from unseg_jax.export.formats.table import KINDS
from unseg_jax.export.records import Record
from unseg_jax.runs.result_store import MANIFEST, ResultStore


def read_results(folder: str | os.PathLike, *, objects: bool = False) -> dict[str, list[Any]]:
    """The results of a folder as columns, which `pandas.DataFrame` and `polars.DataFrame` take.

    Args:
        folder: the `--out` of `unseg-jax segment`.
        objects: whether a row is an object instead of an image.

    Returns:
        Column → values. Of images: path, name, width, height, objects, coverage, confidence,
        error, and files, a list of absolute paths. Of objects: path, id (from 1), left, top,
        right, bottom, area, score, label; kind and kind_name where kinds were told.

    Raises:
        InputError: no such results, or a manifest that cannot be read.

    >>> import unseg_jax as us
    >>> table = us.read_results("segmented")  # doctest: +SKIP
    >>> table["confidence"]  # doctest: +SKIP
    [0.91, 0.34]
    """
    folder = Path(folder)
    if not os.path.lexists(folder / MANIFEST):
        raise InputError(f"{folder} holds no results of `unseg-jax segment`: check the path.")
    rows: list[dict[str, Any]] = []
    for name, done in ResultStore(folder).images.items():
        record = None if done.record is None else Record.from_plain(done.record)
        if not objects:
            height, width = record.size if record else (0, 0)
            rows.append(
                {
                    "path": done.source,
                    "name": name,
                    "width": width,
                    "height": height,
                    "objects": len(record.objects) if record else 0,
                    "coverage": record.coverage if record else 0.0,
                    "confidence": record.confidence if record else 0.0,
                    "error": done.error,
                    "files": [str((folder / file).absolute()) for file in done.files],
                }
            )
            continue
        for number, item in enumerate(record.objects if record else (), 1):
            sides = dict(zip(("left", "top", "right", "bottom"), item["box"], strict=True))
            numbers = {key: item.get(key) for key in ("area", "score", "label", *KINDS)}
            rows.append({"path": done.source, "id": number, **sides, **numbers})
    names = _OBJECT if objects else _IMAGE
    if objects and any(row["kind"] for row in rows):
        names = (*names, *KINDS)
    return {name: [row[name] for row in rows] for name in names}


_IMAGE = (
    *("path", "name", "width", "height", "objects", "coverage", "confidence", "error", "files"),
)
_OBJECT = ("path", "id", "left", "top", "right", "bottom", "area", "score", "label")
