"""CSV: one row for each object."""

import csv
import io
from collections.abc import Sequence

from unseg_jax.export.records import Record

FILES = ("objects.csv",)
_MEASURED = ("x", "y", "perimeter", "intensity", "area_um2")
COLUMNS = (
    *("file", "id", "left", "top", "right", "bottom", "area", "score", "label"),
    *_MEASURED,
)


def encode_set(records: Sequence[Record]) -> dict[str, bytes]:
    """Name → table of a run; `id` counts the objects of an image from 1, the largest first.

    What was not measured, as the area in µm² of an image without a scale, is left empty.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        for number, item in enumerate(record.objects, 1):
            row = (item["area"], f"{item['score']:.4f}", item["label"])
            measured = [item.get(name) for name in _MEASURED]
            writer.writerow((record.file, number, *item["box"], *row, *measured))
    return {FILES[0]: buffer.getvalue().encode()}
