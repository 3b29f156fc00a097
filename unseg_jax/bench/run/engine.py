"""The device's side of a run: batches of pixels in, results of every method out.

Methods that share `Method.feature_key` share one pass of the backbone. With several local
devices the batch axis is split over them; a CPU takes the images of a batch one by one, several at
once. Everything is compiled before the first batch, for one shape, so that compile time is known
and no batch waits for it. Where images keep their shapes (`Method.resize`), a further shape is
compiled when its first image comes, and that time is counted apart.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unseg_jax.backbones import Backbone, load_backbone
from unseg_jax.batching import map_images, pad_batch, takes_images_apart
from unseg_jax.bench.run.settings import Settings
from unseg_jax.cache import compile_clock
from unseg_jax.clustering.loop import key_from_seed
from unseg_jax.data import Source
from unseg_jax.data.input_size import InputSize
from unseg_jax.data.reading_options import Reading
from unseg_jax.errors import BenchError
from unseg_jax.method import Method
from unseg_jax.pipeline import extract_features, segment_features
from unseg_jax.segmenter import BatchSegmenter, load_for
from unseg_jax.segmenter.decoded_cache import Decoded

_AXIS = "images"


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a method's segmenter finishes, host arrays without a batch's padding; seconds of the
    device for the method itself; and those for the features that it shares with others."""

    result: Any
    seconds: float
    shared_seconds: float


@dataclasses.dataclass
class _Group:
    """Methods that share features, or one that goes its own way from pixels to results."""

    names: list[str]
    shares: bool
    extract: Callable | None = None
    attend: Callable | None = None
    compile_seconds: float = 0.0


class Engine:
    """Runs several methods on batches.

    Attributes:
        segmenters: by the method's name, in the order of `methods`.
        batch_size: images per batch, a multiple of the number of devices.
        devices: that the batch is split over.
        compile_seconds: by method, what compiling it and its features took.
    """

    def __init__(self, settings: Settings):
        """Takes all local devices. Raises ValueError: unknown methods (also `WeightsError`)."""
        methods = settings.resolve_methods()
        for method in methods:
            if method.tile:
                raise ValueError(
                    f"tile={method.tile}: a benchmark takes images whole; use unseg-jax segment."
                )
        self.devices = jax.local_devices()
        count = len(self.devices)
        self.batch_size = -(-settings.batch_size // count) * count
        self.record_every = settings.record_every
        self.backbone = _load(methods, settings.backbone, settings.dtype)
        # Fields that are not fitted to the backbone.
        self._explicit = tuple(field for field in settings.overrides if field == "stride")
        self._overrides = settings.overrides
        self._options: dict[str, Any] = {"batch_size": self.batch_size, "seed": settings.seed}
        self._unfitted = {method.name: method for method in methods if method.learns_from_set}
        self.segmenters: dict[str, BatchSegmenter] = {}
        for method in methods:
            backbone = self.backbone or settings.backbone
            fitted, loaded = load_for(
                method, backbone, dtype=settings.dtype, explicit=self._explicit
            )
            self.segmenters[method.name] = BatchSegmenter(fitted, loaded, **self._options)
        self.compile_seconds = dict.fromkeys(self.segmenters, 0.0)
        self._mesh = Mesh(np.array(self.devices), (_AXIS,)) if count > 1 else None
        place = NamedSharding(self._mesh, PartitionSpec()) if self._mesh else self.devices[0]
        self._params = self.backbone and jax.device_put(self.backbone.params, place)
        # Given to the programs, so that they are the same for all seeds.
        self._key = jax.device_put(key_from_seed(settings.seed), place)
        self._groups = self._group()
        self._assign: dict[str, Callable] = {}

    @property
    def methods(self) -> dict[str, Method]:
        """The methods, fitted to the backbone."""
        return {name: segmenter.method for name, segmenter in self.segmenters.items()}

    @property
    def input_sizes(self) -> list[InputSize]:
        """The sizes that the methods take."""
        return sorted({segmenter.input_size for segmenter in self.segmenters.values()})

    def weights_digest(self) -> str:
        """A short digest of the backbone's parameters; "" without one."""
        if self.backbone is None:
            return ""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.backbone.params):
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
        return digest.hexdigest()[:16]

    @property
    def kept(self) -> dict[str, Callable[[Source], Decoded | None]]:
        """By method, what its fit kept of an image."""
        return {
            name: functools.partial(segmenter.kept.get, of=segmenter.method.feature_key)
            for name, segmenter in self.segmenters.items()
            if segmenter.kept is not None
        }

    @property
    def reads_images(self) -> bool:
        """Whether a method needs the images at their own size after the device."""
        methods = self.methods.values()
        return any(method.refine != "none" or method.learns_from_set for method in methods)

    def fit(
        self,
        images: Sequence[Source],
        folder: Path,
        save: Callable[[str, bytes], Any],
        progress: Callable[[str], Any] = lambda name: None,
        reading: Reading | None = None,
    ) -> None:
        """Fits the models of methods that learn from the whole set, or reads them again.

        Models are kept in `folder`, so that a resumed run has the same. `save` is called with the
        file name and the content of a new one, `progress` with the name of each method.
        """
        from unseg_jax.collective.choosing import choose, load

        for name, method in self._unfitted.items():
            file = f"{name}.safetensors"

            def keep(model: Any, file: str = file) -> None:
                with tempfile.TemporaryDirectory() as scratch:
                    model.save(Path(scratch, file))
                    save(file, Path(scratch, file).read_bytes())

            if not (folder / file).exists():
                progress(name)
            explicit = {field: getattr(method, field) for field in self._explicit}
            asked = (
                ("auto", images, self._overrides) if name == "auto" else (method, images, explicit)
            )
            choice = choose(*asked)
            if choice.model is not None and not (folder / file).exists():
                save(file, choice.model.read_bytes())  # the run says what segmented it
            self.segmenters[name] = load(
                choice,
                images,
                reading,
                backbone=self.backbone or "auto",
                kept=folder / file,
                keep=keep,
                **self._options,
            )

    def shrink(self, count: int) -> None:
        """Makes batches no larger than `count` images, so that a small set is not padded far."""
        devices = len(self.devices)
        self.batch_size = min(self.batch_size, -(-count // devices) * devices)

    def compile(self, progress: Callable[[str], Any] = lambda name: None) -> None:
        """Compiles all programs for one batch shape; `progress` is told the name of each method."""
        for group in self._groups:
            progress(group.names[0])
            if group.shares:
                self._compile_features(group)
            for name in group.names:
                progress(name)
                self.compile_seconds[name] = group.compile_seconds
                self.compile_seconds[name] += self._compile_method(group, name)

    def run(
        self,
        pixels: dict[InputSize, list[np.ndarray]],
        features: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> dict[str, Timed]:
        """Runs every method on a batch; `compile` comes first.

        Args:
            pixels: for each of `input_sizes`, uint8 (height, width, 3) of at most `batch_size`
                images.
            features: of each image those of methods that need not encode it again, float16.

        Raises:
            BenchError: the device has no memory left.
        """
        outcomes: dict[str, Timed] = {}
        try:
            for group in self._groups:
                input_size = self.segmenters[group.names[0]].input_size
                if group.shares:
                    self._run_sharing(group, pixels[input_size], outcomes)
                else:
                    (name,) = group.names
                    given = pixels[input_size]
                    if features:
                        pairs = zip(features, given, strict=True)
                        given = [known.get(name, image) for known, image in pairs]
                    outcomes[name] = self._run_alone(name, given)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise BenchError(
                f"the device has no memory left for batches of {self.batch_size} images: "
                f"resume with a smaller --batch-size."
            ) from error
        return {name: outcomes[name] for name in self.segmenters}

    def _group(self) -> list[_Group]:
        groups: dict[tuple, _Group] = {}
        for name, segmenter in self.segmenters.items():
            # Programs that share features are compiled for one shape.
            one_shape = segmenter.method.resize == "stretch"
            shares = segmenter.backbone is not None and one_shape and name not in self._unfitted
            key = segmenter.method.feature_key if shares else (name,)
            groups.setdefault(key, _Group([], shares)).names.append(name)
        return list(groups.values())

    def _build(self, function: Callable, params: Any, batch: Any) -> tuple[Callable, float]:
        """Compiles a function of parameters and of a tree of arrays with a leading batch axis."""
        if self._mesh is not None:
            split = PartitionSpec(_AXIS)
            # Each device maps over its own part of the batch; nothing is exchanged, so that
            # there is nothing for the check of varying values to find.
            function = jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=(PartitionSpec(), split),
                out_specs=split,
                check_vma=False,
            )
        start = time.perf_counter()
        compiled = jax.jit(function).lower(params, batch).compile()
        return compiled, time.perf_counter() - start

    def _shape(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        sharding = self._mesh and NamedSharding(self._mesh, PartitionSpec(_AXIS))
        return jax.ShapeDtypeStruct((self._lead, *shape), dtype, sharding=sharding)

    @property
    def _lead(self) -> int:
        """How many images a program takes."""
        return 1 if takes_images_apart() else self.batch_size

    def _compile_features(self, group: _Group) -> None:
        lead = self.segmenters[group.names[0]]
        backbone, method = lead.backbone, lead.method
        assert backbone is not None

        def extract(params, pixels):
            return extract_features(backbone, method, params, pixels)

        def attend(params, pixels):
            return backbone.class_attention(params, pixels, stride=method.stride)

        pixels = self._shape((*method.size, 3), np.uint8)
        group.extract, group.compile_seconds = self._build(extract, self._params, pixels)
        if any(_reads_attention(self.segmenters[name].method) for name in group.names):
            group.attend, seconds = self._build(attend, self._params, pixels)
            group.compile_seconds += seconds

    def _compile_method(self, group: _Group, name: str) -> float:
        segmenter = self.segmenters[name]
        method = segmenter.method
        if segmenter.kept is not None:
            return 0.0  # no pixels may come; what does is compiled then, and counted
        size = segmenter.input_size.size_for(*method.size)
        blank = [np.zeros((*size, 3), np.uint8)] * self.batch_size
        start = time.perf_counter()
        if method.nodes != "patches":
            segmenter.compile_regions(blank, record_every=self.record_every)
            return time.perf_counter() - start
        if not group.shares:
            jax.block_until_ready(segmenter.run(blank, record_every=self.record_every))
            first = time.perf_counter()
            jax.block_until_ready(segmenter.run(blank, record_every=self.record_every))
            return max(0.0, first - start - (time.perf_counter() - first))

        def assign(key, inputs):
            features, attention = inputs
            return segment_features(
                features,
                key,
                method=method,
                grid=segmenter.grid,
                class_attention=attention if _reads_attention(method) else None,
                record_every=self.record_every,
            )[0]

        rows, columns = segmenter.grid
        nodes = rows * columns
        assert group.extract is not None
        width = jax.tree.leaves(group.extract.out_info)[0].shape[-1]  # type: ignore[attr-defined]
        attention = self._shape((nodes,), np.float32) if group.attend is not None else None
        inputs = (self._shape((nodes, width), np.float32), attention)
        self._assign[name], seconds = self._build(assign, self._key, inputs)
        return seconds

    def _run_alone(self, name, pixels) -> Timed:
        # A shape that no image before had is compiled now, which is not the method's time.
        with compile_clock() as clock:
            start = time.perf_counter()
            result = jax.device_get(
                self.segmenters[name].run(pixels, size=self._lead, record_every=self.record_every)
            )
            seconds = time.perf_counter() - start - clock.seconds
        self.compile_seconds[name] += clock.seconds
        return Timed(result, max(0.0, seconds), 0.0)

    def _run_sharing(self, group, pixels, outcomes) -> None:
        count = len(pixels)
        pixels = pad_batch(np.stack(pixels), max(self._lead, count))
        start = time.perf_counter()
        features = map_images(group.extract, self._params, pixels)
        attention = None
        if group.attend is not None:
            attention = map_images(group.attend, self._params, pixels)
        jax.block_until_ready((features, attention))
        shared = time.perf_counter() - start
        for name in group.names:
            start = time.perf_counter()
            output = map_images(self._assign[name], self._key, (features, attention))
            result = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], jax.device_get(output))
            outcomes[name] = Timed(result, time.perf_counter() - start, shared)


def _load(methods: Sequence[Method], backbone: str, dtype: str) -> Backbone | None:
    """The one backbone of all methods; None if none works on patches."""
    backbones = {method.backbone for method in methods if method.nodes == "patches"}
    if not backbones:
        return None
    if backbone == "auto":
        # "auto" leaves the choice open: it follows a method that was measured with one backbone.
        backbones = backbones - {"auto"} or backbones
        if len(backbones) > 1:
            raise ValueError(
                f"the methods have different backbones ({', '.join(sorted(backbones))}): choose "
                f"one for all with --backbone, or run them one at a time."
            )
        (backbone,) = backbones
    return load_backbone(backbone, dtype=dtype)


def _reads_attention(method: Method) -> bool:
    return method.foreground in ("attention", "auto")
