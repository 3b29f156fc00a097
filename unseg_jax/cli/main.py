"""The command line, `unseg-jax`: one Typer app above all rooms, with a command for each job."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unseg_jax.app.__main__ import serve
from unseg_jax.cache import enable_compilation_cache
from unseg_jax.demo import demo
from unseg_jax.terminal.console import guarded, say
from unseg_jax.terminal.feeds import segment_stdin, watch_folder
from unseg_jax.terminal.fit_command import Fit, fit_images
from unseg_jax.terminal.segment_command import Segment, segment_images
from unseg_jax.terminal.shared_options import STYLE, Common, command, expand_home


class _Commands(TyperGroup):
    """Imports bench, and JAX with it, where it is asked for and not to list the commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] == "bench":
            from unseg_jax.bench.__main__ import app as bench

            self.add_command(typer.main.get_command(bench), "bench")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="unseg-jax",
    cls=_Commands,
    help="Unsupervised image segmentation: images in, masks out.",
    no_args_is_help=True,
    **STYLE,
)
weights_app = typer.Typer(
    help="List, download, convert and compare the weights of backbones.",
    no_args_is_help=True,
    **STYLE,
)

FormOption = Annotated[str, typer.Option("--format", help="text, markdown or json.")]
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
@command(
    Segment,
    *_FIELDS,
    "tile",
    "scales",
    "refine",
    "foreground",
    "parts",
    "background_parts",
    "loss",
    "layer",
)
def segment(asked: Segment) -> int:
    """Segment images and write masks, overlays and a report.

    Each image gets <stem>_mask.png, <stem>_labels.png and <stem>_overlay.png; report.html shows
    all of them. Run the command again to continue, or to add images to the folder. PATH - reads one
    image from standard input, and writes its mask, or what --format says, to standard output.
    """
    asked.check()
    enable_compilation_cache()
    if asked.paths == ["-"]:
        return segment_stdin(asked)
    if asked.watch:
        return watch_folder(asked)
    return segment_images(asked)


@app.command()
@command(Fit, *_FIELDS, "tile", "scales")
def fit(asked: Fit) -> int:
    """Fit a model on a set of unlabelled images.

    Use it with `unseg-jax segment --model`.
    """
    enable_compilation_cache()
    return fit_images(asked)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video(Common):
    """What `unseg-jax video` is asked for."""

    method: str = "deepcut"
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            callback=expand_home,
            help="A video, an animated GIF or WebP, or a folder of frames.",
        ),
    ]
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            callback=expand_home,
            help="A video, .gif, .webp, .apng, or a folder for PNGs.",
        ),
    ] = Path("segmented.gif")
    compare: Annotated[
        bool,
        typer.Option(help="Also segment each frame independently, and compare the flicker."),
    ] = True
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a video or frames that are already there.")
    ] = False


@app.command()
@command(Video, *_FIELDS)
def video(asked: Video) -> int:
    """Segment a video into parts.

    A part keeps its colour from frame to frame.
    """
    from unseg_jax.registry import resolve
    from unseg_jax.video.following import segment_video

    method = resolve(asked.method, **asked.overrides)
    # Resolved already, except for the stride, which is fitted to the backbone unless it is given.
    chosen: dict[str, Any] = {"stride": method.stride} if "stride" in asked.overrides else {}
    enable_compilation_cache()
    found = segment_video(
        asked.source,
        asked.out,
        method=method,
        backbone=asked.backbone,
        batch_size=asked.batch_size,
        seed=asked.seed,
        dtype=asked.dtype,
        compare=asked.compare,
        overwrite=asked.overwrite,
        **chosen,
    )
    print(f"{found.frames} frames in {found.seconds:.1f} s, compilation included")
    # One frame has nothing to flicker against.
    if found.frames > 1:
        said = f"label flicker {100 * found.flicker:.2f} %"
        if asked.compare:
            said += f", against {100 * found.fresh_flicker:.2f} % frame by frame"
        print(said)
    print(f"look at {asked.out}")
    return 0


@app.command()
def bench() -> None:
    """Score methods on a data set with ground truth."""


app.command()(serve)
app.command()(demo)


@app.command()
def methods(
    form: FormOption = "text",
) -> None:
    """Print every method, by group, with its score and settings."""
    from unseg_jax.cli.listings import format_table, list_methods_as_text, method_rows

    print(list_methods_as_text() if form == "text" else format_table(method_rows(), form))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print versions, devices, caches and missing extras."""
    from unseg_jax.cli import information

    facts = information.collect()
    if as_json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(information.describe(facts))


app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def weights_list(
    form: FormOption = "text",
) -> None:
    """Print the known backbones and whether they are here."""
    from unseg_jax.backbones import list_weights
    from unseg_jax.cli.listings import format_table, weight_rows

    print(format_table(weight_rows(list_weights()), form))


@weights_app.command("get")
def weights_get(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Backbones (default: auto).")
    ] = None,
) -> None:
    """Download weights if needed and print their paths."""
    from unseg_jax.backbones import get_weights

    for name in names or ["auto"]:
        print(get_weights(name))


@weights_app.command("convert")
def weights_convert(
    source: Annotated[Path, typer.Argument(help=".safetensors, .npz, .pth, .onnx or .whl")],
    destination: Annotated[
        Path, typer.Argument(help="Path of the new file, ending in .safetensors.")
    ],
) -> None:
    """Convert a weights file to safetensors."""
    from unseg_jax.backbones import convert_weights

    print(convert_weights(source, destination))


@weights_app.command("compare")
def weights_compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A name, hf:ORG/NAME, or a file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other.")],
    form: FormOption = "text",
) -> None:
    """Compare two sets of weights, parameter by parameter."""
    from unseg_jax.backbones import compare_weights
    from unseg_jax.cli.listings import difference_rows, format_table

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
    given = None if arguments is None else list(arguments)
    return guarded(lambda: app(args=given, prog_name="unseg-jax"))


if __name__ == "__main__":
    sys.exit(main())
