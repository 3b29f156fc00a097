"""Batches: images are read ahead of the device, and finished behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from unseg_jax.batching import takes_images_apart
from unseg_jax.data.decoding import as_iterable
from unseg_jax.data.loader import batches
from unseg_jax.errors import ImageError
from unseg_jax.export.drawing import WORKING_SIDE, shrink_image
from unseg_jax.segmentation import Segmentation
from unseg_jax.segmenter.decoded_cache import Decoded

if TYPE_CHECKING:
    import unseg_jax.segmenter as segmenters
    from unseg_jax.data.decoding import Source

# Batches of images of all shapes that are read before the device takes those of one shape.
_WINDOW = 4


def stream_batches(
    segmenter: segmenters.BatchSegmenter, images: Source | Iterable[Source], full_pixels: bool
) -> Iterator[Segmentation | ImageError]:
    """Images in batches; see `BatchSegmenter.stream`."""
    # What finishing takes half a second to import is there when the device is done.
    threading.Thread(target=importlib.import_module, args=["scipy.ndimage"], daemon=True).start()
    read = functools.partial(_read, segmenter, full_pixels)
    waiting = None
    full = False
    entries = enumerate(as_iterable(images))
    # Only images of one shape make a batch, so more of them are held to choose from.
    mixed = segmenter.method.resize == "keep" and not takes_images_apart(segmenter.batching)
    held = segmenter.at_once * (_WINDOW if mixed else 1)
    workers = segmenter.reading.workers
    with contextlib.closing(batches(entries, read, held, workers=workers)) as loaded:
        for batch in loaded:
            pixels = [outcome.value[1].prepared for outcome in batch if outcome.value is not None]
            # A last, partial batch is padded to the size that is compiled already; a few
            # images alone are not padded far.
            full = full or len(batch) >= segmenter.at_once
            size = segmenter.at_once if full else _power_of_two(len(batch))
            result = segmenter.run(pixels, size=size) if pixels else None
            # The device is at work on this batch while the host finishes the last one.
            if waiting is not None:
                yield from _finish_batch(segmenter, *waiting)
            waiting = (batch, result)
    if waiting is not None:
        yield from _finish_batch(segmenter, *waiting)


def name_of(source: Source, index: int) -> str:
    """What an image is called: its path, or its place in the call."""
    return str(source) if isinstance(source, (str, os.PathLike)) else str(index)


def _read(
    segmenter: segmenters.BatchSegmenter, full_pixels: bool, entry: tuple[int, Source]
) -> tuple[str, Decoded]:
    index, source = entry
    kept = segmenter.kept
    image = None if kept is None else kept.get(source, segmenter.method.feature_key)
    if image is None:
        image = decode(segmenter, source, full_pixels)
    elif full_pixels and image.pixels.shape[:2] != image.size:
        # Only what was too large to be kept is decoded once more.
        image = image._replace(pixels=segmenter.reading.read(source).pixels)
    return name_of(source, index), image


def decode(
    segmenter: segmenters.BatchSegmenter, source: Source, full_pixels: bool = False
) -> Decoded:
    """Reads an image for the device; its pixels at their own size, or at the working size."""
    # A JPEG is decoded at no less than twice this size.
    needed = [max(side, WORKING_SIDE // 2) for side in segmenter.input_size.at_least]
    picture = segmenter.reading.read(source, None if full_pixels else (needed[0], needed[1]))
    prepared = segmenter.prepare(picture.pixels)
    kept = picture.pixels if full_pixels else shrink_image(picture.pixels)
    return Decoded(kept, prepared, picture.size, picture.notes)


def _finish_batch(segmenter: segmenters.BatchSegmenter, batch, result):
    host: Any = None if result is None else jax.device_get(result)
    index = 0
    for outcome in batch:
        if outcome.value is None:
            if not isinstance(outcome.error, ImageError):
                raise outcome.error
            yield outcome.error
            continue
        name, image = outcome.value
        working = shrink_image(image.pixels)
        try:
            segmentation = segmenter.finish(host, index, working, name, image.size)
            yield dataclasses.replace(
                segmentation, pixels=image.pixels, notes=(*image.notes, *segmentation.notes)
            )
        except ImageError as error:
            yield error
        index += 1


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
