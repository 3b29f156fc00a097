"""Label Studio: predictions to import and to correct by hand, and the way back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from unseg_jax.errors import InputError
from unseg_jax.export.drawing import palette
from unseg_jax.export.formats.polygons import single_ring
from unseg_jax.export.records import Record, kinds_of

FILES = ("label_studio.json", "label_studio.xml")
CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <PolygonLabels name="label" toName="image">
    {}
  </PolygonLabels>
</View>
"""


def encode_set(records: Sequence[Record], url: str = "") -> dict[str, bytes]:
    """Name → tasks of a run, each with one prediction, and the labelling configuration for them.

    A prediction is a polygon for each object; a slit leads into each hole, see `single_ring`.
    `image` is the path below the common folder, after `url` if that is given.
    """
    start = url + "/" * (bool(url) and url[-1] not in "/=")
    tasks, kinds = [], kinds_of(records)
    for record in records:
        height, width = record.size
        shapes = []
        both = zip(record.restored(), record.objects, strict=True)
        for number, (item, stored) in enumerate(both, 1):
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
                        "polygonlabels": [_label(stored, kinds)],
                    },
                }
            )
        prediction = {
            "model_version": "unseg_jax",
            "score": round(record.confidence, 4),
            "result": shapes,
        }
        image = start + quote(record.file) if url else record.file
        tasks.append({"data": {"image": image}, "predictions": [prediction]})
    return {FILES[0]: json.dumps(tasks).encode(), FILES[1]: _config(kinds).encode()}


def _label(stored: Mapping[str, Any], kinds: Mapping[int, str]) -> str:
    return kinds[stored.get("kind", max(kinds))] if kinds else "object"


def _config(kinds: Mapping[int, str]) -> str:
    colours = [f"#{bytes(one).hex()}" for one in palette(max(kinds, default=0) + 1).tolist()]
    labels = [
        f'<Label value={quoteattr(name)} background="{colours[number]}"/>'
        for number, name in kinds.items()
    ]
    return CONFIG.format("\n    ".join(labels or ['<Label value="object"/>']))


def is_export(path: Path) -> bool:
    """Whether a file may be an export of Label Studio: JSON with a list of tasks."""
    with open(path, "rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")


def read_label_studio(path: Path, images: Iterable[Any]) -> dict[Any, np.ndarray]:
    """The masks of the images that are labelled in a JSON export of Label Studio.

    Of a task the last annotation counts, or its prediction if it was not annotated; polygons,
    brush strokes and rectangles of all labels together are the mask. One without any shape is left
    out, because it may have been skipped.

    Args:
        path: the file ("JSON", not "JSON-MIN").
        images: paths of images, told by their names; Label Studio puts eight digits and "-" before
            the names of files that were uploaded.

    Returns:
        Image → mask (H, W) bool.

    Raises:
        InputError: no such export, or a task of no image.
    """
    try:
        tasks = json.loads(path.read_text("utf-8-sig"))
        named = {os.path.basename(os.fspath(image)): image for image in images}
        found = {}
        for task in tasks:
            shapes = _shapes(task)
            if shapes:
                found[_image(task["data"], named, path)] = np.any([*map(_mask, shapes)], axis=0)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} is no JSON export of Label Studio ({error!r}): export it as JSON again."
        ) from None
    if not found:
        raise InputError(f"{path} has no task with a shape: label some images before exporting.")
    return found


def _shapes(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    done = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    chosen = done or task.get("predictions") or [{"result": []}]
    return [shape for shape in chosen[-1]["result"] if "original_width" in shape]


def _image(data: Mapping[str, Any], named: Mapping[str, Any], path: Path) -> Any:
    for url in data.values():
        parts = urlsplit(str(url))
        place = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        for name in (os.path.basename(place), re.sub("^[0-9a-f]{8}-", "", os.path.basename(place))):
            if name in named:
                return named[name]
    raise InputError(
        f"{path} labels {', '.join(map(str, data.values()))}, which is none of the images: give "
        "the folder that they are in."
    )


def _mask(shape: Mapping[str, Any]) -> np.ndarray:
    from skimage.draw import polygon2mask

    size, value = (shape["original_height"], shape["original_width"]), shape["value"]
    if "rle" in value:
        return _decode_brush(value["rle"]).reshape(*size, 4)[..., 3] > 127
    if "points" in value:
        points = np.array(value["points"])
    else:
        left, top = value["x"], value["y"]
        right, bottom = left + value["width"], top + value["height"]
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    # From per cent to rows and columns, whose centres lie at whole numbers.
    return polygon2mask(size, points[:, ::-1] / 100 * size - 0.5)


def _decode_brush(content: Sequence[int]) -> np.ndarray:
    """RGBA values of a brush, from Label Studio's own run lengths of bits.

    32 bits count the values; five and four times four give the sizes of values and of counts. Then
    each block has a bit (a run, or single values), two bits (which size its count has), the count
    less one, and the value or values.
    """
    bits = "".join(f"{byte:08b}" for byte in content)
    place = 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        return int(bits[place - size : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        is_run = read(1)
        end = at + read(sizes[read(2)]) + 1
        values[at:end] = read(word) if is_run else [read(word) for _ in range(at, min(end, total))]
        at = end
    return values
