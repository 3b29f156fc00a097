"""All objects of a run in numbers: histograms and a table, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unseg_jax.export.records import Record

LISTED = 2000
"""Objects in the table; browsers choke on more."""
_WIDTH, _HEIGHT, _MOST_BARS = 240, 64, 24
# Field of an object → heading and decimals.
_COLUMNS = {
    "area": ("Area (px)", 0),
    "area_um2": ("Area (µm²)", 2),
    "equivalent_diameter_um": ("Diameter (µm)", 2),
    "circularity": ("Circularity", 3),
    "intensity": ("Intensity", 1),
    "score": ("Score", 2),
}
_PLOTTED = ("area_um2", "area", "circularity", "intensity")


def summarise_objects(records: Sequence[Record]) -> dict[str, Any]:
    """What the template of the objects takes: `table` and `plots`.

    A column is there if it is known of any object, and plotted if it is of at least two.
    """
    found = [(record.file, number, item) for record in records
             for number, item in enumerate(record.objects, 1)]  # fmt: skip
    known = {
        name: [item[name] for _, _, item in found if item.get(name) is not None]
        for name in _COLUMNS
    }
    names = [name for name in _COLUMNS if known[name]]
    found.sort(key=lambda entry: -entry[2]["area"])
    rows = [
        (file, number, *(_shown(item.get(name), _COLUMNS[name][1]) for name in names))
        for file, number, item in found[:LISTED]
    ]
    columns = ("Image", "Object", *(_COLUMNS[name][0] for name in names))
    plotted = [name for name in _PLOTTED if len(known[name]) > 1]
    if "area_um2" in plotted:  # one of both areas is enough
        plotted.remove("area")
    return {
        "table": {
            "columns": columns,
            "rows": rows,
            "total": len(found),
            "measured": bool(known["intensity"]),
        },
        "plots": [_histogram(known[name], *_COLUMNS[name]) for name in plotted],
    }


def _shown(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _histogram(values: Sequence[float], title: str, decimals: int) -> dict[str, Any]:
    bins = int(np.clip(np.ceil(np.sqrt(len(values))), 4, _MOST_BARS))
    counts, edges = np.histogram(values, bins)
    width, ends = _WIDTH / bins, [_shown(edge, decimals) for edge in edges]
    return {
        "words": f"{title}: median {_shown(float(np.median(values)), decimals)}",
        "low": ends[0],
        "high": ends[-1],
        "bars": [
            {
                "x": round(index * width, 2),
                "width": round(width - 1, 2),
                "height": round(_HEIGHT * count / counts.max(), 2),
                "words": f"{ends[index]} to {ends[index + 1]}: {count}",
            }
            for index, count in enumerate(counts.tolist())
        ],
    }
