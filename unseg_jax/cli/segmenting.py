"""`unseg-jax segment`: from paths and options to a finished folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unseg_jax.cli.console import expand, progress, say
from unseg_jax.errors import printable

if TYPE_CHECKING:
    from unseg_jax.data.folders import ImageFile
    from unseg_jax.export.folder import Output, Plan
    from unseg_jax.export.run import Entry, Run


# Fields that say how an image is shown to any method.
_OF_ALL = ("fit", "tile")


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
        value_range: limits of deep images, "set" for those of all images, or None for each its
            own; see `unseg_jax.data.read_image`.
        workers: threads that decode, and as many that write; None is one a core.
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
    value_range: tuple[float, float] | str | None = None
    workers: int | None = None
    said: bool = False
    closer: bool = False

    def check(self) -> None:
        """Refuses what cannot work, before anything is loaded.

        Raises:
            ValueError: an unknown method or field.
            typer.BadParameter: settings that a model brings itself.
        """
        from unseg_jax.registry import resolve

        if self.method != "auto":
            resolve(self.method, **self.overrides)
        elif self.model is None:
            resolve("deepcut", **self.overrides)
        if self.model is None:
            return
        others = [name for name in self.overrides if name not in ("epochs", *_OF_ALL)]
        others += ["method"] if self.method != "auto" else []
        if others:
            raise typer.BadParameter(
                f"--model brings its own method; leave out {', '.join(others)}, or fit with them."
            )

    def settled(self, count: int, quiet: bool) -> Choice:
        """What "auto" is for so many images; said in one line unless `quiet`."""
        if self.method != "auto" or self.model is not None:
            return self
        others = [name for name in self.overrides if name not in _OF_ALL]
        if others:
            if not quiet:
                say(f"auto: takes deepcut, since {', '.join(others)} is a setting of it.")
            return dataclasses.replace(self, method="deepcut")
        from unseg_jax.collective.auto import SET_SIZE, explain_choice
        from unseg_jax.collective.ready import READY_MODEL

        tile = self.overrides.get("tile", 0)
        if not quiet:
            say(explain_choice(count, tile))
        closer = "tile" not in self.overrides
        if count >= SET_SIZE or tile:
            return dataclasses.replace(self, method="collective", said=True, closer=closer)
        return dataclasses.replace(self, model=READY_MODEL, closer=closer)

    def settings(self, images: Sequence[ImageFile]) -> dict[str, Any]:
        """Plain values that decide what is found: what two runs into one folder must share."""
        from unseg_jax.export.manifest import FITTED_ON, stamp_of
        from unseg_jax.registry import resolve

        settings: dict[str, Any] = {"seed": self.seed, "dtype": self.dtype}
        settings |= {"backbone": self.backbone, "range": self.value_range}
        if self.closer:
            settings["tiles where little is found"] = True
        if self.model is not None:
            content = self.model.read_bytes() if self.model.is_file() else b""
            settings["model"] = hashlib.sha256(content).hexdigest()[:16]
            return {**settings, **self.overrides}
        method = resolve(self.method, **self.overrides)
        fields = dataclasses.asdict(method)
        fields.pop("source")
        fields.pop("code_overrides")
        settings = {"method": fields.pop("name"), **settings}
        settings |= {name: value for name, value in fields.items() if name != "backbone"}
        if method.learns_from_set:
            paths = [[str(image.path.absolute()), stamp_of(image.path)] for image in images]
            settings[FITTED_ON] = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:16]
        return settings

    def load(self, images: Sequence[ImageFile], quiet: bool) -> Any:
        """The segmenter; a method of sets is fitted on the images first."""
        segmenter = self._load(images, quiet)
        segmenter.value_range, segmenter.workers = self.value_range, self.workers
        if self.value_range == "set":
            from unseg_jax.data.images import measure_range

            segmenter.value_range = measure_range([image.source for image in images])
        return segmenter

    def _load(self, images: Sequence[ImageFile], quiet: bool) -> Any:
        from unseg_jax.registry import resolve

        if self.model is not None:
            from unseg_jax.collective.model import load_model
            from unseg_jax.collective.ready import READY_MODEL, load_ready

            if self.model == READY_MODEL:
                model = load_ready(backbone=self.backbone, dtype=self.dtype)
            else:
                backbone = None if self.backbone == "auto" else self.backbone
                model = load_model(self.model, backbone=backbone, dtype=self.dtype)
            shown = {name: self.overrides.get(name) for name in _OF_ALL}
            method = resolve(model.method, **shown)
            model = dataclasses.replace(
                model, method=method, batch_size=self.batch_size, seed=self.seed
            )
            return model.segmenter(self.overrides.get("epochs"), closer=self.closer)
        resolved = resolve(self.method, **self.overrides)
        if resolved.learns_from_set:
            from unseg_jax.cli.fitting import fit_with_bar

            if not (quiet or self.said):
                say(
                    f"fitting {resolved.name} on these {len(images)} images; "
                    "`unseg-jax fit` keeps a model"
                )
            return fit_with_bar(
                [image.source for image in images],
                quiet=quiet,
                leave=False,  # one bar is enough to look back at
                method=self.method,
                # A graph head that no epoch would use need not be trained.
                steps=None if resolved.epochs or resolved.collective_epochs else 0,
                seed=self.seed,
                backbone=self.backbone,
                batch_size=self.batch_size,
                dtype=self.dtype,
                workers=self.workers,
                **self.overrides,
            ).segmenter(closer=self.closer)
        from unseg_jax.segmenter import ImageSegmenter

        return ImageSegmenter(
            self.method,
            backbone=self.backbone,
            batch_size=self.batch_size,
            seed=self.seed,
            dtype=self.dtype,
            **self.overrides,
        )


def find_model(name: str | None) -> Path | None:
    """The file of a fitted model, from the hub where the name begins with hf:."""
    if name is None:
        return None
    if not name.startswith("hf:"):
        return Path(name)  # without importing JAX
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
        overwrite: do everything again.
        dry_run: only say what would be done.
        as_json: print one line of JSON per image.
        quiet: no progress bar and no summary.
        only: CSV from the report; the images that it keeps are done, with a model that is still
            fitted on all of them.

    Returns:
        0 if all went well, 1 if some image failed, 130 if the user stopped it.
    """
    from unseg_jax.data.folders import find_images
    from unseg_jax.export.folder import plan_run
    from unseg_jax.export.results import read_decisions
    from unseg_jax.files import check_writable

    # Everything that can be wrong is looked at before the weights are loaded.
    images = find_images(expand(paths), recursive=output.recursive, out=out, page=page)
    for message in images.left_out:
        say(message)
    choice = choice.settled(len(images), quiet)
    settings = choice.settings(images)
    kept = None if only is None else read_decisions(only)
    plan = plan_run(images, out, output, settings, overwrite=overwrite, only=kept)
    if dry_run:
        _print_plan(plan, choice)
        return 1 if plan.refused else 0
    check_writable(out)
    if plan.done and not quiet:
        counted = f"{len(plan.done)} of {len(plan.images)} images"
        say(f"{counted} are done already; --overwrite does them too")
    segmenter = choice.load(images, quiet) if plan.todo else None
    return run_segmenter(segmenter, plan, as_json=as_json, quiet=quiet, workers=choice.workers)


def _print_plan(plan: Plan, choice: Choice) -> None:
    what = choice.model or choice.method
    print(f"{len(plan.images)} images, {len(plan.done)} done already; {what} would do:")
    for image in plan.todo:
        print(f"{printable(str(image.path))} -> {', '.join(plan.names_of(image))}")
    for message in plan.refused.values():
        say(message)
    print(f"all in {plan.out}; nothing was read or written")


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
        0 if all went well, 1 if some image failed, 130 if the user stopped it.
    """
    from unseg_jax.export import folder

    count = 0
    with progress(len(plan.images), quiet, doing="segmenting") as bar:

        def show(entry: Entry) -> None:
            nonlocal count
            count += 1
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
        except KeyboardInterrupt:
            bar.close()
            say(
                f"stopped; the results of {count} images are written to {plan.out}: run it again "
                "to go on."
            )
            return 130
    noted = [entry.record for entry in run.done if entry.record is not None and entry.record.notes]
    if noted and not quiet:
        first = f"{noted[0].file}: {' '.join(noted[0].notes)}"
        say(f"there are notes on {len(noted)} of the images, such as {first}")
    if not quiet:
        # Standard output is for the lines of JSON alone.
        stream = sys.stderr if as_json else sys.stdout
        print(f"{len(run.done)} of {len(run.entries)} images {_speed(run)}", file=stream)
        print(f"look at {plan.out / folder.REPORT}", file=stream)
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
