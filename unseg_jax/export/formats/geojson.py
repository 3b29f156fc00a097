"""GeoJSON, as QuPath and geographic information systems read it."""

import json
from typing import Any

from unseg_jax.export.formats.polygons import outlines

SUFFIXES = (".geojson",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → GeoJSON of a `Segmentation`: a polygon with holes for each object, x to the right
    and y downwards in pixels, as QuPath has it."""
    features = [
        {
            "type": "Feature",
            "id": number,
            "geometry": {
                "type": "Polygon",
                "coordinates": [ring.tolist() for ring in outlines(item)],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": f"part {item.label}" if item.label > 1 else "object"},
                "label": item.label,
                "area": item.area,
                "score": round(item.score, 4),
            },
        }
        for number, item in enumerate(found.objects, 1)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return {SUFFIXES[0]: json.dumps(collection).encode()}
