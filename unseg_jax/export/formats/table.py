"""CSV: one row for each object."""

import csv
import io
from collections.abc import Sequence

from unseg_jax.export.run import Record

FILES = ("objects.csv",)
COLUMNS = ("file", "id", "left", "top", "right", "bottom", "area", "score", "label")


def encode_set(records: Sequence[Record]) -> dict[str, bytes]:
    """Name → table of a run; `id` counts the objects of an image from 1, the largest first."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        for number, item in enumerate(record.objects, 1):
            row = (item["area"], f"{item['score']:.4f}", item["label"])
            writer.writerow((record.file, number, *item["box"], *row))
    return {FILES[0]: buffer.getvalue().encode()}
