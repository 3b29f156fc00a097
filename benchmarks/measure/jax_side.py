"""What the unseg_jax worker can be asked; see `benchmarks.measure.workers`."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import unseg_jax as us
from benchmarks.measure import common

# Name of a head in benchmarks.reference.pyg_heads → method and overrides of unseg_jax.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepcut": ("deepcut", {}),
    "deepcut-cc": ("deepcut-cc", {}),
    "unseggnet": ("unseggnet", {}),
    "unseggnet-ncut": ("unseggnet", {"loss": "ncut", "affinity": "ncut", "tau": 0.0}),
    "unsegarmanet": ("unsegarmanet", {}),
    "unsegarmanet-ncut": ("unsegarmanet", {"loss": "ncut", "affinity": "ncut", "tau": 0.0}),
    "unsegmedgat": ("unsegmedgat", {}),
    "unsegmedgat-isic": ("unsegmedgat-isic", {}),
}
_state: dict[str, Any] = {}


def environment() -> dict[str, Any]:
    return {
        "versions": common.versions(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def peak_memory() -> float:
    return common.peak_memory_gib()


def matmul_rate(size: int = 1536, bfloat16: bool = False) -> float:
    """Operations a second of a square product, the best of several."""
    kind = jnp.bfloat16 if bfloat16 else jnp.float32
    left, right = jax.random.normal(jax.random.key(0), (2, size, size)).astype(kind)
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    times = [common.timed(lambda: product(left, right).block_until_ready()) for _ in range(6)]
    return 2 * size**3 / min(times)


# ---------------------------------------------------------------- heads alone


def prepare_head(
    name: str, nodes: int, width: int, batch: int, clusters: int | None, dropout: float | None
) -> None:
    """Makes the features that `time_head` works on: those of the PyTorch side."""
    images = [common.clustered_features(nodes, width, seed) for seed in range(batch)]
    _state["head"] = (name, jnp.asarray(np.stack(images)), clusters, dropout)


def time_head(few: int, many: int, batch: int) -> float:
    """Seconds an epoch and image: a run of `many` epochs less one of `few`, by their difference.

    What is done once an image (affinity, ÂX) is in both, and falls out. Each run is the median
    of three.
    """
    name, images, clusters, dropout = _state["head"]
    method, overrides = HEADS[name]
    images = images[0] if batch == 1 else images[:batch]

    def run(epochs: int) -> float:
        def call():
            found = us.cluster(
                images,
                method=method,
                quirks="code",
                epochs=epochs,
                num_clusters=clusters,
                dropout=dropout,
                **overrides,
            )
            jax.block_until_ready(found)

        key = ("warm", name, images.shape, epochs, clusters, dropout)
        if key not in _state:
            call()
            _state[key] = True
        return statistics.median(common.timed(call) for _ in range(3))

    return (run(many) - run(few)) / ((many - few) * batch)


def time_loop(epochs: int) -> float:
    """Seconds of a whole `cluster` call on the first image, from its features on."""
    name, images, clusters, dropout = _state["head"]
    method, overrides = HEADS[name]

    def call():
        found = us.cluster(
            images[0],
            method=method,
            quirks="code",
            epochs=epochs,
            num_clusters=clusters,
            dropout=dropout,
            **overrides,
        )
        jax.block_until_ready(found)

    key = ("warm loop", name, images.shape, epochs, clusters, dropout)
    if key not in _state:
        call()
        _state[key] = True
    return common.timed(call)


# ---------------------------------------------------------------- the ViT and whole images


def load_vit(weights: str) -> None:
    """Keeps the path of the weights: .npz under official names, or any that unseg_jax takes."""
    _state["weights"] = weights
    _state.pop("segmenters", None)


def _backbone(dtype: str):
    from unseg_jax.backbones import load_backbone

    key = ("backbone", _state["weights"], dtype)
    if key not in _state:
        _state[key] = load_backbone(_state["weights"], dtype=dtype)
    return _state[key]


def _feature_function(dtype: str, facet: str | None):
    backbone = _backbone(dtype)
    key = ("features", _state["weights"], dtype, facet)
    if key not in _state:

        def compute(params, pixels):
            return backbone.features(params, pixels, facet=facet)

        _state[key] = jax.jit(compute)
    return _state[key], backbone.params


def time_vit(pixels: str, dtype: str = "float32") -> float:
    """Seconds of one pass over (B, H, W, 3) uint8 up to the keys of the last block."""
    function, params = _feature_function(dtype, "key")
    batch = jnp.asarray(np.load(pixels))
    key = ("warm", _state["weights"], dtype, batch.shape)
    if key not in _state:
        jax.block_until_ready(function(params, batch))
        _state[key] = True
    return common.timed(lambda: jax.block_until_ready(function(params, batch)))


def save_features(
    pixels: str, out: str, dtype: str = "float32", facet: str | None = "key", grid: bool = False
) -> None:
    """Writes features (B, N, D), or with `grid` those of one image as (h, w, D)."""
    batch = np.load(pixels)
    function, params = _feature_function(dtype, facet)
    features = np.asarray(function(params, jnp.asarray(batch)), np.float32)
    if grid:
        features = features[0].reshape(*_backbone(dtype).grid(batch.shape[1:3]), -1)
    np.save(out, features)


def _segmenter(size, epochs, dtype, batch_size, seed=0):
    settings = (tuple(size), epochs, dtype, batch_size, seed)
    segmenters = _state.setdefault("segmenters", {})
    if settings not in segmenters:
        segmenters[settings] = us.Segmenter(
            "deepcut",
            backbone=_state["weights"],
            batch_size=batch_size,
            dtype=dtype,
            seed=seed,
            image_size=tuple(size),
            epochs=epochs,
            quirks="code",
        )
    return segmenters[settings]


def segment_image(
    image: str,
    size: tuple[int, int],
    epochs: int,
    out: str,
    features: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, float]:
    """DeepCut on one image, stage by stage; writes the mask and returns seconds by stage.

    The stages are run apart to be timed; `segment_images` runs them as users do. The graph is
    made by the program that optimises, and belongs to that stage.

    Args:
        image, size, epochs, out: as on the PyTorch side.
        features: .npy file of (h, w, D) to use in the place of the backbone's.
        dtype: of the backbone.
        seed: of initial parameters and dropout.
    """
    from unseg_jax.data.decoding import load_image

    segmenter = _segmenter(size, epochs, dtype, 1, seed)
    marks = [time.perf_counter()]
    picture = load_image(image)
    pixels = segmenter.prepare(picture)
    marks.append(time.perf_counter())
    if features is None:
        nodes = segmenter.features(pixels[None])
    else:
        stored = np.load(features)
        nodes = jnp.asarray(stored.reshape(1, -1, stored.shape[-1]))
    jax.block_until_ready(nodes)
    marks.append(time.perf_counter())
    result = jax.device_get(segmenter.assign(nodes)[0])
    marks.append(time.perf_counter())
    found = segmenter.finish(result, 0, picture)
    marks.append(time.perf_counter())
    np.save(out, found.mask)
    names = ("load", "vit", "optimisation", "masks")
    return {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}


def segment_images(
    images: list[str],
    size: tuple[int, int],
    epochs: int,
    batch_size: int,
    out: list[str] | None = None,
    dtype: str = "float32",
) -> float:
    """Seconds from files to masks of all images, as `Segmenter` is called."""
    segmenter = _segmenter(size, epochs, dtype, batch_size)
    start = time.perf_counter()
    found = segmenter(images)
    seconds = time.perf_counter() - start
    for path, result in zip(out or [], found, strict=bool(out)):
        np.save(path, result.mask)
    return seconds


def stream_images(images: list[str], size: tuple[int, int], epochs: int) -> dict[str, Any]:
    """Segments files in batches of 8, keeping none of the masks."""
    segmenter = _segmenter(size, epochs, "float32", 8)
    start = time.perf_counter()
    count = sum(found.mask.size > 0 for found in segmenter.stream(images))
    seconds = time.perf_counter() - start
    return {
        "images_per_second": common.round_to(count / seconds),
        "memory_gib": common.peak_memory_gib(),
        "compilations": segmenter.compilations,
    }


COMMANDS = {
    function.__name__: function
    for function in (
        environment,
        peak_memory,
        matmul_rate,
        prepare_head,
        time_head,
        time_loop,
        load_vit,
        time_vit,
        save_features,
        segment_image,
        segment_images,
        stream_images,
    )
}
