"""The device's side: compiled programs from prepared pixels to what is found on their patches.

A `Device` holds no weights. It is shared by all segmenters of a method on backbones of one form, so
a second one compiles nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones import Backbone, grids
from unseg_jax.batching import Batching, by_shares, map_images, pad_batch, takes_images_apart
from unseg_jax.clustering.loop import has_batch_axis
from unseg_jax.method import Method
from unseg_jax.pipeline import (
    PatchResult,
    extract_features,
    segment_features,
    segment_pixels,
)
from unseg_jax.programs import Program

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float16

    from unseg_jax.clustering.superpixels import Regions

Apply = Callable[..., Any]
"""apply(method, map, key, fitted, features, grid, record_every): a pure function from features
(B, N, D) float32 to a result."""
Refine = Callable[[Any, Any], Any]
"""refine(pixels, result): a pure function from what was found in pixels (B, h, w, 3) uint8 to the
same with its edges moved to theirs."""


@functools.lru_cache(maxsize=128)
def device_for(
    apply: Apply | None,
    form: Backbone | None,
    method: Method,
    how: Batching | None,
    refine: Refine | None = None,
) -> Device:
    """The one `Device` of these arguments; `form` is that of a backbone."""
    return Device(apply, form, method, how, refine)


@functools.lru_cache(maxsize=64)
def _extractor(form: Backbone, how: Batching | None, **wanted: Any) -> Program:
    def extract(params, pixels):
        return by_shares(functools.partial(form.features, **wanted), params, pixels, how)

    return Program(jax.jit(extract), _made_from("extract", form, tuple(wanted.items())))


@functools.partial(jax.jit, static_argnames="grid")
def _reduce(features, grid):
    return features.reshape(len(features), *grid, -1).astype(jnp.float16)


_reduced = Program(_reduce, "reduced")


@jax.jit
def _halve(pixels):
    """Pixels (B, 2 H, 2 W, 3) at half the size, (B, H, W, 3), of whole levels as an image has."""
    batch, height, width, channels = pixels.shape
    size = (batch, height // 2, width // 2, channels)
    levels = jax.image.resize(pixels.astype(jnp.float32), size, "lanczos3")
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)


_halved = Program(_halve, "halved")


@functools.partial(jax.jit, static_argnames="grid")
def _join_scales(whole, closer, grid):
    joined = jnp.concatenate([whole, grids.pack_quarters(closer, grid)], -1)
    return joined.reshape(len(whole), *grid, -1).astype(jnp.float16)


_joined = Program(_join_scales, "joined")


def _made_from(name: str, form: Backbone | None, *others: Any) -> tuple | None:
    """What a `Program` is made from; None where a function of the user's own is among it."""
    own = any(isinstance(other, Method) and other.own_parts for other in others)
    known = form is None or type(form) is Backbone
    return (name, form and form.config, *others) if known and not own else None


class WithFeatures(NamedTuple):
    """What was found in a batch, and the features of its patches."""

    result: Any
    features: Float16[Array, "b h w d"]


class _Row:
    """What a batch's array says of one image, cut out on the host: on the device a program would
    be compiled for each shape, and the caller wait for the batch."""

    def __init__(self, whole: Array, at: int):
        self._whole, self._at = whole, at

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._whole, dtype)[self._at]

    def block_until_ready(self) -> _Row:
        self._whole.block_until_ready()
        return self


class Device:
    """The programs of a method, each compiled once for each shape of its arguments."""

    def __init__(
        self,
        apply: Apply | None,
        form: Backbone | None,
        method: Method,
        how: Batching | None,
        refine: Refine | None,
    ):
        """
        Args:
            apply: what was fitted on a set, to features; None starts each image from fresh
                parameters.
            form: of the backbone, see `Backbone.form`; None for methods without one.
            method: with a stride that fits the backbone.
            how: how a batch is taken, see `unseg_jax.cluster`.
            refine: of what `apply` gives; None leaves it as it is.
        """
        self._method, self._form, self._apply = method, form, apply
        self._refine = None if refine is None else jax.jit(refine)
        self._how: Batching | None = how
        # With threads the batch of a program is one image.
        inner = None if how == "threads" else how

        def run_pixels(shared, pixels, record_every, with_features):
            def run(shared, pixels):
                params, key, _ = shared
                assert form is not None
                features = extract_features(form, method, params, pixels) if with_features else None
                result, _ = segment_pixels(
                    form, method, params, pixels, key, record_every, inner, features
                )
                if not with_features:
                    return result
                return WithFeatures(result, self._on_grid(features, pixels))

            return by_shares(run, shared, pixels, how)

        def run_kept(shared, features, record_every):
            batch, *grid, width = features.shape
            rows = features.reshape(batch, -1, width).astype(jnp.float32)
            assert apply is not None
            return apply(method, inner, *shared, rows, tuple(grid), record_every)

        def run_nodes(key, nodes, grid, record_every, given):
            return segment_features(
                nodes,
                key,
                method=method,
                grid=grid,
                record_every=record_every,
                batching=inner,
                **given,
            )

        applied = apply and f"{apply.__module__}.{apply.__qualname__}"
        self._pixels = Program(
            jax.jit(run_pixels, static_argnames=("record_every", "with_features")),
            _made_from("pixels", form, method, inner),
        )
        self._kept = Program(
            jax.jit(run_kept, static_argnames=("record_every",)),
            _made_from("kept", None, applied, method, inner),
        )
        self._nodes = jax.jit(run_nodes, static_argnames=("grid", "record_every"))
        self._regions: dict[tuple, Any] = {}

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        nodes: int = self._nodes._cache_size()  # type: ignore[attr-defined]
        return self._pixels.compilations + self._kept.compilations + nodes + len(self._regions)

    def run(
        self,
        shared: tuple,
        pixels: Sequence[np.ndarray],
        *,
        most: int,
        size: int | None = None,
        record_every: int = 0,
        with_features: bool = False,
    ) -> Any:
        """Runs prepared images; see `BatchSegmenter.run`.

        Args:
            shared: weights of the backbone, key, and what was fitted.
            pixels: (h, w, 3) each, or (h, w, D) features from `kept_features`.
            most: images that go to the device at once.
            size: see `BatchSegmenter.run`.
            record_every: record labels every this many epochs.
            with_features: give `WithFeatures` instead of the result alone.
        """
        if not len(pixels):
            raise ValueError("there are no images to run; pass at least one.")
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, one in enumerate(pixels):
            alike.setdefault(one.shape, []).append(index)
        if len(alike) == 1 and len(pixels) <= most:
            return self._run_alike(shared, pixels, size, record_every, with_features)
        found: list[Any] = [None] * len(pixels)
        for indices in alike.values():
            for start in range(0, len(indices), most):
                chunk = indices[start : start + most]
                padded = None if size is None else min(size, most)
                part = [pixels[at] for at in chunk]
                result = self._run_alike(shared, part, padded, record_every, with_features)
                for at, index in enumerate(chunk):
                    found[index] = jax.tree.map(lambda leaf, at=at: _Row(leaf, at), result)
        return jax.tree.map(lambda *leaves: list(leaves), *found)

    def _run_alike(self, shared, pixels, size, record_every, with_features) -> Any:
        """Images of one shape, at most a batch of them."""
        size = len(pixels) if size is None or takes_images_apart(self._how) else size
        padded = pad_batch(np.stack(pixels), size)
        if self._apply is not None:

            def apply(shared, batch):
                params, *rest = shared
                features = batch if batch.dtype == np.float16 else self._keep(params, batch)
                result = self._kept(tuple(rest), features, record_every=record_every)
                if self._refine is not None and features is not batch:
                    result = self._refine(batch, result)
                return WithFeatures(result, features) if with_features else result

            result = map_images(apply, shared, padded, self._how)
        elif self._method.nodes == "patches":
            options = {"record_every": record_every, "with_features": with_features}
            program = functools.partial(self._pixels, **options)
            result = map_images(program, shared, padded, self._how)
        else:
            program, regions = self.compile_regions(shared[1], padded, record_every=record_every)
            # Compiled for one device.
            one = None if takes_images_apart(self._how) else "loop"
            result = map_images(lambda _, regions: program(regions), None, regions, one)[0]
        if size == len(pixels):
            return result
        return jax.tree.map(lambda leaf: leaf[: len(pixels)], result)

    def features(self, params: Any, pixels: np.ndarray) -> Float[Array, "b n d"]:
        """See `BatchSegmenter.features`."""
        return map_images(self._extract, params, pixels, self._how)

    def kept_features(self, params: Any, pixels: np.ndarray) -> Float16[Array, "b h w d"]:
        """See `BatchSegmenter.kept_features`."""
        return map_images(self._keep, params, pixels, self._how)

    def _keep(self, params, pixels):
        closer = self._extract(params, pixels)
        if self._method.scales == 1:
            return self._on_grid(closer, pixels)
        whole = _halved(pixels)
        return _joined(self._extract(params, whole), closer, grid=self._grid(whole))

    def _on_grid(self, features, pixels):
        return _reduced(features, grid=self._grid(pixels))

    def _grid(self, pixels) -> tuple[int, int]:
        assert self._form is not None
        return self._form.grid((pixels.shape[1], pixels.shape[2]), self._method.stride)

    def _extract(self, params, pixels):
        assert self._form is not None
        names = ("facet", "block", "stride", "log_bin")
        wanted = {name: getattr(self._method, name) for name in names}
        return _extractor(self._form, self._how, **wanted)(params, pixels)

    def assign(
        self, key: Array, features: Array, grid: tuple[int, int], attention, params, record_every
    ) -> tuple[PatchResult, Any]:
        """See `BatchSegmenter.assign`."""
        own, common = (params, None) if has_batch_axis(params) else (None, params)

        def run(shared, batch):
            key, common = shared
            features, attention, own = batch
            given = {"class_attention": attention, "params": common if own is None else own}
            return self._nodes(key, features, grid=grid, record_every=record_every, given=given)

        return map_images(run, (key, common), (features, attention, own), self._how)

    def compile_regions(
        self, key: Array, pixels: Sequence[np.ndarray] | np.ndarray, *, record_every: int = 0
    ) -> tuple[Callable[[Regions], tuple[PatchResult, Any]], Regions]:
        """See `BatchSegmenter.compile_regions`."""
        from unseg_jax.clustering.superpixels import region_graph, stack_regions

        def arguments(regions):
            names = ("adjacency", "mask", "index_map")
            return key, regions.nodes, {name: getattr(regions, name) for name in names}

        regions = stack_regions([region_graph(image, self._method) for image in pixels])
        apart = takes_images_apart(self._how)
        first = jax.tree.map(lambda leaf: leaf[:1], regions) if apart else regions
        shapes = (first.nodes.shape, first.index_map.shape, record_every)
        if shapes not in self._regions:
            key_, nodes, given = arguments(first)
            options = {"grid": first.index_map.shape[1:], "record_every": record_every}
            self._regions[shapes] = self._nodes.lower(key_, nodes, **options, given=given).compile()
        program = self._regions[shapes]

        def run(regions):
            key, nodes, given = arguments(regions)
            return program(key, nodes, given=given)

        return run, regions
