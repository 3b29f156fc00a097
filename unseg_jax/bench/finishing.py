"""Behind the device: results of a batch become masks, scores and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unseg_jax.bench.engine import Timed
from unseg_jax.bench.failures import ITEM_ERRORS, failure_reason
from unseg_jax.bench.names import file_stem
from unseg_jax.bench.preparing import Prepared, load_truth, shrink_mask
from unseg_jax.bench.protocols import Protocol
from unseg_jax.bench.scoring import failure_record, iou_by_epoch, make_record, orient
from unseg_jax.bench.truths import truth_fields
from unseg_jax.data import Item, MaskRule, Truth
from unseg_jax.files import encode_png
from unseg_jax.runs.stamps import stamp_source
from unseg_jax.segmenter import BatchSegmenter, Segmentation


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
