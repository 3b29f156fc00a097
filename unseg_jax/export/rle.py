"""Masks, parts and boxes as COCO-style JSON, for the tools that read it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unseg_jax.postprocess.components import Box, bounding_box


def encode_rle(mask: np.ndarray, *, compressed: bool = True) -> dict[str, Any]:
    """Run-length encoding of a mask as in the COCO API: runs down the columns, the first of
    background.

    Args:
        mask: (H, W) bool.
        compressed: whether `counts` is the API's ASCII string or a list of integers.

    Returns:
        {"size": [H, W], "counts": ...}
    """
    mask = np.asarray(mask) != 0
    # A False before and the opposite of the last after make every run end at a change.
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], ends, [flat.size]])
    counts = np.diff(bounds).tolist() if flat.size else []
    if flat.size and flat[0]:
        counts.insert(0, 0)
    size = [int(side) for side in mask.shape]
    return {"size": size, "counts": _compress(counts) if compressed else counts}


def decode_rle(encoded: dict[str, Any]) -> np.ndarray:
    """The mask (H, W) bool of a run-length encoding in either form."""
    counts = encoded["counts"]
    counts = _expand(counts) if isinstance(counts, str) else counts
    height, width = encoded["size"]
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _compress(counts: list[int]) -> str:
    """The COCO API's string: each count from the fourth on as its difference to the one two
    before, in groups of 5 bits, lowest first, with bit 6 for "more follows", from ASCII 48."""
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            group = value & 31
            value >>= 5
            # The last group's high bit is the sign: stop once the rest repeats it.
            done = value == (-1 if group & 16 else 0)
            characters.append(chr(48 + (group if done else group | 32)))
            if done:
                break
    return "".join(characters)


def _expand(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts


def coco_annotations(
    names: Sequence[str],
    labels: Sequence[np.ndarray],
    *,
    scores: Sequence[float] | None = None,
    boxes: Sequence[Box | None] | None = None,
    compressed: bool = True,
) -> dict[str, Any]:
    """A COCO-style data set of segmentation results; write it with `write_json`.

    A mask gives one annotation of the category "object"; labels give one for each part, of the
    category "part k". What is empty gives none. Boxes are [x, y, width, height] in pixels.

    Args:
        names: file names of the images.
        labels: for each image a bool mask (H, W), or integer labels with 0 = background.
        scores: confidence of each image, written to all of its annotations.
        boxes: (left, top, right, bottom) of each image to write in place of the box around the
            whole mask, say that of its largest component; only for masks.
        compressed: whether masks are the COCO API's strings or lists of run lengths.

    Returns:
        {"images": [...], "annotations": [...], "categories": [...]}, of plain Python values;
        identifiers count from 1.

    Raises:
        ValueError: arguments of different lengths.
    """
    for name, values in (("labels", labels), ("scores", scores), ("boxes", boxes)):
        if values is not None and len(values) != len(names):
            raise ValueError(f"{len(values)} {name} do not fit {len(names)} names; pass as many.")
    images, annotations, parts = [], [], 0
    for index, (name, found) in enumerate(zip(names, labels, strict=True)):
        found = np.asarray(found)
        height, width = found.shape
        images.append({"id": index + 1, "file_name": str(name), "height": height, "width": width})
        is_mask = found.dtype == bool
        numbers = [1] if is_mask else [int(number) for number in np.unique(found) if number > 0]
        parts = parts if is_mask else max([parts, *numbers])
        for number in numbers:
            mask = found if is_mask else found == number
            box = boxes[index] if boxes is not None and is_mask else bounding_box(mask)
            if box is None or not mask.any():
                continue
            left, top, right, bottom = (int(side) for side in box)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": index + 1,
                "category_id": number,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(np.count_nonzero(mask)),
                "iscrowd": 0,
                "segmentation": encode_rle(mask, compressed=compressed),
            }
            if scores is not None:
                annotation["score"] = float(scores[index])
            annotations.append(annotation)
    categories = [{"id": number, "name": f"part {number}"} for number in range(1, parts + 1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "object"}],
    }
