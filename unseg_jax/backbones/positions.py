"""Position embeddings for grids other than the one that they were learned on.

PyTorch's bicubic interpolation (a = -0.75, no antialiasing, borders clamped) is linear and
separable, so it is two small constant matrices. `jax.image.resize` has a = -0.5 and does not match;
it does match PyTorch's interpolation with antialiasing, which models with registers use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_A = -0.75


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with PyTorch's a, at distances 0 to 2."""
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = _A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def bicubic_matrix(source: int, target: int, scale: float) -> np.ndarray:
    """The matrix (target, source) that interpolates along one axis as PyTorch does.

    Args:
        source: length of the axis before.
        target: length after.
        scale: the sampling scale, target over source up to an offset: element i is read at
            (i + 0.5) / scale - 0.5. It is what `torch.nn.functional.interpolate` does with
            `scale_factor` and `recompute_scale_factor=False`.

    Returns:
        (target, source) float64; rows sum to 1.
    """
    position = (np.arange(target) + 0.5) / scale - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        column = np.clip(first + tap, 0, source - 1)
        np.add.at(matrix, (np.arange(target), column), _cubic(np.abs(position - first - tap)))
    return matrix


def interpolate_positions(
    positions: Float[Array, "g g d"],
    grid: tuple[int, int],
    offset: float,
    antialias: bool = False,
) -> Float[Array, "h w d"]:
    """Position embeddings of another grid.

    Args:
        positions: (G, G, D) embeddings of the native grid.
        grid: (h, w), rows and columns of the new grid.
        offset: added to h and w where they set the sampling scale: 0.1 in DINO's code (a guard
            against rounding that moves every sample a little), 0 in Hugging Face's DINOv2.
        antialias: smooth where the grid becomes smaller, as models with registers do; the offset
            is not used then.

    Returns:
        (h, w, D) of the dtype of `positions`.
    """
    if antialias:
        return jax.image.resize(
            positions, (*grid, positions.shape[-1]), "cubic", precision=jax.lax.Precision.HIGHEST
        )
    side = positions.shape[0]
    rows, columns = (
        jnp.asarray(bicubic_matrix(side, size, (size + offset) / side), positions.dtype)
        for size in grid
    )
    return jnp.einsum("hi,wj,ijd->hwd", rows, columns, positions, precision="highest")
