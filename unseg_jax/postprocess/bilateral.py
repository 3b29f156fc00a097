"""Edge refinement by the fast bilateral solver (Barron and Poole, ECCV 2016).

Pixels that are close in position and colour share a vertex of a sparse grid in five dimensions
(x, y, luma, two chromas). On its vertices the solver minimises

    λ/2 Σ_ij Ŵ_ij (y_i − y_j)² + Σ_i c_i (y_i − t_i)²

with a bistochastic Ŵ, that is, solves (λ (D_m − D_n B D_n) + diag(S c)) y = S (c ∘ t), where S
splats pixels to vertices and B blurs over a vertex's ten neighbours. Host side, NumPy and SciPy.
The matrix is small and irregular and differs from image to image, which suits a sparse product
on the host, not a compiled program of fixed shapes.
"""

import dataclasses

import numpy as np

from unseg_jax.postprocess.bilateral_grid import CENTRE, BilateralGrid, build_grid
from unseg_jax.postprocess.components import fill_holes, largest_component

_SMOOTHNESS = 256.0
_CONFIDENCE = 0.999
_STEPS = 25
_TOLERANCE = 1e-5
_LEAST_DIAGONAL = 1e-5


def solve(
    grid: BilateralGrid, targets: np.ndarray, confidence: float | np.ndarray = _CONFIDENCE
) -> np.ndarray:
    """Smooths targets over the grid, keeping the image's edges.

    Conjugate gradients with a Jacobi preconditioner from the vertices' mean targets, at most 25
    steps or to a relative residual of 1e-5, for all channels together.

    Args:
        grid: of the image.
        targets: (H, W) or (H, W, C) in [0, 1].
        confidence: in (0, 1], of all targets or (H, W).

    Returns:
        float32 in [0, 1] of the targets' shape.

    Raises:
        ValueError: targets of another size or not finite.
    """
    targets = np.asarray(targets)
    if targets.shape[:2] != grid.shape or targets.ndim not in (2, 3):
        raise ValueError(
            f"targets of shape {targets.shape} do not lie on an image of {grid.shape}; "
            "resize them to it."
        )
    if not np.isfinite(targets).all():
        raise ValueError("the bilateral solver's targets must be finite, but some are not.")
    number = grid.pixels.size
    weights = np.asarray(confidence, np.float64)
    columns = targets.reshape(grid.vertex.size, -1).T
    if weights.ndim:
        weights = np.broadcast_to(weights, grid.shape).ravel()
        mass = np.bincount(grid.vertex, weights, number)
        right = [np.bincount(grid.vertex, weights * column, number) for column in columns]
    else:
        mass = weights * grid.pixels
        right = [weights * np.bincount(grid.vertex, column, number) for column in columns]
    system = _scaled_system(grid, mass)
    # One after the other on one system: products with a vector are faster than those with a
    # matrix of a few columns by more than the sharing saves.
    found = np.stack([_conjugate_gradients(system, column) for column in right], 1)
    found = np.clip(found, 0, 1).astype(np.float32)
    return found.take(grid.vertex, axis=0).reshape(targets.shape)


@dataclasses.dataclass(frozen=True)
class _System:
    """A = λ(D_m − D_n B D_n) + diag(c) with Jacobi's preconditioner, scaled by d^−½, d its
    diagonal: D^−½ A D^−½ = I − f∘N f with f = √(λ/d) n, N the neighbours."""

    grid: BilateralGrid
    mass: np.ndarray
    diagonal: np.ndarray
    root: np.ndarray
    factor: np.ndarray


def _scaled_system(grid: BilateralGrid, mass: np.ndarray) -> _System:
    diagonal = _SMOOTHNESS * (grid.mass - CENTRE * grid.scale**2) + mass
    diagonal = np.maximum(diagonal, _LEAST_DIAGONAL)
    root = np.sqrt(diagonal)
    factor = (np.sqrt(_SMOOTHNESS) * grid.scale / root).astype(np.float32)
    return _System(grid, np.maximum(mass, np.finfo(np.float64).tiny), diagonal, root, factor)


def _dot(first: np.ndarray, second: np.ndarray) -> np.floating:
    """Dot product; einsum, because BLAS would start threads for it."""
    return np.einsum("v,v->", first, second)


def _conjugate_gradients(system: _System, right: np.ndarray) -> np.ndarray:
    """Solves A y = right (V,) from the mean targets right / mass.

    Single precision does for the steps, since what they compute is added to the mean targets:
    against double precision the result stays within 1e-5.
    """
    grid, root, factor = system.grid, system.root, system.factor
    start = right / system.mass
    stepped = _SMOOTHNESS * grid.scale * (grid.exact_neighbours @ (grid.scale * start))
    residual = ((right - system.diagonal * start + stepped) / root).astype(np.float32)
    limit, lightest = _TOLERANCE**2 * _dot(right, right), system.diagonal.min()

    change, direction, buffer = np.zeros_like(residual), residual.copy(), np.empty_like(residual)
    energy = _dot(residual, residual)
    for _ in range(_STEPS):
        # The limit is on the residual of A itself, Σ d r²; most steps need not compute it.
        if lightest * energy <= limit and _dot(residual * root, residual * root) <= limit:
            break
        np.multiply(factor, direction, out=buffer)
        image = grid.neighbours @ buffer
        image *= factor
        np.subtract(direction, image, out=image)
        length = energy / _dot(direction, image)
        np.multiply(direction, length, out=buffer)
        change += buffer
        image *= length
        residual -= image
        previous, energy = energy, _dot(residual, residual)
        direction *= energy / previous
        direction += residual
    return start + change / root


def refine(
    image: np.ndarray,
    mask_or_soft: np.ndarray,
    sigma_spatial: float = 24.0,
    sigma_luma: float = 4.0,
    sigma_chroma: float = 4.0,
    *,
    quirks: str = "paper",
) -> tuple[np.ndarray, np.ndarray]:
    """Moves the edges of a mask, a soft map or soft classes to those of the image.

    Args:
        image: (H, W, 3) RGB or (H, W) grey uint8.
        mask_or_soft: (H, W) bool, or floats in [0, 1]; or (H, W, K), one map a class, which are
            solved together on one grid.
        sigma_spatial, sigma_luma, sigma_chroma: bandwidths in pixels and grey levels.
        quirks: "code" takes, as the published code does, the second largest region with the
            background among the regions (so the background itself if the object is larger),
            and everything if there is one region only.

    Returns:
        soft: float32 in [0, 1], shape of the input.
        hard: (H, W) bool, the largest 4-connected component of soft > ½ with its holes filled;
            for classes (H, W) int32, the class of the largest value.

    Raises:
        ValueError: what `build_grid` and `solve` raise.
    """
    grid = build_grid(image, sigma_spatial, sigma_luma, sigma_chroma)
    soft = solve(grid, mask_or_soft)
    if soft.ndim == 3:
        return soft, soft.argmax(2).astype(np.int32)
    return soft, _object(soft, quirks)


def _object(soft: np.ndarray, quirks: str) -> np.ndarray:
    filled = fill_holes(soft > 0.5)
    return _second_region(filled) if quirks == "code" else largest_component(filled)


def _second_region(filled: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    regions = np.zeros(filled.shape, np.int32)
    ndimage.label(filled, output=regions)
    order = np.argsort(np.bincount(regions.ravel()))
    return regions == order[-2] if order.size > 1 else np.ones(filled.shape, bool)


def refine_labels(
    image: np.ndarray,
    labels: np.ndarray,
    sigma_spatial: float = 24.0,
    sigma_luma: float = 4.0,
    sigma_chroma: float = 4.0,
) -> np.ndarray:
    """Moves the edges between labels to those of the image: one solve a label, on one grid.

    Args:
        image: (H, W, 3) RGB or (H, W) grey uint8.
        labels: (H, W) non-negative integers.
        sigma_spatial, sigma_luma, sigma_chroma: bandwidths in pixels and grey levels.

    Returns:
        (H, W) of the labels' dtype; no new labels.
    """
    labels = np.asarray(labels)
    present, codes = np.unique(labels, return_inverse=True)
    if present.size == 1:
        return labels.copy()
    classes = codes.reshape(labels.shape)[..., None] == np.arange(present.size)
    _, hard = refine(image, classes, sigma_spatial, sigma_luma, sigma_chroma)
    return present[hard]


def refine_segmentation(
    image: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray,
    sigma_spatial: float = 24.0,
    sigma_luma: float = 4.0,
    sigma_chroma: float = 4.0,
    *,
    quirks: str = "paper",
) -> tuple[np.ndarray, np.ndarray]:
    """Refines a mask and the labels that go with it, all of them on one grid in one solve.

    Args:
        image: (H, W, 3) RGB or (H, W) grey uint8.
        mask: (H, W) bool.
        labels: (H, W) non-negative integers, 0 = background.
        sigma_spatial, sigma_luma, sigma_chroma: bandwidths in pixels and grey levels.
        quirks: as in `refine`.

    Returns:
        The mask (H, W) bool as `refine` gives it, and the labels (H, W) int32 as `refine_labels`
        does; with no more than two of them they are the mask.
    """
    labels = np.asarray(labels)
    present, codes = np.unique(labels, return_inverse=True)
    if present.size <= 2:
        _, hard = refine(image, mask, sigma_spatial, sigma_luma, sigma_chroma, quirks=quirks)
        return hard, hard.astype(np.int32)
    classes = codes.reshape(labels.shape)[..., None] == np.arange(present.size)
    targets = np.concatenate([np.asarray(mask, bool)[..., None], classes], 2)
    soft = solve(build_grid(image, sigma_spatial, sigma_luma, sigma_chroma), targets)
    refined = present[soft[..., 1:].argmax(2)].astype(np.int32)
    return _object(soft[..., 0], quirks), refined
