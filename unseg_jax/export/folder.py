"""Image files in, files of what was found in them out: `unseg-jax segment` and the demo.

A folder of results is a collection: a run adds the images that it is given, and every file of the
folder as a whole (tables, data sets, the report) holds all images of the folder.
"""

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
from unseg_jax.data.decoding import read_image
from unseg_jax.data.folders import FoundImages, ImageFile
from unseg_jax.data.loader import Writer, default_workers
from unseg_jax.data.pixel_size import parse_pixel_size, pixel_size
from unseg_jax.data.reading_options import PLAIN
from unseg_jax.errors import DISK_FULL, ImageError, InputError, WriteError, printable
from unseg_jax.export.drawing import shrink_image
from unseg_jax.export.formats import (
    CUTOUT,
    FORMATS,
    Cutout,
    check_formats,
    encode_image,
    encode_run,
    files_of,
    record_of,
    suffixes_of,
)
from unseg_jax.export.kinds import Count, Kinds, describe
from unseg_jax.export.naming import below_common, names_in
from unseg_jax.export.records import Entry, Record, Run
from unseg_jax.export.regrouping import carries_kinds, draw_kinds, tell_kinds
from unseg_jax.export.report import render_report
from unseg_jax.postprocess.objects import check_min_area
from unseg_jax.postprocess.splitting import check_split
from unseg_jax.runs.result_store import Done, ResultStore, order_of
from unseg_jax.runs.stamps import is_unchanged, stamp_source

REPORT = "report.html"
PICTURED = 400
"""Images that the report shows; the others are listed, because browsers choke on more."""
# Bytes of results that wait to be written.
_WAITING_BYTES = 256 * 2**20
# After these nothing else can be written either; other errors concern one file only.
_HOPELESS = (*DISK_FULL, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written of a run.

    Attributes:
        formats: names of `unseg_jax.export.formats.FORMATS`.
        min_area: below which a piece is a speck and left out: below 1 a share of the image, else
            pixels of it; None is a thousandth, of a tile where images are cut into tiles, and a
            quarter of that where they are seen at twice the size.
        split: whether pieces that touch are cut into objects; see `find_objects`.
        objects: "all", or "largest" to keep the largest object of each image alone.
        full_overlay: draw overlays at the image's own size, not at 1,600 pixels at most.
        report: whether `report.html` is written.
        recursive: mirror the folders that the images lie in.
        cutout: how objects are cut out.
        pixel_size: side of a pixel in micrometres, or with a unit, such as "320nm"; None takes
            what a file says of its own.
        label_studio_url: where Label Studio finds the folder of the images.
        kinds: into how many kinds the objects of the folder are grouped, "auto" for the number that
            is most stable, or the kinds themselves, of which some may be dropped; None groups none.
    """

    formats: tuple[str, ...] = ("png",)
    min_area: float | None = None
    objects: str = "all"
    split: str = "never"
    full_overlay: bool = False
    report: bool = True
    recursive: bool = False
    cutout: Cutout = CUTOUT
    pixel_size: float | str | None = None
    label_studio_url: str = ""
    kinds: Count | Kinds | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", check_formats(self.formats))
        if self.objects not in ("all", "largest"):
            raise ValueError(f"objects '{self.objects}' is not known: choose all or largest.")
        check_split(self.split)
        if self.min_area is not None:
            check_min_area(self.min_area)
        if isinstance(self.kinds, int) and self.kinds < 2:
            raise ValueError(f"kinds={self.kinds} must be at least 2, or 'auto'.")
        if self.pixel_size is not None:
            object.__setattr__(self, "pixel_size", parse_pixel_size(self.pixel_size)[0])

    @property
    def dropped(self) -> frozenset[int]:
        """Numbers of the kinds whose objects are left out."""
        return self.kinds.dropped if isinstance(self.kinds, Kinds) else frozenset()

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that decide what is found; not what images are called, whether there is a
        report, and into how many kinds objects are grouped."""
        wanted = dataclasses.asdict(dataclasses.replace(self, kinds=None))
        for name in ("report", "recursive", "kinds"):
            wanted.pop(name)
        if self.kinds is not None:
            wanted["kinds"] = True
        if self.dropped:
            wanted["dropped kinds"] = self.kinds.key  # type: ignore[union-attr]
        return wanted

    @property
    def full_pixels(self) -> bool:
        """Whether pixels at the image's own size are needed."""
        return self.full_overlay or "cutout" in self.formats


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        images: all of them, with the names of their files.
        output: what is written.
        settings: plain values that decide what the results are.
        model: which of the models that the settings allow; see `Done`.
        store: what is in the folder.
        done: names of images that an earlier run has done.
        changed: those of them whose source is another now.
        refused: name → sentence, of images whose files are not ours to replace.
        pruned: names of images in the folder whose results are removed.
        leftovers: names of files of no image that are removed: what a killed run left half
            written, and models of no result.
        left_out: what the search for images did not take, a sentence each.
    """

    images: tuple[ImageFile, ...]
    output: Output
    settings: dict[str, Any]
    model: str
    store: ResultStore
    done: frozenset[str] = frozenset()
    changed: tuple[ImageFile, ...] = ()
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pruned: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """The folder."""
        return self.store.folder

    @property
    def todo(self) -> list[ImageFile]:
        """The images to segment."""
        return [
            image
            for image in self.images
            if image.name not in self.done and image.name not in self.refused
        ]

    @property
    def replaced(self) -> list[ImageFile]:
        """The images to segment that have results."""
        return [image for image in self.todo if _has_result(self.store, image.name)]

    @property
    def of_other_models(self) -> int:
        """How many images were done with these settings by another model."""
        return sum(self.store.images[name].model != self.model for name in self.done)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of the files of the folder as a whole: those of this run and of earlier ones."""
        made = {name for name in FORMATS if {*files_of([name])} & self.store.files.keys()}
        return tuple(name for name in FORMATS if name in made or name in self.output.formats)

    @property
    def whole(self) -> list[str]:
        """Names of the files of the folder as a whole."""
        report = self.output.report or REPORT in self.store.files
        return [*files_of(self.formats), *([REPORT] if report else [])]

    @property
    def written(self) -> list[str]:
        """Names of all files that are written, a model not among them."""
        names = [name for image in self.todo for name in self.names_of(image)]
        if self.output.kinds is not None:
            names += [
                file
                for name, done in self.store.images.items()
                for file in done.files
                if file not in names and carries_kinds(file[len(name) :])
            ]
        return [*names, *self.whole]

    @property
    def removed(self) -> list[str]:
        """Names of all files that are removed."""
        images = self.store.images
        old = {file for image in self.replaced for file in images[image.name].files}
        old -= set(self.written)
        old |= {file for name in self.pruned for file in images[name].files}
        old.update(self.leftovers)
        return sorted(file for file in old if self.store.is_ours(file))

    def names_of(self, image: ImageFile) -> list[str]:
        """Names of an image's files below the folder."""
        return [
            image.name + suffix for suffix in suffixes_of(self.output.formats, self.output.cutout)
        ]


def plan_run(
    images: Sequence[ImageFile],
    out: str | os.PathLike,
    output: Output | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    model: str = "",
    overwrite: bool = False,
    prune: bool = False,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> Plan:
    """Looks at the folder: what is done already, and what may be written. Nothing is changed.

    Args:
        images: from `find_images`.
        out: the folder of the results; may be missing.
        output: what is written.
        settings: plain values that decide what the results are; another run's are refused.
        model: which of the models that the settings allow will do it; "" if there is but one.
        overwrite: do all of the images again, also with other settings.
        prune: remove the results of all other images in the folder.
        only: names of the images to take, as the report calls them; None takes all.
        without: names of images that are left out.

    Raises:
        InputError: the folder holds results with other settings, a file of the run's own names
            that unseg-jax did not write, or `only` has a name that no image has.
    """
    store, output = ResultStore(out), output or Output()
    left_out = images.left_out if isinstance(images, FoundImages) else ()
    named = names_in(images, store.images, recursive=output.recursive)
    if only is not None:
        named = _keep_only(named, only)
    named = tuple(image for image in named if image.name not in without)
    wanted = {**(settings or {}), **output.settings}
    own = [image.name for image in named]
    with_results = [name for name in own if _has_result(store, name)]
    differences = [] if overwrite else store.differences(wanted, with_results)
    if differences:
        raise InputError(
            f"{store.folder} holds results with other settings ({'; '.join(differences[:3])}): "
            "choose another folder with out=, or overwrite=True to replace those of these images."
        )
    pruned = tuple(name for name in store.images if name not in set(own)) if prune else ()
    plan = Plan(named, output, wanted, model, store, pruned=pruned, left_out=left_out)
    for name in plan.whole:
        if not store.is_free(name):
            raise InputError(_foreign(store.folder / name))
    done, changed, refused = set(), [], {}
    for image in named:
        names = plan.names_of(image)
        blocked = [name for name in names if not store.is_free(name)]
        if not overwrite and _is_whole(store, image, names):
            done.add(image.name)
            if not is_unchanged(image.path, store.images[image.name].stamp):
                changed.append(image)
        elif blocked:
            source = printable(str(image.path))
            refused[image.name] = f"{source} was left out: {_foreign(store.folder / blocked[0])}"
    plan = dataclasses.replace(plan, done=frozenset(done), changed=tuple(changed), refused=refused)
    return dataclasses.replace(plan, leftovers=_leftovers(plan)) if prune else plan


def model_file(model: str) -> str:
    """Name of the file that a model which was fitted in a run is kept in."""
    return f"model-{model}.safetensors"


def _leftovers(plan: Plan) -> tuple[str, ...]:
    store, kept = plan.store, set(plan.written)
    # Also of images that are done again: one that fails keeps the result that it has.
    stay = (done.model for name, done in store.images.items() if name not in plan.pruned)
    kept.update(model_file(model) for model in (plan.model, *stay))
    models = {name for name in store.files if name.endswith(".safetensors")}
    return tuple(sorted((store.begun | models) - kept))


def _has_result(store: ResultStore, name: str) -> bool:
    return name in store.images and store.images[name].record is not None


def _is_whole(store: ResultStore, image: ImageFile, names: Sequence[str]) -> bool:
    """Whether an image has its results, which may have been corrected by hand since."""
    if not _has_result(store, image.name) or not image.path.is_file():
        return False
    files = store.images[image.name].files
    there = all(os.path.lexists(store.folder / file) for file in files)
    return there and set(names) <= set(files) and store.begun.isdisjoint(files)


def _keep_only(images: Sequence[ImageFile], only: Collection[str]) -> tuple[ImageFile, ...]:
    missing = set(only).difference(image.name for image in images)
    if missing:
        raise InputError(
            f"'{printable(min(missing))}' is to be kept but is none of the {len(images)} images: "
            "give the folders and options that the report was made with."
        )
    return tuple(image for image in images if image.name in only)


def _foreign(path: Path) -> str:
    return (
        f"{path} is there already and is not as unseg-jax wrote it; move it away, or choose "
        "another folder with out=."
    )


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
    replaced. An image that fails does not stop the others, and keeps the results that it has.

    Args:
        segmenter: a `BatchSegmenter`, with the method and the backbone; None if nothing is to do.
        images: from `find_images`.
        out: a folder; made if missing.
        output: what is written.
        plan: from `plan_run` with the same arguments; None makes one that does everything.
        on_entry: called with each image as it is done, in order.
        workers: threads that draw and write; None is one per core.

    Raises:
        InputError: see `plan_run`.
        WriteError: nothing more can be written, as on a full disk.
    """
    plan = plan or plan_run(images, out, output, overwrite=True)
    output, store = plan.output, plan.store
    if output.kinds is not None and segmenter:
        if segmenter.backbone is None:
            raise InputError(
                f"'{segmenter.method.name}' has no patch features, by which kinds are told: take a "
                "method with a backbone."
            )
        segmenter = segmenter.but(with_features=True)
    settings, replaced = store.use(plan.settings), {image.name for image in plan.replaced}
    entries: list[Entry] = []
    waiting: collections.deque[tuple[Future, int]] = collections.deque()

    def settle(most: int) -> None:
        """Takes what is written, and waits while more than `most` bytes are not."""
        while waiting and (waiting[0][0].done() or sum(size for _, size in waiting) > most):
            entry = waiting.popleft()[0].result()
            if isinstance(entry, WriteError):
                raise entry
            entries.append(entry)
            if len(entries) <= len(plan.images):
                on_entry(entry)

    start = time.perf_counter()
    pool = Writer(default_workers() if workers is None else workers)
    with store, compile_clock() as clock, pool as writer:
        store.sweep()
        sources = [image.source for image in plan.todo]
        found: Any = iter(())
        with contextlib.ExitStack() as stack:
            if sources:
                found = segmenter.stream(sources, full_pixels=output.full_pixels)
                stack.enter_context(contextlib.closing(found))
            for position, image in enumerate(plan.images):
                pictured = output.report and position < PICTURED
                result = None
                if image.name in plan.refused:
                    job = writer.submit(Entry, image, error=plan.refused[image.name])
                elif image.name in plan.done:
                    job = writer.submit(_reuse, store, image, pictured)
                else:
                    result = next(found)
                    job = writer.submit(_finish, plan, image, settings, result, pictured)
                kept = (getattr(result, name, None) for name in ("pixels", "patch_features"))
                waiting.append((job, 1 + sum(getattr(one, "nbytes", 0) for one in kept)))
                settle(_WAITING_BYTES)
            settle(0)
        seconds = max(0.0, time.perf_counter() - start - clock.seconds)
        for name in plan.pruned:
            store.remove(store.images[name].files, name)
        store.remove(plan.leftovers)
        for image in _others(plan, entries):
            pictured = output.report and len(entries) + len(waiting) < PICTURED
            waiting.append((writer.submit(_reuse, store, image, pictured), 1))
        settle(0)
        kinds = None
        if output.kinds is not None:
            reading = PLAIN if segmenter is None else segmenter.reading
            kinds = tell_kinds(store, output.kinds, reading, writer.submit)
            told = [writer.submit(_told, entry, store) for entry in entries if kinds]
            entries = [one.result() for one in told] or entries
        run = Run(
            tuple(entries[: len(plan.images)]),
            seconds,
            clock.seconds,
            plan.left_out,
            sum(e.image.name in replaced and not e.error for e in entries[: len(plan.images)]),
            len(plan.pruned),
            kinds,
        )
        _write_whole(plan, dataclasses.replace(run, entries=tuple(entries)), segmenter)
        store.finish()
    return run


def _told(entry: Entry, store: ResultStore) -> Entry:
    """An entry with the kinds of its objects, and a picture that shows them."""
    done = store.images.get(entry.image.name)
    if entry.error or done is None or done.record is None:
        return entry
    record, pictures = Record.from_plain(done.record), dict(entry.pictures)
    if "photograph" in pictures and all("kind" in item for item in record.objects):
        with Image.open(io.BytesIO(pictures["photograph"])) as photograph:
            drawn = draw_kinds(np.asarray(photograph.convert("RGB")), record)
        pictures["overlay"] = _picture(drawn)
    return dataclasses.replace(entry, record=record, pictures=pictures)


def _others(plan: Plan, entries: Sequence[Entry]) -> list[ImageFile]:
    """The images of the folder that are not of this run, and those that failed now but have results
    of an earlier one."""
    own = {image.name for image in plan.images}
    own -= {e.image.name for e in entries if e.error and _has_result(plan.store, e.image.name)}
    return [
        ImageFile(Path(done.source), name, done.page)
        for name, done in sorted(plan.store.images.items(), key=lambda pair: order_of(pair[1]))
        if name not in own
    ]


def _write_whole(plan: Plan, run: Run, segmenter: Any) -> None:
    """The files that hold all images of the folder, whichever run did them."""
    images = sorted(plan.store.images.items(), key=lambda pair: order_of(pair[1]))
    files = below_common([done.source for _, done in images])
    records = {
        name: dataclasses.replace(Record.from_plain(done.record), file=file)
        for (name, done), file in zip(images, files, strict=True)
        if done.record is not None
    }
    content = encode_run(list(records.values()), plan.formats, plan.output.label_studio_url)
    if REPORT in plan.whole:
        entries = tuple(
            entry if entry.error else dataclasses.replace(entry, record=records[entry.image.name])
            for entry in run.entries
        )
        shown = dataclasses.replace(run, entries=entries)
        page = render_report(shown, segmenter, plan.settings, plan.out.resolve().name)
        content[REPORT] = page.encode("utf-8", "backslashreplace")
    plan.store.write(content)


def _reuse(store: ResultStore, image: ImageFile, pictured: bool) -> Entry:
    """An image that an earlier run has done; its pictures are made from the files."""
    pictures, done = {}, store.images[image.name]
    if pictured and not done.error:
        with contextlib.suppress(ImageError):
            small = (_PICTURE_SIDE // 2, _PICTURE_SIDE // 2)
            pictures["photograph"] = _picture(read_image(image.source, small).pixels)
        with contextlib.suppress(ImageError):
            drawn = store.folder / f"{image.name}_overlay.png"
            pictures["overlay"] = _picture(read_image(drawn).pixels)
    record = None if done.record is None else Record.from_plain(done.record)
    return Entry(image, record, done.error, pictures, tuple(done.files), reused=True)


def _finish(
    plan: Plan, image: ImageFile, settings: str, result: Any, pictured: bool
) -> Entry | WriteError:
    """Writes the files of an image, notes them, and removes those that it has no more."""
    store, source = plan.store, os.path.abspath(image.path)
    done = Done(source, image.page, stamp_source(image.path), settings, plan.model)
    try:
        if isinstance(result, ImageError):
            raise result
        old = list(store.images[image.name].files) if image.name in store.images else []
        record, files, pictures = _write(plan, image, result, pictured)
        store.remove([name for name in old if name not in files])
    except (ImageError, WriteError) as error:
        if isinstance(error, WriteError) and error.errno in _HOPELESS:
            return error
        if not _has_result(store, image.name):
            store.add(image.name, dataclasses.replace(done, error=str(error)))
        return Entry(image, error=str(error))
    store.add(image.name, dataclasses.replace(done, files=files, record=record.as_plain()))
    return Entry(image, record, pictures=pictures, files=tuple(files))


def _write(plan: Plan, image: ImageFile, found: Any, pictured: bool):
    output, store = plan.output, plan.store
    size = pixel_size(image.path) if output.pixel_size is None else (output.pixel_size,) * 2
    found = dataclasses.replace(found, pixel_size=size, split=output.split)
    if output.min_area is not None:
        found = dataclasses.replace(found, min_area=output.min_area)
    if output.objects == "largest":
        found = found.only_largest()
    if output.dropped and found.objects:
        described, _ = describe(found.objects, found.patch_features, found.size)
        numbers = output.kinds.number(described)  # type: ignore[union-attr]
        both = zip(found.objects, numbers, strict=True)
        found = found.without([item for item, number in both if number in output.dropped])
    if not output.full_overlay and "cutout" in output.formats:
        cut = encode_image(found, ["cutout"], output.cutout)
        found = dataclasses.replace(found, pixels=shrink_image(found.pixels))
        others = [name for name in output.formats if name != "cutout"]
        content = {**encode_image(found, others), **cut}
    else:
        content = encode_image(found, output.formats, output.cutout)
    files = {image.name + suffix: data for suffix, data in content.items()}
    for name in files:
        if not store.is_free(name):
            raise ImageError(
                f"{printable(str(image.path))} was left out: {_foreign(store.folder / name)}"
            )
    stamps = store.write(files, image.name)
    pictures = {}
    if pictured:
        small = shrink_image(found.pixels, _PICTURE_SIDE)
        pictures["photograph"] = _picture(small)
        # The overlay that was written, unless its lines would be too thin when it is reduced.
        drawn = found.overlay() if small is found.pixels else found.overlay(small)
        pictures["overlay"] = _picture(drawn)
    record = record_of(found, image.name, image.path.name, measured="csv" in output.formats)
    return record, stamps, pictures


_PICTURE_SIDE = 480


def _picture(pixels: np.ndarray) -> bytes:
    """JPEG: WebP is half as large and takes ten times as long to encode."""
    buffer = io.BytesIO()
    Image.fromarray(shrink_image(pixels, _PICTURE_SIDE)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
