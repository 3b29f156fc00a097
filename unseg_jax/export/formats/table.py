"""CSV: one row for each object, and one for each image."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from unseg_jax.export.measures import MEASURED
from unseg_jax.export.records import Record, kinds_of

FILES = ("objects.csv", "images.csv")
_PLACED = ("file", "id", "left", "top", "right", "bottom", "area", "score", "label")
COLUMNS = (*_PLACED, *MEASURED)
KINDS = ("kind", "kind_name")
"""Columns that follow the label where kinds were told."""
IMAGE_COLUMNS = (
    *("file", "width", "height", "objects", "specks", "coverage", "confidence"),
    *("mean_area", "objects_per_megapixel", "mean_area_um2", "objects_per_mm2"),
)


def encode_set(records: Sequence[Record]) -> dict[str, bytes]:
    """Name → table of a run; `id` counts the objects of an image from 1, the largest first.

    What is not known, as the area in µm² of an image whose pixels have no size, is left empty.
    """
    more = (*(KINDS if kinds_of(records) else ()), *MEASURED)
    objects = [row for record in records for row in _object_rows(record, more)]
    tables = (((*_PLACED, *more), objects), (IMAGE_COLUMNS, map(_image_row, records)))
    return {name: _csv(*table) for name, table in zip(FILES, tables, strict=True)}


def _object_rows(record: Record, more: Sequence[str]) -> Iterable[tuple]:
    for number, item in enumerate(record.objects, 1):
        row = (item["area"], f"{item['score']:.4f}", item["label"])
        yield (record.file, number, *item["box"], *row, *(item.get(name) for name in more))


def _image_row(record: Record) -> tuple:
    (height, width), count = record.size, len(record.objects)
    areas = [item["area"] for item in record.objects]
    row = (record.file, width, height, count, record.specks, record.coverage, record.confidence)
    mean = sum(areas) / count if count else math.nan
    across, down = record.pixel_size or (math.nan, math.nan)
    density = count / (width * height) * 1e6
    values = (mean, density, mean * across * down, density / (across * down))
    return (*row, *(None if math.isnan(value) else round(value, 4) for value in values))


def _csv(columns: Iterable[str], rows: Iterable[tuple]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue().encode()
