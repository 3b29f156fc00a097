"""Kinds of the objects of a folder of results, told when all its images are done.

What a run keeps of the features lies in the records, so that nothing is segmented again for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from PIL import Image

from unseg_jax.data.decoding import resize_image
from unseg_jax.data.folders import ImageFile
from unseg_jax.data.reading_options import Reading
from unseg_jax.errors import ImageError
from unseg_jax.export.drawing import encode_labels, overlay, palette
from unseg_jax.export.formats import WITH_KINDS
from unseg_jax.export.kinds import Count, Kinds, decode, find_kinds
from unseg_jax.export.records import Record
from unseg_jax.files import encode_png
from unseg_jax.postprocess import upsample_labels
from unseg_jax.runs.result_store import Done, ResultStore
from unseg_jax.runs.stamps import is_unchanged

_LABELS, _OVERLAY = "_labels.png", "_overlay.png"
# How much of its colour an object takes in pictures.
_TINT = 0.2


def carries_kinds(suffix: str) -> bool:
    """Whether a file of an image, by the end of its name, shows the kinds of its objects."""
    return suffix in WITH_KINDS or suffix in (_LABELS, _OVERLAY)


def tell_kinds(
    store: ResultStore, asked: Count | Kinds, reading: Reading, submit: Callable[..., Future]
) -> Kinds | None:
    """Tells the kinds of all objects of a folder, and writes them into records and files.

    Files of other contents than a run wrote stay as they are.

    Args:
        store: of the folder; objects without features get no kind.
        asked: how many kinds, or those to tell.
        reading: how images are read, to draw on them.
        submit: (function, arguments) -> its future.

    Returns:
        The kinds with their counts; None where no object has features.
    """
    plain = {name: done.record for name, done in store.images.items() if done.record}
    records = {name: Record.from_plain(record) for name, record in plain.items()}
    found = [
        (name, at, decode(item["features"]))
        for name, record in records.items()
        for at, item in enumerate(record.objects)
        if "features" in item
    ]
    if not found:
        return None
    # Images that were done by another backbone have no kinds.
    widths = [len(features) for _, _, features in found]
    width = max(set(widths), key=widths.count)
    found = [one for one in found if len(one[2]) == width]
    features = np.stack([one[2] for one in found])
    kinds = asked
    if not isinstance(kinds, Kinds):
        names = [name for name, _, _ in found]
        within = [decode(records[name].within).reshape(-1, width) for name in dict.fromkeys(names)]
        kinds = find_kinds(features, names, np.concatenate(within), kinds)
    told = {
        (name, at): {"kind": number, "kind_name": kinds.names[number - 1]}
        for (name, at, _), number in zip(found, kinds.number(features), strict=True)
    }
    jobs = []
    for name, record in records.items():
        objects = tuple(
            {**item, **told.get((name, at), {})} for at, item in enumerate(record.objects)
        )
        if objects != record.objects:
            record = dataclasses.replace(record, objects=objects)
            jobs.append(submit(_write, store, name, store.images[name], record, reading))
    for job in jobs:
        job.result()
    numbers = [one["kind"] for one in told.values()]
    counts = tuple(map(numbers.count, range(1, len(kinds.names) + 1)))
    return dataclasses.replace(kinds, counts=counts)


def draw_kinds(pixels: np.ndarray, record: Record) -> np.ndarray:
    """An image (h, w, 3) uint8 with its objects in the colours of their kinds."""
    numbers = upsample_labels(_numbers(record), pixels.shape[:2])
    kinds = [0, *(item["kind"] for item in record.objects)]
    return overlay(pixels, numbers, _TINT, colours=palette(max(kinds) + 1)[kinds])


def _numbers(record: Record) -> np.ndarray:
    numbers = np.zeros(record.size, np.int32)
    for number, item in enumerate(record.restored(), 1):
        left, top, right, bottom = item.box
        numbers[top:bottom, left:right][item.mask] = number
    return numbers


def _write(store: ResultStore, name: str, done: Done, record: Record, reading: Reading) -> None:
    files = {}
    for file in done.files:
        if store.is_ours(file):
            content = _rewritten(store.folder / file, file[len(name) :], done, record, reading)
            files |= {} if content is None else {file: content}
    stamps = store.write(files, name)
    files = {**done.files, **stamps}
    store.add(name, dataclasses.replace(done, files=files, record=record.as_plain()))


def _rewritten(
    path: Path, suffix: str, done: Done, record: Record, reading: Reading
) -> bytes | None:
    if not all("kind" in item for item in record.objects):
        return None
    if suffix in WITH_KINDS:
        return WITH_KINDS[suffix](path.read_bytes(), record.objects)
    if suffix == _LABELS:
        kinds = np.array([0, *(item["kind"] for item in record.objects)])
        return encode_labels(kinds[_numbers(record)])
    if suffix == _OVERLAY and is_unchanged(Path(done.source), done.stamp):
        with contextlib.suppress(ImageError):
            pixels = reading.read(ImageFile(Path(done.source), "", done.page).source).pixels
            with Image.open(path) as drawn:
                pixels = resize_image(pixels, (drawn.height, drawn.width))
            return encode_png(draw_kinds(pixels, record))
    return None
