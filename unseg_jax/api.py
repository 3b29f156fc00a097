"""The doors for users: `Segmenter` for many calls, `segment` for one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unseg_jax.backbones import Backbone
from unseg_jax.clustering.loop import key_from_seed
from unseg_jax.data.images import as_iterable
from unseg_jax.method import Method
from unseg_jax.registry import resolve
from unseg_jax.segmentation import Segmentation
from unseg_jax.segmenter import BatchSegmenter, ImageSegmenter

if TYPE_CHECKING:
    from unseg_jax.data.images import Source


def Segmenter(
    method: str | Method = "auto",
    *,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    seed: int = 0,
    dtype: str = "float32",
    **overrides: Any,
) -> BatchSegmenter:
    """Makes a segmenter: call it with one image or many.

    Args:
        method: "auto", a name of `list_methods()`, or a `Method`. "auto" fits `collective` on the
            images of a call if they are eight or more, and else applies the model that ships with
            the library; it says which. With overrides other
            than `fit` and `tile`, "auto" is `deepcut` with these.
        backbone: name, path to weights, or a loaded `Backbone`; "auto" takes the method's own.
        batch_size: images given to the device at a time, at least 1.
        seed: random seed.
        dtype: "float32" or "bfloat16", of the backbone; losses are always float32.
        **overrides: fields of `Method`.

    Returns:
        A `BatchSegmenter`: `segmenter(images)` gives one `Segmentation` per image.

    Raises:
        ValueError: an unknown method, backbone or field, or a value out of range.

    Example:
        >>> segmenter = Segmenter("vit-kmeans", backbone=backbone, image_size=32)
        >>> [found.mask.shape for found in segmenter([photograph, photograph[:40]])]
        [(48, 64), (40, 64)]
    """
    options: dict[str, Any] = {
        "backbone": backbone,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": dtype,
    }
    if method == "auto" and not overrides.keys() - {"fit", "tile"}:
        from unseg_jax.collective.auto import AutoSegmenter

        return AutoSegmenter(**options, **overrides)
    return ImageSegmenter("deepcut" if method == "auto" else method, **options, **overrides)


def segment(
    images: Source | Iterable[Source],
    method: str | Method = "auto",
    **options: Any,
) -> list[Segmentation]:
    """Segments one image or many in one call.

    Args:
        images: one or an iterable of paths, PIL images, or arrays (H, W, 3) or (H, W).
        method: see `Segmenter`. Methods that learn from a whole set (`collective`,
            `unsegmedgat-c`) are fitted on the images first: see `unseg_jax.fit`.
        **options: of `Segmenter`.

    Returns:
        One `Segmentation` per image, in order.

    Raises:
        ImageError: the first image that cannot be read or segmented.
        ValueError: see `Segmenter`.

    Example:
        >>> found = segment(photograph, "vit-kmeans", backbone=backbone, image_size=32)[0]
        >>> found.mask.shape, found.mask.dtype, len(found.objects)
        ((48, 64), dtype('bool'), 1)
    """
    if method != "auto" and (resolved := resolve(method)).learns_from_set:
        from unseg_jax.collective.fitting import fit

        sources = list(as_iterable(images))
        seed = options.pop("seed", 0)
        model = fit(sources, method=resolved, key=key_from_seed(seed), **options)
        return model.segment(sources)
    return Segmenter(method, **options)(images)
