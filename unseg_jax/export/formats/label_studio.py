"""Label Studio: predictions to import, and to correct by hand."""

import json
from collections.abc import Sequence

from unseg_jax.export.formats.polygons import single_ring
from unseg_jax.export.records import Record

FILES = ("label_studio.json", "label_studio.xml")
CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <PolygonLabels name="label" toName="image">
    <Label value="object"/>
  </PolygonLabels>
</View>
"""


def encode_set(records: Sequence[Record]) -> dict[str, bytes]:
    """Name → tasks of a run, each with one prediction, and the labelling configuration for them.

    A prediction is a polygon for each object; a slit leads into each hole, see `single_ring`.
    `image` is the path below the common folder; where Label Studio serves files from elsewhere,
    put that in front.
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
    return dict(zip(FILES, (json.dumps(tasks).encode(), CONFIG.encode()), strict=True))
