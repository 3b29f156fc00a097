"""What benchmarks/quality.py reads of each data set, and keeps: features, truths, background crops.

Extracting takes the time of the transformer, a second an image; everything after is fast.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unseg_jax.data import Dataset, open_dataset
from unseg_jax.data.images import load_image, resize_image
from unseg_jax.data.masks import load_mask
from unseg_jax.method import override
from unseg_jax.registry import resolve
from unseg_jax.segmenter import BatchSegmenter, load_for

SIDE = 128
"""Side that masks are scored at."""
PIXELS = 256
"""Side of the image that edges are refined on, as in the library."""
COARSE = 196
"""Side of the image that coarse features are taken of: half that of the method."""
EARLY = 8
"""Block of the early features, of 12 from 0."""
CROPS = 100
"""Background crops of a set, at most."""
SOURCES = {
    "weizmann_horses": "{}",
    "isic2018": "{}",
    "kvasir-seg": "{}",
    "cvc-clinicdb": "{}",
    "ecssd": "ecssd:{}",
}
# fmt: off
SEQUENCE_ENDS = {
    "cvc-clinicdb": (
        25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317,
        342, 363, 383, 408, 428, 447, 466, 478, 503, 528, 546, 571, 591, 612,
    )
}
# fmt: on
"""Last frame of each video of a set, by the number that is its file's name, as the set's page
lists them (https://polyp.grand-challenge.org/CVCClinicDB)."""


@dataclasses.dataclass(frozen=True)
class Set:
    """The features and truths of a data set.

    Attributes:
        fine: (n, N, D) float16 patch features at the method's size.
        coarse: (n, M, D) float16 patch features of the image at half that size.
        truths: (n, SIDE, SIDE) bool.
        grid, coarse_grid: patches, (h, w).
        keys, early: (n, N, D) float16 keys of the last block, and tokens of block `EARLY`.
        pixels: (n, PIXELS, PIXELS, 3) uint8.
        background: (m, N, D) float16 features, as `fine`, of crops without an object.
        groups: (n,) what belongs together: frames of a video. None where images are independent.
    """

    fine: np.ndarray
    coarse: np.ndarray
    truths: np.ndarray
    grid: tuple[int, int]
    coarse_grid: tuple[int, int]
    keys: np.ndarray
    early: np.ndarray
    pixels: np.ndarray
    background: np.ndarray
    groups: np.ndarray | None = None


def read_set(name: str, data: Path, cache: Path) -> Set:
    """A set, from the cache where it is there."""
    dataset = open_dataset(SOURCES[name].format(data / name))
    cache.mkdir(parents=True, exist_ok=True)
    base = _kept(cache / f"{name}.npz", lambda: _base(dataset))
    more = _kept(cache / f"{name}-facets.npz", lambda: _facets(dataset))
    more |= _kept(cache / f"{name}-pixels.npz", lambda: _pixels(dataset))
    more |= _kept(cache / f"{name}-background.npz", lambda: _background(dataset, base["truths"]))
    grids = {key: tuple(int(side) for side in base[f"{key}_grid"]) for key in ("fine", "coarse")}
    return Set(
        base["fine"],
        base["coarse"],
        base["truths"],
        grids["fine"],
        grids["coarse"],
        **more,
        groups=sequences(name, dataset),
    )


def sequences(name: str, dataset: Dataset) -> np.ndarray | None:
    """(n,) number of the video that each image is a frame of; None for sets of photographs."""
    if name not in SEQUENCE_ENDS:
        return None
    return np.array([bisect.bisect_left(SEQUENCE_ENDS[name], int(i.id)) for i in dataset.items])


def _kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not path.is_file():
        part = path.with_suffix(".part.npz")
        np.savez(part, **make())
        part.replace(path)
    with np.load(path) as file:
        return dict(file)


@functools.cache
def _segmenter(size: int | None = None) -> BatchSegmenter:
    method, backbone = load_for(resolve("collective", fit="stretch"), "auto", dtype="float32")
    return BatchSegmenter(override(method, image_size=size), backbone, batch_size=1)


def _extract(segmenter: BatchSegmenter, images: Iterable[np.ndarray]) -> np.ndarray:
    """(n, N, D) float16 features of images of any size."""
    prepared = (segmenter.prepare(image)[None] for image in images)
    return np.stack([np.asarray(segmenter.features(one)[0], np.float16) for one in prepared])


def _base(dataset: Dataset) -> dict[str, np.ndarray]:
    found = {}
    for key, size in (("fine", None), ("coarse", COARSE)):
        segmenter = _segmenter(size)
        found[key] = _extract(segmenter, (load_image(item.image) for item in dataset.items))
        found[f"{key}_grid"] = np.array(segmenter.grid)
    truths = []
    for item in dataset.items:
        mask = load_mask(item.mask, dataset.rule)
        small = resize_image(np.repeat(mask[..., None] * np.uint8(255), 3, 2), (SIDE, SIDE))
        truths.append(small[..., 0] > 127)
    return {"truths": np.stack(truths), **found}


def _facets(dataset: Dataset) -> dict[str, np.ndarray]:
    """Keys of the last block and tokens of an earlier one, from one pass."""
    segmenter = _segmenter()
    backbone = segmenter.backbone
    assert backbone is not None
    skipped = 1 + backbone.config.registers

    @jax.jit
    def extract(params, pixels):
        model = nnx.merge(backbone.graphdef, params)
        x = early = model.run_blocks(model.tokens(pixels), EARLY + 1)
        last = backbone.config.depth - 1
        for index in range(EARLY + 1, last):
            x = model.block(index)(x)
        keys = model.block(last).third(x, 1).transpose(0, 2, 3, 1).reshape(x.shape)
        return keys[0, skipped:], early[0, skipped:]

    found = []
    for item in dataset.items:
        pixels = jnp.asarray(segmenter.prepare(load_image(item.image))[None])
        found.append([np.asarray(one, np.float16) for one in extract(backbone.params, pixels)])
    keys, early = (np.stack(one) for one in zip(*found, strict=True))
    return {"keys": keys, "early": early}


def _pixels(dataset: Dataset) -> dict[str, np.ndarray]:
    images = (load_image(item.image) for item in dataset.items)
    return {"pixels": np.stack([resize_image(image, (PIXELS, PIXELS)) for image in images])}


def _background(dataset: Dataset, truths: np.ndarray) -> dict[str, np.ndarray]:
    """Features of crops without an object, of images evenly spread over the set."""
    boxes = [largest_background(truth) for truth in truths]
    places = [place for place, box in enumerate(boxes) if box is not None]
    chosen = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, CROPS).astype(int))]

    def crops():
        for place in chosen:
            image = load_image(dataset.items[place].image)
            height, width = image.shape[:2]
            top, left, bottom, right = boxes[place]
            rows = slice(-(-top * height // SIDE), bottom * height // SIDE)
            columns = slice(-(-left * width // SIDE), right * width // SIDE)
            yield np.ascontiguousarray(image[rows, columns])

    return {"background": _extract(_segmenter(), crops())}


def largest_background(truth: np.ndarray) -> tuple[int, int, int, int] | None:
    """The largest rectangle, (top, left, bottom, right), that does not touch a mask, of at least a
    third of both sides; None if there is none."""
    height, width = truth.shape
    best, found = 0, None
    for top in range(height - height // 3):
        taken = np.zeros(width, bool)
        for bottom in range(top + 1, height + 1):
            taken |= truth[bottom - 1]
            if taken.all():
                break
            if bottom - top < -(-height // 3):
                continue
            # Columns between two that are taken, the edges of the image among them.
            stops = np.flatnonzero(np.concatenate([[True], taken, [True]]))
            runs = np.diff(stops) - 1
            widest = int(runs.argmax())
            if runs[widest] >= -(-width // 3) and (bottom - top) * runs[widest] > best:
                best = (bottom - top) * int(runs[widest])
                left = int(stops[widest])
                found = (top, left, bottom, left + int(runs[widest]))
    return found
