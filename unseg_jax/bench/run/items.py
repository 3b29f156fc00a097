"""One image of a run: ahead of the device pixels, behind it masks, scores and a record."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.bench.run.engine import Timed
from unseg_jax.bench.run.settings import Settings
from unseg_jax.bench.run_folder import file_stem
from unseg_jax.bench.score.image_records import (
    failure_record,
    iou_by_epoch,
    make_record,
    orient,
    truth_fields,
)
from unseg_jax.bench.score.protocols import Box, crop_box
from unseg_jax.data import (
    Dataset,
    Item,
    MaskRule,
    Source,
    Truth,
    fit_mask,
    open_dataset,
    read_mask,
    resize_image,
)
from unseg_jax.data.input_size import InputSize
from unseg_jax.errors import DISK_FULL, BenchError, WriteError, readable
from unseg_jax.files import encode_png
from unseg_jax.runs.stamps import stamp_source
from unseg_jax.segmenter import BatchSegmenter
from unseg_jax.segmenter.decoded_cache import Decoded

ITEM_ERRORS = (OSError, MemoryError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What reading or scoring a damaged file may raise: `ImageError` is a ValueError."""


def failure_reason(error: Exception | None) -> str:
    """A failure in words; errors that no image can be blamed for are raised."""
    assert error is not None
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    if full or isinstance(error, WriteError) or not isinstance(error, ITEM_ERRORS):
        raise error
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of the operating system in a writing thread, as one sentence each."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, WriteError):
            error = WriteError(error.filename or "a file", error)
        raise BenchError(
            f"{error} What is done is kept: give the same command with --resume."
        ) from error


def open_data(chosen: Mapping[str, Any]) -> Dataset:
    """The data set that `Settings` or a config name, with ids that files and terminals can hold.

    Raises:
        DatasetError: see `open_dataset`.
    """
    plain = {key: chosen.get(key) for key in ("image_key", "mask_key", "limit", "split")}
    dataset = open_dataset(
        chosen["data"],
        foreground=chosen.get("foreground_values"),
        void=chosen.get("void_values"),
        **plain,  # type: ignore[arg-type]
    )
    items = tuple(dataclasses.replace(item, id=readable(item.id)) for item in dataset.items)
    notes = tuple(map(readable, dataset.notes))
    return dataclasses.replace(dataset, name=readable(dataset.name), items=items, notes=notes)


def check_out(out: Path, data: str, items: Iterable[Item]) -> None:
    """Raises BenchError if a run's folder is, contains or lies in a folder that holds data."""
    place = Path(os.path.realpath(out))
    for folder in sorted(_data_folders(data, items)):
        if place == folder or place in folder.parents or folder in place.parents:
            raise BenchError(
                f"--out {out} is, contains, or lies in {folder}, which holds the data: choose a "
                f"folder outside of it."
            )


def _data_folders(data: str, items: Iterable[Item]) -> set[Path]:
    """The real folders that hold an image or mask, and the one that `--data` names."""
    parents: set[str] = set()
    for item in items:
        for source in (item.image, item.mask):
            if isinstance(source, str | os.PathLike):
                path = os.fspath(source)
                parents.add(os.path.dirname(path) or ".")
                if os.path.islink(path):
                    parents.add(os.path.dirname(os.path.realpath(path)))
    named = [text for text in (data, data.partition(":")[2]) if text and os.path.isdir(text)]
    return {Path(os.path.realpath(folder)) for folder in (*parents, *named)}


THUMBNAIL = 128
"""Longer side of a thumbnail, in pixels."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image ready for the device.

    Attributes:
        size: (height, width) of what is segmented: the image, or the crop of it.
        pixels: by input size, uint8 (height, width, 3).
        image: uint8 (H, W, 3) of that `size`, or None if no method needs it afterwards.
        whole: (height, width) of the image.
        crop: (left, top, right, bottom) in the image, or None.
        thumbnail: an encoded JPEG, or None.
        stamp: of the image file, see `stamp_source`.
        notes: what was done to the image while it was read.
        features: by method, those that its fit kept of this image.
    """

    size: tuple[int, int]
    pixels: dict[InputSize, np.ndarray]
    image: np.ndarray | None
    whole: tuple[int, int]
    crop: Box | None
    thumbnail: bytes | None
    stamp: str | None = None
    notes: tuple[str, ...] = ()
    features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Decodes, crops if the protocol does, and resizes; called in threads or other processes.

    Under a protocol without a crop it never looks at the mask.

    Attributes:
        input_sizes: sizes that the methods want.
        keep_image: whether a method needs the image at its own size afterwards.
        settings: of the run.
        rule: which mask values are foreground.
        kept: by method, what its fit read; images that were reduced there are read again.
    """

    input_sizes: Sequence[InputSize]
    keep_image: bool
    settings: Settings
    rule: MaskRule
    kept: Mapping[str, Callable[[Source], Decoded | None]] = dataclasses.field(default_factory=dict)

    def __call__(self, item: Item, thumbnail: bool = False) -> Prepared:
        """Raises ImageError if the image, or the mask that a crop needs, cannot be read."""
        margin = None if item.mask is None else self.settings.resolve_protocol().crop
        at_least = None
        if self.settings.draft and margin is None and not self.keep_image:
            heights, widths = zip(*(size.at_least for size in self.input_sizes), strict=True)
            at_least = (max(heights), max(widths))
        stamp = stamp_source(item.image)
        found = {} if margin is not None else self._kept(item)
        picture = next(iter(found.values()), None)
        picture = picture or self.settings.reading.read(item.image, at_least)
        pixels, size, crop = picture.pixels, picture.size, None
        if margin is not None:
            crop = crop_box(load_truth(item, self.rule, size)[0].mask, margin)
            left, top, right, bottom = crop
            pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
            size = (bottom - top, right - left)
        return Prepared(
            size,
            {wanted: resize_image(pixels, wanted.size_for(*size)) for wanted in self.input_sizes},
            pixels if self.keep_image else None,
            picture.size,
            crop,
            _thumbnail(pixels) if thumbnail else None,
            stamp,
            picture.notes,
            {name: image.prepared for name, image in found.items()},
        )

    def _kept(self, item: Item) -> dict[str, Decoded]:
        images = ((name, kept(item.image)) for name, kept in self.kept.items())
        return {name: it for name, it in images if it and it.pixels.shape[:2] == it.size}


def collect_pixels(prepared: Sequence[Prepared]) -> dict[InputSize, list[np.ndarray]]:
    """The pixels of a batch: by input size, uint8 (height, width, 3) of each image."""
    return {size: [one.pixels[size] for one in prepared] for size in prepared[0].pixels}


def load_truth(item: Item, rule: MaskRule, size: tuple[int, int]) -> tuple[Truth, bool]:
    """The true mask of an item at an image's size, and whether it had to be resized for that.

    Raises:
        ImageError: it cannot be read.
    """
    return fit_mask(read_mask(item.mask, rule), size)


def _thumbnail(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a small JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _mask_thumbnail(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as a PNG of the size of its image's thumbnail."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST)
    return encode_png(np.asarray(image) > 127)


@dataclasses.dataclass(frozen=True)
class Finisher:
    """Turns results into records and pictures; writes nothing itself.

    Attributes:
        segmenters: by method.
        settings: of the run.
        rule: which mask values are foreground.
    """

    segmenters: Mapping[str, BatchSegmenter]
    settings: Settings
    rule: MaskRule

    def __call__(
        self,
        items: Sequence[Item],
        prepared: Sequence[Prepared],
        results: Mapping[str, Timed],
        missing: Sequence[frozenset[str]],
    ) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        """Records of the methods that each item of a batch is missing, and pictures by file name.

        An image that fails costs its own records only. Raises OSError if the disk is full.
        """
        records: list[dict[str, Any]] = []
        files: dict[str, bytes] = {}
        for index, (item, image, names) in enumerate(zip(items, prepared, missing, strict=True)):
            mine = {name: timed for name, timed in results.items() if name in names}
            made = self._finish(item, image, mine, index, len(items), files)
            stamps = {"image_stamp": image.stamp, "mask_stamp": stamp_source(item.mask)}
            records += [record | stamps for record in made]
        return records, files

    def _finish(
        self,
        item: Item,
        image: Prepared,
        results: Mapping[str, Timed],
        index: int,
        count: int,
        files: dict[str, bytes],
    ) -> Iterator[dict[str, Any]]:
        try:
            truth, resized = self._truth(item, image)
        except ITEM_ERRORS as error:
            reason = failure_reason(error)
            yield from (failure_record(item, name, reason) for name in sorted(results))
            return
        stem = file_stem(item.id)
        if image.thumbnail is not None:
            files[f"thumbnails/image/{stem}.jpg"] = image.thumbnail
            if truth is not None:
                files[f"thumbnails/truth/{stem}.png"] = _mask_thumbnail(truth.mask)
        about: dict[str, Any] = {} if truth is None else {"truth": truth_fields(truth)}
        if image.notes:
            about["notes"] = list(image.notes)
        about["mask_resized"] = resized
        if item.split is not None:
            about["split"] = item.split
        if image.crop is not None:
            about["crop"] = image.crop
        # Only bilateral refinement reads the pixels; the others are told the size.
        pixels = image.image
        if pixels is None:
            pixels = np.broadcast_to(np.uint8(0), (*image.size, 3))
        protocol, every = self.settings.resolve_protocol(), self.settings.record_every
        for name, timed in results.items():
            segmenter = self.segmenters[name]
            try:
                segmentation = segmenter.finish(timed.result, index, pixels, item.id)
                record = make_record(segmentation, truth, protocol, self.settings.metrics)
                segmentation = dataclasses.replace(segmentation, min_area=0.0)
                history = getattr(timed.result, "history", None)
                if every and truth is not None and history is not None:
                    record["iou_by_epoch"] = iou_by_epoch(
                        history[index], truth, segmenter.method, protocol
                    )
                mask, file = segmentation.mask, f"{name}/{stem}.png"
                pictures = {f"masks/{file}": encode_png(mask)} if self.settings.save_masks else {}
                if image.thumbnail is not None:
                    if truth is not None:
                        mask = orient(mask, truth, protocol.flip)[0]
                    pictures[f"thumbnails/{file}"] = _mask_thumbnail(mask)
            except ITEM_ERRORS as error:
                yield failure_record(item, name, failure_reason(error))
                continue
            files |= pictures
            seconds = {"seconds": timed.seconds, "shared_seconds": timed.shared_seconds}
            yield record | about | {key: round(value / count, 6) for key, value in seconds.items()}

    def _truth(self, item: Item, image: Prepared) -> tuple[Truth | None, bool]:
        if item.mask is None:
            return None, False
        # A crop was cut from the whole image, which is what the mask belongs to.
        truth, resized = load_truth(item, self.rule, image.whole if image.crop else image.size)
        return truth.crop(image.crop) if image.crop else truth, resized
