"""Outlines of objects as polygons."""

import numpy as np

from unseg_jax.postprocess import Object

# Larger crops are traced on every second, third, ... pixel.
_SIDE = 1600


def outlines(item: Object) -> list[np.ndarray]:
    """Closed rings of an object along the edges of its pixels: first the outer one, then holes.

    Args:
        item: the object; its mask is one 4-connected piece.

    Returns:
        Arrays (n, 2) of x and y in pixels of the image, 0 at the image's left and upper edge; the
        last point repeats the first.
    """
    from skimage.measure import find_contours

    step = -(-max(item.mask.shape) // _SIDE)
    sampled = item.mask[step // 2 :: step, step // 2 :: step]
    if not sampled.any():
        step, sampled = 1, item.mask
    contours = find_contours(np.pad(sampled, 1).astype(np.float32), 0.5)
    rings = [_corners(contour) for contour in contours]
    rings.sort(key=_area, reverse=True)
    # From pixel centres of the padded crop to edges of the image's pixels.
    ends = np.array(item.mask.shape[::-1])
    return [np.minimum((ring[:, ::-1] - 0.5) * step, ends) + item.box[:2] for ring in rings]


def _corners(contour: np.ndarray) -> np.ndarray:
    """The turning points of a contour, closed.

    Points of a contour at level 0.5 are the middles of pixel edges. Where two in turn lie on edges
    of different direction, the outline turns at the corner between them.
    """
    first, second = contour[:-1], contour[1:]
    turns = (first != second).all(1)
    first, second = first[turns], second[turns]
    # Of a row or a column, the one that lies between two pixels belongs to the corner.
    corners = np.where(first % 1 != 0, first, second)
    return np.concatenate([corners, corners[:1]])


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
