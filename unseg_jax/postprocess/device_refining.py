"""Soft margins moved to the edges of their images on the device, a batch at a time.

Beside an accelerator the host is the slower one, and the guided filter with what it reads would be
6 of the 14 ms that it takes for a photograph (docs/results/speed.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.method import Method
from unseg_jax.postprocess.guided import EPSILON, RADIUS, linear_fits
from unseg_jax.postprocess.margins import REFINE_SIDE, REFINE_STEP

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8


def refines_on_device(method: Method) -> bool:
    """Whether `refine_batch` stands in for `margins.refine_margins`: for the guided filter, on
    accelerators. A CPU would only do the same work elsewhere."""
    return method.refine == "guided" and jax.default_backend() != "cpu"


def refine_batch(
    pixels: UInt8[Array, "b H W 3"], margins: Float[Array, "b h w"]
) -> Float[Array, "b s s"]:
    """Margins on patches with their edges moved to the images', as `margins.refine_margins`.

    The images are those that the backbone takes, so that edges may lie elsewhere by part of a
    pixel of 256.

    Args:
        pixels: (B, H, W, 3) uint8.
        margins: (B, h, w) float32, above 0 is foreground; clipped to ±1.

    Returns:
        (B, 256, 256) float32, above 0 is foreground.
    """
    return jax.vmap(_refine)(pixels, jnp.clip(margins, -1, 1))


def _refine(image, margins):
    size = (REFINE_SIDE, REFINE_SIDE)
    planes = jnp.moveaxis(image, 2, 0).astype(jnp.float32)
    # Whole levels, as an image has.
    levels = jnp.clip(jnp.round(_resize(planes, size, "lanczos3")), 0, 255)
    guide = levels / 255 - 0.5
    soft = _resize(margins[None], size, "linear")[0]
    cells = [_cells(plane) for plane in (*guide, soft)]
    slope, offset = linear_fits(jnp.stack(cells[:3]), cells[3], _box, EPSILON, jnp)
    fitted = _resize(jnp.concatenate([slope, offset[None]]), size, "linear")
    return (fitted[:3] * guide).sum(0) + fitted[3]


def _resize(planes, size, method):
    # In full precision: a fit divides small differences of these.
    return jax.image.resize(
        planes, (len(planes), *size), method, precision=jax.lax.Precision.HIGHEST
    )


def _cells(plane):
    side = REFINE_SIDE // REFINE_STEP
    return plane.reshape(side, REFINE_STEP, side, REFINE_STEP).mean((1, 3))


def _box(planes):
    """Means over the square window around each cell, the edge repeated outwards."""
    radius = RADIUS // REFINE_STEP
    around = jnp.pad(planes, ((0, 0), (radius, radius), (radius, radius)), "edge")
    window = (1, 2 * radius + 1, 2 * radius + 1)
    sums = jax.lax.reduce_window(around, np.float32(0), jax.lax.add, window, (1, 1, 1), "valid")
    return sums / np.float32(window[1] * window[2])
