"""Two ways to split touching objects of one piece, tried on collages and not used by the library.

`by_distance` cuts a piece where it is narrow: its markers are where the distance from the edge is
at least a share of the largest, and every pixel goes to the nearest marker. `by_cut` cuts the
graph of its patches in two by the second eigenvector of the normalised cut, again and again while
the cut is cheap.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_LEAST_SHARE = 0.1
_LEAST_PATCHES = 5
_REACH = 2.5


def by_distance(piece: np.ndarray, share: float) -> list[np.ndarray]:
    """Parts of a piece (H, W) bool; markers below a tenth of it in the end are not counted."""
    distance = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    markers, count = ndimage.label(distance > share * distance.max())  # type: ignore[misc]
    if count < 2:
        return [piece]
    while True:
        nearest = ndimage.distance_transform_edt(
            markers == 0, return_distances=False, return_indices=True
        )
        labels = np.where(piece, markers[tuple(nearest)], 0)
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        present = np.flatnonzero(np.bincount(markers.ravel(), minlength=count + 1)[1:])
        smallest = present[np.argmin(areas[present])]
        if areas[smallest] >= _LEAST_SHARE * piece.sum() or len(present) == 1:
            return [labels == label + 1 for label in present]
        markers[markers == smallest + 1] = 0


def by_cut(piece: np.ndarray, nodes: np.ndarray, grid: tuple[int, int], most: float) -> list:
    """Parts of a piece (H, W) bool, by the features of its patches.

    Args:
        piece: of the mask.
        nodes: (N, R) of length 1, centred by the set.
        grid: (h, w) with h·w = N.
        most: the normalised cut, 0 to 2, below which a piece is divided.
    """
    rows = (np.arange(piece.shape[0]) * grid[0] // piece.shape[0])[:, None]
    columns = np.arange(piece.shape[1]) * grid[1] // piece.shape[1]
    patches = rows * grid[1] + columns
    held = np.bincount(patches[piece], minlength=len(nodes)) / np.bincount(patches.ravel())
    members = np.flatnonzero(held > 0.5)
    groups = _divide(members, nodes, grid, most)
    if len(groups) < 2:
        return [piece]
    labels = np.zeros(grid[0] * grid[1], int)
    for number, group in enumerate(groups, 1):
        labels[group] = number
    spread = labels.reshape(grid)
    nearest = ndimage.distance_transform_edt(
        spread == 0, return_distances=False, return_indices=True
    )
    full = np.where(piece, spread[tuple(nearest)].ravel()[patches], 0)
    return [full == number for number in range(1, len(groups) + 1)]


def _divide(members, nodes, grid, most):
    if len(members) < 2 * _LEAST_PATCHES:
        return [members]
    places = np.stack(np.divmod(members, grid[1]), 1)
    near = np.exp(-((places[:, None] - places) ** 2).sum(-1) / (2 * _REACH**2))
    weights = near * np.exp(2 * (nodes[members] @ nodes[members].T - 1))
    scale = 1 / np.sqrt(weights.sum(1))
    vector = scale * np.linalg.eigh(scale[:, None] * weights * scale)[1][:, -2]
    order = np.argsort(vector)
    ordered = weights[np.ix_(order, order)]
    inside = np.cumsum(np.cumsum(ordered, 0), 1).diagonal()
    volume = np.cumsum(ordered.sum(1))
    cut = volume - inside
    costs = cut / volume + cut / np.maximum(volume[-1] - volume, 1e-9)
    least = max(_LEAST_PATCHES, int(np.ceil(_LEAST_SHARE * len(members))))
    ends = np.arange(least, len(members) - least)
    if not len(ends) or costs[ends - 1].min() >= most:
        return [members]
    at = ends[np.argmin(costs[ends - 1])]
    return [
        part
        for side in (order[:at], order[at:])
        for part in _divide(members[np.sort(side)], nodes, grid, most)
    ]
