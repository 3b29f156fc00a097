"""Images in, masks out: segmenters of batches, and the pure function under it, `make_segment_fn`.

A segmenter is put together from three parts: `device` runs everything from pixels to patches in
one compiled program, `streaming` decodes the next batch meanwhile, and `finishing` turns the last
one's patches into masks. Its settings are arguments, and nothing is changed afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

from unseg_jax.backbones import Backbone, load_backbone
from unseg_jax.batching import Batching, check_batching, devices_for, replicate
from unseg_jax.clustering.loop import key_from_seed
from unseg_jax.clustering.probe import check_own_parts
from unseg_jax.data.decoding import resize_image
from unseg_jax.data.input_size import InputSize
from unseg_jax.data.reading_options import PLAIN, Reading
from unseg_jax.devices import usable_devices
from unseg_jax.errors import ImageError
from unseg_jax.method import Method
from unseg_jax.pipeline import PatchResult, fit_to_backbone, segment_pixels
from unseg_jax.postprocess.device_refining import refines_on_device
from unseg_jax.registry import refuse_options, refuse_sets, resolve
from unseg_jax.segmentation import Segmentation
from unseg_jax.segmenter.decoded_cache import DecodedCache
from unseg_jax.segmenter.device import Apply, Device, Refine, WithFeatures, device_for
from unseg_jax.segmenter.finishing import finish_labels
from unseg_jax.segmenter.streaming import stream_batches

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float16, UInt8

    from unseg_jax.clustering.superpixels import Regions
    from unseg_jax.data.decoding import Source

# Regions that a custom loss or layer is tried on: how many an image has is not known yet.
_PROBE_NODES = 16
# Options of other entry points that are none of `make_segment_fn`, and why.
_NOT_PURE = {
    **dict.fromkeys(("batch_size", "value_range", "workers", "page"), "you read and batch pixels"),
    **dict.fromkeys(("steps", "passes", "max_images", "on_image"), "nothing is fitted"),
    "key": "pass seed=",
}


class Work(NamedTuple):
    """How a segmenter works, in pure functions.

    Attributes:
        apply: on the device, from features to a result, see `device.Apply`; None starts each image
            from fresh parameters.
        finish: (method, name of the backbone, result, index, image, id, size) → `Segmentation`.
        stream: (segmenter, images, full_pixels) → results in order.
        refine: on an accelerator, from prepared pixels (B, h, w, 3) and the result to the result
            with edges refined; None leaves that to `finish`.
    """

    apply: Apply | None = None
    finish: Callable[..., Segmentation] = finish_labels
    stream: Callable[..., Iterator[Segmentation | ImageError]] = stream_batches
    refine: Refine | None = None


FRESH = Work()


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSegmenter:
    """Runs a method over batches of images, read ahead of the device and finished behind it.

    Made by `Segmenter`, which starts each image from fresh parameters, and by
    `CollectiveModel.segmenter`, which applies what was fitted on a set. A program is compiled once
    for each shape of image and size of batch, on a CPU once for each shape of image, and serves
    every segmenter of the same method.

    Attributes:
        method: the `Method`, with a stride that fits the backbone.
        backbone: the loaded `Backbone`; None for methods on superpixels or pixels.
        batch_size: images given to each device at a time, at least 1; a CPU works on as many at
            once as it has cores.
        seed: random seed of initial parameters and dropout, the same for every image, from 0 to
            2⁶³ − 1.
        batching: how a batch is taken, see `unseg_jax.cluster`; None by the platform.
        reading: how images are read.
        work: what is done.
        fitted: tree of arrays that `work.apply` takes: what was fitted on a set; None without.
        kept: what was read of the images while the model was fitted on them; None reads all.
        with_features: whether results hold the features of their patches.

    Raises:
        ValueError: a batch size below 1, a seed out of range, or an unknown `batching`.
    """

    method: Method
    backbone: Backbone | None
    batch_size: int = 8
    seed: int = 0
    batching: Batching | None = None
    reading: Reading = PLAIN
    work: Work = FRESH
    fitted: Any = None
    kept: DecodedCache | None = None
    with_features: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
        check_batching(self.batching)
        key_from_seed(self.seed)

    def __getstate__(self):
        # Programs are found again where the segmenter is unpickled.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "kept": None}

    def but(self, **changes: Any) -> BatchSegmenter:
        """Another segmenter, with fields replaced."""
        fields = {field.name: getattr(self, field.name) for field in _FIELDS}
        return BatchSegmenter(**{**fields, **changes})

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
            images: see `__call__`.
            full_pixels: keep the pixels of each image at its own size in its result, instead of
                at most 1,600 on the longer side.
        """
        return self.work.stream(self, images, full_pixels)

    @property
    def may_tile(self) -> bool:
        """Whether it sees images whole, and its method might see them in tiles."""
        steered = getattr(self.fitted, "steering", None) is not None
        shared = self.method.foreground == "set" and not self.method.collective_epochs
        return shared and not (self.method.tile or self.method.epochs or steered)

    # ------------------------------------------------------- building blocks

    @functools.cached_property
    def key(self) -> Array:
        """`jax.random.key` of the seed."""
        return key_from_seed(self.seed)

    @property
    def at_once(self) -> int:
        """Images that go to the devices of this process at a time: `batch_size` to each."""
        return self.batch_size * devices_for(self.batching)

    @functools.cached_property
    def _params(self) -> Any:
        """Weights of the backbone on all devices that are used."""
        return None if self.backbone is None else replicate(self.backbone.params, self.batching)

    @functools.cached_property
    def _device(self) -> Device:
        form = None if self.backbone is None else self.backbone.form
        refine = self.work.refine if refines_on_device(self.method) else None
        return device_for(self.work.apply, form, self.method, self.batching, refine)

    def prepare(self, image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """Resizes (H, W, 3) uint8 to what `input_size` says (Lanczos)."""
        return resize_image(image, self.input_size.size_for(*image.shape[:2]))

    def run(
        self, pixels: Sequence[np.ndarray], *, size: int | None = None, record_every: int = 0
    ) -> PatchResult:
        """Runs prepared images on the device; returns before it is done.

        Args:
            pixels: arrays from `prepare`, or where a model is applied their features from
                `kept_features`; up to `at_once` of one shape go to the devices at once.
            size: pad to this many images, at most `at_once`, unless a CPU takes them one by one;
                padding is cut off the result lazily.
            record_every: record labels every this many epochs.

        Returns:
            Arrays with a leading axis of the images; where these differ in shape, lists with one
            entry for each, of which `jax.device_get` or `np.asarray` makes its array. They are
            the `result` of `WithFeatures` where features are asked for.

        Raises:
            ValueError: no images.
        """
        shared, most = (self._params, self.key, self.fitted), self.at_once
        options = {"record_every": record_every, "with_features": self.with_features}
        return self._device.run(shared, pixels, most=most, size=size, **options)

    def features(self, pixels: np.ndarray) -> Float[Array, "b n d"]:
        """(B, N, D) float32 patch features of prepared images (B, h, w, 3), on the device.

        Methods with the same `Method.feature_key` can share them.
        """
        if self.backbone is None:
            raise ValueError(f"'{self.method.name}' works on {self.method.nodes}, not on features.")
        return self._device.features(self._params, pixels)

    def kept_features(self, pixels: np.ndarray) -> Float16[Array, "b h w d"]:
        """Patch features of prepared images as models are fitted on them and applied to them."""
        return self._device.kept_features(self._params, pixels)

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
            record_every: record labels every this many epochs.
        """
        return self._device.assign(
            self.key, features, self.grid, class_attention, params, record_every
        )

    def compile_regions(
        self, pixels: Sequence[np.ndarray], *, record_every: int = 0
    ) -> tuple[Callable[[Regions], tuple[PatchResult, Any]], Regions]:
        """The compiled program for graphs of these images' regions, and the graphs.

        It is compiled once for each bucket of region counts (and number of images, where they are
        not taken one by one), without being run.
        """
        return self._device.compile_regions(self.key, pixels, record_every=record_every)

    @property
    def input_size(self) -> InputSize:
        """To what size images are resized."""
        patch = 1 if self.backbone is None else self.backbone.config.patch_size
        return InputSize.of(self.method, patch)

    @property
    def framing(self) -> InputSize:
        """The earlier name of `input_size`, kept for one release."""
        return self.input_size

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
        """How many programs were compiled so far for segmenters like this one."""
        return self._device.compilations

    def finish(
        self,
        result: Any,
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
        features = None
        if isinstance(result, WithFeatures):
            result, features = result
        found = self.work.finish(self.method, self.backbone_name, result, index, image, id, size)
        if features is None:
            return found
        features = np.asarray(features[index])
        # Those of the first block; there may be others, which only examples teach from.
        features = features[..., : features.shape[-1] // self.method.feature_parts]
        return dataclasses.replace(found, patch_features=features)


_FIELDS = dataclasses.fields(BatchSegmenter)


def load_for(
    method: Method,
    backbone: str | Path | Backbone = "auto",
    *,
    dtype: str = "auto",
    explicit: Iterable[str] = (),
) -> tuple[Method, Backbone | None]:
    """The backbone for a method, and the method with a stride that fits it.

    Args:
        method: resolved.
        backbone: name, path to weights, or a loaded `Backbone`; "auto" takes the method's own.
        dtype: "auto", "float32" or "bfloat16", of the backbone.
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
    dtype: str = "auto",
    batching: Literal["vmap", "loop"] | None = None,
    **overrides: Any,
) -> tuple[Callable[[Any, Array], Array], Any]:
    """The whole way from pixels to labels as one pure jitted function.

    Args:
        method: name or `Method`, of patches (superpixels are cut on the host: use `Segmenter`).
        backbone: name, path to weights, or a `Backbone`.
        seed: random seed of initial parameters and dropout, from 0 to 2⁶³ − 1.
        dtype: "auto", "float32" or "bfloat16", of the backbone.
        batching: "vmap" optimises all images of a batch at once, "loop" one after the other. None
            is decided where the program is compiled: "loop" for a CPU, "vmap" for accelerators
            and for a CPU that is divided into several devices, where a batch may be sharded.
        **overrides: fields of `Method`.

    Returns:
        fn, params: `fn(params, pixels)` takes (B, H, W, 3) pixels, uint8 or float in [0, 1],
        already resized, and returns (B, h, w) int32 labels, 0 = background. jit, vmap or shard it
        as you like; params are the backbone's weights.

    Raises:
        ValueError: an unknown method, backbone, field or `batching`, a method without patches, or
            one that is fitted on a set.

    Example:
        >>> fn, params = make_segment_fn("vit-kmeans", backbone, image_size=32)
        >>> fn(params, np.stack([photograph[:32, :32]] * 2)).shape
        (2, 4, 4)
    """
    refuse_options(overrides, _NOT_PURE)
    check_batching(batching, ("vmap", "loop"))
    key_from_seed(seed)
    resolved = resolve(method, **overrides)
    refuse_sets(resolved)
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
        result, _ = segment_pixels(
            loaded, resolved, params, pixels, jax.random.key(seed), batching=batching
        )
        return result.labels

    return jax.jit(segment), loaded.params
