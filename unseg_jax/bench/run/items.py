"""One image of a run: ahead of the device pixels, behind it masks, scores and a record."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.bench.folder import file_stem
from unseg_jax.bench.run.engine import Timed
from unseg_jax.bench.score.protocols import Box, Protocol, crop_box
from unseg_jax.bench.score.scoring import (
    failure_record,
    iou_by_epoch,
    make_record,
    orient,
    truth_fields,
)
from unseg_jax.data import (
    Dataset,
    Item,
    MaskRule,
    Truth,
    fit_mask,
    open_dataset,
    read_mask,
    resize_image,
)
from unseg_jax.data.framing import Framing
from unseg_jax.data.reading import PLAIN, Reading
from unseg_jax.errors import DISK_FULL, BenchError, WriteError, readable
from unseg_jax.files import encode_png
from unseg_jax.runs.stamps import stamp_source
from unseg_jax.segmenter import BatchSegmenter, Segmentation

ITEM_ERRORS = (OSError, MemoryError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What reading or scoring a damaged file may raise: `ImageError` is a ValueError."""


def failure_reason(error: Exception | None) -> str:
    """A failure in words; errors that no image can be blamed for are raised.

    Raises:
        Exception: the error itself, if it is of another kind, or says that the disk is full.
    """
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
    """The data set of a run, with ids that any file and terminal can hold.

    Args:
        chosen: fields of `Settings`, or a run's config, by name.

    Raises:
        DatasetError: see `open_dataset`.
    """
    dataset = open_dataset(
        chosen["data"],
        image_key=chosen.get("image_key"),
        mask_key=chosen.get("mask_key"),
        foreground=chosen.get("foreground_values"),
        void=chosen.get("void_values"),
        limit=chosen.get("limit"),
        split=chosen.get("split"),
    )
    items = tuple(dataclasses.replace(item, id=readable(item.id)) for item in dataset.items)
    notes = tuple(map(readable, dataset.notes))
    return dataclasses.replace(dataset, name=readable(dataset.name), items=items, notes=notes)


def check_out(out: Path, data: str, items: Iterable[Item]) -> None:
    """Checks that a run's folder and its data lie apart, links followed.

    Args:
        out: the run's folder; may be missing.
        data: as after `--data`.
        items: of the data set.

    Raises:
        BenchError: `out` is, contains or lies in a folder that holds data.
    """
    place = Path(os.path.realpath(out))
    for folder in sorted(data_folders(data, items)):
        if place == folder or place in folder.parents or folder in place.parents:
            raise BenchError(
                f"--out {out} is, contains, or lies in {folder}, which holds the data: choose a "
                f"folder outside of it."
            )


def data_folders(data: str, items: Iterable[Item]) -> set[Path]:
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
        pixels: by framing, uint8 (height, width, 3).
        image: uint8 (H, W, 3) of that `size`, or None if no method needs it afterwards.
        whole: (height, width) of the image.
        crop: (left, top, right, bottom) in the image, or None.
        thumbnail: an encoded JPEG, or None.
        stamp: of the image file, see `stamp_source`.
        notes: what was done to the image while it was read.
    """

    size: tuple[int, int]
    pixels: dict[Framing, np.ndarray]
    image: np.ndarray | None
    whole: tuple[int, int]
    crop: Box | None
    thumbnail: bytes | None
    stamp: str | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Decodes, crops if the protocol does, and resizes; called in threads or other processes.

    Under a protocol without a crop it never looks at the mask.

    Attributes:
        framings: sizes that the methods want.
        protocol: whether to crop.
        rule: which mask values are foreground.
        keep_image: whether a method needs the image at its own size afterwards.
        draft: whether large JPEGs may be decoded at a reduced size.
        reading: how images are read.
    """

    framings: Sequence[Framing]
    protocol: Protocol
    rule: MaskRule
    keep_image: bool = False
    draft: bool = True
    reading: Reading = PLAIN

    def __call__(self, item: Item, thumbnail: bool = False) -> Prepared:
        """Prepares one item.

        Raises:
            ImageError: the image, or the mask that the crop needs, cannot be read.
        """
        crops = self.protocol.crop is not None and item.mask is not None
        at_least = None
        if self.draft and not crops and not self.keep_image:
            sizes = [framing.at_least for framing in self.framings]
            at_least = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        stamp = stamp_source(item.image)
        picture = self.reading.read(item.image, at_least)
        pixels, size, crop = picture.pixels, picture.size, None
        if crops:
            crop = crop_box(load_truth(item, self.rule, size)[0].mask, self.protocol.crop or 0)
            left, top, right, bottom = crop
            pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
            size = pixels.shape[:2]
        return Prepared(
            (size[0], size[1]),
            {framing: resize_image(pixels, framing.size_for(*size)) for framing in self.framings},
            pixels if self.keep_image else None,
            picture.size,
            crop,
            encode_thumbnail(pixels) if thumbnail else None,
            stamp,
            picture.notes,
        )


def collect_pixels(prepared: Sequence[Prepared]) -> dict[Framing, list[np.ndarray]]:
    """The pixels of a batch: by framing, uint8 (height, width, 3) of each image."""
    return {framing: [one.pixels[framing] for one in prepared] for framing in prepared[0].pixels}


def load_truth(item: Item, rule: MaskRule, size: tuple[int, int]) -> tuple[Truth, bool]:
    """The true mask of an item, and whether it had to be resized.

    Args:
        item: with a mask.
        rule: which mask values are foreground.
        size: (height, width) of the image.

    Raises:
        ImageError: it cannot be read.
    """
    return fit_mask(read_mask(item.mask, rule), size)


def encode_thumbnail(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a small JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def shrink_mask(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool at the size of its image's thumbnail."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST)
    return np.asarray(image) > 127


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a batch left behind.

    Attributes:
        records: of its images and methods, failures among them.
        files: pictures: name in the run's folder → content.
    """

    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Finisher:
    """Turns results into records and pictures; writes nothing itself.

    Attributes:
        segmenters: by method.
        protocol: how to score.
        rule: which mask values are foreground.
        record_every: epochs between recorded labels; 0 if there are none.
        save_masks: whether to keep masks at full size.
    """

    segmenters: Mapping[str, BatchSegmenter]
    protocol: Protocol
    rule: MaskRule
    record_every: int
    save_masks: bool

    def __call__(
        self,
        items: Sequence[Item],
        prepared: Sequence[Prepared],
        results: Mapping[str, Timed],
        missing: Sequence[frozenset[str]],
    ) -> Finished:
        """Records and pictures of a batch. An image that fails costs its own records only.

        Args:
            items: of the batch.
            prepared: what the device was given, in the same order.
            results: by method.
            missing: methods that each item lacks a record of.

        Raises:
            OSError: the disk is full.
        """
        finished = Finished()
        for index, (item, image, names) in enumerate(zip(items, prepared, missing, strict=True)):
            self._finish(finished, item, image, results, names, index, len(items))
        return finished

    def _finish(self, finished, item, image, results, names, index, count) -> None:
        stamps = {"image_stamp": image.stamp, "mask_stamp": stamp_source(item.mask)}
        try:
            truth, resized = self._truth(item, image)
        except ITEM_ERRORS as error:
            reason = failure_reason(error)
            records = [failure_record(item, name, reason) | stamps for name in sorted(names)]
            finished.records.extend(records)
            return
        self._add_thumbnails(finished, item, image, truth)
        # Only bilateral refinement reads the pixels; the others are told the size.
        pixels = image.image
        if pixels is None:
            pixels = np.broadcast_to(np.uint8(0), (*image.size, 3))
        for name, timed in results.items():
            if name not in names:
                continue
            segmenter = self.segmenters[name]
            try:
                segmentation = segmenter.finish(timed.result, index, pixels, item.id)
                # Protocols score every pixel that a method finds, specks as well.
                segmentation = dataclasses.replace(segmentation, min_area=0.0)
                record = make_record(segmentation, truth, self.protocol)
                history = getattr(timed.result, "history", None)
                if self.record_every and truth is not None and history is not None:
                    record["iou_by_epoch"] = iou_by_epoch(
                        history[index], truth, segmenter.method, self.protocol
                    )
                files = self._masks(item, image, segmentation, truth)
            except ITEM_ERRORS as error:
                record = failure_record(item, name, failure_reason(error))
                finished.records.append(record | stamps)
                continue
            if truth is not None:
                record["truth"] = truth_fields(truth)
            if image.notes:
                record["notes"] = list(image.notes)
            record["mask_resized"] = resized
            record["seconds"] = round(timed.seconds / count, 6)
            record["shared_seconds"] = round(timed.shared_seconds / count, 6)
            if item.split is not None:
                record["split"] = item.split
            if image.crop is not None:
                record["crop"] = image.crop
            finished.records.append(record | stamps)
            finished.files.update(files)

    def _truth(self, item: Item, image: Prepared) -> tuple[Truth | None, bool]:
        if item.mask is None:
            return None, False
        if image.crop is None:
            return load_truth(item, self.rule, image.size)
        # A crop was cut from the whole image, which is what the mask belongs to.
        truth, resized = load_truth(item, self.rule, image.whole)
        return truth.crop(image.crop), resized

    def _add_thumbnails(
        self, finished: Finished, item: Item, image: Prepared, truth: Truth | None
    ) -> None:
        if image.thumbnail is None:
            return
        stem = file_stem(item.id)
        finished.files[f"thumbnails/image/{stem}.jpg"] = image.thumbnail
        if truth is not None:
            content = encode_png(shrink_mask(truth.mask))
            finished.files[f"thumbnails/truth/{stem}.png"] = content

    def _masks(
        self, item: Item, image: Prepared, segmentation: Segmentation, truth: Truth | None
    ) -> dict[str, bytes]:
        files, name = {}, f"{segmentation.method}/{file_stem(item.id)}.png"
        mask = segmentation.mask
        if self.save_masks:
            files[f"masks/{name}"] = encode_png(mask)
        if image.thumbnail is not None:
            if truth is not None:
                mask = orient(mask, truth, self.protocol.flip)[0]
            files[f"thumbnails/{name}"] = encode_png(shrink_mask(mask))
        return files
