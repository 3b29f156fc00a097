"""The command line, `unseg-jax`: a thin layer that turns options into calls of the library."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unseg_jax.cache import enable_compilation_cache
from unseg_jax.terminal.arguments import (
    BackboneOption,
    BatchOption,
    DtypeOption,
    JobsOption,
    MethodOption,
    PageOption,
    QuietOption,
    RangeOption,
    RecursiveOption,
    SeedOption,
    SetOption,
    expand_home,
    read_overrides,
    with_fields,
)
from unseg_jax.terminal.console import guarded, say
from unseg_jax.terminal.options import parse_page, parse_range

app = typer.Typer(
    name="unseg-jax",
    help="Unsupervised image segmentation: images in, masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(
    help="Weights of the backbones: list, fetch and convert them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(weights_app, name="weights")

_FIELDS = ("num_clusters", "image_size", "resize", "stride", "epochs")


def _print_version(asked: bool) -> None:
    if asked:
        from unseg_jax import __version__

        print(f"unseg-jax {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Unsupervised image segmentation: images in, masks out."""


@app.command()
@with_fields(*_FIELDS, "tile", "refine", "foreground", "parts", "background_parts")
def segment(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help='Images, folders, and patterns as "a/*.jpg".'),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=expand_home, help="Folder for the results.")
    ] = Path("segmented"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="png (default), mask, coco, geojson, yolo, tiff, npz, cutout, csv, imagej or "
            "label-studio; repeatable.",
        ),
    ] = None,
    objects: Annotated[
        str, typer.Option("--objects", help="Objects to keep in each image: all or largest.")
    ] = "all",
    min_area: Annotated[
        float | None,
        typer.Option(
            "--min-area",
            help="Smaller pieces are left out: below 1 a share of the image (.001, with --tile of "
            "a tile), else pixels.",
        ),
    ] = None,
    full_overlay: Annotated[
        bool,
        typer.Option("--full-overlay", help="Overlays at full size, not at most 1,600 pixels."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Do these images again, and replace what earlier runs found."
        ),
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove the results of all other images in the folder."),
    ] = False,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Fit again, even if the folder has a model of these images."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for another run into the same folder.")
    ] = True,
    only: Annotated[
        Path | None,
        typer.Option(
            "--only", callback=expand_home, help="CSV from the report: do the images that it keeps."
        ),
    ] = None,
    recursive: RecursiveOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only list the files to be read, written and removed."),
    ] = False,
    show: Annotated[
        str | None,
        typer.Option("--print", help="json: one line per image on standard output."),
    ] = None,
    quiet: QuietOption = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="A model from `unseg-jax fit`, or hf:ORG/NAME, with its own method."
        ),
    ] = None,
    method: MethodOption = "auto",
    backbone: BackboneOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    dtype: DtypeOption = "auto",
    settings: SetOption = None,
    json: Annotated[
        str | None, typer.Option("--json", help="coco: the same as --format coco, beside png.")
    ] = None,
    page: PageOption = "all",
    value_range: RangeOption = "image",
    jobs: JobsOption = None,
    **fields: Any,
) -> None:
    """Segments images: <stem>_mask.png, _labels.png and _overlay.png for each, and report.html.

    Run again, it goes on where it stopped; other images are added to the folder.
    """
    if json not in (None, "coco"):
        raise typer.BadParameter(f"--json {json} is not known: the only format is coco.")
    if show not in (None, "json"):
        raise typer.BadParameter(f"--print {show} is not known: the only form is json.")
    overrides = read_overrides(settings, **fields)
    from unseg_jax.data.reading import Reading
    from unseg_jax.export.folder import Output
    from unseg_jax.terminal.segmenting import Choice, find_model, segment_paths

    chosen = [*(formats or ["png"]), *([json] if json else [])]
    choice = Choice(
        find_model(model),
        method,
        backbone,
        seed,
        batch_size,
        dtype,
        overrides,
        Reading(parse_range(value_range), workers=jobs),
    )
    choice.check()
    output = Output(tuple(chosen), min_area, objects, full_overlay, recursive=recursive)
    enable_compilation_cache()
    raise typer.Exit(
        segment_paths(
            paths,
            out,
            choice,
            output,
            page=parse_page(page),
            overwrite=overwrite,
            prune=prune,
            refit=refit,
            wait=wait,
            dry_run=dry_run,
            as_json=show == "json",
            quiet=quiet,
            only=only,
        )
    )


@app.command()
@with_fields(*_FIELDS, "tile")
def fit(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Folders, images, and patterns of images."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", callback=expand_home, help="File for the model, .safetensors."),
    ] = Path("model.safetensors"),
    method: MethodOption = "collective",
    backbone: BackboneOption = "auto",
    steps: Annotated[
        int | None, typer.Option("--steps", min=0, help="Training steps of the shared head.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option("--passes", min=0, help="Shared passes over the images.")
    ] = None,
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, help="Fit on at most so many, drawn at random.")
    ] = 512,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples", metavar="MASKS", help="Masks of a few of the images, which steer it."
        ),
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    dtype: DtypeOption = "auto",
    settings: SetOption = None,
    recursive: RecursiveOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model that is there.")
    ] = False,
    quiet: QuietOption = False,
    page: PageOption = "all",
    value_range: RangeOption = "image",
    jobs: JobsOption = None,
    **fields: Any,
) -> None:
    """Fits one model on a set of unlabelled images; use it with `unseg-jax segment --model`."""
    num_clusters = fields.pop("num_clusters")  # for collective those of the whole set
    overrides = read_overrides(settings, **fields)
    from unseg_jax.registry import resolve
    from unseg_jax.terminal.fitting import fit_paths

    resolve(method, **overrides)
    enable_compilation_cache()
    raise typer.Exit(
        fit_paths(
            paths,
            out,
            recursive=recursive,
            page=parse_page(page),
            overwrite=overwrite,
            quiet=quiet,
            method=method,
            num_clusters=num_clusters,
            steps=steps,
            passes=passes,
            examples=examples,
            seed=seed,
            backbone=backbone,
            batch_size=batch_size,
            max_images=max_images,
            dtype=dtype,
            value_range=parse_range(value_range),
            workers=jobs,
            **overrides,
        )
    )


@app.command()
@with_fields(*_FIELDS)
def video(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            callback=expand_home,
            help="A film, an animated GIF or WebP, or a folder.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            callback=expand_home,
            help="A film, .gif, .webp, .apng, or a folder of PNGs.",
        ),
    ] = Path("segmented.gif"),
    method: MethodOption = "deepcut",
    backbone: BackboneOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    dtype: DtypeOption = "auto",
    compare: Annotated[
        bool, typer.Option(help="Also segment each frame on its own and compare the flicker.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the film, or the frames, that are there.")
    ] = False,
    settings: SetOption = None,
    **fields: Any,
) -> None:
    """Segments a video into parts that keep their colours from frame to frame."""
    overrides = read_overrides(settings, **fields)
    from unseg_jax.registry import resolve
    from unseg_jax.video.following import segment_video

    resolved = resolve(method, **overrides)
    # Resolved already, except for the stride, which is fitted to the backbone unless it is given.
    chosen: dict[str, Any] = {"stride": resolved.stride} if "stride" in overrides else {}
    enable_compilation_cache()
    found = segment_video(
        source,
        out,
        method=resolved,
        backbone=backbone,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        compare=compare,
        overwrite=overwrite,
        **chosen,
    )
    print(f"{found.frames} frames in {found.seconds:.1f} s, compilation included")
    # One frame has nothing to flicker against.
    if found.frames > 1:
        said = f"label flicker {100 * found.flicker:.2f} %"
        if compare:
            said += f", against {100 * found.fresh_flicker:.2f} % frame by frame"
        print(said)
    print(f"look at {out}")


_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Scores methods on a data set with truths; the same as `python -m unseg_jax.bench`."""
    _run_module("unseg_jax.bench", context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Segments photographs that scikit-image ships; the same as `python -m unseg_jax.demo`."""
    _run_module("unseg_jax.demo", context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Opens a page to try it on: drop pictures, look, download; needs the extra app."""
    _run_module("unseg_jax.app", context.args)


def _run_module(name: str, arguments: Sequence[str]) -> None:
    """Runs a program above this one by its name, as `python -m` does."""
    import runpy

    before = sys.argv
    # These two print `-h` as --help does.
    sys.argv = [name, *("--help" if argument == "-h" else argument for argument in arguments)]
    try:
        with warnings.catch_warnings():
            # The module may have been imported already, which is no matter here.
            warnings.simplefilter("ignore", RuntimeWarning)
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


@app.command()
def methods(
    form: Annotated[
        str, typer.Option("--format", help="How to print: text, markdown or json.")
    ] = "text",
) -> None:
    """Prints every method in groups: score, backbone, size, affinity, layers, loss, source."""
    from unseg_jax.cli.tables import format_table, list_methods_as_text, method_rows

    print(list_methods_as_text() if form == "text" else format_table(method_rows(), form))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prints versions, devices, cached weights and programs, and what is missing."""
    from unseg_jax.cli import information

    facts = information.collect()
    if as_json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(information.describe(facts))


@weights_app.command("list")
def weights_list(
    form: Annotated[
        str, typer.Option("--format", help="How to print: text, markdown or json.")
    ] = "text",
) -> None:
    """Prints the known backbones, where their weights come from, and which are here."""
    from unseg_jax.backbones import list_weights
    from unseg_jax.cli.tables import format_table, weight_rows

    print(format_table(weight_rows(list_weights()), form))


@weights_app.command("get")
def weights_get(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Backbones (default: auto).")
    ] = None,
) -> None:
    """Fetches weights if they are not here yet, and prints their paths."""
    from unseg_jax.backbones import get_weights

    for name in names or ["auto"]:
        print(get_weights(name))


@weights_app.command("convert")
def weights_convert(
    source: Annotated[Path, typer.Argument(help=".safetensors, .npz, .pth, .onnx or .whl")],
    destination: Annotated[Path, typer.Argument(help="A path that ends in .safetensors.")],
) -> None:
    """Converts any weights file that can be read to safetensors."""
    from unseg_jax.backbones import convert_weights

    print(convert_weights(source, destination))


@weights_app.command("compare")
def weights_compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A name, hf:ORG/NAME, or a file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other.")],
    form: Annotated[
        str, typer.Option("--format", help="How to print: text, markdown or json.")
    ] = "text",
) -> None:
    """Prints how far apart two sets of weights are, parameter by parameter, and a verdict."""
    from unseg_jax.backbones import compare_weights
    from unseg_jax.cli.tables import difference_rows, format_table

    comparison = compare_weights(first, second)
    print(format_table(difference_rows(comparison.tensors), form))
    say(comparison.verdict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; what goes wrong becomes one sentence and an exit code.

    Set UNSEG_JAX_DEBUG=1 to see where an error comes from.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0 all went well, 1 something failed, 2 a wrong option, 130 stopped by the user.
    """
    command = None if arguments is None else list(arguments)
    return guarded(lambda: app(args=command, prog_name="unseg-jax"))


if __name__ == "__main__":
    sys.exit(main())
