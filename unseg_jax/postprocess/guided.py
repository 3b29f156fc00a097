"""Edge-aware smoothing of a soft map by the guided filter (He, Sun and Tang, PAMI 2013).

In every window the map is fitted by a linear function of the image's colours; the average of the
fits over the windows of a pixel is the result. Unlike the bilateral solver it lets a map that
crosses no edge be, which suits soft evidence of pale, smooth objects. On the host by
`guided_filter`; `device_refining` runs it on the device.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

RADIUS, EPSILON = 8, 1e-3
"""Defaults of `guided_filter`."""


def guided_filter(
    image: np.ndarray,
    soft: np.ndarray,
    *,
    radius: int = RADIUS,
    epsilon: float = EPSILON,
    step: int = 1,
) -> np.ndarray:
    """Smooths a map so that its edges follow those of the image.

    Args:
        image: (H, W, 3) RGB uint8, the guide.
        soft: (H, W) floats.
        radius: of the square windows, in pixels; a window has a side of 2·radius + 1.
        epsilon: variance of colour (in [0, 1]²) below which a window counts as flat.
        step: the linear fits are computed on means of step × step pixels and interpolated, as in
            the fast guided filter (He and Sun, 2015), about step² times faster; it divides the
            radius and both sides of the image. 1 is the exact filter.

    Returns:
        (H, W) float32: mean(a)·I + mean(b), a = (Σ + ε 1)⁻¹ cov(I, soft) (Eq. 19 to 21).

    Raises:
        ValueError: a map of another size than the image's or not finite, or a step that does not
            divide radius and sides.
    """
    soft = np.asarray(soft, np.float32)
    if soft.shape != image.shape[:2] or image.shape[2:] != (3,):
        raise ValueError(
            f"a map of shape {soft.shape} does not lie on an RGB image of {image.shape}; "
            "resize one to the other."
        )
    if not np.isfinite(soft).all():
        raise ValueError("the guided filter's map must be finite, but some of it is not.")
    if step < 1 or any(length % step for length in (radius, *soft.shape)):
        raise ValueError(
            f"step={step} must divide the radius {radius} and the sides {soft.shape}; use 1."
        )
    # Channels first, since NumPy and Pillow work on whole planes several times faster. Moments are
    # taken about the middle of the range, where single precision loses least.
    guide = np.moveaxis(image, 2, 0).astype(np.float32) / 255 - np.float32(0.5)
    coarse = np.stack([reduce(plane, step) for plane in guide])
    box = functools.partial(_box, radius=radius // step)
    slope, offset = linear_fits(coarse, reduce(soft, step), box, epsilon)
    result = interpolate(offset, soft.shape).copy()
    for plane, values in zip(guide, slope, strict=True):
        result += interpolate(values, soft.shape) * plane
    return result


def linear_fits(
    guide: Any, soft: Any, box: Callable[[Any], Any], epsilon: float, xp: Any = np
) -> tuple[Any, Any]:
    """The windows' linear fits of a map by colours, averaged over the windows of each pixel.

    Args:
        guide: (3, h, w) float32 about 0.
        soft: (h, w) float32.
        box: means of planes (n, h, w) over the window around each pixel.
        epsilon: see `guided_filter`.
        xp: NumPy, or `jax.numpy` for its arrays.

    Returns:
        Slopes (3, h, w) and offsets (h, w).
    """
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    moments = [guide[i] * guide[j] for i, j in pairs]
    means = box(xp.stack([*guide, soft, *guide * soft, *moments]))
    mean, mean_soft = means[:3], means[3]
    covariance = means[4:7] - mean * mean_soft
    spread = [means[7 + at] - mean[i] * mean[j] for at, (i, j) in enumerate(pairs)]
    slope = _solve(spread, covariance, epsilon, xp)
    offset = mean_soft - (slope * mean).sum(0)
    averaged = box(xp.stack([*slope, offset]))
    return averaged[:3], averaged[3]


def reduce(values: np.ndarray, step: int) -> np.ndarray:
    """Means of step × step pixels of (H, W, …) floats; `step` divides both sides."""
    if step == 1:
        return values
    height, width = values.shape[0] // step, values.shape[1] // step
    # Whole rows first: NumPy adds long rows several times faster than short ones.
    rows = values.reshape(height, step, -1).sum(1)
    cells = rows.reshape(height, width, step, *values.shape[2:]).sum(2)
    return cells / np.float32(step * step)


def interpolate(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(height, width) float32: values (h, w), interpolated bilinearly."""
    if values.shape == size:
        return values
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _solve(spread, right, epsilon, xp):
    """(Σ + ε 1)⁻¹ right at every pixel, Σ the windows' 3×3 covariance of colours, by cofactors."""
    rr, rg, rb, gg, gb, bb = spread
    rr, gg, bb = (entry + np.float32(epsilon) for entry in (rr, gg, bb))
    inverse = (
        (gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg),
        (rb * gb - rg * bb, rr * bb - rb * rb, rg * rb - rr * gb),
        (rg * gb - rb * gg, rg * rb - rr * gb, rr * gg - rg * rg),
    )
    determinant = rr * inverse[0][0] + rg * inverse[0][1] + rb * inverse[0][2]
    # Σ + ε 1 has no eigenvalue below ε; rounding must not pretend otherwise.
    determinant = xp.maximum(determinant, np.float32(epsilon) ** 3)
    return xp.stack([sum(row[c] * right[c] for c in range(3)) for row in inverse]) / determinant


def _box(values: np.ndarray, *, radius: int) -> np.ndarray:
    """Mean of planes (n, h, w) over the square window around each pixel, the edge repeated
    outwards."""
    from scipy.ndimage import uniform_filter

    return uniform_filter(values, size=2 * radius + 1, mode="nearest", axes=(1, 2))
