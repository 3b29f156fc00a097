"""A method's whole program, pixels to labels, as one file that JAX alone can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp

from unseg_jax.backbones import Backbone
from unseg_jax.files import atomic
from unseg_jax.method import Method
from unseg_jax.registry import resolve
from unseg_jax.segmenter import make_segment_fn

PLATFORMS = ("cpu", "cuda", "tpu")


def export_segment_fn(
    path: str | Path,
    method: str | Method = "deepcut",
    backbone: str | Path | Backbone = "auto",
    *,
    batch_size: int = 8,
    platforms: Sequence[str] = PLATFORMS,
    seed: int = 0,
    dtype: str = "auto",
    batching: Literal["vmap", "loop"] | None = None,
    **overrides: Any,
) -> None:
    """Writes a method's program, weights included, so that it can be served without this library.

    The file holds what `jax.export` serialises: StableHLO with a guarantee of compatibility. It
    takes (batch_size, H, W, 3) uint8 pixels at the method's size and returns (batch_size, h, w)
    int32 labels, 0 = background::

        import jax, jax.export
        with open("deepcut.jax", "rb") as file:
            program = jax.export.deserialize(bytearray(file.read()))
        labels = jax.jit(program.call)(pixels)

    Args:
        path: of the file; replaced if it exists.
        method: name or `Method`, of patches.
        backbone: name, path to weights, or a `Backbone`; its weights go into the file.
        batch_size: B, images per call; fixed in the program.
        platforms: those that the program can run on, of "cpu", "cuda", "rocm" and "tpu".
        seed, dtype, batching: see `make_segment_fn`. By default each platform gets its own form of
            the loop over the batch.
        **overrides: fields of `Method`.

    Raises:
        ValueError: what `make_segment_fn` raises, a batch size below 1, or an unknown platform.
        WriteError: the file cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/kmeans.jax"
        ...     export_segment_fn(path, "vit-kmeans", backbone, image_size=32, platforms=["cpu"])
        ...     with open(path, "rb") as file:
        ...         program = jax.export.deserialize(bytearray(file.read()))
        >>> program.in_avals[0].shape, program.out_avals[0].shape
        ((8, 32, 32, 3), (8, 4, 4))
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    known = (*PLATFORMS, "rocm")
    if not platforms or not set(platforms) <= set(known):
        raise ValueError(
            f"platforms={tuple(platforms)!r} must name one or more of {', '.join(known)}."
        )
    segment, params = make_segment_fn(
        method, backbone, seed=seed, dtype=dtype, batching=batching, **overrides
    )
    height, width = resolve(method, **overrides).size
    pixels = jax.ShapeDtypeStruct((batch_size, height, width, 3), jnp.uint8)
    whole = jax.jit(lambda pixels: segment(params, pixels))
    content = jax.export.export(whole, platforms=tuple(platforms))(pixels).serialize()
    with atomic(path) as partial:
        partial.write_bytes(content)
