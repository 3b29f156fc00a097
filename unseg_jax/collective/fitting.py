"""Fitting a model on a set: features read batch by batch, the evidence, the shared passes.

The public entry point is `fit`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones import Backbone
from unseg_jax.batching import Batching
from unseg_jax.clustering.loop import cluster_batch, dropout_seeds, key_from_seed
from unseg_jax.collective import shared_head
from unseg_jax.collective.agreeing import taught_by_set
from unseg_jax.collective.black_frames import SET_SIZE, share_framed
from unseg_jax.collective.cues import neighbours, project
from unseg_jax.collective.marks import read_marks
from unseg_jax.collective.model import CollectiveModel
from unseg_jax.collective.set_reader import SetReader
from unseg_jax.collective.set_scorer import fit_scorer, score
from unseg_jax.collective.shipped import load_shipped
from unseg_jax.collective.shipped_scorer import is_of_shipped
from unseg_jax.collective.steering import (
    Steering,
    fit_steering,
    to_be_taught,
    with_earlier_blocks,
)
from unseg_jax.collective.words import LOOK_FOR, MAX_LOOKED_AT, fit_word
from unseg_jax.data.decoding import as_iterable
from unseg_jax.data.folders import find_images
from unseg_jax.data.reading_options import Reading
from unseg_jax.errors import nearest
from unseg_jax.method import Method, override
from unseg_jax.registry import ELSEWHERE, refuse_options, resolve
from unseg_jax.segmenter import BatchSegmenter, load_for
from unseg_jax.segmenter.decoded_cache import DecodedCache

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float16

    from unseg_jax.collective.marks import Mark, Marks
    from unseg_jax.collective.self_teaching import Held
    from unseg_jax.data.decoding import Source

_NO_IMAGES = "there are no images to fit; pass a folder or a list that has some."
_SET_CLUSTERS = 16
_DISTIL_STEPS = 100
_DISTIL_BATCH = 4
_DISTIL_RATE = 3e-3
# Images that are looked at twice as closely to learn what patches look like there, at most: each
# has four times as many.
_MOST_CLOSER = 64
# IoU with examples by which a fit must be better than the shipped model, or the other way round, to
# be steered where "auto" would take the other. One example says little: on 18 sets, each image as
# the one example, 0.1 costs no set more than .015, and 0.05 one of them .024.
_BETTER, _BETTER_IN_ONE = 0.05, 0.1


def fit(
    images: str | Path | Iterable[Source],
    *,
    method: str | Method = "collective",
    num_clusters: int | None = None,
    steps: int | None = None,
    passes: int | None = None,
    key: Array | None = None,
    seed: int = 0,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    max_images: int = 512,
    dtype: str = "auto",
    batching: Batching | None = None,
    on_image: Callable[[int, int], Any] | None = None,
    value_range: tuple[float, float] | Literal["set"] | None = None,
    workers: int | None = None,
    examples: Mapping[Any, Source] | None = None,
    clicks: Mapping[Any, Iterable[Mark]] | None = None,
    look_for: str | None = None,
    **overrides: Any,
) -> CollectiveModel:
    """Fits one model on a set of unlabelled images.

    Without marks, `collective` joins the model that ships (`unseg_jax.collective.agreeing`). It
    stays alone where the images share a black frame, with `tile`, `steps` or `epochs`, and with
    features of another kind.

    Args:
        images: a folder, or an iterable of paths, PIL images or arrays.
        method: "collective"; or a method of graph neural networks, of which the head is shared.
        num_clusters: for "collective" the clusters of the set, from which frames are told (16);
            else K of the head.
        steps: for "collective" the training steps of the graph head that per-image epochs start
            from (None: 100 for a fit that stays alone; 0 leaves it out); else the steps per image
            in each shared pass.
        passes: T0, shared passes over the set; not for "collective".
        key: `jax.random.key` for all randomness; None makes it from `seed`.
        seed: random seed; of the model too, which applies it to per-image epochs.
        backbone: name, path to weights, or loaded.
        batch_size: images on the device at a time.
        max_images: the evidence is fitted on at most this many images, drawn at random; with
            `tile` on about as many tiles of them.
        dtype: of the backbone.
        batching: how a batch is taken while fitting, see `unseg_jax.cluster`.
        value_range: (low, high), the values of deep images that become black and white, or "set"
            for the range of all images; None stretches each by itself. The model keeps it.
        workers: threads that decode images; None is one per core.
        on_image: called after each image with the number read in this pass and the total.
        examples: a few marked images that steer "collective": path of an image of the set, or its
            place in a list from 0, to its mask, (H, W) bool or whatever `unseg_jax.data.read_mask`
            reads. They steer the shipped model, or a fit on eight images or more, whichever agrees
            better with them (with another backbone always the fit), as strongly as scores best on
            examples that are left out. A steered model has no `tile` and no epochs. An empty mask
            says that there is nothing in its image.
        clicks: path or place of an image to its clicks, which steer as `examples` do and weigh
            less: (x, y, True) on a thing and (x, y, False) on background, in pixels from the top
            left of the image. A stroke is (points, radius, whether on a thing) with points (x, y).
            Clicks alone steer what "auto" takes, the shipped model or a fit.
        look_for: how objects differ from the rest of their images: "bright", "dark", "centre",
            "small" or "large". A weak cue, which `examples` and `clicks` override.
        **overrides: fields of `Method`.

    Returns:
        The model. Images that cannot be read are left out and named in `skipped`.

    Raises:
        ValueError: unknown names or values, a method without a shared head, no images, or an
            example that is none of them or has another size.
        ImageError: not one image could be read.

    Example:
        >>> model = fit([photograph, photograph[::-1]], backbone=backbone, image_size=32, steps=0)
        >>> model.images, model.segment(photograph)[0].mask.shape
        (2, (48, 64))
    """
    refuse_options(overrides, ELSEWHERE)
    resolved = resolve(method, **overrides)
    sources = list_sources(images)
    return fit_set(
        sources,
        resolved,
        Reading(value_range, workers=workers).measured(sources),
        num_clusters=num_clusters,
        steps=steps,
        passes=passes,
        key=key,
        seed=seed,
        backbone=backbone,
        batch_size=batch_size,
        max_images=max_images,
        dtype=dtype,
        batching=batching,
        explicit=overrides,
        on_image=on_image,
        examples=examples,
        clicks=clicks,
        look_for=look_for,
    )


def fit_set(
    sources: Sequence[Source],
    method: Method,
    reading: Reading,
    *,
    num_clusters: int | None = None,
    steps: int | None = None,
    passes: int | None = None,
    key: Array | None = None,
    seed: int = 0,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    max_images: int = 512,
    dtype: str = "auto",
    batching: Batching | None = None,
    explicit: Iterable[str] = (),
    on_image: Callable[[int, int], Any] | None = None,
    examples: Mapping[Any, Source] | None = None,
    clicks: Mapping[Any, Iterable[Mark]] | None = None,
    look_for: str | None = None,
    kept: DecodedCache | None = None,
) -> CollectiveModel:
    """`fit` with a resolved method.

    Args:
        sources: the images.
        method: with overrides applied.
        reading: how they are read, with a range that is measured.
        explicit: fields that the user chose; a stride among them is kept as it is.
        kept: gets what is read; None keeps it for the fit alone.
    """
    if method.algorithm != "gnn" or method.nodes != "patches":
        raise ValueError(
            f"'{method.name}' has no head that images could share; "
            "fit 'collective', or a method of graph neural networks on patches."
        )
    least = {"steps": 0, "passes": 0, "max_images": 1, "num_clusters": 1}
    values = {"steps": steps, "passes": passes, "max_images": max_images}
    for name, value in (values | {"num_clusters": num_clusters}).items():
        if value is not None and value < least[name]:
            raise ValueError(f"{name}={value} must be at least {least[name]}.")
    if not sources:
        raise ValueError(_NO_IMAGES)
    by_evidence = method.foreground == "set" and not method.collective_epochs
    marks = {}
    if look_for is not None and look_for not in LOOK_FOR:
        raise ValueError(f"look_for='{look_for}' is not known: {nearest(look_for, LOOK_FOR)}")
    marked = examples is not None or clicks is not None
    if marked or look_for:
        if not by_evidence:
            raise ValueError(
                "examples, clicks and look_for steer 'collective' alone: leave them out, or fit it "
                f"instead of '{method.name}'."
            )
        for name, value in (("tile", method.tile), ("epochs", method.epochs), ("steps", steps)):
            if value:
                raise ValueError(f"{name}={value} is not for a fit that is steered: leave it out.")
        marks, steps = read_marks(sources, reading, examples, clicks) if marked else {}, 0
    if not by_evidence:
        method = override(
            method,
            num_clusters=num_clusters,
            collective_epochs=passes if passes is not None else method.collective_epochs or 5,
            collective_steps=steps,
        )
    method, loaded = load_for(method, backbone, dtype=dtype, explicit=explicit)
    assert loaded is not None
    alone = override(method, scales=1)
    masks = [one.truth.mask for one in marks.values() if one.truth is not None]
    steered = bool(marks or look_for)
    if steered:
        method = to_be_taught(method, loaded, masks, choose="scales" not in explicit)
    ready = None
    # The shipped model knows whole images, and has no graph head for epochs to start from.
    if by_evidence and not (steered or method.tile or method.epochs or steps):
        ready = _to_join(sources, method, loaded)
    key = key_from_seed(seed) if key is None else key
    once = override(method, scales=1) if ready is None else with_earlier_blocks(alone, loaded)
    segmenter = BatchSegmenter(once, loaded, batch_size, seed, batching, reading, kept=kept)
    tiles = max(1, max_images // len(sources))
    reader = SetReader(segmenter, sources, on_image, tiles, whole=kept is not None)
    teacher = reader
    if method.scales > 1:
        closer = segmenter.but(method=method)
        teacher = SetReader(closer, sources, on_image, whole=kept is not None)

    def evidence(steps: int) -> Any:
        clusters = _SET_CLUSTERS if num_clusters is None else num_clusters
        return fit_evidence(reader, alone, clusters, steps, max_images, key)

    steering = held = None
    if not by_evidence:
        parts = fit_shared(reader, method, key)
    elif ready is not None:
        scorer, images = evidence(0)[0], reader(_draw(len(sources), max_images, key)[0])
        held = taught_by_set(ready.scorer, ready.held, scorer, images)
        parts = ready.scorer, None, ready.foreground
    elif not steered:
        parts = evidence(_DISTIL_STEPS if steps is None else steps)
    else:
        most = max_images if teacher is reader else min(max_images, _MOST_CLOSER)
        chosen = _draw(len(sources), most, key)[0]
        found = [
            (*_steer(scorer, teacher, chosen, marks, look_for), (scorer, None, clusters), held)
            for scorer, clusters, held in _candidates(sources, marks, method, loaded, evidence)
        ]
        best = max(found, key=lambda one: one[1])
        # What "auto" takes comes first, and knows more than a few examples tell.
        few = sum(one.truth is not None for one in marks.values()) == 1
        clearly = best[1] > found[0][1] + (_BETTER_IN_ONE if few else _BETTER)
        steering, _, parts, held = best if clearly else found[0]
    scorer, params, foreground = parts
    return CollectiveModel(
        method,
        loaded,
        scorer,
        params,
        foreground,
        max(reader.read, teacher.read),
        tuple(dict.fromkeys([*reader.failed, *teacher.failed])),
        batch_size,
        seed,
        reading=reading,
        steering=steering,
        held=held,
    )


def _to_join(sources: Sequence[Source], method: Method, backbone: Backbone) -> Any:
    """The model that ships, for a fit to teach; None where a fit is better alone, or cannot."""
    if not is_of_shipped(method, backbone) or share_framed(sources) == 1:
        return None
    ready = load_shipped(backbone=backbone)
    return None if ready.held is None else ready


def _candidates(
    sources: Sequence[Source],
    marks: Mapping[int, Marks],
    method: Method,
    backbone: Backbone,
    evidence: Callable[[int], Any],
) -> Iterator[tuple[Any, Any, Held | None]]:
    """Scorers that may be steered, their clusters, and what they are sure of: what "auto" takes,
    and where there are masks to compare with also the other of the shipped model and a fit."""
    masks = any(one.truth is not None for one in marks.values())
    first = share_framed(sources) == 1 or not is_of_shipped(method, backbone)
    both = is_of_shipped(method, backbone) and masks and len(sources) >= SET_SIZE
    for fits in (first, not first) if both else (first,):
        if fits:
            scorer, _, clusters = evidence(0)
            yield scorer, clusters, None
        else:
            ready = load_shipped(backbone=backbone)
            yield ready.scorer, ready.foreground, ready.held


def _steer(
    scorer: Any,
    teacher: SetReader,
    chosen: Sequence[int],
    marks: Mapping[int, Marks],
    look_for: str | None,
) -> tuple[Steering, float]:
    """What a word and marks teach a scorer, and how well it then fits masks; `teacher` reads the
    features that marks teach from."""
    steering, quality, method = None, 0.0, teacher.segmenter.method
    if look_for:
        few = chosen[:: -(-len(chosen) // MAX_LOOKED_AT)]
        pixels = (teacher.segmenter.reading.read(teacher.sources[at]).pixels for at in few)
        share = len(method.blocks) / method.feature_parts
        features = (next(teacher([at])) for at in few)
        features = (one[..., : round(share * one.shape[-1])] for one in features)
        steering = fit_word(scorer, zip(features, pixels, strict=True), look_for)
    if marks:
        marked, everything = teacher.marked(marks), teacher(chosen)
        steering, quality = fit_steering(scorer, everything, marked, steering, method.scales)
    assert steering is not None
    return steering, quality


def list_sources(images: str | Path | Source | Iterable[Source]) -> Sequence[Source]:
    """The images of a folder, or those given, as a list that can be gone through again.

    Raises:
        ValueError: there are none.
    """
    if isinstance(images, (str, Path)):
        sources = [image.source for image in find_images([images])]
    else:
        sources = list(as_iterable(images))
    if not sources:
        raise ValueError(_NO_IMAGES)
    return sources


def _draw(count, most, key):
    """At most `most` of all images, in order, and the generator that drew them."""
    seed = np.asarray(jax.random.bits(jax.random.fold_in(key, 2), (2,), jnp.uint32))
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(count)[:most]).tolist(), rng


def fit_evidence(reader, method, num_clusters, steps, max_images, key):
    chosen, rng = _draw(len(reader.sources), max_images, key)
    # What is read may be of more blocks than the method's, which come first.
    share = method.feature_parts / reader.segmenter.method.feature_parts
    images = [one[..., : round(share * one.shape[-1])] for batch in reader(chosen) for one in batch]
    if not all(np.isfinite(one).all() for one in images):
        raise ValueError(
            "some features are not finite numbers; check the weights of the backbone, or use "
            "dtype='float32'."
        )
    scorer, clusters = fit_scorer(
        images, num_clusters=num_clusters, tiles=bool(method.tile), key=key
    )
    params = None
    if steps:
        start_key = jax.random.fold_in(key, 3)
        params, state = shared_head.start(start_key, method, scorer.basis.shape[1])
        trained = dataclasses.replace(method, learning_rate=_DISTIL_RATE)
        # A new batch is drawn at every step, of images of one grid.
        for _ in range(steps):
            grid = images[int(rng.integers(len(images)))].shape
            alike = [one for one in images if one.shape == grid]
            drawn = rng.choice(len(alike), min(_DISTIL_BATCH, len(alike)), replace=False)
            inputs = _score_batch(scorer, np.stack([alike[at] for at in drawn]))
            params, state, _ = shared_head.distil(params, state, *inputs, method=trained)
    return scorer, params, tuple(clusters)


def _rows(features: Float16[np.ndarray, "b h w d"]) -> Float[Array, "b n d"]:
    return jnp.asarray(features, jnp.float32).reshape(len(features), -1, features.shape[-1])


@jax.jit
def _score_batch(scorer, features):
    grid, features = features.shape[1:3], _rows(features)
    nodes, cosines = project(features, scorer.projection)
    return nodes, cosines, jax.vmap(lambda one: score(scorer, one, grid)[0])(features)


def fit_shared(reader, method, key):
    params = state = None
    for index in range(method.collective_epochs):
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 4), index)
        for number, features in enumerate(reader(range(len(reader.sources)))):
            grid, features = features.shape[1:3], _rows(features)
            if params is None:
                params, state = shared_head.start(key, method, features.shape[-1])
            seeds = dropout_seeds(
                jax.random.fold_in(dropout_key, number),
                method,
                len(features),
                method.collective_steps,
            )
            params, state, _ = shared_head.train(
                params, state, features, seeds, method=method, grid=grid
            )
    if params is None:
        raise ValueError("passes=0 trains nothing: a shared head needs at least one pass.")
    return None, params, _vote_over_set(reader, method, params)


def _vote_over_set(reader, method, params):
    """Which clusters of a shared head are foreground: those with less than half their fair share
    of the border; at least the one with the least."""
    method = dataclasses.replace(method, epochs=0)
    sizes, held = np.zeros(method.num_clusters), np.zeros(method.num_clusters)
    for features in reader(range(len(reader.sources))):
        grid = features.shape[1:3]
        border = (neighbours(grid) == math.prod(grid)).any(-1)
        labels = np.asarray(_label_batch(params, _rows(features), method=method, grid=grid))
        sizes += np.bincount(labels.ravel(), minlength=method.num_clusters)
        held += np.bincount(labels[:, border].ravel(), minlength=method.num_clusters)
    ratios = held / np.maximum(sizes, 1) / (held.sum() / sizes.sum())
    ratios = np.where(sizes > 0, ratios, np.inf)
    chosen = (ratios < 0.5) | (ratios == ratios.min())
    return tuple(
        {
            "cluster": cluster,
            "share": round(float(sizes[cluster] / sizes.sum()), 4),
            "border_ratio": round(float(ratios[cluster]), 3) if sizes[cluster] else 0.0,
            "score": round(float(0.5 - ratios[cluster]), 3) if sizes[cluster] else 0.0,
            "found": "foreground" if chosen[cluster] else "background",
        }
        for cluster in range(method.num_clusters)
    )


@functools.partial(jax.jit, static_argnames=("method", "grid"))
def _label_batch(params, features, *, method, grid):
    mask = jnp.ones(features.shape[:2], bool)
    return cluster_batch(
        features, None, mask, params, jax.random.key(0), method=method, grid=grid
    ).labels
