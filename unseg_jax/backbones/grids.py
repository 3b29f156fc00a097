"""What is done on the grid of patches: positions for other grids, and log-binned descriptors.

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


def bicubic_matrix(source: int, target: int, scale: float) -> np.ndarray:
    """The matrix (target, source) that interpolates along one axis as PyTorch does.

    Element i is read at (i + 0.5) / scale - 0.5, as `torch.nn.functional.interpolate` does with
    `scale_factor` and `recompute_scale_factor=False`. The result is float64; its rows sum to 1.
    """
    position = (np.arange(target) + 0.5) / scale - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        column = np.clip(first + tap, 0, source - 1)
        distance = np.abs(position - first - tap)
        # Keys' cubic convolution kernel, at distances 0 to 2.
        near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
        far = _A * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(matrix, (np.arange(target), column), np.where(distance <= 1, near, far))
    return matrix


PARTS = 5
"""How many times as wide features of an image seen at two sizes are: a patch and its quarters."""


def pack_quarters(features: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b m c"]:
    """Features of a grid of twice as many rows and columns, as those of the patches of `grid`: each
    holds the four that lie in it, row by row.

    Args:
        features: of 4 h w patches.
        grid: (h, w).

    Returns:
        (B, h w, 4 D).
    """
    height, width = grid
    cells = features.reshape(len(features), height, 2, width, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(len(features), height * width, -1)


def unpack_quarters(packed: Float[Array, "m c"], grid: tuple[int, int]) -> Float[Array, "n d"]:
    """(4 h w, D) features of one image as they were before `pack_quarters`."""
    height, width = grid
    cells = packed.reshape(height, width, 2, 2, -1).transpose(0, 2, 1, 3, 4)
    return cells.reshape(4 * height * width, -1)


def enlarge(values: Float[Array, " m"], grid: tuple[int, int]) -> Float[Array, " n"]:
    """(4 h w,) values of the patches of a grid (h, w), interpolated to twice as many a side."""
    height, width = grid
    size = (2 * height, 2 * width)
    return jax.image.resize(values.reshape(grid), size, "linear").ravel()


def pool(values: Float[Array, " n"], grid: tuple[int, int]) -> Float[Array, " m"]:
    """(h w,) means over the four values that lie in each patch of a grid (h, w)."""
    height, width = grid
    return values.reshape(height, 2, width, 2).mean((1, 3)).ravel()


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
    side, _, width = positions.shape
    if antialias:
        return jax.image.resize(
            positions, (*grid, width), "cubic", precision=jax.lax.Precision.HIGHEST
        )
    rows, columns = (
        jnp.asarray(bicubic_matrix(side, size, (size + offset) / side), positions.dtype)
        for size in grid
    )
    return jnp.einsum("hi,wj,ijd->hwd", rows, columns, positions, precision="highest")


def log_bin(features: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n 17*d"]:
    """Log-binned descriptors as in DINO-ViT features (Amir et al. 2021), two hierarchies.

    A patch's 17 bins are its 3 × 3 neighbourhood, then the 8 surrounding 3 × 3 averages; bins
    beyond the border repeat the nearest one inside.

    Args:
        features: (B, N, D), row-major over the grid.
        grid: (h, w) with h w = N.

    Returns:
        (B, N, 17 D), bin by bin.
    """
    height, width = grid
    batch, nodes, depth = features.shape
    x = features.reshape(batch, height, width, depth)

    def sums(x: Array) -> Array:
        """Over 3 × 3 neighbours; those beyond the border are not counted."""
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    pooled = sums(x) / sums(jnp.ones((1, height, width, 1), x.dtype))
    bins = []
    for step, level in ((1, x), (3, pooled)):
        for down in (-step, 0, step):
            for right in (-step, 0, step):
                if step == 1 or down or right:  # the patch itself is already a bin
                    rows = np.clip(np.arange(height) + down, 0, height - 1)
                    columns = np.clip(np.arange(width) + right, 0, width - 1)
                    bins.append(level[:, rows][:, :, columns])
    return jnp.concatenate(bins, axis=-1).reshape(batch, nodes, len(bins) * depth)
