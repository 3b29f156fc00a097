"""Images in, masks out: `Segmenter` and the pure function under it, `make_segment_fn`.

The device does everything from pixels to labels of patches in one compiled program; the host
decodes the next batch meanwhile and turns the last one's labels into masks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones import Backbone, load_backbone
from unseg_jax.clustering import cluster_batch
from unseg_jax.data.images import ImageError, load_image, resize_image
from unseg_jax.data.loader import batches
from unseg_jax.methods import Method, override, resolve
from unseg_jax.postprocess import (
    foreground_labels,
    largest_component,
    object_box,
    upsample_labels,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

    from unseg_jax.data.images import Source

_PUBLISHED_PATCH = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one image.

    Attributes:
        mask: (H, W) bool at the image's own size, True on the object.
        labels: (H, W) int32, 0 = background, 1.. = clusters of the foreground by descending size;
            if the background was cut too, its further parts come after those of the foreground.
        box: (left, top, right, bottom) of the mask's largest 4-connected component, in pixels,
            right and bottom exclusive; None if the mask is empty.
        num_clusters: clusters that some patch belongs to.
        loss: the last of `losses`; NaN for baselines, which have none.
        confidence: mean margin between the two likeliest clusters of a patch, in 0..1.
        patch_labels: (h, w) int32, as `labels` on the grid of patches (or pixels of the resized
            image, for superpixel methods), before edge refinement.
        losses: (epochs,) float32.
        method, backbone: names of what was used; backbone is "" where none is needed.
        id: the path, or the index in the call for images given as arrays.
    """

    mask: np.ndarray
    labels: np.ndarray
    box: tuple[int, int, int, int] | None
    num_clusters: int
    loss: float
    confidence: float
    patch_labels: np.ndarray
    losses: np.ndarray
    method: str
    backbone: str
    id: str


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
    """

    labels: Int[Array, "b h w"]
    foreground: Bool[Array, "b h w"]
    num_clusters: Int[Array, " b"]
    losses: Float[Array, "b e"]
    confidence: Float[Array, " b"]
    finite: Bool[Array, " b"]
    history: Int[Array, "b r h w"] | None = None


def fit_to_backbone(method: Method, backbone: Backbone, explicit: Iterable[str] = ()) -> Method:
    """The method with its stride made to fit the backbone, unless stride is among `explicit`.

    Published strides are stated for patches of 8 pixels: half a patch (4) stays half a patch.
    """
    patch = backbone.config.patch_size
    if method.stride is None or "stride" in explicit or patch % method.stride == 0:
        return method
    wanted = method.stride * patch / _PUBLISHED_PATCH
    divisors = [stride for stride in range(1, patch + 1) if patch % stride == 0]
    fitting = max((stride for stride in divisors if stride <= wanted), default=1)
    return override(method, stride=fitting)


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
    every: int = 0,
) -> tuple[PatchResult, Any]:
    """From features to voted labels: a pure function, to be jitted with method, grid, every static.

    Args:
        features: (B, N, D).
        key: of initial parameters and dropout.
        method: static.
        grid: (h, w) that labels live on; N = h·w unless `index_map` is given.
        adjacency, mask: (B, N, N), (B, N) where nodes are not patches.
        index_map: (B, h, w) the node of each cell; None where nodes are the cells.
        class_attention: (B, N), for the rules that read it.
        params: start of the heads (shared, or with a batch axis).
        every: see `cluster`.

    Returns:
        The `PatchResult`, and the optimised parameters with a leading batch axis.
    """
    if mask is None:
        mask = jnp.ones(features.shape[:2], bool)
    patch_grid = grid if index_map is None else None
    found = cluster_batch(
        features, adjacency, mask, params, key, method=method, every=every, grid=patch_grid
    )

    def spread(labels, index_map):
        return labels.reshape(grid) if index_map is None else labels[index_map]

    def vote(labels, index_map, attention):
        return foreground_labels(
            spread(labels, index_map),
            method.num_clusters,
            method.foreground,
            class_attention=None if attention is None else spread(attention, index_map),
        )

    voted = jax.vmap(vote)(found.labels, index_map, class_attention)
    used = jax.nn.one_hot(found.labels, method.num_clusters, dtype=bool) & mask[..., None]
    num_clusters = used.any(1).sum(-1).astype(jnp.int32)
    finite = jnp.isfinite(features).all((1, 2)) & jnp.isfinite(found.assignments).all((1, 2))
    foreground = voted > 0
    if method.parts:
        voted, num_clusters = _split(features, voted, key, method, grid, patch_grid)
    history = None
    if every:
        over_time = jax.vmap(jax.vmap(vote, (0, None, None)))
        history = over_time(found.history, index_map, class_attention)
    result = PatchResult(
        voted, foreground, num_clusters, found.losses, _confidence(found, mask), finite, history
    )
    return result, found.params


def _split(features, voted, key, method, grid, patch_grid):
    """DeepCut's second stage: foreground, and if asked background, are cut again on their own.

    The sub-graphs are masks on the same nodes, so every image has the same shapes.
    """
    labels = jnp.where(voted > 0, 1, 0).reshape(features.shape[:2])

    def stage(part, clusters, epochs, first):
        inner = override(method, num_clusters=clusters, epochs=epochs, parts=0)
        mask = labels == part
        found = cluster_batch(features, None, mask, None, key, method=inner, grid=patch_grid)
        ranked = jax.vmap(functools.partial(_rank, count=clusters))(found.labels, mask)
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
    sizes = jnp.sum(jax.nn.one_hot(labels, count) * mask[:, None], 0)
    order = jnp.argsort(-sizes, stable=True)
    return jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count))[labels]


def _confidence(found, mask):
    if found.assignments.shape[-1] == 1:
        return jnp.ones(found.assignments.shape[0])
    top = jax.lax.top_k(found.assignments, 2)[0]
    margin = jnp.where(mask, top[..., 0] - top[..., 1], 0.0)
    return margin.sum(-1) / jnp.maximum(mask.sum(-1), 1)


def make_segment_fn(
    method: str | Method = "deepcut",
    backbone: str | Path | Backbone = "auto",
    *,
    seed: int = 0,
    dtype: str = "float32",
    **overrides: Any,
) -> tuple[Callable[[Any, Array], Array], Any]:
    """The whole way from pixels to labels as one pure jitted function.

    Args:
        method: name or `Method`, of patches (superpixels are cut on the host: use `Segmenter`).
        backbone: name, path to weights, or a `Backbone`.
        seed: of initial parameters and dropout.
        dtype: "float32" or "bfloat16", of the backbone.
        **overrides: fields of `Method`.

    Returns:
        fn, params: `fn(params, pixels)` takes (B, H, W, 3) pixels, uint8 or float in [0, 1],
        already resized, and gives (B, h, w) int32 labels, 0 = background. jit, vmap or shard it
        as you like; params are the backbone's weights.

    Raises:
        ValueError: an unknown method, backbone or field, or a method without patches.
    """
    resolved = resolve(method, **overrides)
    if resolved.nodes != "patches":
        raise ValueError(
            f"'{resolved.name}' works on {resolved.nodes}, which are cut on the host: "
            "use Segmenter instead of make_segment_fn."
        )
    loaded = _load(backbone, resolved, dtype)
    resolved = fit_to_backbone(resolved, loaded, overrides)

    def segment(params, pixels):
        result, _ = _segment_pixels(loaded, resolved, params, pixels, jax.random.key(seed))
        return result.labels

    return jax.jit(segment), loaded.params


def _segment_pixels(backbone, method, params, pixels, key, every=0):
    features = extract_features(backbone, method, params, pixels)
    attention = None
    if method.foreground in ("attention", "auto"):
        attention = backbone.class_attention(params, pixels, stride=method.stride)
    grid = backbone.grid(pixels.shape[1:3], method.stride)
    return segment_features(
        features, key, method=method, grid=grid, class_attention=attention, every=every
    )


class Segmenter:
    """Segments images with one method and one backbone; compiled once a shape of batch.

    Attributes:
        method: the resolved `Method`.
        backbone: the loaded `Backbone`; None for methods on superpixels or pixels.
        batch_size: images on the device at a time.
        key: `jax.random.key` of initial parameters and dropout, the same for every image.
    """

    def __init__(
        self,
        method: str | Method = "deepcut",
        *,
        backbone: str | Path | Backbone = "auto",
        batch_size: int = 8,
        seed: int = 0,
        dtype: str = "float32",
        **overrides: Any,
    ):
        """
        Args:
            method: name of `list_methods()`, or a `Method`.
            backbone: name, path to weights, or a loaded `Backbone`; "auto" takes the method's
                own, which is the first of DINO ViT-S/8 and its stand-in to be had.
            batch_size: images on the device at a time, at least 1.
            seed: of initial parameters and dropout.
            dtype: "float32" or "bfloat16", of the backbone; losses are always float32.
            **overrides: fields of `Method`.

        Raises:
            ValueError: an unknown method, backbone or field, or a value out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        self.method = resolve(method, **overrides)
        self.backbone: Backbone | None = None
        if self.method.nodes == "patches":
            self.backbone = _load(backbone, self.method, dtype)
            self.method = fit_to_backbone(self.method, self.backbone, overrides)
        self.batch_size = batch_size
        self.key = jax.random.key(seed)
        self._program = jax.jit(self._run_pixels, static_argnames=("every",))
        self._nodes_program = jax.jit(segment_features, static_argnames=("method", "grid", "every"))
        self._features_program = jax.jit(self._run_features)

    def __call__(self, images: Source | Iterable[Source]) -> list[Segmentation]:
        """Segments one image or many.

        Args:
            images: one or an iterable of paths, PIL images, or uint8 arrays (H, W, 3) or (H, W).

        Returns:
            One `Segmentation` an image, in order; a list also for a single image.

        Raises:
            ImageError: the first image that cannot be read or segmented. `stream` goes on.
        """
        results = []
        for result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def stream(self, images: Source | Iterable[Source]) -> Iterator[Segmentation | ImageError]:
        """Segments images in order without holding them all; failures are yielded, not raised."""
        waiting = None
        full = False
        entries = enumerate(_as_iterable(images))
        with contextlib.closing(batches(entries, self._read, self.batch_size)) as loaded:
            for batch in loaded:
                pixels = [outcome.value[2] for outcome in batch if outcome.value is not None]
                # A last, partial batch is padded to the size that is compiled already; a few
                # images alone are not padded far, which on a CPU would cost time for nothing.
                full = full or len(batch) == self.batch_size
                size = self.batch_size if full else _power_of_two(len(batch))
                result = self.run(pixels, size=size) if pixels else None
                # The device is at work on this batch while the host finishes the last one.
                if waiting is not None:
                    yield from self._finish_batch(*waiting)
                waiting = (batch, result)
        if waiting is not None:
            yield from self._finish_batch(*waiting)

    # ------------------------------------------------------- building blocks

    def prepare(self, image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """Resizes (H, W, 3) uint8 to the method's size (Lanczos)."""
        return resize_image(image, self.method.size)

    def run(
        self, pixels: list[np.ndarray], *, size: int | None = None, every: int = 0
    ) -> PatchResult:
        """Runs prepared images on the device; returns before it is done.

        Args:
            pixels: up to `batch_size` arrays from `prepare`.
            size: pad to this many images; padding is cut off the result lazily.
            every: record labels every so many epochs.
        """
        size = size or len(pixels)
        padded = [*pixels, *[pixels[-1]] * (size - len(pixels))]
        if self.method.nodes != "patches":
            result = self._run_regions(padded, every)
        else:
            assert self.backbone is not None
            result = self._program(self.backbone.params, np.stack(padded), every=every)
        return jax.tree.map(lambda leaf: leaf[: len(pixels)], result)

    def features(self, pixels: np.ndarray) -> Float[Array, "b n d"]:
        """(B, N, D) float32 patch features of prepared images (B, h, w, 3), on the device.

        Methods with the same `Method.feature_key` can share them.
        """
        if self.backbone is None:
            raise ValueError(f"'{self.method.name}' works on {self.method.nodes}, not on features.")
        return self._features_program(self.backbone.params, pixels)

    def assign(
        self,
        features: Float[Array, "b n d"],
        *,
        class_attention: Float[Array, "b n"] | None = None,
        params: Any = None,
        every: int = 0,
    ) -> tuple[PatchResult, Any]:
        """From shared features to a `PatchResult` and the optimised parameters of each image.

        Args:
            features: (B, N, D) of the method's own size and stride.
            class_attention: (B, N), for the foreground rules that read it.
            params: where the heads start, shared or with a batch axis; None draws them.
            every: record labels every so many epochs.
        """
        return self._nodes_program(
            features,
            self.key,
            method=self.method,
            grid=self.grid,
            class_attention=class_attention,
            params=params,
            every=every,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) that labels live on: patches, or pixels of the resized image."""
        if self.backbone is None:
            return self.method.size
        return self.backbone.grid(self.method.size, self.method.stride)

    @property
    def backbone_name(self) -> str:
        """Name of the backbone in use; "" where none is."""
        return "" if self.backbone is None else self.backbone.name

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        programs = (self._program, self._nodes_program, self._features_program)
        return sum(program._cache_size() for program in programs)  # type: ignore[attr-defined]

    def finish(
        self, result: PatchResult, index: int, image: np.ndarray, id: str = ""
    ) -> Segmentation:
        """Turns entry `index` of a result (host arrays) into a `Segmentation` of its image.

        Args:
            result: from `run` or `assign`; `jax.device_get` it once a batch beforehand.
            index: position in the batch.
            image: (H, W, 3) uint8 at its own size.
            id: of the result.

        Raises:
            ImageError: features or assignments are not finite.
        """
        if not result.finite[index]:
            raise ImageError(
                f"{id or 'the image'}: its features are not finite numbers; check the weights of "
                f"backbone '{self.backbone_name}', or use dtype='float32'."
            )
        labels = np.asarray(result.labels[index])
        foreground = np.asarray(result.foreground[index])
        if self.method.largest_component:
            foreground = largest_component(foreground)
        size = image.shape[:2]
        mask = upsample_labels(foreground, size)
        full = upsample_labels(labels, size)
        if self.method.refine == "bilateral":
            mask, full = _refine(image, mask, full, self.method)
        losses = np.asarray(result.losses[index])
        return Segmentation(
            mask=mask,
            labels=full,
            box=object_box(mask),
            num_clusters=int(result.num_clusters[index]),
            loss=float(losses[-1]) if losses.size else float("nan"),
            confidence=float(result.confidence[index]),
            patch_labels=labels,
            losses=losses,
            method=self.method.name,
            backbone=self.backbone_name,
            id=id,
        )

    # ------------------------------------------------------------- inner works

    def _read(self, entry):
        index, source = entry
        image = load_image(source)
        name = str(source) if isinstance(source, (str, Path)) else str(index)
        return name, image, self.prepare(image)

    def _finish_batch(self, batch, result):
        host: Any = None if result is None else jax.device_get(result)
        index = 0
        for outcome in batch:
            if outcome.value is None:
                if not isinstance(outcome.error, ImageError):
                    raise outcome.error
                yield outcome.error
                continue
            name, image, _ = outcome.value
            try:
                yield self.finish(host, index, image, name)
            except ImageError as error:
                yield error
            index += 1

    def _run_pixels(self, params, pixels, *, every=0):
        return _segment_pixels(self.backbone, self.method, params, pixels, self.key, every)[0]

    def _run_features(self, params, pixels):
        assert self.backbone is not None
        return extract_features(self.backbone, self.method, params, pixels)

    def _run_regions(self, pixels, every):
        from unseg_jax.superpixels import region_graph, stack_regions

        regions = stack_regions([region_graph(image, self.method) for image in pixels])
        result, _ = self._nodes_program(
            regions.nodes,
            self.key,
            method=self.method,
            grid=self.grid,
            adjacency=regions.adjacency,
            mask=regions.mask,
            index_map=regions.index_map,
            every=every,
        )
        return result


def segment(
    images: Source | Iterable[Source],
    method: str | Method = "deepcut",
    **options: Any,
) -> list[Segmentation]:
    """Segments one image or many in one call; the options are those of `Segmenter`."""
    return Segmenter(method, **options)(images)


def _load(backbone, method: Method, dtype) -> Backbone:
    if isinstance(backbone, Backbone):
        return backbone
    name = method.backbone if backbone == "auto" else backbone
    return load_backbone(name, dtype=dtype)


def _as_iterable(images) -> Iterable:
    if isinstance(images, (str, Path)) or hasattr(images, "convert"):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype != object and images.ndim <= 3:
        return [images]
    return images


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _refine(image, mask, labels, method):
    from unseg_jax.postprocess.bilateral import refine

    sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
    classes = np.unique(labels)
    _, hard = refine(image, mask, *sigmas)
    if len(classes) <= 2:
        return hard, np.where(hard, 1, 0).astype(np.int32)
    soft = np.stack([refine(image, labels == value, *sigmas)[0] for value in classes])
    return hard, classes[np.argmax(soft, 0)].astype(np.int32)
