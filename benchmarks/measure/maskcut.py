"""MaskCut: several objects of one image by repeated normalised cuts, written from its paper.

Wang, Girdhar, Yu and Misra, Cut and Learn for Unsupervised Object Detection and Instance
Segmentation (CutLER), CVPR 2023, section 3.2. Patches whose cosine is at least τ are joined by 1,
others by 1e-5; the second generalised eigenvector is cut at its mean. The side with its largest
absolute value is the object, unless it holds two corners of the image or more: then the other side
is. Of it the connected piece with the largest absolute value is kept, as in TokenCut, on which
MaskCut builds. Its patches are masked out, and what remains is cut again.

The paper's conditional random field is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_EPSILON = 1e-5
_CORNERS = 2


def maskcut(
    features: np.ndarray,
    grid: tuple[int, int],
    *,
    tau: float = 0.15,
    count: int = 3,
    eigenvector: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """The objects of an image on its patches.

    Args:
        features: (N, D) of patches.
        grid: (h, w) with h·w = N.
        tau: cosine from which patches are joined.
        count: of cuts, and so objects at most.
        eigenvector: from weights (N, N) to the second generalised eigenvector (N,); None is
            `second_eigenvector`.

    Returns:
        (n, h, w) bool in the order of the cuts; none overlap.
    """
    eigenvector = second_eigenvector if eigenvector is None else eigenvector
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    remaining = np.ones(len(unit), bool)
    found: list[np.ndarray] = []
    for _ in range(count):
        joined = (cosines >= tau) & remaining[:, None] & remaining
        vector = eigenvector(np.where(joined, 1.0, _EPSILON))
        # Cut-out patches are bound to nothing and lie anywhere; they are no object again.
        piece = _object(vector, remaining, grid)
        if piece is None:
            break
        found.append(piece)
        remaining &= ~piece.ravel()
    return np.stack(found) if found else np.zeros((0, *grid), bool)


def second_eigenvector(weights: np.ndarray) -> np.ndarray:
    """Of (D − W) x = λ D x, by LAPACK, as the published systems solve it."""
    from scipy.linalg import eigh

    degrees = np.diag(weights.sum(1))
    return eigh(degrees - weights, degrees, subset_by_index=[1, 1])[1][:, 0]


def fast_second_eigenvector(weights: np.ndarray) -> np.ndarray:
    """The same from the symmetric D^−½WD^−½, in less time."""
    from scipy.linalg import eigh

    scale = 1 / np.sqrt(weights.sum(1))
    place = len(weights) - 2
    return scale * eigh(scale[:, None] * weights * scale, subset_by_index=[place, place])[1][:, 0]


def _object(vector, remaining, grid):
    """(h, w) bool, the object side's piece with the largest absolute value; None if it is empty."""
    from scipy import ndimage

    above = (vector > vector.mean()).reshape(grid)
    sizes = np.where(remaining, np.abs(vector), -1.0).reshape(grid)
    seed = np.unravel_index(np.argmax(sizes), grid)
    side = above if above[seed] else ~above
    if side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= _CORNERS:
        side = ~side
    side &= remaining.reshape(grid)
    if not side.any():
        return None
    pieces, _ = ndimage.label(side)  # type: ignore[misc]
    seed = np.unravel_index(np.argmax(np.where(side, sizes, -1.0)), grid)
    return pieces == pieces[seed]
