"""Applying a model that was fitted on a set: pixels to margins on the device, margins to masks.

The public door is `unseg_jax.collective.model.CollectiveModel`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering import graphs
from unseg_jax.clustering.loop import cluster_batch
from unseg_jax.collective import scoring
from unseg_jax.collective.evidence import project
from unseg_jax.method import Method
from unseg_jax.parallel import How, map_batch
from unseg_jax.pipeline import PatchResult, segment_features
from unseg_jax.postprocess.margins import contrast, refine_margins, upsample_margins
from unseg_jax.segmenter import BatchSegmenter, Segmentation, not_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float

    from unseg_jax.backbones import Backbone
    from unseg_jax.clustering.head import Params
    from unseg_jax.collective.scoring import Scorer


UNLIKE_NOTE = "unlike the images that this model was fitted on; fit your own with unseg-jax fit."
UNLIKE_CONFIDENCE = 0.2
"""The most that the confidence of such an image is: below what reports call unsure."""


SMALL_NOTE = "what was found is small for so large an image; tile=1024 may find more."
# An image this many times as large as what the backbone sees of it, and the share of it that the
# box of the largest piece takes, for that note.
_LARGE, _SMALL = 4, 0.01


class MarginResult(NamedTuple):
    """What the device gives back for a batch.

    Attributes:
        margins: (B, h, w) float32, above 0 is foreground.
        losses: (B, epochs) float32 of the per-image epochs.
        finite: (B,) bool, False where features are not finite numbers.
        distances: (B,) float32, from the set that was fitted; see `scoring.distance`.
    """

    margins: Float[Array, "b h w"]
    losses: Float[Array, "b e"]
    finite: Bool[Array, " b"]
    distances: Float[Array, " b"]


class ModelSegmenter(BatchSegmenter):
    """Segments images with what was fitted on a set, instead of from fresh parameters."""

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        *,
        evidence: Scorer | None,
        params: Params | None,
        foreground: Sequence[bool],
        batch_size: int = 8,
        seed: int = 0,
        map: How | None = None,
        unlike: float | None = None,
    ):
        """
        Args:
            method: that was fitted, with the epochs of each image.
            backbone: that the features come from.
            evidence: the scorer; None for models of shared passes alone.
            params: of the graph neural network that per-image epochs start from; None if there
                are no such epochs.
            foreground: for each cluster of the network whether it is foreground; read only of
                models without `evidence`.
            batch_size, seed, map: see `BatchSegmenter`.
            unlike: distance from which on an image is unlike those that were fitted; None never
                says so.
        """
        super().__init__(method, backbone, batch_size=batch_size, seed=seed, map=map)
        self.evidence, self.params, self.foreground = evidence, params, tuple(foreground)
        self.unlike = unlike

    def _run_pixels(self, params, pixels, *, record_every=0):
        features = self._run_features(params, pixels)
        grid = self.grid_of(pixels.shape[1:])
        if self.evidence is not None:
            return self._run_evidence(self.evidence, features, grid)
        if self.method.foreground == "set":
            return self._run_shared(features, grid)
        return segment_features(
            features,
            self.key,
            method=self.method,
            grid=grid,
            params=self.params,
            record_every=record_every,
            map=self._map,
        )[0]

    def _run_evidence(self, scorer: Scorer, features, grid: tuple[int, int]) -> MarginResult:
        method = self.method
        margins = jax.vmap(lambda one: scoring.score(scorer, one, grid)[0])(features)
        losses = jnp.zeros((len(features), 0), jnp.float32)
        if method.epochs:
            nodes, cosines = project(features, scorer.projection)
            adjacency = map_batch(lambda one: graphs.affinity(one, method), cosines, self._map)
            mask = jnp.ones(nodes.shape[:2], bool)
            clustering = cluster_batch(
                nodes,
                adjacency,
                mask,
                self.params,
                self.key,
                method=method,
                grid=grid,
                map=self._map,
            )
            # The graph refines what the set decided: half of the say each.
            margins = 0.5 * (jnp.clip(margins, -1, 1) + 2 * clustering.assignments[..., 1] - 1)
            losses = clustering.losses
        finite = jnp.isfinite(features).all((1, 2)) & jnp.isfinite(margins).all(1)
        distances = jax.vmap(functools.partial(scoring.distance, scorer))(features)
        return MarginResult(margins.reshape(-1, *grid), losses, finite, distances)

    def _run_shared(self, features, grid: tuple[int, int]) -> PatchResult:
        """The set decides which clusters are foreground, not a vote in each image."""
        method = self.method
        mask = jnp.ones(features.shape[:2], bool)
        clustering = cluster_batch(
            features,
            None,
            mask,
            self.params,
            self.key,
            method=method,
            grid=grid,
            map=self._map,
        )
        numbers = np.where(self.foreground, np.cumsum(self.foreground), 0)
        labels = jnp.asarray(numbers, jnp.int32)[clustering.labels].reshape(-1, *grid)
        used = jax.nn.one_hot(clustering.labels, method.num_clusters, dtype=bool).any(1)
        top = jax.lax.top_k(clustering.assignments, min(2, method.num_clusters))[0]
        finite = jnp.isfinite(features).all((1, 2))
        return PatchResult(
            labels,
            labels > 0,
            used.sum(-1).astype(jnp.int32),
            clustering.losses,
            (top[..., 0] - top[..., -1]).mean(-1),
            finite & jnp.isfinite(clustering.assignments).all((1, 2)),
        )

    def finish(
        self,
        result: Any,
        index: int,
        image: np.ndarray,
        id: str = "",
        size: tuple[int, int] | None = None,
    ) -> Segmentation:
        """See `Segmenter.finish`."""
        if not isinstance(result, MarginResult):
            return super().finish(result, index, image, id, size)
        if not result.finite[index]:
            raise not_finite(id, self.backbone_name)
        margins = np.asarray(result.margins[index])
        refined = refine_margins(image, margins, self.method)
        mask = upsample_margins(refined, image.shape[:2])
        notes, most = unlike_note(self.unlike, float(result.distances[index]))
        found = Segmentation.of(
            mask,
            mask,
            size=size,
            num_clusters=len(np.unique(margins > 0)),
            confidence=min(contrast(refined), most),
            notes=notes,
            patch_labels=margins > 0,
            losses=result.losses[index],
            evidence=np.clip(refined, -1, 1),
            pixels=image,
            method=self.method.name,
            backbone=self.backbone_name,
            id=id,
        )
        if max(found.size) > _LARGE * max(self.method.size) and found.box is not None:
            left, top, right, bottom = found.box
            if (right - left) * (bottom - top) < _SMALL * found.size[0] * found.size[1]:
                found = dataclasses.replace(found, notes=(*found.notes, SMALL_NOTE))
        return found


def unlike_note(limit: float | None, distance: float) -> tuple[tuple[str, ...], float]:
    """What is said of an image at that distance from those fitted, and the most that its
    confidence is."""
    if limit is None or distance <= limit:
        return (), 1.0
    return (UNLIKE_NOTE,), UNLIKE_CONFIDENCE
