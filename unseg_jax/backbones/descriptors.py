"""Log-binned descriptors: each patch together with its surroundings, coarser further away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

HIERARCHY = 2
NUM_BINS = 1 + 8 * HIERARCHY


def _average_pool(x: Float[Array, "b h w d"], size: int) -> Float[Array, "b h w d"]:
    """Mean over size × size neighbours, stride 1; those beyond the border are not counted."""
    if size == 1:
        return x
    window = (1, size, size, 1)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")


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
    bins = []
    for level in range(HIERARCHY):
        step = 3**level
        pooled = _average_pool(x, step)
        for down in (-step, 0, step):
            for right in (-step, 0, step):
                if level and down == right == 0:
                    continue  # the patch itself is already a bin
                rows = np.clip(np.arange(height) + down, 0, height - 1)
                columns = np.clip(np.arange(width) + right, 0, width - 1)
                bins.append(pooled[:, rows][:, :, columns])
    return jnp.concatenate(bins, axis=-1).reshape(batch, nodes, NUM_BINS * depth)
