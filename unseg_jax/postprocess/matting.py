"""Soft edges for cut-outs: an alpha matte from a mask, and colours without the background.

Host side, NumPy.
"""

from __future__ import annotations

import numpy as np

from unseg_jax.postprocess.guided import guided_filter, interpolate, reduce

_EPSILON = 1e-4
# Sides of the windows of the two passes, in pixels: those of the paper. Their means change so
# slowly that they are taken of squares of so many pixels, which is ten times as fast.
_WINDOWS, _SQUARES = (181, 13), (8, 2)


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
        # At multiples of all squares, so that a part is reduced as the whole would be.
        grid = max(_SQUARES) * _step(band)
        place = tuple(
            slice(max(0, used[0] - reach) // grid * grid, -(-(used[-1] + 1 + reach) // grid) * grid)
            for used in (rows, columns)
        )
        alpha[place] = soft_alpha(image[place], mask[place], band=band)
        colours[place] = estimate_foreground(image[place], alpha[place])
    return np.dstack([colours, np.rint(alpha * 255).astype(np.uint8)])


def soft_alpha(image: np.ndarray, mask: np.ndarray, *, band: int | None = None) -> np.ndarray:
    """An alpha matte: the mask with its edge softened as the image's edge is.

    Within a square of `band` pixels to each side of the mask's edge alpha is the guided filter of
    the mask (He, Sun and Tang, PAMI 2013, "guided feathering"); further inside it is 1, further
    outside 0.

    Args:
        image: (H, W, 3) RGB uint8.
        mask: (H, W) bool.
        band: pixels on each side of the edge; None is 1/100 of the shorter side, at least 3.

    Returns:
        (H, W) float32 in 0..1.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    mask = np.asarray(mask, bool)
    if mask.all() or not mask.any():
        return mask.astype(np.float32)
    band = _band(mask.shape) if band is None else band
    step, side = _step(band), 2 * band + 1
    filtered = guided_filter(
        _padded(image, step),
        _padded(mask, step),
        radius=band // step * step,
        epsilon=_EPSILON,
        step=step,
    )
    inside, reached = minimum_filter(mask, side), maximum_filter(mask, side)
    return np.clip(filtered[: len(mask), : mask.shape[1]], inside, reached).astype(np.float32)


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

    rows, columns = np.nonzero((alpha > 0) & (alpha < 1))
    image, shares = image.copy(), _padded(alpha, max(_SQUARES)).astype(np.float32)[..., None]
    pixels = _padded(image, max(_SQUARES)).astype(np.float32)
    square = min(_SQUARES)
    halved, weight = (reduce(array, square) for array in (pixels, shares))
    front = back = halved
    for side, coarse in zip(_WINDOWS, _SQUARES, strict=True):
        coarse //= square
        means = []
        for colours, part in ((front, weight), (back, 1 - weight)):
            small = reduce(np.concatenate([colours * part, part], -1), coarse)
            small = uniform_filter(small, side // square // coarse, mode="nearest", axes=(0, 1))
            ratio = small[..., :3] / (small[..., 3:] + 1e-5)
            size = weight.shape[:2]
            means.append(np.stack([interpolate(ratio[..., c], size) for c in range(3)], -1))
        front, back = means
        if coarse > 1:
            front = _corrected(halved, weight, front, back)
    near = (rows // square, columns // square)
    edge = image[rows, columns].astype(np.float32), alpha[rows, columns, None]
    image[rows, columns] = np.rint(_corrected(*edge, front[near], back[near]))
    return image


def _corrected(pixels, alpha, front, back):
    """Foreground colours that give the pixels where they are laid over the background."""
    return np.clip(front + alpha * (pixels - alpha * front - (1 - alpha) * back), 0, 255)


def _padded(array: np.ndarray, multiple: int) -> np.ndarray:
    """The array with its last rows and columns repeated up to a multiple of pixels."""
    ends = [(0, -length % multiple) for length in array.shape[:2]]
    return np.pad(array, ends + [(0, 0)] * (array.ndim - 2), mode="edge")


def _step(band: int) -> int:
    """Side of the squares that the guided filter reads, a quarter of its radius."""
    return max(1, band // 4)


def _band(size: tuple[int, ...]) -> int:
    return max(3, round(min(size) / 100))
