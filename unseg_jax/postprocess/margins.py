"""Soft margins on patches: moved to the image's edges, upsampled, and how clear they are."""

from __future__ import annotations

import numpy as np

from unseg_jax.data.decoding import resize_image
from unseg_jax.method import Method
from unseg_jax.postprocess.guided import guided_filter, interpolate

REFINE_SIDE = 256
"""Side in pixels that edges are refined at: the window of the guided filter is in these pixels."""
REFINE_STEP = 4
"""The guided filter's linear fits are computed at 64×64, several cells a patch."""


def refine_margins(image: np.ndarray, margins: np.ndarray, method: Method) -> np.ndarray:
    """Margins on patches, clipped to ±1, with their edges moved to the image's.

    Args:
        image: (H, W, 3) uint8.
        margins: (h, w) float32, above 0 is foreground.
        method: its `refine` is read: "guided" is the guided filter at 256×256, "bilateral" the
            bilateral solver there with the method's sigmas; "none" leaves the margins on patches.

    Returns:
        (256, 256) float32, or (h, w) where there is nothing to refine; above 0 is foreground.
    """
    from unseg_jax.postprocess.bilateral import refine

    margins = np.clip(margins, -1, 1)
    if method.refine == "none" or not (margins > 0).any():
        return margins
    side = (REFINE_SIDE, REFINE_SIDE)
    small, soft = resize_image(image, side), interpolate(margins, side)
    if method.refine == "guided":
        return guided_filter(small, soft, step=REFINE_STEP)
    sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
    solved, _ = refine(small, (soft + 1) / 2, *sigmas)
    return (2 * solved - 1).astype(np.float32)


def upsample_margins(margins: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: where margins (h, w), interpolated bilinearly, are above 0."""
    return interpolate(margins, size) > 0


def margin_confidence(margins: np.ndarray) -> float:
    """How clearly margins tell the object from the rest, 0..1: half the difference of their means
    inside and outside of it, clipped to ±1; 0 where all are on one side."""
    margins = np.clip(margins, -1, 1)
    inside = margins > 0
    if inside.all() or not inside.any():
        return 0.0
    return float(margins[inside].mean() - margins[~inside].mean()) / 2
