"""TIFF of object numbers, as napari and ImageJ open label images."""

import io
from typing import Any

import numpy as np
from PIL import Image

SUFFIXES = ("_objects.tif",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → TIFF of a `Segmentation`: (H, W) uint16, 0 = none, 1.. = the objects in order."""
    numbers = np.zeros(found.size, np.uint16)
    for number, item in enumerate(found.objects, 1):
        left, top, right, bottom = item.box
        numbers[top:bottom, left:right][item.mask] = number
    buffer = io.BytesIO()
    Image.fromarray(numbers).save(buffer, "TIFF", compression="tiff_deflate")
    return {SUFFIXES[0]: buffer.getvalue()}
