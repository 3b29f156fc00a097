"""Outlines of objects as polygons, along the edges of their pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unseg_jax.postprocess import Object

# By how much of a pixel a single ring leaves the edges of pixels. Their centres are half a pixel
# away, so filling the ring still gives the mask.
_INSET = 0.125
_SLIT = (0.25, 0.375)


def outlines(item: Object) -> list[np.ndarray]:
    """The outer ring of an object, then its holes: a polygon that is valid by OGC.

    Args:
        item: the object; its mask is one 4-connected piece.

    Returns:
        Arrays (n, 2) int64 of x and y in pixels of the image, 0 at the image's left and upper
        edge; the last point repeats the first. The signed area is positive for the outer ring and
        negative for holes. Rings meet in single points at most.
    """
    edges = _trace(item.mask, apart=False)
    rings = [edges.ends[ring].reshape(-1, 2) for ring in _cycles(edges.following)]
    return [np.concatenate([ring, ring[:1]]) + item.box[:2] for ring in rings]


def single_ring(item: Object) -> np.ndarray:
    """An object as one ring, for formats without holes: a slit leads into each hole.

    The ring is valid by OGC: it neither crosses nor touches itself. A slit is an eighth of a pixel
    wide and misses the centres of pixels, so filling the ring gives the mask with its holes.

    Args:
        item: the object; its mask is one 4-connected piece.

    Returns:
        (n, 2) float64 of x and y as in `outlines`; the first point is not repeated.
    """
    edges = _trace(item.mask, apart=True)
    following = edges.following
    slits = [_slit(item.mask, edges, hole) for hole in _cycles(following)[1:]]
    # Two ends of each edge, then those of a slit that leads out of a hole, or into one.
    points = np.full((len(following), 6, 2), np.nan)
    points[:, :2] = edges.ends
    # Slits may end on the same vertical edge. From below, as the ring runs there, each leads into
    # its hole and back to the rest of the edge.
    before: dict[int, int] = {}
    for row, left, right, start, target in sorted(slits, reverse=True):
        upper, lower = row + _SLIT[0], row + _SLIT[1]
        end = before.get(target, target)
        points[start, 2:4] = (right, upper), (left, upper)
        points[end, 4:] = (left, lower), (right, lower)
        following[[start, end]] = following[[end, start]]
        before[target] = start
    (ring,) = _cycles(following)
    ring = points[ring].reshape(-1, 2)
    return ring[~np.isnan(ring[:, 0])] + item.box[:2]


class _Edges(NamedTuple):
    """The horizontal edges of a mask's pixels, joined where they go straight on.

    Attributes:
        ends: (n, 2, 2) x and y of tail and head; rings have the mask to their right on a screen.
        following: (n,) the edge at the end of the vertical edge that starts at the head.
        spots: (n,) sorted, x · (height + 1) + y of the upper end of each vertical edge.
        before: (n,) the horizontal edge that each vertical edge follows.
    """

    ends: np.ndarray
    following: np.ndarray
    spots: np.ndarray
    before: np.ndarray


def _trace(mask: np.ndarray, *, apart: bool) -> _Edges:
    """Follows the edges of a mask's pixels.

    Where two pixels touch at a corner, rings either keep them apart or, for a polygon with holes,
    keep the two background pixels apart: no ring of a 4-connected piece then passes a point twice.
    """
    mask = np.ascontiguousarray(mask)
    height, width = mask.shape
    edge = np.empty((height + 1, width), bool)
    edge[0], edge[-1] = mask[0], mask[-1]
    np.not_equal(mask[1:], mask[:-1], out=edge[1:-1])
    at = np.flatnonzero(edge)
    # Whether the mask lies above the edge, or below it.
    above = mask.ravel()[at - width] & (at >= width)
    y, x = np.divmod(at, width)
    starts = np.ones(len(at), bool)
    starts[1:] = (np.diff(at) != 1) | (x[1:] == 0) | (above[1:] != above[:-1])
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(at)) - 1
    y, above, left, right = y[first], above[first], x[first], x[last] + 1
    ends = np.empty((len(y), 2, 2), np.int64)
    ends[:, 0, 0], ends[:, 1, 0] = np.where(above, (right, left), (left, right))
    ends[..., 1] = y[:, None]
    # Down a column, every two ends are those of a vertical edge. Of two in one point, the one
    # whose ring goes up comes first.
    spots = (ends[..., 0] * (height + 1) + ends[..., 1]).ravel()
    order = np.argsort(spots * 2 + np.repeat(above ^ apart, 2))
    upper, lower = order[::2], order[1::2]
    heads, tails = np.where(upper % 2, (upper, lower), (lower, upper))
    following = np.empty(len(y), np.int64)
    following[heads // 2] = tails // 2
    if not apart:
        return _Edges(ends, following, spots[upper], heads // 2)
    # Rings that would touch draw back into their own pixels.
    spots = spots[order]
    same = np.flatnonzero(spots[1:] == spots[:-1])
    touching, side = np.divmod(order[np.concatenate([same, same + 1])], 2)
    ends = ends.astype(float)
    ends[touching, side] += _INSET * np.stack(
        [np.where(above[touching] ^ side, 1, -1), np.where(above[touching], -1, 1)], 1
    )
    return _Edges(ends, following, spots[::2], heads // 2)


def _slit(mask: np.ndarray, edges: _Edges, hole: list[int]) -> tuple[int, int, int, int, int]:
    """Where a slit leads into a hole: row, ends on the left and right, and the horizontal edges
    that the two vertical edges follow, the hole's and the other's."""
    start = int(hole[np.argmin(edges.ends[hole, 1, 0])])
    # Holes do not touch anything here, unless they were drawn back by less than half a pixel.
    right, row = np.rint(edges.ends[start, 1]).astype(int).tolist()
    # Left of the leftmost edge of a hole lies the mask, up to the edge of another ring.
    background = np.flatnonzero(~mask[row, :right])
    left = int(background[-1]) + 1 if len(background) else 0
    place = np.searchsorted(edges.spots, left * (len(mask) + 1) + row, "right") - 1
    return row, left, right, start, int(edges.before[place])


def _cycles(following: np.ndarray) -> list[list[int]]:
    """The cycles of a permutation, each from its first number, the first from 0."""
    steps, done, cycles = following.tolist(), bytearray(len(following)), []
    for start in range(len(steps)):
        if not done[start]:
            cycle, place = [], start
            while not done[place]:
                done[place] = 1
                cycle.append(place)
                place = steps[place]
            cycles.append(cycle)
    return cycles
