"""Label Studio: predictions to import, and to correct by hand."""

import json
from collections.abc import Sequence

from unseg_jax.export.formats.polygons import single_ring
from unseg_jax.export.records import Record

FILES = ("label_studio.json",)


def encode_set(records: Sequence[Record]) -> dict[str, bytes]:
    """Name → tasks of a run, each with one prediction: a polygon for each object.
    A slit leads into each hole; see `single_ring`.

    The labelling configuration needs `<Image name="image" value="$image"/>` and
    `<PolygonLabels name="label" toName="image">` with the label "object". `image` is the path
    below the common folder; where Label Studio serves files from elsewhere, put that in front.
    """
    tasks = []
    for record in records:
        height, width = record.size
        shapes = []
        for number, item in enumerate(record.restored(), 1):
            ring = single_ring(item) * (100 / width, 100 / height)
            shapes.append(
                {
                    "id": str(number),
                    "type": "polygonlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": round(item.score, 4),
                    "value": {
                        "points": ring.round(4).tolist(),
                        "closed": True,
                        "polygonlabels": ["object"],
                    },
                }
            )
        prediction = {
            "model_version": "unseg_jax",
            "score": round(record.confidence, 4),
            "result": shapes,
        }
        tasks.append({"data": {"image": record.file}, "predictions": [prediction]})
    return {FILES[0]: json.dumps(tasks).encode()}
