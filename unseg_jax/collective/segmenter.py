"""Applying a model that was fitted on a set: pixels to margins on the device, margins to masks.

The public entry point is `unseg_jax.collective.model.CollectiveModel`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones.grids import pool
from unseg_jax.batching import map_batch
from unseg_jax.clustering import graphs
from unseg_jax.clustering.loop import cluster_batch
from unseg_jax.collective import confidence, set_scorer
from unseg_jax.collective.cues import project
from unseg_jax.collective.equations import read_patches
from unseg_jax.collective.self_teaching import rows_of, teach_itself
from unseg_jax.collective.spreading import spread
from unseg_jax.collective.steering import steer
from unseg_jax.method import Method
from unseg_jax.pipeline import PatchResult, segment_features
from unseg_jax.postprocess.device_refining import refine_batch
from unseg_jax.postprocess.margins import refine_margins, upsample_margins
from unseg_jax.postprocess.objects import MIN_AREA, several_small
from unseg_jax.segmentation import Segmentation
from unseg_jax.segmenter import Work
from unseg_jax.segmenter.finishing import not_finite

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from unseg_jax.clustering.head import Params
    from unseg_jax.collective.self_teaching import Held
    from unseg_jax.collective.set_scorer import Scorer
    from unseg_jax.collective.steering import Steering


SMALL_NOTE = "what was found is small for so large an image; tile=1024 may find more."
# An image this many times as large as what the backbone sees of it, and the share of it that the
# box of the largest piece takes, from which on it is worth a closer look.
_LARGE, _SMALL = 4, 0.01


class Fitted(NamedTuple):
    """What was fitted on a set, as the device takes it.

    Attributes:
        scorer: None for models of shared passes alone.
        head: of the graph neural network that per-image epochs start from; None if there are no
            such epochs.
        numbers: (K,) the label of each cluster of the head, 0 = background; read only of models
            without a scorer.
        steering: of the scorer; None without examples.
        second: the scorer that ships, whose confidence counts beside that of a fit; None for
            others.
        held: what an image is held to that teaches itself; None where none does.
    """

    scorer: Scorer | None
    head: Params | None
    numbers: Int[Array, " k"]
    steering: Steering | None = None
    second: Scorer | None = None
    held: Held | None = None


class MarginResult(NamedTuple):
    """What the device gives back for a batch.

    Attributes:
        margins: (B, h, w) float32, above 0 is foreground; of an image seen at two sizes on a grid
            with twice as many rows and columns.
        losses: (B, epochs) float32 of the per-image epochs.
        finite: (B,) bool, False where features are not finite numbers.
        confidence: (B,) float32, see `unseg_jax.collective.confidence`.
        refined: (B, 256, 256) float32, the margins with their edges moved to the image's; None
            where the host does that.
    """

    margins: Float[Array, "b h w"]
    losses: Float[Array, "b e"]
    finite: Bool[Array, " b"]
    confidence: Float[Array, " b"]
    refined: Float[Array, "b s s"] | None = None


def apply_continued(method, how, key, fitted, features, grid, record_every) -> PatchResult:
    """Each image goes on from the shared head, and votes by itself; see `device.Apply`."""
    return segment_features(
        features,
        key,
        method=method,
        grid=grid,
        params=fitted.head,
        record_every=record_every,
        batching=how,
    )[0]


def apply_shared(method, how, key, fitted, features, grid, record_every) -> PatchResult:
    """The set decides which clusters are foreground, not a vote in each image."""
    mask = jnp.ones(features.shape[:2], bool)
    clustering = cluster_batch(
        features, None, mask, fitted.head, key, method=method, grid=grid, batching=how
    )
    labels = fitted.numbers[clustering.labels].reshape(-1, *grid)
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


# A function for each kind of model, since a program computes only what its confidence weighs.


def apply_fitted(*given) -> MarginResult:
    """The scorer of a set that was fitted; see `device.Apply`."""
    return _apply_scorer(confidence.FITTED, *given)


def apply_shipped(*given) -> MarginResult:
    """That of the model that ships."""
    return _apply_scorer(confidence.SHIPPED, *given)


def apply_steered(*given) -> MarginResult:
    """One that examples steer."""
    return _apply_scorer(None, *given)


def _apply_scorer(
    weights: confidence.Weights | None, method, how, key, fitted, features, grid, record_every
) -> MarginResult:
    """The scorer of the set, and where there are epochs the graph of the image; `weights` of its
    confidence are None where examples steer it."""
    scorer = fitted.scorer
    if weights is None:
        sure = functools.partial(
            confidence.estimate_steered, scorer, fitted.steering.quality, grid=grid
        )
    else:
        sure = functools.partial(confidence.estimate, weights, scorer, grid=grid)

    def find(one):
        """The margins of an image, and those that its confidence judges."""
        if fitted.steering is not None:
            found = steer(scorer, fitted.steering, one, grid, method.scales, fitted.held)
        elif fitted.held is not None:
            patches = read_patches(scorer, one, grid, method.scales)
            found = teach_itself(patches.prior, patches.columns, fitted.held)
            return spread(found, rows_of(patches.columns, fitted.held)), patches.prior
        elif method.scales > 1:
            found = set_scorer.score_closer(scorer, one, grid)
        else:
            found = set_scorer.score(scorer, one, grid)[0]
        return found, found

    def judge(one, judged, margins):
        """The chance that the mask of these margins is right."""
        before = judged
        if method.scales > 1:
            one, judged = one[:, : len(scorer.mean)], pool(judged, grid)
        chance = sure(one, judged)
        if fitted.held is not None and fitted.steering is None:
            chance = confidence.after_change(chance, before, margins)
        if fitted.second is not None:
            chance = confidence.second_opinion(chance, fitted.second, one, grid)
        return chance

    def find_and_judge(one):
        margins, judged = find(one)
        # In one program for each image, so that XLA computes scores once.
        return margins, judge(one, judged, margins)

    losses = jnp.zeros((len(features), 0), jnp.float32)
    if method.epochs:
        margins, _ = map_batch(find, features, how)
        nodes, cosines = project(features, scorer.projection)
        adjacency = map_batch(lambda one: graphs.affinity(one, method), cosines, how)
        mask = jnp.ones(nodes.shape[:2], bool)
        clustering = cluster_batch(
            nodes, adjacency, mask, fitted.head, key, method=method, grid=grid, batching=how
        )
        # The graph refines what the set decided, with equal weight.
        margins = 0.5 * (jnp.clip(margins, -1, 1) + 2 * clustering.assignments[..., 1] - 1)
        chances = map_batch(lambda given: judge(*given), (features, margins, margins), how)
        losses = clustering.losses
    else:
        margins, chances = map_batch(find_and_judge, features, how)
    finite = jnp.isfinite(features).all((1, 2)) & jnp.isfinite(margins).all(1)
    shape = (-1, *(method.scales * side for side in grid))
    return MarginResult(margins.reshape(shape), losses, finite, chances)


def refine_result(pixels, result: MarginResult) -> MarginResult:
    """The result with its edges refined on the device; see `Work.refine`."""
    return result._replace(refined=refine_batch(pixels, result.margins))


def finish_margins(
    method: Method,
    backbone: str,
    result: Any,
    index: int,
    image: np.ndarray,
    id: str,
    size: tuple[int, int] | None,
    closer: bool = True,
) -> Segmentation:
    """Margins as a segmentation; see `BatchSegmenter.finish`.

    Args:
        closer: whether the model can be applied to tiles, and at two sizes as well as at one.
    """
    if not result.finite[index]:
        raise not_finite(id, backbone)
    margins = np.asarray(result.margins[index])
    if result.refined is None or not (margins > 0).any():
        refined = refine_margins(image, margins, method)
    else:
        refined = np.asarray(result.refined[index])
    mask = upsample_margins(refined, image.shape[:2])
    found = Segmentation.of(
        mask,
        mask,
        size=size,
        num_clusters=len(np.unique(margins > 0)),
        confidence=float(result.confidence[index]) if 0 < mask.sum() < mask.size else 0.0,
        patch_labels=margins > 0,
        losses=result.losses[index],
        evidence=np.clip(refined, -1, 1),
        pixels=image,
        # A speck is one of a patch, and at twice the size of a quarter of it.
        min_area=MIN_AREA / method.scales**2,
        method=method.name,
        backbone=backbone,
        id=id,
    )
    if closer and max(found.size) > _LARGE * max(method.size):
        # What is a speck in the whole image may be an object of a tile.
        box = dataclasses.replace(found, min_area=0.0).box
        limit = _SMALL * found.size[0] * found.size[1]
        if box is not None and (box[2] - box[0]) * (box[3] - box[1]) < limit:
            notes = (*found.notes, SMALL_NOTE)
            return dataclasses.replace(found, notes=notes, look_closer="tiles")
    twice = closer and method.scales == 1 and method.takes_scales
    if twice and several_small(refined > 0, found.size):
        return dataclasses.replace(found, look_closer="scales")
    return found


SCORED = Work(apply_fitted, finish_margins, refine=refine_result)
STEERED = SCORED._replace(
    apply=apply_steered, finish=functools.partial(finish_margins, closer=False)
)
SHARED, CONTINUED = Work(apply_shared), Work(apply_continued)
