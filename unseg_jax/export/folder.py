"""Image files in, files of what was found in them out: `unseg-jax segment` and the demo."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import io
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.cache import compile_clock
from unseg_jax.data.folders import FoundImages, ImageFile, safe_name
from unseg_jax.data.images import read_image
from unseg_jax.data.loader import default_workers
from unseg_jax.data.scale import pixel_size
from unseg_jax.data.writer import Writer
from unseg_jax.errors import ImageError, InputError, WriteError, printable, readable
from unseg_jax.export.drawing import shrink_image
from unseg_jax.export.formats import (
    check_formats,
    encode_image,
    encode_run,
    files_of,
    record_of,
    suffixes_of,
)
from unseg_jax.export.manifest import FITTED_ON, Done, Manifest, stamp_of
from unseg_jax.export.report import render_report
from unseg_jax.export.run import Entry, Run
from unseg_jax.files import write_bytes, write_text

REPORT = "report.html"
PICTURED = 400
"""Images that the report shows; the others are listed, because browsers choke on more."""
# Bytes of results that wait to be written.
_WAITING_BYTES = 256 * 2**20
# After these nothing else can be written either; other errors concern one file only.
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written of a run.

    Attributes:
        formats: names of `unseg_jax.export.formats.FORMATS`.
        min_area: share of the image below which a piece is no object; None is a thousandth, of a
            tile where images are cut into tiles.
        objects: "all", or "largest" to keep the largest object of each image alone.
        full_overlay: draw overlays at the image's own size, not at 1,600 pixels at most.
        report: whether `report.html` is written.
        recursive: mirror the folders that the images lie in.
    """

    formats: tuple[str, ...] = ("png",)
    min_area: float | None = None
    objects: str = "all"
    full_overlay: bool = False
    report: bool = True
    recursive: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", check_formats(self.formats))
        if self.objects not in ("all", "largest"):
            raise ValueError(f"objects '{self.objects}' is not known: choose all or largest.")
        if self.min_area is not None and not 0 <= self.min_area <= 1:
            raise ValueError(f"min_area={self.min_area} is a share of the image: give 0 to 1.")

    @property
    def full_pixels(self) -> bool:
        """Whether pixels at the image's own size are needed."""
        return self.full_overlay or "cutout" in self.formats


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        out: the folder.
        images: all of them, with the names of their files.
        files: for each image its path below the common folder.
        output: what is written.
        settings: plain values that decide what the results are.
        done: names of images that an earlier run has done.
        refused: name → sentence, of images whose files are not ours to replace.
        manifest: of the folder.
        left_out: what the search for images did not take, a sentence each.
    """

    out: Path
    images: tuple[ImageFile, ...]
    files: tuple[str, ...]
    output: Output
    settings: dict[str, Any]
    done: frozenset[str]
    refused: dict[str, str]
    manifest: Manifest
    left_out: tuple[str, ...] = ()

    @property
    def todo(self) -> list[ImageFile]:
        """The images to segment."""
        return [
            image
            for image in self.images
            if image.name not in self.done and image.name not in self.refused
        ]

    def names_of(self, image: ImageFile) -> list[str]:
        """Names of an image's files below the folder."""
        return [image.name + suffix for suffix in suffixes_of(self.output.formats)]


def plan_run(
    images: Sequence[ImageFile],
    out: str | os.PathLike,
    output: Output | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    only: Collection[str] | None = None,
) -> Plan:
    """Looks at the folder: what is done already, and what may be written. Nothing is changed.

    Args:
        images: from `find_images`.
        out: the folder of the results; may be missing.
        output: what is written.
        settings: plain values that decide what the results are; another run's are refused.
        overwrite: do everything again, also with other settings.
        only: names of the images to take, as the report calls them; None takes all.

    Raises:
        InputError: the folder holds results with other settings, a file of the run's own names
            that unseg-jax did not write, or `only` has a name that no image has.
    """
    out, output = Path(out), output or Output()
    left_out = images.left_out if isinstance(images, FoundImages) else ()
    files, named = _relative(images, output.recursive)
    if only is not None:
        files, named = _keep_only(files, named, only)
    manifest = Manifest(out)
    wanted = {**(settings or {}), **dataclasses.asdict(output)}
    wanted.pop("report")
    changed = manifest.differences(wanted)
    refit = [name for name in changed if not name.startswith(FITTED_ON)] == []
    if changed and not refit and not overwrite:
        raise InputError(
            f"{out} holds results with other settings ({'; '.join(changed[:3])}): choose another "
            "folder with out=, or overwrite=True to replace them."
        )
    for name in (*files_of(output.formats), *([REPORT] if output.report else [])):
        if not manifest.is_free(name):
            raise InputError(_foreign(out / name))
    plan = Plan(out, named, files, output, wanted, frozenset(), {}, manifest, left_out)
    done: set[str] = set()
    refused: dict[str, str] = {}
    for image in named:
        names = plan.names_of(image)
        blocked = [name for name in names if not manifest.is_free(name)]
        if not changed and not overwrite and manifest.is_done(image.name, image.path, names):
            done.add(image.name)
        elif blocked:
            source = printable(str(image.path))
            refused[image.name] = f"{source} was left out: {_foreign(out / blocked[0])}"
    return dataclasses.replace(plan, done=frozenset(done), refused=refused)


def _keep_only(
    files: Sequence[str], images: Sequence[ImageFile], only: Collection[str]
) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    missing = set(only).difference(image.name for image in images)
    if missing:
        raise InputError(
            f"'{printable(min(missing))}' is to be kept but is none of the {len(images)} images: "
            "give the folders and options that the report was made with."
        )
    kept = [pair for pair in zip(files, images, strict=True) if pair[1].name in only]
    return tuple(file for file, _ in kept), tuple(image for _, image in kept)


def _foreign(path: Path) -> str:
    return (
        f"{path} is there already and is not as unseg-jax wrote it; move it away, or choose "
        "another folder with out=."
    )


def _relative(
    images: Sequence[ImageFile], recursive: bool
) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """Paths below the common folder, and the images named after them if folders are mirrored."""
    absolute = [Path(os.path.abspath(image.path)) for image in images]
    try:
        common = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else None
    except ValueError:  # several drives
        common = None
    paths = [path if common is None else path.relative_to(common) for path in absolute]
    files = tuple(readable(path.as_posix()) for path in paths)
    if not recursive or common is None:
        return files, tuple(images)
    stems = [path.with_suffix("").as_posix().casefold() for path in paths]
    count = collections.Counter(stems)
    named = []
    for image, path, stem in zip(images, paths, stems, strict=True):
        name = safe_name(path.stem) if count[stem] == 1 else image.name
        parts = [safe_name(part) for part in path.parent.parts]
        named.append(dataclasses.replace(image, name="/".join([*parts, name])))
    return files, tuple(named)


def segment_files(
    segmenter: Any,
    images: Sequence[ImageFile],
    out: str | os.PathLike,
    output: Output | None = None,
    *,
    plan: Plan | None = None,
    on_entry: Callable[[Entry], Any] = lambda entry: None,
    workers: int | None = None,
) -> Run:
    """Segments files and writes what was found, with a manifest and a report.

    Every file is written whole or not at all, and none that an earlier run did not write is
    replaced. An image that fails does not stop the others.

    Args:
        segmenter: a `BatchSegmenter`, with the method and the backbone; None if nothing is to do.
        images: from `find_images`.
        out: a folder; made if missing.
        output: what is written.
        plan: from `plan_run` with the same arguments; None makes one that does everything.
        on_entry: called with each image as it is done, in order.
        workers: threads that draw and write; None is one a core.

    Raises:
        InputError: see `plan_run`.
        WriteError: nothing more can be written, as on a full disk.
    """
    plan = plan or plan_run(images, out, output, overwrite=True)
    output, manifest = plan.output, plan.manifest
    planned = [name for image in plan.todo for name in plan.names_of(image)]
    run_files = [*files_of(output.formats), *([REPORT] if output.report else [])]
    manifest.start(plan.settings, plan.done, [*planned, *run_files])
    entries: list[Entry] = []
    waiting: collections.deque[tuple[Future, int]] = collections.deque()

    def settle(most: int) -> None:
        """Takes what is written, and waits where more than so many bytes are not."""
        while waiting and (waiting[0][0].done() or sum(size for _, size in waiting) > most):
            entry, done = waiting.popleft()[0].result()
            if isinstance(entry, WriteError):
                raise entry
            entries.append(entry)
            if done is not None:
                manifest.add(entry.image.name, done)
            on_entry(entry)

    start = time.perf_counter()
    pool = Writer(default_workers() if workers is None else workers)
    with contextlib.closing(manifest), compile_clock() as clock, pool as writer:
        sources = [image.source for image in plan.todo]
        found: Any = iter(())
        with contextlib.ExitStack() as stack:
            if sources:
                found = segmenter.stream(sources, full_pixels=output.full_pixels)
                stack.enter_context(contextlib.closing(found))
            for position, (image, file) in enumerate(zip(plan.images, plan.files, strict=True)):
                pictured = output.report and position < PICTURED
                if image.name in plan.refused:
                    error = plan.refused[image.name]
                    work, result = _refused, error
                elif image.name in plan.done:
                    work, result = _reuse, None
                else:
                    work, result = _finish, next(found)
                job = writer.submit(work, plan, image, file, result, pictured)
                waiting.append((job, 1 + getattr(getattr(result, "pixels", None), "nbytes", 0)))
                settle(_WAITING_BYTES)
            settle(0)
        seconds = max(0.0, time.perf_counter() - start - clock.seconds)
        run = Run(tuple(entries), seconds, clock.seconds, plan.left_out)
        records = [entry.record for entry in run.done if entry.record is not None]
        for name, content in encode_run(records, output.formats).items():
            write_bytes(plan.out / name, content)
        if output.report:
            write_text(plan.out / REPORT, render_report(run, segmenter, output, plan.settings))
        manifest.finish([image.name for image in plan.images], run_files)
    return run


def _refused(plan: Plan, image: ImageFile, file: str, error: str, pictured: bool):
    return Entry(image, error=error), None


def _reuse(plan: Plan, image: ImageFile, file: str, result: None, pictured: bool):
    """An image that an earlier run has done; its pictures are made from the files."""
    pictures = {}
    if pictured:
        with contextlib.suppress(ImageError):
            small = (_PICTURE_SIDE // 2, _PICTURE_SIDE // 2)
            pictures["photograph"] = _picture(read_image(image.source, small).pixels)
            drawn = plan.out / f"{image.name}_overlay.png"
            pictures["overlay"] = _picture(read_image(drawn).pixels)
    record = plan.manifest.images[image.name].record
    return Entry(image, record, pictures=pictures, reused=True), None


def _finish(plan: Plan, image: ImageFile, file: str, result: Any, pictured: bool):
    source, stamp = str(image.path.absolute()), stamp_of(image.path)
    if isinstance(result, ImageError):
        return Entry(image, error=str(result)), Done(source, stamp, {}, None, str(result))
    try:
        record, files, pictures = _write(plan, image, file, result, pictured)
    except (ImageError, WriteError) as error:
        if isinstance(error, WriteError) and error.errno in _HOPELESS:
            return error, None
        return Entry(image, error=str(error)), Done(source, stamp, {}, None, str(error))
    return Entry(image, record, pictures=pictures), Done(source, stamp, files, record)


def _write(plan: Plan, image: ImageFile, file: str, found: Any, pictured: bool):
    output = plan.output
    if output.min_area is not None:
        found = dataclasses.replace(found, min_area=output.min_area)
    if output.objects == "largest":
        found = found.only_largest()
    if not output.full_overlay and "cutout" in output.formats:
        cut = encode_image(found, ["cutout"])
        found = dataclasses.replace(found, pixels=shrink_image(found.pixels))
        others = [name for name in output.formats if name != "cutout"]
        content = {**encode_image(found, others), **cut}
    else:
        content = encode_image(found, output.formats)
    stamps = {}
    for suffix, data in content.items():
        path = plan.out / (image.name + suffix)
        write_bytes(path, data)
        stamps[image.name + suffix] = stamp_of(path) or (0, 0)
    pictures = {}
    if pictured:
        small = shrink_image(found.pixels, _PICTURE_SIDE)
        pictures["photograph"] = _picture(small)
        # The overlay that was written, unless its lines would be too thin when it is reduced.
        drawn = found.overlay() if small is found.pixels else found.overlay(small)
        pictures["overlay"] = _picture(drawn)
    measured = "csv" in output.formats
    scale = pixel_size(image.path) if measured else None
    record = record_of(found, image.name, file, measured=measured, scale=scale)
    return record, stamps, pictures


_PICTURE_SIDE = 480


def _picture(pixels: np.ndarray) -> bytes:
    """JPEG: WebP is half as large and takes ten times as long to encode."""
    buffer = io.BytesIO()
    Image.fromarray(shrink_image(pixels, _PICTURE_SIDE)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
