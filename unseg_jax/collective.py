"""One model for a whole set of unlabelled images: `fit`, `CollectiveModel`, `load_model`.

Two kinds of model, told apart by the method's `foreground`:

* `collective` (`foreground="set"` and no shared passes): the linear head of
  `unseg_jax.evidence`, fitted on a random sample of the images. Segmenting is one forward pass of
  the backbone and one product; edges are then moved to the image's by the guided filter.
* any other method of graph neural networks, above all `unsegmedgat-c`: its head, trained on the
  method's own loss over all images in turn (T0 passes), from which each image goes on by itself
  (T1 epochs).

No ground truth enters anywhere. Memory does not grow with the set: the evidence is fitted on at
most `max_images` images chosen at random, whose features are held in half precision; shared
passes read the images anew each time and hold one batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax import evidence, graphs, shared_head
from unseg_jax.backbones import Backbone, list_backbones
from unseg_jax.clustering import cluster_batch
from unseg_jax.data.images import ImageError, load_image, resize_image
from unseg_jax.data.loader import batches
from unseg_jax.files import atomic
from unseg_jax.methods import Method, resolve
from unseg_jax.postprocess import object_box
from unseg_jax.segmenter import (
    PatchResult,
    Segmentation,
    Segmenter,
    segment_features,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from unseg_jax.data.images import Source

_FORMAT = "unseg_jax collective model 1"
_SET_CLUSTERS = 16
_DISTIL_STEPS = 100
_DISTIL_BATCH = 4
_DISTIL_RATE = 3e-3
# Side in pixels that edges are refined at: the window of the guided filter is in these pixels.
_REFINE_SIDE = 256
_METHOD_KEY = "method"


class MarginResult(NamedTuple):
    """What the device gives back for a batch.

    Attributes:
        margins: (B, h, w) float32, above 0 is foreground.
        losses: (B, epochs) float32 of the per-image epochs.
        confidence: (B,) float32 in 0..1.
        finite: (B,) bool, False where features are not finite numbers.
    """

    margins: Float[Array, "b h w"]
    losses: Float[Array, "b e"]
    confidence: Float[Array, " b"]
    finite: Bool[Array, " b"]


@dataclasses.dataclass(frozen=True, eq=False)
class CollectiveModel:
    """A fitted set: apply it to new images, save it, look at what it took for foreground.

    Attributes:
        method: what was fitted; `method.epochs` is T1, used where `epochs` is not given.
        backbone: that features come from.
        evidence: the linear head; None for models of shared passes alone.
        head: parameters of the graph neural network that per-image epochs start from; None if
            it was not trained (`steps=0`).
        foreground: for each cluster, what the vote over the set saw and what the cluster was
            found to be: dicts with `cluster`, `share` (of all patches), `border_ratio` (1 is a
            fair share of the border), `score` and `found` (frame, background or foreground).
        images: how many images the model was fitted on.
        skipped: one message for each image that could not be read while fitting.
        batch_size, seed: of `segment`.
    """

    method: Method
    backbone: Backbone
    evidence: evidence.Head | None
    head: Any
    foreground: tuple[dict[str, Any], ...]
    images: int = 0
    skipped: tuple[str, ...] = ()
    batch_size: int = 8
    seed: int = 0

    def segmenter(self, epochs: int | None = None) -> Segmenter:
        """A `Segmenter` that applies this model, for `segment_files` and streams.

        Args:
            epochs: T1, optimisation steps an image from the shared weights; None takes the
                method's, 0 is the forward pass alone.

        Raises:
            ValueError: a negative number, or epochs of a model without a graph head.
        """
        method = self.method if epochs is None else resolve(self.method, epochs=epochs)
        if method.epochs and self.head is None:
            raise ValueError(
                f"epochs={method.epochs} needs a graph head, and this model was fitted with "
                "steps=0: fit it again with steps, or segment with epochs=0."
            )
        return _cached_segmenter(self, method)

    def segment(
        self, images: Source | Iterable[Source], *, epochs: int | None = None
    ) -> list[Segmentation]:
        """Segments one image or many, of the fitted set or new.

        Args:
            images: one or an iterable of paths, PIL images, or uint8 arrays (H, W, 3) or (H, W).
            epochs: see `segmenter`.

        Returns:
            One `Segmentation` an image, in order.

        Raises:
            ImageError: the first image that cannot be read. `stream` goes on.
            ValueError: see `segmenter`.
        """
        return self.segmenter(epochs)(images)

    def stream(
        self, images: Source | Iterable[Source], *, epochs: int | None = None
    ) -> Iterator[Segmentation | ImageError]:
        """As `segment`, without holding all results; failures are yielded, not raised."""
        return self.segmenter(epochs).stream(images)

    def save(self, path: str | Path) -> None:
        """Writes the model as safetensors with JSON in its metadata; the backbone by name only.

        Raises:
            WriteError: the file cannot be written.
        """
        from safetensors.numpy import save

        named = self.backbone.name in list_backbones()
        facts = {
            "format": _FORMAT,
            _METHOD_KEY: json.dumps(dataclasses.asdict(self.method)),
            "backbone": self.backbone.name if named else self.backbone.source,
            "foreground": json.dumps(self.foreground),
            "images": str(self.images),
        }
        tensors = {}
        if self.evidence is not None:
            tensors |= {f"evidence/{k}": np.asarray(v) for k, v in self.evidence._asdict().items()}
        if self.head is not None:
            leaves = jax.tree_util.tree_flatten_with_path(self.head)[0]
            tensors |= {"head" + _path_name(keys): np.asarray(leaf) for keys, leaf in leaves}
        content = save(tensors, facts)
        with atomic(path) as partial:
            partial.write_bytes(content)


def fit(
    images: str | Path | Iterable[Source],
    *,
    method: str | Method = "collective",
    num_clusters: int | None = None,
    steps: int | None = None,
    passes: int | None = None,
    key: Array | None = None,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    max_images: int = 512,
    dtype: str = "float32",
    **overrides: Any,
) -> CollectiveModel:
    """Fits one model on a set of unlabelled images.

    Args:
        images: a folder, or an iterable of paths, PIL images or arrays.
        method: "collective"; or a method of graph neural networks, of which the head is shared.
        num_clusters: for "collective" the clusters of the set, from which frames are told (16);
            else K of the head.
        steps: for "collective" the training steps of the graph head that per-image epochs start
            from (100; 0 leaves it out); else the steps an image in each shared pass.
        passes: T0, shared passes over the set; not for "collective".
        key: `jax.random.key` of all chance; None is key(0).
        backbone: name, path to weights, or loaded.
        batch_size: images on the device at a time.
        max_images: the evidence is fitted on at most this many images, drawn at random.
        dtype: of the backbone.
        **overrides: fields of `Method`.

    Returns:
        The model. Images that cannot be read are left out and named in `skipped`.

    Raises:
        ValueError: unknown names or values, a method without a shared head, or no images.
        ImageError: not one image could be read.
    """
    resolved = resolve(method, **overrides)
    if resolved.algorithm != "gnn" or resolved.nodes != "patches":
        raise ValueError(
            f"'{resolved.name}' has no head that images could share; "
            "fit 'collective', or a method of graph neural networks on patches."
        )
    for name, value in (("steps", steps), ("passes", passes), ("max_images", max_images - 1)):
        if value is not None and value < 0:
            raise ValueError(f"{name}={value} is too small.")
    sources = _list_sources(images)
    key = jax.random.key(0) if key is None else key
    by_evidence = resolved.foreground == "set" and not resolved.collective_epochs
    if not by_evidence:
        resolved = resolve(
            resolved,
            num_clusters=num_clusters,
            collective_epochs=passes if passes is not None else resolved.collective_epochs or 5,
            collective_steps=steps,
        )
    inner = Segmenter(
        dataclasses.replace(resolved, foreground="corner"),
        backbone=backbone,
        batch_size=batch_size,
        dtype=dtype,
        **({"stride": resolved.stride} if "stride" in overrides else {}),
    )
    loaded = inner.backbone
    assert loaded is not None
    resolved = dataclasses.replace(inner.method, foreground=resolved.foreground)
    reader = _Reader(inner, sources)
    if by_evidence:
        found = _fit_evidence(
            reader,
            resolved,
            _SET_CLUSTERS if num_clusters is None else num_clusters,
            _DISTIL_STEPS if steps is None else steps,
            max_images,
            key,
        )
    else:
        found = _fit_shared(reader, resolved, key)
    head, params, foreground = found
    skipped = tuple(dict.fromkeys(reader.failed))
    return CollectiveModel(
        resolved, loaded, head, params, foreground, reader.read, skipped, batch_size
    )


def load_model(
    path: str | Path, *, backbone: str | Path | Backbone | None = None, dtype: str = "float32"
) -> CollectiveModel:
    """Reads a model that `CollectiveModel.save` wrote.

    Args:
        path: of the file.
        backbone: instead of the one that is named in the file.
        dtype: of the backbone.

    Raises:
        ValueError: not such a file, or one for features of another width.
        WeightsError: the backbone cannot be had.
    """
    from safetensors import SafetensorError, safe_open

    from unseg_jax.backbones import load_backbone

    try:
        with safe_open(str(path), "numpy") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the model {path}: {error}.") from error
    if facts.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a model of unseg_jax.fit; fit and save one.")
    method = _method_from(json.loads(facts[_METHOD_KEY]))
    if backbone is None:
        backbone = facts["backbone"]
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone, dtype=dtype)  # type: ignore[arg-type]
    parts = {
        name.removeprefix("evidence/"): jnp.asarray(value)
        for name, value in tensors.items()
        if name.startswith("evidence/")
    }
    head = evidence.Head(**parts) if parts else None
    params = _unflatten({k: v for k, v in tensors.items() if k.startswith("head/")})
    if head is not None and head.mean.shape[0] != backbone.config.width:
        raise ValueError(
            f"{path} was fitted on features of width {head.mean.shape[0]}, and '{backbone.name}' "
            f"gives {backbone.config.width}: use the backbone '{facts['backbone']}'."
        )
    foreground = tuple(json.loads(facts["foreground"]))
    return CollectiveModel(method, backbone, head, params, foreground, int(facts["images"]))


# ------------------------------------------------------------------- fitting


class _Reader:
    """Features of the images, batch by batch, as often as asked; failures are kept aside."""

    def __init__(self, segmenter: Segmenter, sources: Sequence[Source]):
        self.segmenter, self.sources = segmenter, sources
        self.failed: list[str] = []
        self.read = 0

    def __call__(self, chosen: Iterable[int]) -> Iterator[Array]:
        """(B, N, D) features of the chosen images, in order; short batches are not padded."""
        self.read = 0

        def prepare(index):
            return self.segmenter.prepare(load_image(self.sources[index]))

        with contextlib.closing(batches(chosen, prepare, self.segmenter.batch_size)) as loaded:
            for batch in loaded:
                pixels = [outcome.value for outcome in batch if outcome.value is not None]
                for outcome in batch:
                    if isinstance(outcome.error, ImageError):
                        self.failed.append(str(outcome.error))
                    elif outcome.error is not None:
                        raise outcome.error
                if not pixels:
                    continue
                self.read += len(pixels)
                # Padded to one shape, so that the backbone is compiled once.
                padding = [pixels[-1]] * (self.segmenter.batch_size - len(pixels))
                yield self.segmenter.features(np.stack(pixels + padding))[: len(pixels)]
        if not self.read:
            raise ImageError(self.failed[0])


def _fit_evidence(reader, method, num_clusters, steps, max_images, key):
    count = len(reader.sources)
    seed = np.asarray(jax.random.bits(jax.random.fold_in(key, 2), (2,), jnp.uint32))
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(count)[:max_images]).tolist()
    features = np.concatenate([np.asarray(batch, np.float16) for batch in reader(chosen)])
    finite = np.isfinite(features).all((1, 2))
    if not finite.all():
        raise ValueError(
            "some features are not finite numbers; check the weights of the backbone, or use "
            "dtype='float32'."
        )
    grid = reader.segmenter.grid
    head, found = evidence.fit_head(features, grid, num_clusters=num_clusters, key=key)
    params = None
    if steps:
        start_key = jax.random.fold_in(key, 3)
        params, state = shared_head.start(start_key, method, head.basis.shape[1])
        trained = dataclasses.replace(method, learning_rate=_DISTIL_RATE)
        # A batch is drawn anew at every step.
        for _ in range(steps):
            drawn = rng.choice(len(features), min(_DISTIL_BATCH, len(features)), replace=False)
            nodes, cosines, margins = _score_batch(head, jnp.asarray(features[drawn], jnp.float32))
            params, state, _ = shared_head.distil(
                params, state, nodes, cosines, margins, method=trained
            )
    return head, params, tuple(found)


@jax.jit
def _score_batch(head, features):
    nodes, cosines = evidence.project(features, head.projection)
    return nodes, cosines, jax.vmap(lambda one: evidence.score(head, one)[0])(features)


def _fit_shared(reader, method, key):
    params = state = None
    grid = reader.segmenter.grid
    for index in range(method.collective_epochs):
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 4), index)
        for number, features in enumerate(reader(range(len(reader.sources)))):
            if params is None:
                params, state = shared_head.start(key, method, features.shape[-1])
            seeds = shared_head.draw_seeds(
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
    return None, params, _vote_over_set(reader, method, params, grid)


def _vote_over_set(reader, method, params, grid):
    """Which clusters of a shared head are foreground: those with less than half their fair share
    of the border; at least the one with the least."""
    method = dataclasses.replace(method, epochs=0, foreground="corner")
    border = np.asarray(evidence.border_of(jnp.ones(grid, bool))).ravel()
    sizes, held = np.zeros(method.num_clusters), np.zeros(method.num_clusters)
    for features in reader(range(len(reader.sources))):
        labels = np.asarray(_label_batch(params, features, method=method, grid=grid))
        sizes += np.bincount(labels.ravel(), minlength=method.num_clusters)
        held += np.bincount(labels[:, border].ravel(), minlength=method.num_clusters)
    ratios = held / np.maximum(sizes, 1) / border.mean()
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


# ------------------------------------------------------------------ applying


class _ModelSegmenter(Segmenter):
    """A `Segmenter` that starts from a model instead of from fresh parameters."""

    def __init__(self, model: CollectiveModel, method: Method):
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
        mask = sharpen(image, margins, self.method)
        losses = np.asarray(result.losses[index])
        return Segmentation(
            mask=mask,
            labels=mask.astype(np.int32),
            box=object_box(mask),
            num_clusters=len(np.unique(margins > 0)),
            loss=float(losses[-1]) if losses.size else float("nan"),
            confidence=float(result.confidence[index]),
            patch_labels=(margins > 0).astype(np.int32),
            losses=losses,
            method=self.method.name,
            backbone=self.backbone_name,
            id=id,
        )


@functools.lru_cache(maxsize=8)
def _cached_segmenter(model: CollectiveModel, method: Method) -> _ModelSegmenter:
    return _ModelSegmenter(model, method)


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
    inside = margins > 0
    mean = jnp.sum(jnp.where(inside, margins, 0.0), -1) / jnp.maximum(inside.sum(-1), 1)
    finite = jnp.isfinite(features).all((1, 2))
    return MarginResult(margins.reshape(-1, *grid), losses, jnp.tanh(mean), finite)


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


def sharpen(image: np.ndarray, margins: np.ndarray, method: Method) -> np.ndarray:
    """Margins on patches to a mask at the image's own size.

    Args:
        image: (H, W, 3) uint8.
        margins: (h, w) float32, above 0 is foreground.
        method: its `refine` is read: "guided" moves edges to the image's by the guided filter at
            256×256, "bilateral" by the bilateral solver with its sigmas, "none" interpolates.

    Returns:
        (H, W) bool.
    """
    from unseg_jax.postprocess.bilateral import refine
    from unseg_jax.postprocess.guided import guided_filter

    margins = np.clip(margins, -1, 1)
    if method.refine == "none" or not (margins > 0).any():
        return _interpolate(margins, image.shape[:2]) > 0
    side = (_REFINE_SIDE, _REFINE_SIDE)
    small, soft = resize_image(image, side), _interpolate(margins, side)
    if method.refine == "guided":
        return _interpolate(guided_filter(small, soft), image.shape[:2]) > 0
    sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
    solved, _ = refine(small, (soft + 1) / 2, *sigmas)
    return _interpolate(solved - 0.5, image.shape[:2]) > 0


def _interpolate(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, to (height, width)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


# ------------------------------------------------------------ small matters


def _list_sources(images) -> Sequence[Source]:
    if isinstance(images, (str, Path)):
        from unseg_jax.gallery import find_images

        sources: Sequence[Source] = [image.path for image in find_images([images])]
    elif isinstance(images, Sequence) or (isinstance(images, np.ndarray) and images.ndim == 4):
        sources = images
    elif isinstance(images, np.ndarray):
        sources = [images]
    else:
        sources = list(images)
    if not len(sources):
        raise ValueError("there are no images to fit; pass a folder or a list that has some.")
    return sources


def _path_name(keys) -> str:
    return "".join(f"/{getattr(key, 'key', getattr(key, 'idx', ''))}" for key in keys)


def _unflatten(tensors: dict[str, np.ndarray]) -> Any:
    """Nested dicts, and lists where all keys are numbers, from names with slashes."""
    if not tensors:
        return None
    root: dict[str, Any] = {}
    for name, value in tensors.items():
        *path, last = name.split("/")[1:]
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = jnp.asarray(value)

    def lists(node):
        if not isinstance(node, dict):
            return node
        if all(key.isdigit() for key in node):
            return [lists(node[str(index)]) for index in range(len(node))]
        return {key: lists(value) for key, value in node.items()}

    return lists(root)


def _method_from(fields: dict[str, Any]) -> Method:
    fields["branches"] = tuple(map(tuple, fields["branches"]))
    fields["code"] = tuple((name, value) for name, value in fields["code"])
    if isinstance(fields["image_size"], list):
        fields["image_size"] = tuple(fields["image_size"])
    return Method(**fields)
