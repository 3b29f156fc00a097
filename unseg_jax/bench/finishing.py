"""Behind the device: results of a batch become masks, scores and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unseg_jax.bench.engine import Timed
from unseg_jax.bench.preparing import Prepared, load_truth, shrink_mask
from unseg_jax.bench.protocols import Protocol
from unseg_jax.bench.scoring import failure_record, iou_by_epoch, make_record, orient
from unseg_jax.bench.truths import truth_fields
from unseg_jax.data import ImageError, Item, MaskRule, Truth
from unseg_jax.files import encode_png
from unseg_jax.segmenter import BatchSegmenter, Segmentation


@dataclasses.dataclass(frozen=True)
class Finisher:
    """Turns results into records, and writes pictures.

    Attributes:
        segmenters: by method.
        protocol: how to score.
        rule: which mask values are foreground.
        record_every: epochs between recorded labels; 0 if there are none.
        save_masks: whether to write masks.
        write: called with a picture's path below the run's folder, and its content.
    """

    segmenters: Mapping[str, BatchSegmenter]
    protocol: Protocol
    rule: MaskRule
    record_every: int
    save_masks: bool
    write: Callable[[str, bytes], Any]

    def __call__(
        self,
        items: Sequence[Item],
        prepared: Sequence[Prepared],
        results: Mapping[str, Timed],
        wanted: Sequence[frozenset[str]],
    ) -> list[dict[str, Any]]:
        """Records of a batch, failures among them.

        Args:
            items: of the batch.
            prepared: what the device was given, in the same order.
            results: by method.
            wanted: methods that each item lacks a record of.

        Raises:
            WriteError: a picture cannot be written.
        """
        records = []
        for index, (item, image, names) in enumerate(zip(items, prepared, wanted, strict=True)):
            records += self._finish(item, image, results, names, index, len(items))
        return records

    def _finish(self, item, image, results, names, index, count) -> list[dict[str, Any]]:
        try:
            truth, resized = self._truth(item, image)
        except ImageError as error:
            return [failure_record(item, name, str(error)) for name in sorted(names)]
        self._write_thumbnails(item, image, truth)
        records = []
        # Only bilateral refinement reads the pixels; the others are told the size.
        pixels = image.image
        if pixels is None:
            pixels = np.broadcast_to(np.uint8(0), (*image.size, 3))
        for name, timed in results.items():
            if name not in names:
                continue
            segmenter = self.segmenters[name]
            try:
                found = segmenter.finish(timed.result, index, pixels, item.id)
            except ImageError as error:
                records.append(failure_record(item, name, str(error)))
                continue
            record = make_record(found, truth, self.protocol)
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
            history = getattr(timed.result, "history", None)
            if self.record_every and truth is not None and history is not None:
                record["iou_by_epoch"] = iou_by_epoch(
                    history[index], truth, segmenter.method, self.protocol
                )
            self._write_masks(item, image, found, truth)
            records.append(record)
        return records

    def _truth(self, item: Item, image: Prepared) -> tuple[Truth | None, bool]:
        if item.mask is None:
            return None, False
        if image.crop is None:
            return load_truth(item, self.rule, image.size)
        # A crop was cut from the whole image, which is what the mask belongs to.
        truth, resized = load_truth(item, self.rule, image.whole)
        return truth.crop(image.crop), resized

    def _write_thumbnails(self, item: Item, image: Prepared, truth: Truth | None) -> None:
        if image.thumbnail is None:
            return
        self.write(f"thumbnails/image/{item.id}.jpg", image.thumbnail)
        if truth is not None:
            self.write(f"thumbnails/truth/{item.id}.png", encode_png(shrink_mask(truth.mask)))

    def _write_masks(
        self, item: Item, image: Prepared, found: Segmentation, truth: Truth | None
    ) -> None:
        if self.save_masks:
            self.write(f"masks/{found.method}/{item.id}.png", encode_png(found.mask))
        if image.thumbnail is not None:
            mask = found.mask if truth is None else orient(found.mask, truth, self.protocol.flip)[0]
            content = encode_png(shrink_mask(mask))
            self.write(f"thumbnails/{found.method}/{item.id}.png", content)
