"""What quality.py reads of each data set and keeps: features, truths, crops of background.

Extracting takes the time of the transformer, a second an image; everything after is fast.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from unseg_jax.data import Dataset, open_dataset
from unseg_jax.data.decoding import load_image, resize_image
from unseg_jax.data.masks import load_mask
from unseg_jax.registry import resolve
from unseg_jax.segmenter import BatchSegmenter, load_for

SIDE = 128
"""Side that masks are scored at."""
PIXELS = 256
"""Side of the image that edges are refined on, as in the library."""
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
        truths: (n, SIDE, SIDE) bool.
        grid: patches, (h, w).
        pixels: (n, PIXELS, PIXELS, 3) uint8.
        background: (m, N, D) float16 features, as `fine`, of crops without an object.
        groups: (n,) what belongs together: frames of a video. None where images are independent.
    """

    fine: np.ndarray
    truths: np.ndarray
    grid: tuple[int, int]
    pixels: np.ndarray
    background: np.ndarray
    groups: np.ndarray | None = None


def read_set(name: str, data: Path, cache: Path) -> Set:
    """A set, from the cache where it is there."""
    dataset = open_dataset(SOURCES[name].format(data / name))
    cache.mkdir(parents=True, exist_ok=True)
    base = _kept(cache / f"{name}.npz", lambda: _base(dataset))
    more = _kept(cache / f"{name}-pixels.npz", lambda: _pixels(dataset))
    more |= _kept(cache / f"{name}-background.npz", lambda: _background(dataset, base["truths"]))
    height, width = (int(side) for side in base["grid"])
    groups = sequences(name, dataset)
    return Set(base["fine"], base["truths"], (height, width), **more, groups=groups)


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
def _segmenter() -> BatchSegmenter:
    method, backbone = load_for(resolve("collective", resize="stretch"), "auto", dtype="float32")
    return BatchSegmenter(method, backbone, batch_size=1)


def _extract(segmenter: BatchSegmenter, images: Iterable[np.ndarray]) -> np.ndarray:
    """(n, N, D) float16 features of images of any size."""
    prepared = (segmenter.prepare(image)[None] for image in images)
    return np.stack([np.asarray(segmenter.features(one)[0], np.float16) for one in prepared])


def _base(dataset: Dataset) -> dict[str, np.ndarray]:
    segmenter = _segmenter()
    fine = _extract(segmenter, (load_image(item.image) for item in dataset.items))
    truths = []
    for item in dataset.items:
        mask = load_mask(item.mask, dataset.rule)
        small = resize_image(np.repeat(mask[..., None] * np.uint8(255), 3, 2), (SIDE, SIDE))
        truths.append(small[..., 0] > 127)
    return {"truths": np.stack(truths), "fine": fine, "grid": np.array(segmenter.grid)}


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


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, to (height, width)."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
