"""Soft edges for cut-outs: an alpha matte from a mask, and colours without the background.

Host side, NumPy.
"""

from __future__ import annotations

import numpy as np

from unseg_jax.postprocess.guided import guided_filter

_EPSILON = 1e-4
# Sides of the windows of the two passes, in pixels: those of the paper.
_WINDOWS = (181, 13)


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8: the image with a soft alpha and the foreground's own colours.

    Args:
        image: (H, W, 3) RGB uint8.
        mask: (H, W) bool.
    """
    alpha = np.zeros(mask.shape, np.float32)
    colours = image.copy()
    if mask.any():
        band = _band(mask.shape)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        # The second pass reads what the first found, so both windows reach out from the band.
        reach = band + sum(side // 2 for side in _WINDOWS) + 1
        place = tuple(
            slice(max(0, used[0] - reach), used[-1] + 1 + reach) for used in (rows, columns)
        )
        alpha[place] = soft_alpha(image[place], mask[place], band=band)
        colours[place] = estimate_foreground(image[place], alpha[place])
    return np.dstack([colours, np.rint(alpha * 255).astype(np.uint8)])


def soft_alpha(image: np.ndarray, mask: np.ndarray, *, band: int | None = None) -> np.ndarray:
    """An alpha matte: the mask with its edge softened as the image's edge is.

    Within `band` pixels of the mask's edge alpha is the guided filter of the mask (He, Sun and
    Tang, PAMI 2013, "guided feathering"); further inside it is 1, further outside 0.

    Args:
        image: (H, W, 3) RGB uint8.
        mask: (H, W) bool.
        band: pixels on each side of the edge; None is 1/100 of the shorter side, at least 3.

    Returns:
        (H, W) float32 in 0..1.
    """
    from scipy.ndimage import distance_transform_edt

    mask = np.asarray(mask, bool)
    if mask.all() or not mask.any():
        return mask.astype(np.float32)
    band = _band(mask.shape) if band is None else band
    inside, outside = (np.asarray(distance_transform_edt(side)) for side in (mask, ~mask))
    filtered = guided_filter(image, mask.astype(np.float32), radius=band, epsilon=_EPSILON)
    alpha = np.select([inside > band, outside > band], [1.0, 0.0], np.clip(filtered, 0, 1))
    return alpha.astype(np.float32)


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The foreground's own colours: those of the image without the background that shows through.

    Blur fusion in two passes (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021).

    Args:
        image: (H, W, 3) RGB uint8.
        alpha: (H, W) floats in 0..1.

    Returns:
        (H, W, 3) uint8; the image itself where alpha is 0 or 1.
    """
    from scipy.ndimage import uniform_filter

    pixels, weight = image.astype(np.float32), alpha[..., None].astype(np.float32)
    front = back = pixels
    for side in _WINDOWS:
        near, far = (
            uniform_filter(np.dstack([colours * part, part]), side, mode="nearest", axes=(0, 1))
            for colours, part in ((front, weight), (back, 1 - weight))
        )
        front, back = (part[..., :3] / (part[..., 3:] + 1e-5) for part in (near, far))
        rest = pixels - weight * front - (1 - weight) * back
        front = np.clip(front + weight * rest, 0, 255)
    edge = (weight > 0) & (weight < 1)
    return np.where(edge, np.rint(front), image).astype(np.uint8)


def _band(size: tuple[int, ...]) -> int:
    return max(3, round(min(size) / 100))
