"""Applying a model that was fitted on a set: pixels to margins on the device, margins to masks.

The public door is `unseg_jax.collective.CollectiveModel`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax import evidence, graphs
from unseg_jax.clustering import cluster_batch
from unseg_jax.data.images import ImageError, resize_image
from unseg_jax.methods import Method
from unseg_jax.postprocess import object_box
from unseg_jax.segmenter import PatchResult, Segmentation, Segmenter, segment_features

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from unseg_jax import collective

# Side in pixels that edges are refined at: the window of the guided filter is in these pixels.
_REFINE_SIDE = 256


class MarginResult(NamedTuple):
    """What the device gives back for a batch.

    Attributes:
        margins: (B, h, w) float32, above 0 is foreground.
        losses: (B, epochs) float32 of the per-image epochs.
        finite: (B,) bool, False where features are not finite numbers.
    """

    margins: Float[Array, "b h w"]
    losses: Float[Array, "b e"]
    finite: Bool[Array, " b"]


class ModelSegmenter(Segmenter):
    """A `Segmenter` that starts from a model instead of from fresh parameters."""

    def __init__(self, model: collective.CollectiveModel, method: Method):
        super().__init__(
            dataclasses.replace(method, foreground="corner"),
            backbone=model.backbone,
            batch_size=model.batch_size,
            seed=model.seed,
            stride=method.stride,
        )
        self.model = model
        self.method = method

    def _run_pixels(self, params, pixels, *, every=0):
        features = self._run_features(params, pixels)
        if self.model.evidence is not None:
            return _run_evidence(self.model, self.method, features, self.grid, self.key)
        return _run_shared(self.model, self.method, features, self.grid, self.key, every)

    def finish(self, result: Any, index: int, image: np.ndarray, id: str = "") -> Segmentation:
        """See `Segmenter.finish`."""
        if not isinstance(result, MarginResult):
            return super().finish(result, index, image, id)
        if not result.finite[index]:
            raise ImageError(
                f"{id or 'the image'}: its features are not finite numbers; check the weights of "
                f"backbone '{self.backbone_name}', or use dtype='float32'."
            )
        margins = np.asarray(result.margins[index])
        refined = refine_margins(image, margins, self.method)
        mask = upsample_margins(refined, image.shape[:2])
        losses = np.asarray(result.losses[index])
        return Segmentation(
            mask=mask,
            labels=mask.astype(np.int32),
            box=object_box(mask),
            num_clusters=len(np.unique(margins > 0)),
            loss=float(losses[-1]) if losses.size else float("nan"),
            confidence=contrast(refined),
            patch_labels=(margins > 0).astype(np.int32),
            losses=losses,
            method=self.method.name,
            backbone=self.backbone_name,
            id=id,
        )


def _run_evidence(model, method, features, grid, key) -> MarginResult:
    margins, _, _ = jax.vmap(functools.partial(evidence.score, model.evidence))(features)
    losses = jnp.zeros((len(features), 0))
    if method.epochs:
        nodes, cosines = evidence.project(features, model.evidence.projection)
        adjacency = jax.lax.map(lambda one: graphs.affinity(one, method), cosines)
        mask = jnp.ones(nodes.shape[:2], bool)
        found = cluster_batch(nodes, adjacency, mask, model.head, key, method=method, grid=grid)
        # The graph refines what the set decided: half of the say each.
        margins = 0.5 * (jnp.clip(margins, -1, 1) + 2 * found.assignments[..., 1] - 1)
        losses = found.losses
    finite = jnp.isfinite(features).all((1, 2))
    return MarginResult(margins.reshape(-1, *grid), losses, finite)


def _run_shared(model, method, features, grid, key, every):
    decided = method.foreground == "set"
    method = dataclasses.replace(method, foreground="corner")
    if not decided:
        return segment_features(
            features, key, method=method, grid=grid, params=model.head, every=every
        )[0]
    mask = jnp.ones(features.shape[:2], bool)
    found = cluster_batch(features, None, mask, model.head, key, method=method, grid=grid)
    chosen = [entry["found"] == "foreground" for entry in model.foreground]
    numbers = jnp.asarray(np.where(chosen, np.cumsum(chosen), 0), jnp.int32)
    labels = numbers[found.labels].reshape(-1, *grid)
    used = jax.nn.one_hot(found.labels, method.num_clusters, dtype=bool).any(1)
    top = jax.lax.top_k(found.assignments, min(2, method.num_clusters))[0]
    return PatchResult(
        labels,
        labels > 0,
        used.sum(-1).astype(jnp.int32),
        found.losses,
        (top[..., 0] - top[..., -1]).mean(-1),
        jnp.isfinite(features).all((1, 2)) & jnp.isfinite(found.assignments).all((1, 2)),
    )


def refine_margins(image: np.ndarray, margins: np.ndarray, method: Method) -> np.ndarray:
    """Margins on patches, clipped to ±1, with their edges moved to the image's.

    Args:
        image: (H, W, 3) uint8.
        margins: (h, w) float32, above 0 is foreground.
        method: its `refine` is read: "guided" is the guided filter at 256×256, "bilateral" the
            bilateral solver there with the method's sigmas; "none" leaves the margins on patches.

    Returns:
        (256, 256) float32, or (h, w) where there is nothing to refine; above 0 is foreground.
    """
    from unseg_jax.postprocess.bilateral import refine
    from unseg_jax.postprocess.guided import guided_filter

    margins = np.clip(margins, -1, 1)
    if method.refine == "none" or not (margins > 0).any():
        return margins
    side = (_REFINE_SIDE, _REFINE_SIDE)
    small, soft = resize_image(image, side), _interpolate(margins, side)
    if method.refine == "guided":
        return guided_filter(small, soft)
    sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
    solved, _ = refine(small, (soft + 1) / 2, *sigmas)
    return (2 * solved - 1).astype(np.float32)


def upsample_margins(margins: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: where margins (h, w), interpolated bilinearly, are above 0."""
    return _interpolate(margins, size) > 0


def contrast(margins: np.ndarray) -> float:
    """How clearly margins tell the object from the rest, 0..1: half the difference of their means
    inside and outside of it, clipped to ±1; 0 where all are on one side."""
    margins = np.clip(margins, -1, 1)
    inside = margins > 0
    if inside.all() or not inside.any():
        return 0.0
    return float(margins[inside].mean() - margins[~inside].mean()) / 2


def _interpolate(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear, to (height, width)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
