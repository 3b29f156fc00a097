"""COCO: one annotation for each object, with masks as run lengths or as polygons."""

import json
from collections.abc import Sequence
from typing import Any

from unseg_jax.export.formats.polygons import single_ring
from unseg_jax.export.records import Record, kinds_of
from unseg_jax.export.rle import encode_rle

FILES = ("coco.json", "coco_polygons.json")


def encode_set(records: Sequence[Record]) -> dict[str, bytes]:
    """Name → COCO data set of a run, once with run lengths and once with polygons, for the tools
    that take one of them only."""
    return {
        FILES[0]: json.dumps(dataset(records)).encode(),
        FILES[1]: json.dumps(dataset(records, polygons=True)).encode(),
    }


def dataset(records: Sequence[Record], *, polygons: bool = False) -> dict[str, Any]:
    """A COCO data set.

    Args:
        records: one an image.
        polygons: whether masks are polygons instead of run lengths. COCO knows no holes: a slit
            leads into each, and filling the polygon gives the mask; see `single_ring`.

    Returns:
        {"images": [...], "annotations": [...], "categories": [...]}, of plain Python values.
        `file_name` is the path below the common folder of the images, boxes are [x, y, width,
        height] in pixels, the category is the kind where kinds were told, else the label ("object",
        or "part k" where images were cut into parts), and identifiers count from 1.
    """
    images, annotations = [], []
    labels = {1}
    kinds = kinds_of(records)
    for image_id, record in enumerate(records, 1):
        height, width = record.size
        images.append({"id": image_id, "file_name": record.file, "height": height, "width": width})
        for item, stored in zip(record.restored(), record.objects, strict=True):
            left, top, right, bottom = item.box
            labels.add(item.label)
            if polygons:
                shape: Any = [single_ring(item).ravel().tolist()]
            else:
                shape = encode_rle(item.mask, box=item.box, size=record.size)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": stored.get("kind", max(kinds)) if kinds else item.label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": item.area,
                    "iscrowd": 0,
                    "segmentation": shape,
                    "score": round(item.score, 4),
                }
            )
    count = max(labels)
    name = "part {}" if count > 1 else "object"
    names = kinds or {n: name.format(n) for n in range(1, count + 1)}
    categories = [{"id": n, "name": name} for n, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
