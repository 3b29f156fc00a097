"""Numbers of each object for the table: as `skimage.measure.regionprops` computes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unseg_jax.postprocess import Object

MEASURED = (
    *("x", "y", "perimeter", "equivalent_diameter", "axis_major", "axis_minor"),
    *("eccentricity", "solidity", "circularity", "touches_edge"),
    *("intensity", "intensity_sum", "red", "green", "blue", "red_sum", "green_sum", "blue_sum"),
    *("area_um2", "equivalent_diameter_um", "perimeter_um", "axis_major_um", "axis_minor_um"),
)
"""What `measure` gives, in the order of the table's columns."""
# Lengths along no axis are given in micrometres only where pixels are square to this share.
_SQUARE = 0.01


def measure(
    item: Object,
    pixels: np.ndarray | None,
    size: tuple[int, int],
    scale: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Place, shape and intensity of an object.

    Args:
        item: the object.
        pixels: (h, w, 3) uint8, the image at its own size or smaller; None if not kept.
        size: (H, W) of the image.
        scale: width and height of a pixel in micrometres.

    Returns:
        `x` and `y` of the centroid, `perimeter`, `equivalent_diameter` (of the circle of the same
        area), `axis_major` and `axis_minor` (of the ellipse of the same second moments), all in
        pixels; `eccentricity` of that ellipse, `solidity` (share of the convex hull) and
        `circularity` (4π area / perimeter²; None without a perimeter); `touches_edge`, 0 or 1;
        `intensity` (mean of the channels, 0 to 255) and its sum over the object, means and sums of
        `red`, `green` and `blue`, None without pixels; `area_um2`, `equivalent_diameter_um`,
        `perimeter_um`, `axis_major_um` and `axis_minor_um`, None without a scale, and the last
        three also where pixels are not square. Intensities of an image that is kept smaller are
        those of its nearest pixels.
    """
    from skimage.measure import regionprops

    (region,) = regionprops(np.pad(item.mask, 1).view(np.uint8))
    row, column = region.centroid
    left, top, right, bottom = item.box
    perimeter = float(region.perimeter)
    values = {
        "x": column - 1 + left,
        "y": row - 1 + top,
        "perimeter": perimeter,
        "equivalent_diameter": region.equivalent_diameter_area,
        "axis_major": region.axis_major_length,
        "axis_minor": region.axis_minor_length,
        "eccentricity": region.eccentricity,
        "solidity": region.solidity,
        "circularity": 4 * math.pi * item.area / perimeter**2 if perimeter else None,
        "touches_edge": int(0 in (left, top) or bottom == size[0] or right == size[1]),
        **_intensities(item, pixels, size),
    }
    across, down = scale or (math.nan, math.nan)
    side = across if math.isclose(across, down, rel_tol=_SQUARE) else math.nan
    values["area_um2"] = item.area * across * down
    values["equivalent_diameter_um"] = region.equivalent_diameter_area * math.sqrt(across * down)
    for name in ("perimeter", "axis_major", "axis_minor"):
        values[f"{name}_um"] = values[name] * side
    return {name: _rounded(values[name]) for name in MEASURED}


def _intensities(
    item: Object, pixels: np.ndarray | None, size: tuple[int, int]
) -> dict[str, float | None]:
    names = ("red", "green", "blue", "intensity")
    if pixels is None:
        return {name + end: None for name in names for end in ("", "_sum")}
    rows, columns = np.nonzero(item.mask)
    height, width = pixels.shape[:2]
    down = ((rows + item.box[1] + 0.5) * height / size[0]).astype(int)
    across = ((columns + item.box[0] + 0.5) * width / size[1]).astype(int)
    channels = pixels[down, across].mean(0)
    means = dict(zip(names, (*channels, channels.mean()), strict=True))
    return means | {f"{name}_sum": mean * len(rows) for name, mean in means.items()}


def _rounded(value: Any) -> Any:
    if not isinstance(value, (float, np.floating)):
        return value
    return None if math.isnan(value) else round(float(value), 6)
