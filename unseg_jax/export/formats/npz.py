"""NumPy archives: mask, labels, and one row for each object."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SUFFIXES = (".npz",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → archive of a `Segmentation`.

    It holds mask (H, W) bool, labels (H, W), boxes (n, 4) left, top, right, bottom, areas (n,),
    scores (n,) and object_labels (n,) of the objects, and confidence.
    """
    objects = found.objects
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        mask=found.mask,
        labels=found.enlarged(found.small_labels),
        boxes=np.array([item.box for item in objects], np.int32).reshape(-1, 4),
        areas=np.array([item.area for item in objects], np.int64),
        scores=np.array([item.score for item in objects], np.float32),
        object_labels=np.array([item.label for item in objects], np.int32),
        confidence=np.float32(found.confidence),
    )
    return {SUFFIXES[0]: buffer.getvalue()}


def with_kinds(content: bytes, objects: Sequence[Mapping[str, Any]]) -> bytes:
    """The archive that `encode` gave, with object_kinds (n,) from 1."""
    buffer = io.BytesIO()
    with np.load(io.BytesIO(content)) as arrays:
        kinds = np.array([item["kind"] for item in objects], np.int32)
        np.savez_compressed(buffer, **{**arrays, "object_kinds": kinds})
    return buffer.getvalue()
