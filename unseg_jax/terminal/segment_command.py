"""`unseg-jax segment`: its options, and the way from them to a finished folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from unseg_jax.cache import compile_clock
from unseg_jax.devices import resolve_dtype
from unseg_jax.errors import printable
from unseg_jax.method import plain_fields
from unseg_jax.terminal.console import exit_code, expand, progress, say, with_options
from unseg_jax.terminal.costs import TWICE_COSTS, expected_cost, tile_for
from unseg_jax.terminal.fit_command import fitting_bar
from unseg_jax.terminal.shared_options import Images, expand_home, parse_kinds, parse_page

if TYPE_CHECKING:
    from unseg_jax.collective.choosing import Choice
    from unseg_jax.data.decoding import Source
    from unseg_jax.data.folders import ImageFile
    from unseg_jax.export.folder import Output, Plan
    from unseg_jax.export.formats import Cutout
    from unseg_jax.export.kinds import Count, Kinds
    from unseg_jax.export.records import Entry, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Images):
    """What `unseg-jax segment` is asked for."""

    out: Annotated[
        Path, typer.Option("--out", "-o", callback=expand_home, help="Folder for the results.")
    ] = Path("segmented")
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="png (default), mask, coco, geojson, yolo, tiff, npz, cutout, csv, imagej or "
            "label-studio; repeatable.",
        ),
    ] = None
    json: Annotated[
        str | None, typer.Option("--json", help="coco: add --format coco to the others.")
    ] = None
    objects: Annotated[
        str, typer.Option("--objects", help="Which objects of an image to keep: all or largest.")
    ] = "all"
    min_area: Annotated[
        float | None,
        typer.Option(
            "--min-area",
            help="Drop pieces smaller than this: a fraction of the image (of the tile with --tile) "
            "if below 1, else pixels (default: .001).",
        ),
    ] = None
    object_size: Annotated[
        float | None,
        typer.Option(
            "--object-size",
            min=1,
            metavar="PIXELS",
            help="About how long small objects are: sets --tile to six times that, and --min-area "
            "to a square of a third of it.",
        ),
    ] = None
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="Separate touching objects: never, auto (convex ones such as nuclei) or always.",
        ),
    ] = "never"
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            metavar="K|auto",
            help="Group the objects of the folder into K kinds that look alike, or as many as are "
            "stable; csv, coco and others then name the kind of each.",
        ),
    ] = None
    pixel_size: Annotated[
        str | None,
        typer.Option(
            "--pixel-size",
            metavar="SIZE",
            help="Side of a pixel, such as 0.32um or 320nm; adds --format csv, in physical units.",
        ),
    ] = None
    label_studio_url: Annotated[
        str,
        typer.Option(
            "--label-studio-url",
            help="Where Label Studio serves the folder of images: a URL, or "
            "/data/local-files/?d=FOLDER.",
        ),
    ] = ""
    full_overlay: Annotated[
        bool,
        typer.Option(
            "--full-overlay", help="Draw overlays at full size, not at most 1,600 pixels wide."
        ),
    ] = False
    edges: Annotated[
        str, typer.Option("--edges", help="Edges of cut-outs (--format cutout): soft or hard.")
    ] = "soft"
    crop: Annotated[bool, typer.Option("--crop", help="Crop cut-outs to their objects.")] = False
    margin: Annotated[
        int, typer.Option("--margin", help="Pixels around the objects of a cropped cut-out.")
    ] = 0
    background: Annotated[
        str,
        typer.Option(
            "--background",
            help="Behind cut-outs: a colour such as white or #f0f0f0, or an image file "
            "(default: transparent).",
        ),
    ] = ""
    canvas: Annotated[
        str | None,
        typer.Option(
            "--canvas",
            metavar="WIDTHxHEIGHT",
            help="Centre cut-outs on a canvas of this size; larger ones are shrunk.",
        ),
    ] = None
    cutout_file: Annotated[
        str,
        typer.Option("--cutout-file", help="Cut-outs as png, webp, or jpg (needs --background)."),
    ] = "png"
    each: Annotated[
        bool, typer.Option("--each", help="Write one cut-out per object, cropped to it.")
    ] = False
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model from `unseg-jax fit`, or hf:ORG/NAME; it brings its own method.",
        ),
    ] = None
    only: Annotated[
        Path | None,
        typer.Option(
            "--only",
            callback=expand_home,
            help="Decisions exported from the report: segment only the images kept there, without "
            "objects of the kinds dropped there.",
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Segment finished images again, replacing results."),
    ] = False
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove the results of all other images from the folder."),
    ] = False
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Fit again, even if the folder has a model of these images."),
    ] = False
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Watch the folder and segment each new image, until Ctrl-C."),
    ] = False
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Wait while another run writes to the folder, or fail."
        ),
    ] = True
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be read, written and removed.")
    ] = False
    show: Annotated[
        str | None,
        typer.Option("--print", help="json: print one line per image to standard output."),
    ] = None

    def __post_init__(self) -> None:
        """Raises typer.BadParameter for a size of objects beside a side of tiles."""
        if self.object_size is None:
            return
        if "tile" in self.overrides:
            raise typer.BadParameter("--object-size sets --tile as well: leave one of them out.")
        tile = {"tile": tile_for(self.object_size)}
        object.__setattr__(self, "overrides", self.overrides | tile)
        if self.min_area is None:
            object.__setattr__(self, "min_area", max(1.0, (self.object_size / 3) ** 2))

    @property
    def output(self) -> Output:
        """What is written."""
        from unseg_jax.export.folder import Output

        more = [*([self.json] if self.json else []), *(["csv"] if self.pixel_size else [])]
        return Output(
            (*(self.formats or ["png"]), *more),
            self.min_area,
            self.objects,
            self.split,
            self.full_overlay,
            recursive=self.recursive,
            cutout=self.cutout,
            pixel_size=self.pixel_size,
            label_studio_url=self.label_studio_url,
            kinds=self.wanted_kinds,
        )

    @functools.cached_property
    def wanted_kinds(self) -> Count | Kinds | None:
        """Into which kinds objects are grouped; those of `only` where it decides on some.

        Raises:
            typer.BadParameter: another number of kinds than was decided on.
            InputError: see `read_kinds`.
        """
        from unseg_jax.export.decisions import read_kinds

        count = None if self.kinds is None else parse_kinds(self.kinds)
        decided = None if self.only is None else read_kinds(self.only)
        if decided is None:
            return count
        if isinstance(count, int) and count != len(decided.names):
            raise typer.BadParameter(
                f"--kinds {count} are not the {len(decided.names)} kinds that {self.only} decides "
                "on: leave out --kinds."
            )
        return decided

    @property
    def cutout(self) -> Cutout:
        """How objects are cut out.

        Raises:
            typer.BadParameter: nothing is cut out, or a canvas that is no size.
            ValueError: see `Cutout`.
        """
        from unseg_jax.export.formats import CUTOUT, Cutout

        canvas = None
        if self.canvas is not None:
            found = re.fullmatch(r"([0-9]{1,5})[x×]([0-9]{1,5})", self.canvas)
            if found is None:
                raise typer.BadParameter(
                    f"--canvas {self.canvas} is no size: give it as --canvas 1000x1000."
                )
            canvas = int(found[1]), int(found[2])
        asked = Cutout(
            self.edges,
            self.crop,
            self.margin,
            self.background,
            canvas,
            self.cutout_file,
            self.each,
        )
        if asked != CUTOUT and "cutout" not in (self.formats or ()):
            raise typer.BadParameter(
                "--edges, --crop, --margin, --background, --canvas, --cutout-file and --each are "
                "for cut-outs: add --format cutout."
            )
        return asked

    @functools.cached_property
    def model_path(self) -> Path | None:
        """The file of the model, from the hub where its name begins with hf:."""
        if self.model is None:
            return None
        if not self.model.startswith("hf:"):
            return Path(self.model).expanduser()  # without importing JAX
        from unseg_jax.collective.model_hub import model_path

        return model_path(self.model)

    def choose(self, images: Sequence[Source] = ()) -> Choice:
        """What segments these images.

        Raises:
            ValueError: an unknown method or field.
            typer.BadParameter: settings that a model brings itself.
        """
        from unseg_jax.collective.choosing import choose

        try:
            return choose(self.method, images, self.overrides, self.model_path)
        except ValueError as error:
            if self.model is None:
                raise
            raise typer.BadParameter(str(error)) from None

    def check(self) -> None:
        """Refuses what cannot work, before anything is loaded; see `choose`."""
        if self.json not in (None, "coco"):
            raise typer.BadParameter(f"--json {self.json} is not known: the only format is coco.")
        if self.show not in (None, "json"):
            raise typer.BadParameter(f"--print {self.show} is not known: the only form is json.")
        self.choose()
        self.output  # noqa: B018
        self.reading  # noqa: B018

    def settings(self) -> dict[str, Any]:
        """Plain values that decide what is found: what two runs into one folder must share.

        "auto" stays "auto", however many images there are: `model_key` tells what did them.
        """
        settings: dict[str, Any] = {"seed": self.seed, "dtype": resolve_dtype(self.dtype)}
        settings |= {"backbone": self.backbone, "range": self.reading.value_range}
        if self.model_path is not None:
            return {**settings, "model": _digest(self.model_path), **self.overrides}
        chosen = self.choose()
        if chosen.closer:
            settings["tiles where little is found"] = True
            settings["twice the size where small things are found"] = True
        fields = {**plain_fields(chosen.method), **chosen.options}
        for field in ("source", "group", "code_overrides", "backbone"):
            fields.pop(field)
        if self.method == "auto" and chosen.method.name == "collective":
            fields["name"] = "auto"
        return {"method": fields.pop("name"), **settings, **fields}


def _digest(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content).hexdigest()[:16]


def model_key(asked: Segment, chosen: Choice, images: Sequence[ImageFile]) -> str:
    """Tells a model that is fitted on a set of images from those of other sets; "" where the
    settings leave nothing open."""
    from unseg_jax.collective.shipped import SHIPPED_MODEL

    if not chosen.fits:
        shipped = chosen.model is not None and chosen.model == SHIPPED_MODEL
        return f"ready-{_digest(SHIPPED_MODEL)}" if shipped else ""
    paths = []
    for image in images:
        state = os.stat(image.path) if image.path.is_file() else None
        stamp = state and [state.st_size, state.st_mtime_ns]
        paths.append([os.path.abspath(image.path), image.page, stamp])
    content = json.dumps([asked.settings(), asked.batch_size, paths])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def load_segmenter(
    asked: Segment,
    chosen: Choice,
    images: Sequence[ImageFile],
    kept: Path | None,
    keep: Callable[[Any], None],
) -> Any:
    """The segmenter; a method of sets is fitted on the images first.

    Args:
        asked, chosen, images: what segments what.
        kept: file of a model that was fitted on the same images before.
        keep: called with a model that was fitted here.
    """
    from unseg_jax.collective.choosing import load

    fits = chosen.fits and kept is None
    if fits and not (asked.quiet or chosen.why):
        say(f"fitting {chosen.method.name} on these {len(images)} images")
    # One bar is enough to look back at.
    with fitting_bar(len(images), asked.quiet or not fits, leave=False) as show:
        return load(
            chosen,
            [image.source for image in images],
            asked.reading,
            backbone=asked.backbone,
            batch_size=asked.batch_size,
            seed=asked.seed,
            dtype=asked.dtype,
            kept=kept,
            keep=keep,
            on_image=show,
        )


def segment_images(
    asked: Segment, chosen: Choice | None = None, load: Callable[..., Any] | None = None
) -> int:
    """Segments images and folders into a folder.

    Args:
        asked: what is asked for.
        chosen: what segments them; None chooses by the images.
        load: in place of `load_segmenter`.

    Returns:
        0 if all went well, 1 if some image failed, 130 or 143 if it was stopped.

    Raises:
        FolderError: another run writes into the folder, and it is not to be waited for.
    """
    from unseg_jax.data.folders import find_images
    from unseg_jax.export.decisions import kept_names, read_decisions
    from unseg_jax.export.folder import model_file, plan_run
    from unseg_jax.export.kinds import Kinds
    from unseg_jax.files import check_writable
    from unseg_jax.runs.locking import RunLock

    # Everything that can be wrong is looked at before the weights are loaded.
    out, page = asked.out, parse_page(asked.page)
    images = find_images(expand(asked.paths), recursive=asked.recursive, out=out, page=page)
    for message in images.left_out:
        say(message)
    if chosen is None:
        chosen = asked.choose([image.source for image in images])
    if not asked.quiet:
        for sentence in filter(None, (chosen.why, expected_cost(chosen, images))):
            say(sentence)
    model = model_key(asked, chosen, images)
    chosen_images: dict[str, Any] = {}
    if asked.only is not None:
        decisions = read_decisions(asked.only)
        by_kind = isinstance(asked.wanted_kinds, Kinds)
        if by_kind and not any(one.verdict == "keep" for one in decisions):
            chosen_images["without"] = [one.name for one in decisions if one.verdict == "reject"]
        else:
            chosen_images["only"] = kept_names(decisions)

    def plan() -> Plan:
        options = {"overwrite": asked.overwrite, "prune": asked.prune, **chosen_images}
        return plan_run(images, out, asked.output, asked.settings(), model=model, **options)

    if asked.dry_run:
        return _print_plan(plan(), chosen, [model_file(model)] if chosen.fits else [])
    with RunLock(out, _say_waiting(out) if asked.wait else None):
        planned = plan()
        check_writable(out)
        if not asked.quiet:
            _say_done(planned)
        segmenter, name = None, model_file(model)
        store = planned.store

        def keep(fitted: Any) -> None:
            with store.writing(name) as path:
                fitted.save(path)

        start, fits = time.perf_counter(), chosen.fits
        with compile_clock() as clock:
            if planned.todo:
                known = out / name if not asked.refit and store.is_ours(name) else None
                fits = fits and known is None
                segmenter = (load or load_segmenter)(asked, chosen, images, known, keep)
        took = Took("fitted" if fits else "loaded", time.perf_counter() - start, clock.seconds)
        return _run(asked, segmenter, planned, took)


class Took(NamedTuple):
    """How long it took to get a segmenter: what was done, all of it, and what compiling took."""

    done: str
    seconds: float
    compile_seconds: float


def _say_waiting(out: Path) -> Callable[[], None]:
    return lambda: say(f"another run writes into {out}; waiting")


def _say_done(plan: Plan) -> None:
    total, others = f"of {len(plan.images)} images", plan.of_other_models
    if len(plan.done) > others:
        say(f"{len(plan.done) - others} {total} are done already; --overwrite does them too")
    if others:
        say(
            f"{others} {total} are done already by a model fitted on other images; --overwrite "
            "does them with this one"
        )
    if plan.changed:
        say(
            f"{len(plan.changed)} {total} have changed since they were done, such as "
            f"{plan.changed[0].path}; --overwrite does them again"
        )


def _print_plan(plan: Plan, chosen: Choice, models: Sequence[str]) -> int:
    """Prints each file that a run would write, replace or remove; returns its exit code."""
    from unseg_jax.runs.result_store import MANIFEST

    what = chosen.model or chosen.method.name
    print(f"{len(plan.images)} images, {len(plan.done)} done already; {what} would do:")
    for image in plan.todo:
        print(f"read {printable(str(image.path))}")
    fitted = [name for name in models if plan.todo and not plan.store.is_ours(name)]
    for name in (*fitted, *plan.written, MANIFEST):
        word = "replace" if os.path.lexists(plan.out / name) else "write"
        print(f"{word} {plan.out / name}")
    for name in plan.removed:
        print(f"remove {plan.out / name}")
    for message in plan.refused.values():
        say(message)
    print(f"all in {plan.out}; nothing was read or written")
    return 1 if plan.refused else 0


def _run(asked: Segment, segmenter: Any, plan: Plan, took: Took) -> int:
    """Does what is planned with a progress bar, says what failed and where the results are."""
    from unseg_jax.export import folder
    from unseg_jax.segmentation import TWICE_NOTE

    seen_twice = 0
    with progress(len(plan.images), asked.quiet, doing="segmenting") as bar:

        def show(entry: Entry) -> None:
            nonlocal seen_twice
            with bar.external_write_mode():
                if entry.error:
                    say(entry.error)
                if entry.record and TWICE_NOTE in entry.record.notes and not entry.reused:
                    seen_twice += 1
                    if seen_twice == 1 and not asked.quiet:
                        say(
                            f"{entry.record.file} shows several small things; such images are seen "
                            f"at twice the size as well, which takes about {TWICE_COSTS} times as "
                            "long: --scales 1 leaves that out"
                        )
                if asked.show:
                    print(json.dumps(_line(entry, plan)), flush=True)
            bar.update()

        try:
            run = folder.segment_files(
                segmenter, plan.images, plan.out, plan=plan, on_entry=show, workers=asked.jobs
            )
        except KeyboardInterrupt as stop:
            bar.close()
            results = plan.store.images
            count = sum(
                image.name in results and not results[image.name].error for image in plan.images
            )
            say(
                f"stopped; the results of {count} of {len(plan.images)} images lie in {plan.out}: "
                "run it again to go on."
            )
            return exit_code(stop)
    noted = [entry.record for entry in run.done if entry.record is not None and entry.record.notes]
    if noted and not asked.quiet:
        first = f"{noted[0].file}: {' '.join(noted[0].notes)}"
        say(f"there are notes on {len(noted)} of the images, such as {first}")
    if not asked.quiet:
        # Standard output is for the lines of JSON alone.
        stream = sys.stderr if asked.show else sys.stdout
        print(f"{len(run.done)} of {len(run.entries)} images {_speed(run, took)}", file=stream)
        if plan.output.kinds is not None:
            print(_kinds(run, plan.output), file=stream)
        if run.specks:
            print(with_options(f"specks left out: {run.specks}"), file=stream)
        if run.small_length and segmenter is not None and segmenter.may_tile:
            print(
                f"what was found is small, about {run.small_length} pixels long: --object-size "
                f"{run.small_length} looks closer",
                file=stream,
            )
        print(f"look at {plan.out / folder.REPORT}", file=stream)
        if run.replaced or run.removed:
            results = "result" if run.replaced == 1 else "results"
            print(f"{run.replaced} {results} replaced, {run.removed} removed", file=stream)
    return 1 if run.failed else 0


def _speed(run: Run, took: Took) -> str:
    if all(entry.reused for entry in run.done):
        return "are done"
    seconds = run.seconds + run.compile_seconds
    return (
        f"done: {took.done} in {took.seconds:.0f} s, segmented in {seconds:.0f} s "
        f"({took.compile_seconds + run.compile_seconds:.0f} s compiling), "
        f"{run.images_per_second:.2f} images a second"
    )


def _kinds(run: Run, output: Output) -> str:
    if run.kinds is None:
        return "kinds: there are no objects to group"
    counts = zip(run.kinds.names, run.kinds.counts, strict=True)
    found = ", ".join(f"{name} ({count})" for name, count in counts if count)
    how = ""
    if output.kinds == "auto":
        number = len(run.kinds.names)
        how = f"{number} by stability: " if number > 1 else "no grouping is stable: "
    return f"kinds: {how}{found}"


def _line(entry: Entry, plan: Plan) -> dict[str, Any]:
    line: dict[str, Any] = {"path": str(entry.image.path)}
    if entry.record is None:
        return {**line, "error": entry.error}
    record = entry.record
    objects = [
        {name: value for name, value in item.items() if name not in ("counts", "features")}
        for item in record.objects
    ]
    return {
        **line,
        "size": record.size,
        "coverage": record.coverage,
        "confidence": record.confidence,
        "objects": objects,
        "files": [str(plan.out / name) for name in entry.files],
    }
