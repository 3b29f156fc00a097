"""Image files in, pictures of their masks out: what `unseg-jax segment` and the demo do."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unseg_jax.coco import coco_annotations
from unseg_jax.data.images import ImageError, load_image
from unseg_jax.data.sources import IMAGE_SUFFIXES
from unseg_jax.data.writer import Writer
from unseg_jax.files import WriteError, write_bytes, write_json, write_png, write_text
from unseg_jax.visual import colour_labels, draw_box, overlay, write_labels

if TYPE_CHECKING:
    from unseg_jax.segmenter import Segmentation, Segmenter

REPORT = "report.html"
PICTURED = 400
"""Images that the report shows; further ones are listed, lest memory and browsers choke."""
COCO = "coco.json"
_SUFFIXES = ("_mask.png", "_labels.png", "_overlay.png")
# After these nothing else can be written either; other errors concern one file only.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class InputError(ValueError):
    """Paths that hold no images, or that clash with the outputs; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image to be segmented.

    Attributes:
        path: of the file.
        name: unique in a run; outputs are called `<name>_mask.png` and so on.
    """

    path: Path
    name: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of a finished run, as the report shows it.

    Attributes:
        image: the file.
        segmentation: what was found, without its arrays of the image's size; None if it failed.
        error: one sentence; "" if all went well.
        size: (height, width) of the image.
        coverage: share of the image that the mask covers, 0 to 1.
        parts: labels above 0 that are in use.
        thumbnails: kind → WebP bytes, of the images that the report shows.
        annotations: COCO-style data set of this image alone, or None.
    """

    image: ImageFile
    segmentation: Segmentation | None = None
    error: str = ""
    size: tuple[int, int] = (0, 0)
    coverage: float = 0.0
    parts: int = 0
    thumbnails: dict[str, bytes] = dataclasses.field(default_factory=dict)
    annotations: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What `segment_files` did.

    Attributes:
        entries: one an image, in order.
        seconds: from the first image to the last file, without compilation.
        compile_seconds: what tracing and compiling took, or reading compiled programs back.
    """

    entries: tuple[Entry, ...]
    seconds: float
    compile_seconds: float

    @property
    def done(self) -> list[Entry]:
        """The images that went well."""
        return [entry for entry in self.entries if not entry.error]

    @property
    def failed(self) -> list[Entry]:
        """The images that did not."""
        return [entry for entry in self.entries if entry.error]

    @property
    def images_per_second(self) -> float:
        """Images done a second: decoding, device, refinement and writing, not compilation."""
        return len(self.done) / self.seconds if self.seconds else 0.0


def find_images(
    paths: Iterable[str | os.PathLike],
    *,
    recursive: bool = False,
    out: str | os.PathLike | None = None,
) -> list[ImageFile]:
    """Expands folders and gives each image a name of its own.

    Args:
        paths: files, whatever their suffix, and folders, of which the files with a suffix of an
            image are taken, sorted. What is not there is kept, and fails on its own later.
        recursive: whether folders within folders are searched as well; hidden ones are not.
        out: where outputs will go; a folder of that path is not searched.

    Returns:
        Each file once, in the order of `paths`. Names are stems; files that share a stem are told
        apart by their suffix, else by their folder, else by a number.

    Raises:
        InputError: a folder without images, or an image that an output would overwrite.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = _in_folder(path, recursive, out) if path.is_dir() else [path]
        for file in found:
            files.setdefault(file.resolve(), file)
    images = [ImageFile(path, name) for path, name in _name(list(files.values()))]
    if out is not None:
        targets = {
            Path(out, image.name + suffix).resolve() for image in images for suffix in _SUFFIXES
        }
        for file, path in files.items():
            if file in targets:
                raise InputError(
                    f"{path} would be overwritten by an output of that name: "
                    "choose another folder with --out."
                )
    return images


def _in_folder(folder: Path, recursive: bool, out: str | os.PathLike | None) -> list[Path]:
    skipped = None if out is None else Path(out).resolve()
    found, inner = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == skipped:
            continue
        if path.is_dir():
            inner.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(path)
    if recursive:
        for path in inner:
            with contextlib.suppress(InputError):
                found.extend(_in_folder(path, True, out))
    if not found:
        remedy = "put images there, or name another folder"
        if inner and not recursive:
            remedy = f"name a folder within it, such as {inner[0]}, or use --recursive"
        raise InputError(f"the folder {folder} holds no images: {remedy}.")
    return found


def _name(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Names compared without case, as some file systems do."""
    stems = [path.stem.casefold() for path in paths]
    shared = {stem for stem, count in collections.Counter(stems).items() if count > 1}
    taken = set(stems) - shared
    for path, stem in zip(paths, stems, strict=True):
        name = path.stem
        if stem in shared:
            suffix = path.suffix[1:] or "file"
            folder = path.resolve().parent.name or "root"
            options = [f"{path.stem}_{suffix}", f"{folder}_{path.stem}"]
            options.append(f"{folder}_{path.stem}_{suffix}")
            numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
            choices = itertools.chain(options, numbered)
            name = next(choice for choice in choices if choice.casefold() not in taken)
            taken.add(name.casefold())
        yield path, name


def check_writable(out: str | os.PathLike) -> None:
    """Makes the folder and writes to it, so that a run fails at its start if at all.

    Raises:
        WriteError: it cannot be written to.
    """
    probe = Path(out, ".unseg_jax.probe")
    try:
        write_bytes(probe, b"")
        probe.unlink(missing_ok=True)
    except WriteError as error:
        if isinstance(error.__cause__, OSError):
            raise WriteError(out, error.__cause__) from error
        raise


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
        found = segmenter.stream([image.path for image in images])
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
        from unseg_jax.report import render_report

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
    pixels = load_image(image.path)
    # With two clusters the object is the mask, of which the labels may hold more pieces.
    in_parts = int(found.labels.max(initial=0)) > 1
    shown = found.labels if in_parts else found.mask
    picture = draw_box(overlay(pixels, shown), found.box)
    paths = [out / (image.name + suffix) for suffix in _SUFFIXES]
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
