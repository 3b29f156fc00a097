"""GeoJSON, as QuPath and geographic information systems read it.

QuPath takes each object as a detection with a class, its colour, and measurements to sort and plot.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from unseg_jax.export.drawing import palette
from unseg_jax.export.formats.polygons import outlines
from unseg_jax.export.measures import measure
from unseg_jax.postprocess import Object

SUFFIXES = (".geojson",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → GeoJSON of a `Segmentation`: a polygon with holes for each object, x to the right
    and y downwards in pixels, as QuPath has it."""
    colours = palette(1 + max((item.label for item in found.objects), default=0))
    features = [
        {
            "type": "Feature",
            "id": number,
            "geometry": {
                "type": "Polygon",
                "coordinates": [ring.tolist() for ring in outlines(item)],
            },
            "properties": {
                "objectType": "detection",
                "classification": {
                    "name": f"part {item.label}" if item.label > 1 else "object",
                    "color": colours[item.label].tolist(),
                },
                "measurements": _measurements(found, item),
                "label": item.label,
                "area": item.area,
                "score": round(item.score, 4),
            },
        }
        for number, item in enumerate(found.objects, 1)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return {SUFFIXES[0]: json.dumps(collection).encode()}


def with_kinds(content: bytes, objects: Sequence[Mapping[str, Any]]) -> bytes:
    """The file that `encode` gave, with the kinds of the objects as classes."""
    collection = json.loads(content)
    colours = palette(1 + max((item["kind"] for item in objects), default=0))
    for feature, item in zip(collection["features"], objects, strict=True):
        kind, name = item["kind"], item["kind_name"]
        classification = {"name": name, "color": colours[kind].tolist()}
        feature["properties"] |= {"classification": classification, "kind": kind}
    return json.dumps(collection).encode()


def _measurements(found: Any, item: Object) -> dict[str, float]:
    measured = measure(item, found.pixels, found.size, found.pixel_size)
    values = {"score": round(item.score, 4), "area": item.area, **measured}
    return {name: value for name, value in values.items() if value is not None}
