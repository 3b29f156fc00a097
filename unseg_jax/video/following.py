"""Video: frames in turn, so that parts keep their labels and colours.

Each frame continues from the weights of the frame before (Aflalo et al., DeepCut, ICCV 2023), and
its assignments are blended with those of the frame before, which follow the features.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones import Backbone
from unseg_jax.batching import Batching
from unseg_jax.clustering.graphs import build_graph, normalise_rows
from unseg_jax.clustering.head import init_head
from unseg_jax.clustering.loop import cluster_graph, init_key
from unseg_jax.data.decoding import Source
from unseg_jax.errors import ImageError
from unseg_jax.export import drawing
from unseg_jax.method import Method, override
from unseg_jax.postprocess import foreground_labels, refine_labels, upsample_labels
from unseg_jax.registry import refuse_sets, resolve
from unseg_jax.segmenter import BatchSegmenter, load_for
from unseg_jax.video.frames import Frames, check_target, open_frames, write_frames

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# A patch takes up the assignments of patches up to this many rows and columns away in the frame
# before, weighted by the softmax of their cosines over this temperature.
_REACH, _TEMPERATURE = 3, 0.05

STEADY = 0.9
"""Cosine of a patch's features in two consecutive frames above which it hardly changed."""


@dataclasses.dataclass(frozen=True, eq=False)
class VideoReport:
    """What was found in a video.

    Flicker is the share of patches whose label changes from one frame to the next though their
    feature hardly does (cosine above 0.9), of all whose feature hardly does; NaN if none.

    Attributes:
        labels: (T, h, w) int32 on the grid of patches; 0 = background, 1.. = parts by descending
            size over the whole video. A part has one number throughout.
        flicker: of `labels`.
        fresh_flicker: of the same frames segmented each on its own, as `Segmenter` would; NaN if
            not compared.
        matched_flicker: of those after the labels of each frame were permuted to agree best with
            the frame before, the most that renumbering alone can do.
        steady: share of patches whose feature hardly changes.
        frames: T.
        seconds: wall time, compilation and the comparison included.
        method, backbone: names of what was used.
        out: where the video was written, or None.
    """

    labels: Int[np.ndarray, "t h w"]
    flicker: float
    fresh_flicker: float
    matched_flicker: float
    steady: float
    frames: int
    seconds: float
    method: str
    backbone: str
    out: Path | None = None


def segment_video(
    source: str | os.PathLike | Iterable[Source],
    out: str | os.PathLike | None = None,
    *,
    method: str | Method = "deepcut",
    num_clusters: int | None = None,
    first_epochs: int | None = None,
    memory: float = 0.9,
    compare: bool = True,
    rate: float | None = None,
    opacity: float = 0.45,
    overwrite: bool = False,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    seed: int = 0,
    dtype: str = "auto",
    batching: Batching | None = None,
    **overrides: Any,
) -> VideoReport:
    """Segments a video into parts that keep their labels.

    Args:
        source: a film, an animated GIF or WebP, a folder of frames, or an iterable of images;
            see `unseg_jax.video.frames.open_frames`.
        out: where to draw the parts over the frames: .gif, .webp, .apng, a film (.mp4, …) or,
            without suffix, a folder of PNG files; None draws nothing.
        method: name or `Method` with a graph neural network on patches.
        num_clusters: K; None is the method's.
        first_epochs: optimisation steps on the first frame, before all others continue from it;
            None is the method's epochs, ten times as many for more than two clusters, whose
            labels wander while the loss still falls.
        memory: weight, in [0, 1), of what the patches of the frame before were assigned to, as
            carried along by likeness of features, against what the frame itself says. 0 is the
            published way, which carries weights alone; labels then often flicker more than those
            of frames segmented on their own.
        compare: also segment every frame on its own, to say how much it flickers.
        rate: frames a second of `out`; None is that of the source.
        opacity: how much of the parts' colours the drawing has, 0 to 1.
        overwrite: whether `out` may replace what is there.
        backbone, batch_size, seed, dtype, batching: see `Segmenter`.
        **overrides: fields of `Method`.

    Raises:
        ValueError: a method without weights to carry from frame to frame, or without patches.
        ImageError: no frames, or one that cannot be decoded.
        ImportError: a film, without the extra `video`.
        InputError: writing to `out` would replace the source, or something else that is there.
    """
    start = time.perf_counter()
    if out is not None:
        check_target(source, out, overwrite=overwrite)
    frames = open_frames(source)
    resolved = resolve(method, num_clusters=num_clusters, **overrides)
    refuse_sets(resolved)
    fitted, loaded = load_for(resolved, backbone, dtype=dtype, explicit=overrides)
    segmenter = BatchSegmenter(fitted, loaded, batch_size, seed, batching)
    _check(segmenter.method)
    if not 0 <= memory < 1:
        raise ValueError(f"memory={memory} must lie in [0, 1).")
    if first_epochs is None:
        few = segmenter.method.num_clusters <= 2
        first_epochs = segmenter.method.epochs * (1 if few else 10)
    first = override(segmenter.method, epochs=first_epochs)
    found = _follow(frames, segmenter, first, memory, compare)
    labels = _numbered(found, segmenter.method)
    report = VideoReport(
        labels=labels,
        flicker=flicker(labels, found.steady),
        fresh_flicker=flicker(found.fresh, found.steady) if compare else float("nan"),
        matched_flicker=flicker(matched(found.fresh), found.steady) if compare else float("nan"),
        steady=float(found.steady[1:].mean()) if len(labels) > 1 else float("nan"),
        frames=len(labels),
        seconds=0.0,
        method=segmenter.method.name,
        backbone=segmenter.backbone_name,
        out=None if out is None else Path(out),
    )
    if out is not None:
        drawn = _drawn(frames, labels, segmenter.method, opacity)
        write_frames(out, drawn, rate or frames.rate)
    return dataclasses.replace(report, seconds=time.perf_counter() - start)


def flicker(labels: Int[np.ndarray, "t h w"], steady: Bool[np.ndarray, "t h w"]) -> float:
    """Share of steady patches whose label differs from that in the frame before; NaN if none is.

    Args:
        labels: (T, h, w) integers.
        steady: (T, h, w) bool, whether the feature hardly changed since the frame before; the
            first frame's is not read.
    """
    changed = labels[1:] != labels[:-1]
    count = steady[1:].sum()
    return float((changed & steady[1:]).sum() / count) if count else float("nan")


def matched(labels: Int[np.ndarray, "t h w"]) -> Int[np.ndarray, "t h w"]:
    """Permutes the labels of each frame so that most patches keep that of the frame before."""
    from scipy.optimize import linear_sum_assignment

    count = int(labels.max(initial=0)) + 1
    result = labels.copy()
    for before, frame in itertools.pairwise(result):
        overlap = np.zeros((count, count), np.int64)
        np.add.at(overlap, (frame.ravel(), before.ravel()), 1)
        frame[:] = linear_sum_assignment(overlap, maximize=True)[1][frame]
    return result


@dataclasses.dataclass(frozen=True)
class _Found:
    """(T, h, w) arrays: clusters, which of them each frame's own vote calls background, steady
    patches, and the labels of frames segmented on their own."""

    clusters: np.ndarray
    background: np.ndarray
    steady: np.ndarray
    fresh: np.ndarray


def _follow(
    frames: Frames, segmenter: BatchSegmenter, first: Method, memory: float, compare: bool
) -> _Found:
    method, backbone = segmenter.method, segmenter.backbone
    assert backbone is not None
    state: Any = None
    rows: list[tuple[Array, ...]] = []
    counts = []
    for pixels, count in _chunks(frames, segmenter):
        features = segmenter.features(pixels)
        attention = None
        if method.foreground in ("attention", "auto"):
            attention = _attention(backbone, method)(backbone.params, pixels)
        grid = segmenter.grid_of(pixels.shape[1:])
        if state is None:
            state = _first_state(features[0], segmenter.key, method=first, grid=grid)
        state, *row = _follow_chunk(
            features,
            state,
            attention,
            segmenter.key,
            jnp.float32(memory),
            method=method,
            grid=grid,
        )
        if compare:
            row.append(segmenter.assign(features, class_attention=attention)[0].labels)
        rows.append(tuple(row))
        counts.append(count)
    if not rows:
        raise ImageError("the video has no frames: name one that holds some.")
    # Fetched at the end, so that the host decodes while the device works.
    host = jax.device_get(rows)
    fields = [
        np.concatenate([row[index][:count] for row, count in zip(host, counts, strict=True)])
        for index in range(len(host[0]))
    ]
    clusters, background, steady, fresh = (*fields, fields[0])[:4]
    return _Found(clusters, background, steady, fresh)


@functools.partial(jax.jit, static_argnames=("method", "grid"))
def _first_state(frame: Float[Array, "n d"], key: Array, *, method: Method, grid: tuple[int, int]):
    """Weights, unit features and assignments after the first frame."""
    params = init_head(init_key(key), method, frame.shape[-1])
    found = cluster_graph(build_graph(frame, method, grid=grid), params, key, method=method)
    return found.params, normalise_rows(frame), found.assignments


@functools.partial(jax.jit, static_argnames=("method", "grid"))
def _follow_chunk(
    features: Float[Array, "t n d"],
    state: tuple[Any, Float[Array, "n d"], Float[Array, "n k"]],
    class_attention: Float[Array, "t n"] | None,
    key: Array,
    memory: Float[Array, ""],
    *,
    method: Method,
    grid: tuple[int, int],
):
    """Clusters frames in turn from the state (weights, unit features, assignments) of the last.

    Returns the state after the last frame, and of each frame the (T, h, w) clusters, whether
    they are background by the frame's own vote, and whether the feature hardly changed.
    """
    near = _window(grid, _REACH)

    def step(state, frame):
        params, unit_before, before = state
        found = cluster_graph(build_graph(frame, method, grid=grid), params, key, method=method)
        unit = normalise_rows(frame)
        cosines = jnp.where(near, unit @ unit_before.T, -jnp.inf)
        carried = jax.nn.softmax(cosines / _TEMPERATURE, -1) @ before
        assignments = (1 - memory) * found.assignments + memory * carried
        clusters = jnp.argmax(assignments, -1).astype(jnp.int32).reshape(grid)
        steady = (jnp.sum(unit * unit_before, -1) > STEADY).reshape(grid)
        return (found.params, unit, assignments), (clusters, steady)

    def vote(clusters, attention):
        voted = foreground_labels(
            clusters,
            method.num_clusters,
            method.foreground,
            class_attention=None if attention is None else attention.reshape(grid),
        )
        return voted == 0

    state, (clusters, steady) = jax.lax.scan(step, state, features)
    return state, clusters, jax.vmap(vote)(clusters, class_attention), steady


def _window(grid: tuple[int, int], reach: int) -> Bool[Array, "n n"]:
    """Which patches are within so many rows and columns of which."""
    rows, columns = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    return (abs(rows[:, None] - rows) <= reach) & (abs(columns[:, None] - columns) <= reach)


@functools.lru_cache(maxsize=4)
def _attention(backbone, method):
    return jax.jit(functools.partial(backbone.class_attention, stride=method.stride))


def _chunks(frames: Frames, segmenter: BatchSegmenter) -> Iterator[tuple[np.ndarray, int]]:
    """Prepared frames (batch_size, h, w, 3), and how many are real: the last chunk is filled up
    with its last frame, so that one program serves all."""
    chunk = []
    for frame in frames:
        chunk.append(segmenter.prepare(frame))
        if len(chunk) == segmenter.batch_size:
            yield np.stack(chunk), len(chunk)
            chunk = []
    if chunk:
        filled = chunk + [chunk[-1]] * (segmenter.batch_size - len(chunk))
        yield np.stack(filled), len(chunk)


def _numbered(found: _Found, method: Method) -> Int[np.ndarray, "t h w"]:
    """One numbering for the whole video: clusters that the frames' votes call background more
    often than not become 0, the others 1.. by descending size."""
    clusters, count = found.clusters, method.num_clusters
    sizes = np.bincount(clusters.ravel(), minlength=count)
    votes = np.bincount(clusters.ravel(), weights=found.background.ravel(), minlength=count)
    share = votes / np.maximum(sizes, 1)
    background = share > 0.5
    if not background.any():
        background[np.argmax(share)] = True
    order = np.argsort(np.where(background, np.inf, -sizes), kind="stable")
    numbers = np.empty(count, np.int32)
    numbers[order] = np.arange(1, count + 1)
    return np.where(background, 0, numbers)[clusters].astype(np.int32)


def _drawn(frames: Frames, labels, method: Method, opacity: float) -> Iterator[np.ndarray]:
    sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
    for frame, patches in zip(frames, labels, strict=True):
        full = upsample_labels(patches, frame.shape[:2])
        if method.refine == "bilateral":
            full = refine_labels(frame, full, *sigmas)
        yield drawing.overlay(frame, full, opacity, dim=0)


def _check(method: Method) -> None:
    if method.nodes != "patches" or method.algorithm != "gnn":
        raise ValueError(
            f"'{method.name}' has no weights that one frame could hand to the next: "
            "use a method with a graph neural network on patches, such as deepcut."
        )
    if method.parts:
        raise ValueError(
            "parts= cuts the object of one image in a second stage: "
            "for a video pass num_clusters= instead."
        )
