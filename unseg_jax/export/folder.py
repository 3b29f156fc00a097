"""Image files in, pictures of their masks out: what `unseg-jax segment` and the demo do."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unseg_jax.data.folders import OUTPUT_SUFFIXES, ImageFile
from unseg_jax.data.images import load_image
from unseg_jax.data.writer import Writer
from unseg_jax.errors import ImageError, WriteError
from unseg_jax.export.coco import coco_annotations
from unseg_jax.export.drawing import colour_labels, draw_box, overlay, write_labels
from unseg_jax.export.report import render_report
from unseg_jax.export.run import Entry, Run
from unseg_jax.files import write_json, write_png, write_text

if TYPE_CHECKING:
    from unseg_jax.segmenter import Segmentation, Segmenter

REPORT = "report.html"
PICTURED = 400
"""Images that the report shows; further ones are listed, lest memory and browsers choke."""
COCO = "coco.json"
# After these nothing else can be written either; other errors concern one file only.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def segment_files(
    segmenter: Segmenter,
    images: Sequence[ImageFile],
    out: str | os.PathLike,
    *,
    coco: bool = False,
    report: bool = True,
    on_entry: Callable[[Entry], Any] = lambda entry: None,
) -> Run:
    """Segments files and writes `<name>_mask.png`, `_labels.png`, `_overlay.png` and a report.

    Every file is written whole or not at all. An image that fails does not stop the others.

    Args:
        segmenter: with the method and the backbone.
        images: from `find_images`.
        out: a folder; made if missing.
        coco: whether masks, parts and boxes are written to `coco.json` as well.
        report: whether `report.html` is written.
        on_entry: called with each image as it is done, in order.

    Raises:
        WriteError: nothing more can be written, as on a full disk.
    """
    out = Path(out)
    entries: list[Entry] = []
    waiting: list[Future] = []

    def settle(count: int) -> None:
        while len(waiting) > count:
            entry = waiting.pop(0).result()
            if isinstance(entry, WriteError):
                raise entry
            entries.append(entry)
            on_entry(entry)

    start = time.perf_counter()
    with compile_clock() as clock, Writer() as writer:
        found = segmenter.stream([image.source for image in images])
        with contextlib.closing(found):  # type: ignore[arg-type]
            for image, result in zip(images, found, strict=True):
                pictured = len(entries) + len(waiting) < PICTURED
                waiting.append(writer.submit(_finish, image, result, out, coco, pictured))
                settle(16)
            settle(0)
    seconds = max(0.0, time.perf_counter() - start - clock.seconds)
    run = Run(tuple(entries), seconds, clock.seconds)
    if coco:
        write_json(out / COCO, _merge([e.annotations for e in entries if e.annotations]))
    if report:
        write_text(out / REPORT, render_report(run, segmenter))
    return run


def _finish(
    image: ImageFile, result: Segmentation | ImageError, out: Path, coco: bool, pictured: bool
) -> Entry | WriteError:
    if isinstance(result, ImageError):
        return Entry(image, error=str(result))
    try:
        return _write(image, result, out, coco, pictured)
    except ImageError as error:
        return Entry(image, error=str(error))
    except WriteError as error:
        if error.errno in _HOPELESS:
            return error
        return Entry(image, error=str(error))


def _write(image: ImageFile, found: Segmentation, out: Path, coco: bool, pictured: bool) -> Entry:
    pixels = load_image(image.source)
    # With two clusters the object is the mask, of which the labels may hold more pieces.
    in_parts = int(found.labels.max(initial=0)) > 1
    shown = found.labels if in_parts else found.mask
    picture = draw_box(overlay(pixels, shown), found.box)
    paths = [out / (image.name + suffix) for suffix in OUTPUT_SUFFIXES]
    write_png(paths[0], found.mask)
    write_labels(paths[1], found.labels)
    write_png(paths[2], picture)
    annotations = None
    if coco:
        boxes = None if in_parts else [found.box]
        annotations = coco_annotations(
            [image.path.name], [shown], scores=[found.confidence], boxes=boxes
        )
    thumbnails = {}
    if pictured:
        shots = {"photograph": pixels, "overlay": picture, "labels": colour_labels(found.labels)}
        thumbnails = {kind: _thumbnail(shot) for kind, shot in shots.items()}
    small = dataclasses.replace(found, mask=np.zeros((0, 0), bool), labels=np.zeros((0, 0), int))
    return Entry(
        image,
        small,
        size=pixels.shape[:2],
        coverage=float(found.mask.mean()),
        parts=len(np.unique(found.labels[found.labels > 0])),
        thumbnails=thumbnails,
        annotations=annotations,
    )


def _thumbnail(pixels: np.ndarray, side: int = 360) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def _merge(sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One COCO-style data set of several of one image each."""
    images: list[dict] = []
    annotations: list[dict] = []
    categories: dict[int, dict] = {}
    for single in sets:
        images.append({**single["images"][0], "id": len(images) + 1})
        for annotation in single["annotations"]:
            numbers = {"id": len(annotations) + 1, "image_id": len(images)}
            annotations.append({**annotation, **numbers})
        for category in single["categories"]:
            kept = categories.get(category["id"])
            # "part 1" says more than "object", where some images were cut and others were not.
            if kept is None or kept["name"] == "object":
                categories[category["id"]] = category
    return {
        "images": images,
        "annotations": annotations,
        "categories": [categories[number] for number in sorted(categories)],
    }


class _Clock:
    """Adds up spans of time that may lie within one another."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        total, end = 0.0, float("-inf")
        for first, last in sorted(self.spans):
            total += max(0.0, last - max(first, end))
            end = max(end, last)
        return total


@contextlib.contextmanager
def compile_clock() -> Iterator[_Clock]:
    """Measures what JAX takes to trace and compile within the block, seen from the wall."""
    from jax import monitoring

    clock = _Clock()

    def listen(event: str, *span: Any, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            clock.spans.append((float(span[0]), float(span[1])))

    monitoring.register_event_time_span_listener(listen)
    try:
        yield clock
    finally:
        monitoring.unregister_event_time_span_listener(listen)
