"""Images in, masks out: segmenters of batches, and the pure function under it, `make_segment_fn`.

The device does everything from pixels to labels of patches in one compiled program; the host
decodes the next batch meanwhile and turns the last one's labels into masks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

from unseg_jax.backbones import Backbone, load_backbone
from unseg_jax.clustering import own
from unseg_jax.clustering.loop import has_batch_axis, key_from_seed
from unseg_jax.clustering.probe import check_own_parts
from unseg_jax.data.framing import Framing
from unseg_jax.data.images import as_iterable, read_image, resize_image
from unseg_jax.data.loader import batches
from unseg_jax.devices import usable_devices
from unseg_jax.errors import ImageError
from unseg_jax.export.drawing import WORKING_SIDE, shrink_image
from unseg_jax.method import Method
from unseg_jax.parallel import How, check_map, map_images, pad_batch, takes_images_apart
from unseg_jax.pipeline import (
    PatchResult,
    extract_features,
    fit_to_backbone,
    segment_features,
    segment_pixels,
)
from unseg_jax.postprocess import largest_component, upsample_labels
from unseg_jax.postprocess.margins import refine_margins, upsample_margins
from unseg_jax.registry import resolve
from unseg_jax.segmentation import Segmentation, smallest

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

    from unseg_jax.clustering.superpixels import Regions
    from unseg_jax.data.images import Source


# Regions that a loss or layer of one's own is tried on: how many an image has is not known yet.
_PROBE_NODES = 16
# Batches of images of all shapes that are read before the device takes those of one shape.
_WINDOW = 4


class _Decoded(NamedTuple):
    """An image on its way to the device: (h, w, 3) pixels to keep, those prepared for the device,
    and its own (H, W)."""

    name: str
    pixels: np.ndarray
    prepared: np.ndarray
    size: tuple[int, int]
    notes: tuple[str, ...]


class BatchSegmenter:
    """Runs a method over batches of images, read ahead of the device and finished behind it.

    `ImageSegmenter` starts each image from fresh parameters, `collective.applying.ModelSegmenter`
    from a model that was fitted on a set. Programs are compiled once for each shape of image and
    size of batch, and on a CPU once for each shape of image.

    Attributes:
        method: the `Method`, with a stride that fits the backbone.
        backbone: the loaded `Backbone`; None for methods on superpixels or pixels.
        batch_size: images given to the device at a time; a CPU works on as many at once as it has
            cores.
        seed: random seed of initial parameters and dropout, the same for every image.
        map: how a batch is taken, see `unseg_jax.cluster`; None by the platform.
        key: `jax.random.key` of that seed.
        value_range: see `unseg_jax.data.read_image`; may be set before the first image.
        workers: threads that decode; None is one a core. May be set before the first image.
    """

    def __init__(
        self,
        method: Method,
        backbone: Backbone | None,
        *,
        batch_size: int = 8,
        seed: int = 0,
        map: How | None = None,
    ):
        """
        Args:
            method: as `load_for` gives it.
            backbone: as `load_for` gives it.
            batch_size: images given to the device at a time, at least 1.
            seed: random seed of initial parameters and dropout, from 0 to 2⁶³ − 1.
            map: how a batch is taken, see `unseg_jax.cluster`.

        Raises:
            ValueError: a batch size below 1, a seed out of range, or an unknown `map`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        check_map(map)
        self.method, self.backbone = method, backbone
        self.batch_size, self.seed = batch_size, seed
        self.map: How | None = map
        self.value_range: tuple[float, float] | None = None
        self.workers: int | None = None
        self._make_programs()

    def _make_programs(self):
        self.key = key_from_seed(self.seed)
        self._program = jax.jit(self._run_pixels, static_argnames=("record_every",))
        self._nodes_program = jax.jit(self._run_nodes, static_argnames=("record_every",))
        self._features_program = jax.jit(self._run_features)
        self._regions_programs: dict[tuple, Any] = {}

    def __getstate__(self):
        # Compiled programs are made again where the segmenter is unpickled.
        made = ("key", "_program", "_nodes_program", "_features_program", "_regions_programs")
        return {name: value for name, value in vars(self).items() if name not in made}

    def __setstate__(self, state):
        vars(self).update(state)
        self._make_programs()

    @property
    def _map(self) -> How | None:
        """How a program takes its batch; with threads the batch is one image."""
        return None if self.map == "threads" else self.map

    def __call__(self, images: Source | Iterable[Source]) -> list[Segmentation]:
        """Segments one image or many.

        Args:
            images: one or an iterable of paths, PIL images, or uint8 arrays (H, W, 3) or (H, W).

        Returns:
            One `Segmentation` per image, in order; a list also for a single image.

        Raises:
            ImageError: the first image that cannot be read or segmented. `stream` goes on.
        """
        results = []
        for result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def stream(
        self, images: Source | Iterable[Source], *, full_pixels: bool = False
    ) -> Iterator[Segmentation | ImageError]:
        """Segments images in order without holding them all; failures are yielded, not raised.

        Args:
            images: see `__call__`; each is decoded once.
            full_pixels: keep the pixels of each image at its own size in its result, instead of
                at most 1,600 on the longer side.
        """
        read = functools.partial(self._read, full_pixels=full_pixels)
        waiting = None
        full = False
        entries = enumerate(as_iterable(images))
        # Only images of one shape make a batch, so more of them are held to choose from.
        mixed = self.method.fit == "keep" and not takes_images_apart(self.map)
        held = self.batch_size * (_WINDOW if mixed else 1)
        with contextlib.closing(batches(entries, read, held, workers=self.workers)) as loaded:
            for batch in loaded:
                pixels = [outcome.value.prepared for outcome in batch if outcome.value is not None]
                # A last, partial batch is padded to the size that is compiled already; a few
                # images alone are not padded far.
                full = full or len(batch) >= self.batch_size
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
        """Resizes (H, W, 3) uint8 to what `framing` says (Lanczos)."""
        return resize_image(image, self.framing.size_for(*image.shape[:2]))

    def run(
        self, pixels: list[np.ndarray], *, size: int | None = None, record_every: int = 0
    ) -> PatchResult:
        """Runs prepared images on the device; returns before it is done.

        Args:
            pixels: arrays from `prepare`; up to `batch_size` of one shape go to the device at
                once.
            size: pad to this many images, at most `batch_size`, unless a CPU takes them one by
                one; padding is cut off the result lazily.
            record_every: record labels every so many epochs.

        Returns:
            Arrays with a leading axis of the images; where these differ in shape, lists with an
            array for each.

        Raises:
            ValueError: no images.
        """
        if not len(pixels):
            raise ValueError("there are no images to run; pass at least one.")
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, one in enumerate(pixels):
            alike.setdefault(one.shape, []).append(index)
        if len(alike) == 1 and len(pixels) <= self.batch_size:
            return self._run_alike(pixels, size, record_every)
        found: list[Any] = [None] * len(pixels)
        most = self.batch_size
        for indices in alike.values():
            for start in range(0, len(indices), most):
                chunk = indices[start : start + most]
                padded = None if size is None else min(size, most)
                result = self._run_alike([pixels[at] for at in chunk], padded, record_every)
                for at, index in enumerate(chunk):
                    found[index] = jax.tree.map(lambda leaf, at=at: leaf[at], result)
        return jax.tree.map(lambda *leaves: list(leaves), *found)

    def _run_alike(
        self, pixels: list[np.ndarray], size: int | None, record_every: int
    ) -> PatchResult:
        """Images of one shape, at most a batch of them."""
        size = len(pixels) if size is None or takes_images_apart(self.map) else size
        padded = pad_batch(np.stack(pixels), size)
        if self.method.nodes != "patches":
            result = self._run_regions(padded, record_every)
        else:
            assert self.backbone is not None
            program = functools.partial(self._program, record_every=record_every)
            result = map_images(program, self.backbone.params, padded, self.map)
        if size == len(pixels):
            return result
        return jax.tree.map(lambda leaf: leaf[: len(pixels)], result)

    def features(self, pixels: np.ndarray) -> Float[Array, "b n d"]:
        """(B, N, D) float32 patch features of prepared images (B, h, w, 3), on the device.

        Methods with the same `Method.feature_key` can share them.
        """
        if self.backbone is None:
            raise ValueError(f"'{self.method.name}' works on {self.method.nodes}, not on features.")
        return map_images(self._features_program, self.backbone.params, pixels, self.map)

    def assign(
        self,
        features: Float[Array, "b n d"],
        *,
        class_attention: Float[Array, "b n"] | None = None,
        params: Any = None,
        record_every: int = 0,
    ) -> tuple[PatchResult, Any]:
        """From shared features to a `PatchResult` and the optimised parameters of each image.

        Args:
            features: (B, N, D) of the method's own size and stride.
            class_attention: (B, N), for the foreground rules that read it.
            params: where the heads start, shared or with a batch axis; None draws them.
            record_every: record labels every so many epochs.
        """
        own, common = (params, None) if has_batch_axis(params) else (None, params)

        def run(common, batch):
            features, attention, own = batch
            start = common if own is None else own
            return self._nodes_program(
                features, class_attention=attention, params=start, record_every=record_every
            )

        return map_images(run, common, (features, class_attention, own), self.map)

    def compile_regions(
        self, pixels: list[np.ndarray], *, record_every: int = 0
    ) -> tuple[Callable[[Regions], tuple[PatchResult, Any]], Regions]:
        """The compiled program for graphs of these images' regions, and the graphs.

        It is compiled once for each bucket of region counts (and number of images, where they are
        not taken one by one), without being run.
        """
        from unseg_jax.clustering.superpixels import region_graph, stack_regions

        def arguments(regions):
            return {
                "adjacency": regions.adjacency,
                "mask": regions.mask,
                "index_map": regions.index_map,
            }

        regions = stack_regions([region_graph(image, self.method) for image in pixels])
        apart = takes_images_apart(self.map)
        first = jax.tree.map(lambda leaf: leaf[:1], regions) if apart else regions
        key = (first.nodes.shape, first.index_map.shape, record_every)
        if key not in self._regions_programs:
            lowered = self._nodes_program.lower(
                first.nodes, **arguments(first), record_every=record_every
            )
            self._regions_programs[key] = lowered.compile()
        program = self._regions_programs[key]
        return lambda regions: program(regions.nodes, **arguments(regions)), regions

    @property
    def framing(self) -> Framing:
        """To what size images are resized."""
        patch = 1 if self.backbone is None else self.backbone.config.patch_size
        return Framing.of(self.method, patch)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) that labels of a square image live on, and of all if they are stretched: patches,
        or pixels of the resized image."""
        return self.grid_of(self.method.size)

    def grid_of(self, size: tuple[int, ...]) -> tuple[int, int]:
        """(h, w) that labels of a prepared image (height, width, …) live on."""
        if self.backbone is None:
            return size[0], size[1]
        return self.backbone.grid((size[0], size[1]), self.method.stride)

    @property
    def backbone_name(self) -> str:
        """Name of the backbone in use; "" where none is."""
        return "" if self.backbone is None else self.backbone.name

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        programs = (self._program, self._nodes_program, self._features_program)
        jitted = sum(program._cache_size() for program in programs)  # type: ignore[attr-defined]
        return jitted + len(self._regions_programs)

    def finish(
        self,
        result: PatchResult,
        index: int,
        image: np.ndarray,
        id: str = "",
        size: tuple[int, int] | None = None,
    ) -> Segmentation:
        """Turns entry `index` of a result (host arrays) into a `Segmentation` of its image.

        Args:
            result: from `run` or `assign`; `jax.device_get` it once per batch beforehand.
            index: position in the batch.
            image: (h, w, 3) uint8; the mask is made, and its edges refined, at this size.
            id: of the result.
            size: (H, W) of the image itself, if `image` was reduced.

        Raises:
            ImageError: features or assignments are not finite.
        """
        if not result.finite[index]:
            if self.method.own_parts:
                raise ImageError(
                    f"{id or 'the image'}: its features or assignments are not finite numbers; "
                    f"look at {own.describe(self.method)}, or at the weights of backbone "
                    f"'{self.backbone_name}'."
                )
            raise not_finite(id, self.backbone_name)
        labels = np.asarray(result.labels[index])
        foreground = np.asarray(result.foreground[index])
        if self.method.largest_component:
            foreground = largest_component(foreground)
        mask = upsample_labels(foreground, image.shape[:2])
        full = upsample_labels(smallest(labels), image.shape[:2])
        if self.method.refine != "none" and mask.any() and not mask.all():
            mask, full = self._refine(image, foreground, mask, full)
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
            method=self.method.name,
            backbone=self.backbone_name,
            id=id,
        )

    # ------------------------------------------------------------- inner works

    def _read(self, entry, *, full_pixels=False) -> _Decoded:
        index, source = entry
        # A JPEG is decoded at no less than twice this size.
        needed = [max(side, WORKING_SIDE // 2) for side in self.framing.at_least]
        at_least = None if full_pixels else (needed[0], needed[1])
        picture = read_image(source, at_least, value_range=self.value_range)
        name = name_of(source, index)
        prepared = self.prepare(picture.pixels)
        kept = picture.pixels if full_pixels else shrink_image(picture.pixels)
        return _Decoded(name, kept, prepared, picture.size, picture.notes)

    def _finish_batch(self, batch, result):
        host: Any = None if result is None else jax.device_get(result)
        index = 0
        for outcome in batch:
            if outcome.value is None:
                if not isinstance(outcome.error, ImageError):
                    raise outcome.error
                yield outcome.error
                continue
            image = outcome.value
            working = shrink_image(image.pixels)
            try:
                segmentation = self.finish(host, index, working, image.name, image.size)
                yield dataclasses.replace(
                    segmentation, pixels=image.pixels, notes=(*image.notes, *segmentation.notes)
                )
            except ImageError as error:
                yield error
            index += 1

    def _refine(self, image, foreground, mask, labels):
        method = self.method
        if method.refine == "guided":
            refined = refine_margins(image, np.where(foreground, 1.0, -1.0), method)
            mask = upsample_margins(refined, image.shape[:2])
            # Parts keep the edges between them; what the mask gains goes to the first part.
            return mask, np.where(mask, np.maximum(labels, 1), 0)
        from unseg_jax.postprocess.bilateral import refine_segmentation

        sigmas = (method.sigma_spatial, method.sigma_luma, method.sigma_chroma)
        return refine_segmentation(image, mask, labels, *sigmas, quirks=method.quirks)

    def _run_pixels(self, params, pixels, *, record_every=0):
        assert self.backbone is not None
        return segment_pixels(
            self.backbone, self.method, params, pixels, self.key, record_every, self._map
        )[0]

    def _run_nodes(self, nodes, *, record_every=0, **given):
        return segment_features(
            nodes,
            self.key,
            method=self.method,
            grid=self.grid,
            record_every=record_every,
            map=self._map,
            **given,
        )

    def _run_features(self, params, pixels):
        assert self.backbone is not None
        return extract_features(self.backbone, self.method, params, pixels)

    def _run_regions(self, pixels, record_every):
        program, regions = self.compile_regions(pixels, record_every=record_every)
        return map_images(lambda _, regions: program(regions), None, regions, self.map)[0]


class ImageSegmenter(BatchSegmenter):
    """Segments images one by one: every image starts from the same fresh parameters.

    Example:
        A method on colour superpixels, which needs no backbone:

        >>> image = np.full((64, 64, 3), 40, np.uint8)
        >>> image[20:44, 20:44] = (220, 60, 60)
        >>> segmenter = ImageSegmenter("spectral-ncut", image_size=64)
        >>> (result,) = segmenter(image)
        >>> result.mask.shape, bool(result.mask[32, 32]), bool(result.mask[0, 0])
        ((64, 64), True, False)
    """

    def __init__(
        self,
        method: str | Method = "deepcut",
        *,
        backbone: str | Path | Backbone = "auto",
        batch_size: int = 8,
        seed: int = 0,
        dtype: str = "float32",
        map: How | None = None,
        **overrides: Any,
    ):
        """
        Args:
            method: name of `list_methods()`, or a `Method`.
            backbone: name, path to weights, or a loaded `Backbone`; "auto" takes the method's
                own, which is DINO ViT-S/8 where it can be fetched, else its stand-in.
            batch_size: images given to the device at a time, at least 1.
            seed: random seed of initial parameters and dropout.
            dtype: "float32" or "bfloat16", of the backbone; losses are always float32.
            map: how a batch is taken, see `unseg_jax.cluster`.
            **overrides: fields of `Method`.

        Raises:
            ValueError: an unknown method, backbone or field, or a value out of range.
        """
        resolved = resolve(method, **overrides)
        _refuse_sets(resolved)
        fitted, loaded = load_for(resolved, backbone, dtype=dtype, explicit=overrides)
        super().__init__(fitted, loaded, batch_size=batch_size, seed=seed, map=map)


def _is_one_colour(image: np.ndarray) -> bool:
    # The first row settles it for nearly all images.
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())


def name_of(source: Source, index: int) -> str:
    """What an image is called: its path, or its place in the call."""
    return str(source) if isinstance(source, (str, os.PathLike)) else str(index)


def not_finite(id: str, backbone: str) -> ImageError:
    """The error of an image whose features are not finite numbers."""
    return ImageError(
        f"{id or 'the image'}: its features are not finite numbers; check the weights of backbone "
        f"'{backbone}', or use dtype='float32'."
    )


def _refuse_sets(method: Method) -> None:
    if method.foreground == "set":
        raise ValueError(
            f"'{method.name}' finds the foreground in a whole set: fit it first with "
            f"unseg_jax.fit(images, method='{method.name}'), or call unseg_jax.segment."
        )


def load_for(
    method: Method,
    backbone: str | Path | Backbone = "auto",
    *,
    dtype: str = "float32",
    explicit: Iterable[str] = (),
) -> tuple[Method, Backbone | None]:
    """The backbone for a method, and the method with a stride that fits it.

    Args:
        method: resolved.
        backbone: name, path to weights, or a loaded `Backbone`; "auto" takes the method's own.
        dtype: "float32" or "bfloat16", of the backbone.
        explicit: fields that the user chose; a stride among them is kept as it is.

    Returns:
        The method, and the backbone; None for methods on superpixels or pixels.

    Raises:
        ValueError: an unknown backbone or dtype, weights that cannot be read, or a loss or layer
            of the user's own that gives something else than it should.
        PlatformError: the platform that JAX_PLATFORMS names is not here.
    """
    usable_devices()
    if method.nodes != "patches":
        check_own_parts(method, _PROBE_NODES, 3)
        return method, None
    if not isinstance(backbone, Backbone):
        name = method.backbone if backbone == "auto" else backbone
        backbone = load_backbone(name, dtype=dtype)  # type: ignore[arg-type]
    method = fit_to_backbone(method, backbone, explicit)
    if method.own_parts:
        rows, columns = backbone.grid(method.size, method.stride)
        check_own_parts(method, rows * columns, backbone.config.width)
    return method, backbone


def make_segment_fn(
    method: str | Method = "deepcut",
    backbone: str | Path | Backbone = "auto",
    *,
    seed: int = 0,
    dtype: str = "float32",
    map: Literal["vmap", "loop"] | None = None,
    **overrides: Any,
) -> tuple[Callable[[Any, Array], Array], Any]:
    """The whole way from pixels to labels as one pure jitted function.

    Args:
        method: name or `Method`, of patches (superpixels are cut on the host: use `Segmenter`).
        backbone: name, path to weights, or a `Backbone`.
        seed: random seed of initial parameters and dropout, from 0 to 2⁶³ − 1.
        dtype: "float32" or "bfloat16", of the backbone.
        map: "vmap" optimises all images of a batch at once, "loop" one after the other. None is
            decided where the program is compiled: "loop" for a CPU, "vmap" for accelerators and
            for a CPU that is divided into several devices, where a batch may be sharded.
        **overrides: fields of `Method`.

    Returns:
        fn, params: `fn(params, pixels)` takes (B, H, W, 3) pixels, uint8 or float in [0, 1],
        already resized, and returns (B, h, w) int32 labels, 0 = background. jit, vmap or shard it
        as you like; params are the backbone's weights.

    Raises:
        ValueError: an unknown method, backbone, field or `map`, a method without patches, or one
            that is fitted on a set.

    Example:
        >>> fn, params = make_segment_fn("vit-kmeans", backbone, image_size=32)
        >>> fn(params, np.stack([photograph[:32, :32]] * 2)).shape
        (2, 4, 4)
    """
    check_map(map, ("vmap", "loop"))
    key_from_seed(seed)
    resolved = resolve(method, **overrides)
    _refuse_sets(resolved)
    if resolved.nodes != "patches":
        raise ValueError(
            f"'{resolved.name}' works on {resolved.nodes}, which are cut on the host: "
            "use Segmenter instead of make_segment_fn."
        )
    resolved, loaded = load_for(resolved, backbone, dtype=dtype, explicit=overrides)
    assert loaded is not None

    def segment(params, pixels):
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
            raise ValueError(
                f"pixels have shape {pixels.shape}: (B, H, W, 3) with at least one image is needed."
            )
        result, _ = segment_pixels(loaded, resolved, params, pixels, jax.random.key(seed), map=map)
        return result.labels

    return jax.jit(segment), loaded.params


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
