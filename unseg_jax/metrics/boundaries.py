"""How well the outlines of two masks agree. Masks are as in `unseg_jax.metrics.overlap`."""

from typing import Any

import numpy as np

from unseg_jax.metrics.overlap import as_masks, iou


def boundary_iou(mask: np.ndarray, truth: np.ndarray, width: float = 0.02) -> float:
    """IoU of the pixels of each mask that lie near its own outline (Cheng et al., CVPR 2021).

    Args:
        mask, truth: (H, W) masks.
        width: of that rim, as a share of the image's diagonal; at least one pixel is taken.

    Returns:
        In [0, 1]; 1 if both masks are empty.

    Example:
        >>> truth = np.zeros((40, 40), bool)
        >>> truth[10:30, 10:30] = True
        >>> round(boundary_iou(np.roll(truth, 1, axis=0), truth), 2)
        0.33
    """
    mask, truth = as_masks(mask, truth)
    pixels = max(1, round(width * float(np.hypot(*mask.shape))))
    return iou(_rim(mask, pixels), _rim(truth, pixels))


def _rim(mask: np.ndarray, pixels: int) -> np.ndarray:
    from scipy.ndimage import distance_transform_cdt

    # Beyond the image there is background, as in the published code.
    depth: Any = distance_transform_cdt(np.pad(mask, 1), "chessboard")
    return mask & (depth[1:-1, 1:-1] <= pixels)


def surface_distances(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels from each outline to the other one, of (H, W) masks that are not empty.

    An outline are the pixels of a mask that touch the background by a side, or the image's edge.

    Returns:
        (N,) from the outline of the mask, and (M,) from that of the truth.

    Example:
        >>> mask = np.zeros((5, 5), bool)
        >>> mask[2, 2] = True
        >>> surface_distances(mask, np.roll(mask, 2, axis=0))
        (array([2.]), array([2.]))
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    ours, theirs = (side ^ np.asarray(binary_erosion(side), bool) for side in as_masks(mask, truth))
    there, back = (np.asarray(distance_transform_edt(~side)) for side in (theirs, ours))
    return there[ours], back[theirs]


def hd95(mask: np.ndarray, truth: np.ndarray) -> float:
    """95th percentile of the distances between two outlines, in pixels; 0 is best.

    Both directions are pooled, as in `medpy.metric.binary.hd95`.

    Returns:
        0 if both masks are empty, and the image's diagonal if only one is.

    Example:
        >>> mask = np.zeros((5, 5), bool)
        >>> mask[2, 2] = True
        >>> hd95(mask, np.roll(mask, 2, axis=0))
        2.0
    """
    mask, truth = as_masks(mask, truth)
    if mask.any() and truth.any():
        return float(np.percentile(np.concatenate(surface_distances(mask, truth)), 95))
    return float(np.hypot(*mask.shape)) if mask.any() or truth.any() else 0.0


def surface_dice(mask: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> float:
    """Normalised surface distance (NSD): share of both outlines that lies within a tolerance of
    the other one (Nikolov et al., 2018), in [0, 1]; 1 is best.

    Args:
        mask, truth: (H, W) masks.
        tolerance: in pixels.

    Returns:
        1 if both masks are empty, and 0 if only one is.

    Example:
        >>> mask = np.zeros((9, 9), bool)
        >>> mask[4, 4] = True
        >>> moved = np.roll(mask, 2, axis=0)
        >>> surface_dice(mask, moved), surface_dice(mask, moved, tolerance=1)
        (1.0, 0.0)
    """
    mask, truth = as_masks(mask, truth)
    if mask.any() and truth.any():
        return float(np.mean(np.concatenate(surface_distances(mask, truth)) <= tolerance))
    return float(not (mask.any() or truth.any()))
