"""From pixels to voted labels as pure functions: what the device does, and nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from unseg_jax.backbones import Backbone
from unseg_jax.batching import Batching
from unseg_jax.clustering.loop import cluster_batch
from unseg_jax.method import Method, check_clusters, override
from unseg_jax.postprocess import foreground_labels

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Published strides are stated for patches of this many pixels.
_PUBLISHED_PATCH = 8


class PatchResult(NamedTuple):
    """What the device gives back for a batch; (h, w) is the grid that labels live on.

    Attributes:
        labels: (B, h, w) int32 after the foreground vote, 0 = background.
        foreground: (B, h, w) bool.
        num_clusters: (B,) int32 clusters in use.
        losses: (B, epochs) float32.
        confidence: (B,) float32 in 0..1.
        finite: (B,) bool; False where features or assignments are not finite numbers.
        history: (B, records, h, w) int32 voted labels at recorded epochs, or None.
        clarity: (B, h, w) float32 in 0..1, the margin between the two likeliest clusters of each
            cell, or None.
    """

    labels: Int[Array, "b h w"]
    foreground: Bool[Array, "b h w"]
    num_clusters: Int[Array, " b"]
    losses: Float[Array, "b e"]
    confidence: Float[Array, " b"]
    finite: Bool[Array, " b"]
    history: Int[Array, "b r h w"] | None = None
    clarity: Float[Array, "b h w"] | None = None


def fit_to_backbone(method: Method, backbone: Backbone, explicit: Iterable[str] = ()) -> Method:
    """The method with its stride made to fit the backbone, unless stride is among `explicit`.

    Published strides are stated for patches of 8 pixels: half a patch (4) stays half a patch.

    Raises:
        ValueError: the backbone cannot take the stride, or makes fewer patches than clusters.
    """
    strides = backbone.strides
    if not (method.stride is None or "stride" in explicit or method.stride in strides):
        scaled = method.stride * backbone.config.patch_size / _PUBLISHED_PATCH
        fitting = max((stride for stride in strides if stride <= scaled), default=strides[0])
        method = override(method, stride=fitting)
    check_clusters(method, math.prod(backbone.grid(method.size, method.stride)))
    return method


def extract_features(backbone: Backbone, method: Method, params: Any, pixels: Array) -> Array:
    """(B, N, D) float32 features of a batch of pixels (B, H, W, 3), as the method wants them."""
    return backbone.features(
        params,
        pixels,
        facet=method.facet,
        block=method.block,
        stride=method.stride,
        log_bin=method.log_bin,
    )


def segment_features(
    features: Float[Array, "b n d"],
    key: Array,
    *,
    method: Method,
    grid: tuple[int, int],
    adjacency: Float[Array, "b n n"] | None = None,
    mask: Bool[Array, "b n"] | None = None,
    index_map: Int[Array, "b h w"] | None = None,
    class_attention: Float[Array, "b n"] | None = None,
    params: Any = None,
    record_every: int = 0,
    batching: Batching | None = None,
) -> tuple[PatchResult, Any]:
    """From features to voted labels: a pure function.

    Jit it with `method`, `grid`, `record_every` and `batching` static.

    Args:
        features: (B, N, D).
        key: of initial parameters and dropout.
        method: static.
        grid: (h, w) that labels live on; N = h·w unless `index_map` is given.
        adjacency, mask: (B, N, N), (B, N) where nodes are not patches.
        index_map: (B, h, w) the node of each cell; None where nodes are the cells.
        class_attention: (B, N), for the rules that read it.
        params: start of the heads (shared, or with a batch axis).
        record_every: see `cluster`.
        batching: "vmap" or "loop"; None as in `unseg_jax.batching.map_batch`.

    Returns:
        The `PatchResult`, and the optimised parameters with a leading batch axis.
    """
    if mask is None:
        mask = jnp.ones(features.shape[:2], bool)
    patch_grid = grid if index_map is None else None
    clustering = cluster_batch(
        features,
        adjacency,
        mask,
        params,
        key,
        method=method,
        record_every=record_every,
        grid=patch_grid,
        batching=batching,
    )

    def spread(labels, index_map):
        return labels.reshape(grid) if index_map is None else labels[index_map]

    def vote(labels, index_map, attention):
        if method.foreground == "own":
            return spread(labels, index_map)
        return foreground_labels(
            spread(labels, index_map),
            method.num_clusters,
            method.foreground,
            class_attention=None if attention is None else spread(attention, index_map),
        )

    voted = jax.vmap(vote)(clustering.labels, index_map, class_attention)
    used = jax.nn.one_hot(clustering.labels, method.num_clusters, dtype=bool) & mask[..., None]
    num_clusters = used.any(1).sum(-1).astype(jnp.int32)
    finite = jnp.isfinite(features).all((1, 2)) & jnp.isfinite(clustering.assignments).all((1, 2))
    foreground = voted > 0
    if method.parts:
        voted, num_clusters = _split(features, voted, key, method, grid, patch_grid, batching)
    history = None
    if record_every:
        over_time = jax.vmap(jax.vmap(vote, (0, None, None)))
        history = over_time(clustering.history, index_map, class_attention)
    margins = _margins(clustering.assignments)
    confidence = jnp.where(mask, margins, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)
    clarity = jax.vmap(spread)(margins, index_map)
    result = PatchResult(
        voted, foreground, num_clusters, clustering.losses, confidence, finite, history, clarity
    )
    return result, clustering.params


def _split(features, voted, key, method, grid, patch_grid, batching):
    """DeepCut's second stage: foreground, and if asked background, are cut again on their own.

    The sub-graphs are masks on the same nodes, so every image has the same shapes.
    """
    labels = jnp.where(voted > 0, 1, 0).reshape(features.shape[:2])

    def stage(part, clusters, epochs, first):
        inner = override(method, num_clusters=clusters, epochs=epochs, parts=0, background_parts=0)
        mask = labels == part
        clustering = cluster_batch(
            features, None, mask, None, key, method=inner, grid=patch_grid, batching=batching
        )
        ranked = jax.vmap(functools.partial(_rank, count=clusters))(clustering.labels, mask)
        return jnp.where(mask, first + ranked, 0)

    result = stage(1, method.parts, method.parts_epochs, 1)
    if method.background_parts:
        cut = stage(0, method.background_parts, method.background_epochs, method.parts)
        # The largest part of the background keeps the number 0.
        result += jnp.where(cut > method.parts, cut, 0)
    count = method.parts + max(method.background_parts, 1)
    used = jax.nn.one_hot(result, count, dtype=bool).any(1)
    return result.reshape(-1, *grid), used.sum(-1).astype(jnp.int32)


def _rank(labels, mask, count):
    """Labels renumbered by descending size, counted over the mask."""
    sizes = jnp.sum(jax.nn.one_hot(labels, count, dtype=jnp.int32) * mask[:, None], 0)
    order = jnp.argsort(-sizes, stable=True)
    return jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))[labels]


def _margins(assignments):
    """(B, N) margin between the two likeliest clusters of each node; 1 where there is one."""
    if assignments.shape[-1] == 1:
        return jnp.ones(assignments.shape[:2], jnp.float32)
    top = jax.lax.top_k(assignments, 2)[0]
    return top[..., 0] - top[..., 1]


def segment_pixels(
    backbone: Backbone,
    method: Method,
    params: Any,
    pixels: Array,
    key: Array,
    record_every: int = 0,
    batching: Batching | None = None,
    features: Float[Array, "b n d"] | None = None,
) -> tuple[PatchResult, Any]:
    """From pixels to voted labels: the backbone's features, then `segment_features`.

    Args:
        backbone, method: static.
        params: weights of the backbone.
        pixels: (B, H, W, 3), uint8 or float in [0, 1].
        key: of initial parameters and dropout.
        record_every, batching: see `segment_features`, static.
        features: those of the pixels, where they are known.
    """
    if features is None:
        features = extract_features(backbone, method, params, pixels)
    attention = None
    if method.foreground in ("attention", "auto"):
        attention = backbone.class_attention(params, pixels, stride=method.stride)
    grid = backbone.grid((pixels.shape[1], pixels.shape[2]), method.stride)
    return segment_features(
        features,
        key,
        method=method,
        grid=grid,
        class_attention=attention,
        record_every=record_every,
        batching=batching,
    )
