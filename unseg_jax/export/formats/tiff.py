"""TIFF of object numbers, as napari and ImageJ open label images."""

import io
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.data.pixel_size import DESCRIPTION, RESOLUTION_X, RESOLUTION_Y, UNIT

SUFFIXES = ("_objects.tif",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → TIFF of a `Segmentation`: (H, W) uint16, 0 = none, 1.. = the objects in order.

    The size of a pixel is written as ImageJ does, where known.
    """
    numbers = np.zeros(found.size, np.uint16)
    for number, item in enumerate(found.objects, 1):
        left, top, right, bottom = item.box
        numbers[top:bottom, left:right][item.mask] = number
    buffer = io.BytesIO()
    tags: dict[int, Any] = {}
    if found.pixel_size is not None:
        across, down = (1 / side for side in found.pixel_size)
        description = "ImageJ=1.11a\nunit=micron\n"
        tags = {DESCRIPTION: description, RESOLUTION_X: across, RESOLUTION_Y: down, UNIT: 1}
    Image.fromarray(numbers).save(buffer, "TIFF", compression="tiff_deflate", tiffinfo=tags)
    return {SUFFIXES[0]: buffer.getvalue()}
