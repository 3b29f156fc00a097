"""`unseg-jax segment`: from paths and options to a finished folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unseg_jax.data.reading import PLAIN, Reading
from unseg_jax.devices import resolve_dtype
from unseg_jax.errors import printable
from unseg_jax.terminal.console import exit_code, expand, progress, say, with_options

if TYPE_CHECKING:
    from unseg_jax.collective.choosing import Choice as Chosen
    from unseg_jax.data.folders import ImageFile
    from unseg_jax.export.folder import Output, Plan
    from unseg_jax.export.records import Entry, Run


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which segmenter the user asked for.

    Attributes:
        model: file of a fitted model, or None.
        method: name; not read of a model.
        backbone: name or weights file, or "auto".
        seed: random seed.
        batch_size: images per batch.
        dtype: of the backbone.
        overrides: fields of `Method`.
        reading: how images are read; as many threads write.
        said: whether the user was told what is fitted.
        closer: whether large images are seen in tiles where little was found.
    """

    model: Path | None
    method: str
    backbone: str
    seed: int
    batch_size: int
    dtype: str
    overrides: dict[str, Any]
    reading: Reading = PLAIN
    said: bool = False
    closer: bool = False

    def check(self) -> None:
        """Refuses what cannot work, before anything is loaded.

        Raises:
            ValueError: an unknown method or field.
            typer.BadParameter: settings that a model brings itself.
        """
        try:
            self.choose(0)
        except ValueError as error:
            if self.model is None:
                raise
            raise typer.BadParameter(str(error)) from None

    def choose(self, count: int) -> Chosen:
        """What segments so many images."""
        from unseg_jax.collective.choosing import choose

        return choose(self.method, count, self.overrides, self.model)

    def settled(self, count: int, quiet: bool) -> Choice:
        """What "auto" is for so many images; said in one line unless `quiet`."""
        if self.method != "auto" or self.model is not None:
            return self
        chosen = self.choose(count)
        if not quiet:
            say(chosen.why)
        name = chosen.method.name if chosen.model is None else "auto"
        changes = {"method": name, "model": chosen.model, "closer": chosen.closer}
        return dataclasses.replace(self, said=True, **changes)

    def settings(self) -> dict[str, Any]:
        """Plain values that decide what is found: what two runs into one folder must share.

        "auto" stays "auto", however many images there are: `model_key` tells what did them.
        """
        settings: dict[str, Any] = {"seed": self.seed, "dtype": resolve_dtype(self.dtype)}
        settings |= {"backbone": self.backbone, "range": self.reading.value_range}
        if self.model is not None:
            return {**settings, "model": _digest(self.model), **self.overrides}
        chosen = self.choose(0)
        if chosen.closer:
            settings["tiles where little is found"] = True
        fields = {**dataclasses.asdict(chosen.method), **chosen.options}
        for field in ("source", "group", "code_overrides", "backbone"):
            fields.pop(field)
        if self.method == "auto" and chosen.method.name == "collective":
            fields["name"] = "auto"
        return {"method": fields.pop("name"), **settings, **fields}

    def model_key(self, images: Sequence[ImageFile]) -> str:
        """Tells a model that is fitted on a set of images from those of other sets; "" where the
        settings leave nothing open."""
        from unseg_jax.collective.ready import READY_MODEL

        if self.model is not None:
            return f"ready-{_digest(self.model)}" if self.model == READY_MODEL else ""
        if not self.choose(len(images)).fits:
            return ""
        states = [
            (image, os.stat(image.path) if image.path.is_file() else None) for image in images
        ]
        paths = [
            [os.path.abspath(image.path), image.page, state and [state.st_size, state.st_mtime_ns]]
            for image, state in states
        ]
        content = json.dumps([self.settings(), self.batch_size, paths])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def load(
        self,
        images: Sequence[ImageFile],
        quiet: bool,
        *,
        kept: Path | None = None,
        keep: Callable[[Any], None] = lambda model: None,
    ) -> Any:
        """The segmenter; a method of sets is fitted on the images first.

        Args:
            images: to fit on.
            quiet: no progress bar and no lines.
            kept: file of a model that was fitted on the same images before.
            keep: called with a model that was fitted here.
        """
        from unseg_jax.collective.choosing import load
        from unseg_jax.terminal.fitting import fitting_bar

        chosen = dataclasses.replace(self.choose(len(images)), closer=self.closer)
        fits = chosen.fits and kept is None
        if fits and not (quiet or self.said):
            say(f"fitting {chosen.method.name} on these {len(images)} images")
        # One bar is enough to look back at.
        with fitting_bar(len(images), quiet or not fits, leave=False) as show:
            return load(
                chosen,
                [image.source for image in images],
                self.reading,
                backbone=self.backbone,
                batch_size=self.batch_size,
                seed=self.seed,
                dtype=self.dtype,
                kept=kept,
                keep=keep,
                on_image=show,
            )


def _digest(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content).hexdigest()[:16]


def find_model(name: str | None) -> Path | None:
    """The file of a fitted model, from the hub where the name begins with hf:."""
    if name is None:
        return None
    if not name.startswith("hf:"):
        return Path(name).expanduser()  # without importing JAX
    from unseg_jax.collective.sharing import model_path

    return model_path(name)


def segment_paths(
    paths: Sequence[str],
    out: Path,
    choice: Choice,
    output: Output,
    *,
    page: int | None = None,
    overwrite: bool = False,
    prune: bool = False,
    refit: bool = False,
    wait: bool = True,
    dry_run: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    only: Path | None = None,
) -> int:
    """Segments images and folders into a folder.

    Args:
        paths: images, folders and patterns.
        out: folder for the results.
        choice: of the segmenter; checked.
        output: what is written.
        page: of files with several pages, from 1; None takes all.
        overwrite: do images again that are done.
        prune: remove the results of all other images in the folder.
        refit: fit a model again even if the folder keeps one of the same images.
        wait: for another run that writes into the folder; else it is an error.
        dry_run: only say what would be done.
        as_json: print one line of JSON per image.
        quiet: no progress bar and no summary.
        only: CSV from the report; the images that it keeps are done, with a model that is still
            fitted on all of them.

    Returns:
        0 if all went well, 1 if some image failed, 130 or 143 if it was stopped.

    Raises:
        FolderError: another run writes into the folder, and it is not to be waited for.
    """
    from unseg_jax.data.folders import find_images
    from unseg_jax.export.folder import model_file, plan_run
    from unseg_jax.export.results import read_decisions
    from unseg_jax.files import check_writable
    from unseg_jax.runs.locking import RunLock

    # Everything that can be wrong is looked at before the weights are loaded.
    images = find_images(expand(paths), recursive=output.recursive, out=out, page=page)
    for message in images.left_out:
        say(message)
    settings = choice.settings()
    choice = choice.settled(len(images), quiet)
    model = choice.model_key(images)
    kept = None if only is None else read_decisions(only)

    def plan() -> Plan:
        options = {"model": model, "overwrite": overwrite, "prune": prune, "only": kept}
        return plan_run(images, out, output, settings, **options)

    if dry_run:
        fits = choice.choose(len(images)).fits
        return _print_plan(plan(), choice, [model_file(model)] if fits else [])
    with RunLock(out, _say_waiting(out) if wait else None):
        planned = plan()
        check_writable(out)
        if not quiet:
            _say_done(planned)
        segmenter, name = None, model_file(model)
        store = planned.store

        def keep(fitted: Any) -> None:
            with store.writing(name) as path:
                fitted.save(path)

        if planned.todo:
            known = out / name if not refit and store.is_ours(name) else None
            segmenter = choice.load(images, quiet, kept=known, keep=keep)
        return run_segmenter(
            segmenter, planned, as_json=as_json, quiet=quiet, workers=choice.reading.workers
        )


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


def _print_plan(plan: Plan, choice: Choice, models: Sequence[str]) -> int:
    """Prints each file that a run would write, replace or remove; returns its exit code."""
    from unseg_jax.runs.store import MANIFEST

    what = choice.model or choice.method
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


def run_segmenter(
    segmenter: Any,
    plan: Plan,
    *,
    as_json: bool = False,
    quiet: bool = False,
    workers: int | None = None,
) -> int:
    """Does what is planned with a progress bar, says what failed and where the results are.

    Args:
        segmenter, plan, workers: see `unseg_jax.export.folder.segment_files`.
        as_json: print one line of JSON per image.
        quiet: no progress bar and no summary.

    Returns:
        0 if all went well, 1 if some image failed, 130 or 143 if it was stopped.
    """
    from unseg_jax.export import folder

    with progress(len(plan.images), quiet, doing="segmenting") as bar:

        def show(entry: Entry) -> None:
            if entry.error:
                bar.clear()
                say(entry.error)
            if as_json:
                bar.clear()
                print(json.dumps(_line(entry, plan)), flush=True)
            bar.update()

        try:
            run = folder.segment_files(
                segmenter, plan.images, plan.out, plan=plan, on_entry=show, workers=workers
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
    if noted and not quiet:
        first = f"{noted[0].file}: {' '.join(noted[0].notes)}"
        say(f"there are notes on {len(noted)} of the images, such as {first}")
    if not quiet:
        # Standard output is for the lines of JSON alone.
        stream = sys.stderr if as_json else sys.stdout
        print(f"{len(run.done)} of {len(run.entries)} images {_speed(run)}", file=stream)
        if run.specks:
            print(with_options(f"specks left out: {run.specks}"), file=stream)
        print(f"look at {plan.out / folder.REPORT}", file=stream)
        if run.replaced or run.removed:
            results = "result" if run.replaced == 1 else "results"
            print(f"{run.replaced} {results} replaced, {run.removed} removed", file=stream)
    return 1 if run.failed else 0


def _speed(run: Run) -> str:
    if all(entry.reused for entry in run.done):
        return "are done"
    return (
        f"in {run.seconds:.1f} s, {run.images_per_second:.2f} images a second "
        f"(and {run.compile_seconds:.1f} s compiling)"
    )


def _line(entry: Entry, plan: Plan) -> dict[str, Any]:
    line: dict[str, Any] = {"path": str(entry.image.path)}
    if entry.record is None:
        return {**line, "error": entry.error}
    record = entry.record
    objects = [
        {name: value for name, value in item.items() if name != "counts"} for item in record.objects
    ]
    return {
        **line,
        "size": record.size,
        "coverage": record.coverage,
        "confidence": record.confidence,
        "objects": objects,
        "files": [str(plan.out / name) for name in plan.names_of(entry.image)],
    }
