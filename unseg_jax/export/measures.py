"""Numbers of each object for the table: as `skimage.measure.regionprops` computes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from unseg_jax.postprocess import Object


def measure(
    item: Object,
    pixels: np.ndarray | None,
    size: tuple[int, int],
    scale: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Centroid, perimeter, mean intensity, and the area in µm² where the scale is known.

    Args:
        item: the object.
        pixels: (h, w, 3) uint8, the image at its own size or smaller; None if not kept.
        size: (H, W) of the image.
        scale: width and height of a pixel in micrometres.

    Returns:
        `x` and `y` of the centroid and `perimeter` in pixels, `intensity` (mean of the grey level,
        0 to 255; None without pixels), `area_um2` (None without a scale). `intensity` of an image
        that is kept smaller is that of its nearest pixels.
    """
    from skimage.measure import perimeter

    rows, columns = np.nonzero(item.mask)
    left, top = item.box[:2]
    intensity = None
    if pixels is not None:
        height, width = pixels.shape[:2]
        down = ((rows + top + 0.5) * height / size[0]).astype(int)
        across = ((columns + left + 0.5) * width / size[1]).astype(int)
        intensity = round(float(pixels[down, across].mean()), 4)
    return {
        "x": round(float(columns.mean()) + left, 4),
        "y": round(float(rows.mean()) + top, 4),
        "perimeter": round(float(perimeter(np.pad(item.mask, 1))), 4),
        "intensity": intensity,
        "area_um2": None if scale is None else round(item.area * scale[0] * scale[1], 6),
    }
