"""Masks: what the device found on patches becomes a `Segmentation` of the image."""

from __future__ import annotations

import numpy as np

from unseg_jax.clustering import parts
from unseg_jax.errors import ImageError
from unseg_jax.method import Method
from unseg_jax.pipeline import PatchResult
from unseg_jax.postprocess import largest_component, upsample_labels
from unseg_jax.postprocess.margins import refine_margins, upsample_margins
from unseg_jax.segmentation import Segmentation, smallest


def finish_labels(
    method: Method,
    backbone: str,
    result: PatchResult,
    index: int,
    image: np.ndarray,
    id: str,
    size: tuple[int, int] | None,
) -> Segmentation:
    """Labels on patches as a segmentation; see `BatchSegmenter.finish`.

    Args:
        method: that found them.
        backbone: its name.
        result, index, image, id, size: see `BatchSegmenter.finish`.
    """
    if not result.finite[index]:
        if method.own_parts:
            raise ImageError(
                f"{id or 'the image'}: its features or assignments are not finite numbers; "
                f"look at {parts.describe(method)}, or at the weights of backbone '{backbone}'."
            )
        raise not_finite(id, backbone)
    labels = np.asarray(result.labels[index])
    foreground = np.asarray(result.foreground[index])
    if method.largest_component:
        foreground = largest_component(foreground)
    mask = upsample_labels(foreground, image.shape[:2])
    full = upsample_labels(smallest(labels), image.shape[:2])
    if method.refine != "none" and mask.any() and not mask.all():
        mask, full = _refine(method, image, foreground, mask, full)
    evidence = None
    if result.clarity is not None:
        clarity = np.asarray(result.clarity[index])
        evidence = np.where(foreground, clarity, -clarity)
    return Segmentation.of(
        mask,
        full,
        size=size,
        num_clusters=int(result.num_clusters[index]),
        # Clusters may be clear where there is no object: those of one colour are of positions.
        confidence=0.0 if _is_one_colour(image) else float(result.confidence[index]),
        patch_labels=labels,
        losses=result.losses[index],
        evidence=evidence,
        pixels=image,
        method=method.name,
        backbone=backbone,
        id=id,
    )


def not_finite(id: str, backbone: str) -> ImageError:
    """The error of an image whose features are not finite numbers."""
    return ImageError(
        f"{id or 'the image'}: its features are not finite numbers; check the weights of backbone "
        f"'{backbone}', or use dtype='float32'."
    )


def _refine(method, image, foreground, mask, labels):
    if method.refine == "guided":
        refined = refine_margins(image, np.where(foreground, 1.0, -1.0), method)
        mask = upsample_margins(refined, image.shape[:2])
        # Parts keep the edges between them; what the mask gains goes to the first part.
        return mask, np.where(mask, np.maximum(labels, 1), 0)
    from unseg_jax.postprocess.bilateral import refine_segmentation

    sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
    return refine_segmentation(image, mask, labels, *sigmas, quirks=method.quirks)


def _is_one_colour(image: np.ndarray) -> bool:
    # The first row settles it for nearly all images.
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())
