"""The command line, `unseg-jax`: a thin layer that turns options into calls of the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unseg_jax.cache import enable_compilation_cache
from unseg_jax.cli.console import guarded, say
from unseg_jax.cli.options import overrides_from

app = typer.Typer(
    name="unseg-jax",
    help="Unsupervised image segmentation: images in, masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(
    help="Weights of the backbones: what there is, fetch them, convert them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(weights_app, name="weights")

MethodOption = Annotated[
    str, typer.Option("--method", "-m", help="A name that `unseg-jax methods` prints.")
]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        "-b",
        help="A name that `unseg-jax weights list` prints, hf:ORG/NAME, a file, or auto.",
    ),
]
ClustersOption = Annotated[
    int | None, typer.Option("--k", min=1, help="Number of clusters, or the most for cc.")
]
SizeOption = Annotated[
    str | None,
    typer.Option("--image-size", help="Pixels that images are seen at: SIDE or HEIGHTxWIDTH."),
]
StrideOption = Annotated[
    int | None, typer.Option("--stride", min=1, help="Pixels between patches; divides the patch.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=0, help="Optimisation steps an image.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of starting weights and dropout.")]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images on the device at a time.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Of the backbone: float32, or bfloat16 for accelerators.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of Method; repeatable."),
]


@app.command()
def segment(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images, and folders of images.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is found.")] = Path(
        "segmented"
    ),
    model: Annotated[
        Path | None,
        typer.Option("--model", help="What `unseg-jax fit` wrote; brings its own method."),
    ] = None,
    method: MethodOption = "deepcut",
    backbone: BackboneOption = "auto",
    k: ClustersOption = None,
    image_size: SizeOption = None,
    stride: StrideOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    dtype: DtypeOption = "float32",
    refine: Annotated[
        str | None, typer.Option("--refine", help="Refine edges: none, bilateral or guided.")
    ] = None,
    foreground: Annotated[
        str | None,
        typer.Option(
            "--foreground", help="What tells the object: corner, border, centre, attention, auto."
        ),
    ] = None,
    parts: Annotated[
        int | None, typer.Option("--parts", min=0, help="Cut the object into this many parts.")
    ] = None,
    background_parts: Annotated[
        int | None, typer.Option("--background-parts", min=0, help="Cut the background as well.")
    ] = None,
    settings: SetOption = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write coco.json with masks and boxes: coco.")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search folders within folders as well.")
    ] = False,
) -> None:
    """Segments images: <stem>_mask.png, _labels.png and _overlay.png for each, and report.html."""
    if json not in (None, "coco"):
        raise typer.BadParameter(f"--json {json} is not known: the only format is coco.")
    overrides = overrides_from(
        settings,
        num_clusters=k,
        image_size=image_size,
        stride=stride,
        epochs=epochs,
        refine=refine,
        foreground=foreground,
        parts=parts,
        background_parts=background_parts,
    )
    from unseg_jax.data.folders import find_images
    from unseg_jax.files import check_writable
    from unseg_jax.methods import resolve
    from unseg_jax.segmenter import Segmenter

    # Everything that can be wrong is looked at before the weights are loaded.
    resolved = resolve(method, **overrides)
    images = find_images(paths, recursive=recursive, out=out)
    check_writable(out)
    enable_compilation_cache()
    if model is not None:
        segmenter = _fitted(model, backbone, dtype, method, overrides)
    elif resolved.learns_from_set:
        import jax

        from unseg_jax.collective.fitting import fit

        say(f"fitting {resolved.name} on these {len(images)} images; `unseg-jax fit` keeps a model")
        segmenter = fit(
            [image.path for image in images],
            method=method,
            # A graph head that no epoch would use need not be trained.
            steps=None if resolved.epochs or resolved.collective_epochs else 0,
            key=jax.random.key(seed),
            backbone=backbone,
            batch_size=batch_size,
            dtype=dtype,
            **overrides,
        ).segmenter()
    else:
        segmenter = Segmenter(
            method, backbone=backbone, batch_size=batch_size, seed=seed, dtype=dtype, **overrides
        )
    raise typer.Exit(run_segmenter(segmenter, images, out, coco=json is not None))


def _fitted(path: Path, backbone: str, dtype: str, method: str, overrides: dict[str, Any]) -> Any:
    """The segmenter of a model that `fit` wrote, of which only the epochs can be chosen."""
    others = [name for name in overrides if name != "epochs"]
    others += ["method"] if method != "deepcut" else []
    if others:
        raise typer.BadParameter(
            f"--model brings its own method; leave out {', '.join(others)}, or fit with them."
        )
    from unseg_jax.collective.model import load_model

    chosen = None if backbone == "auto" else backbone
    return load_model(path, backbone=chosen, dtype=dtype).segmenter(overrides.get("epochs"))


def run_segmenter(segmenter: Any, images: Sequence[Any], out: Path, *, coco: bool = False) -> int:
    """Segments files with a progress bar, says what failed and where the results are.

    Returns:
        0 if all went well, 1 if some image could not be done, 130 if the user stopped it.
    """
    from tqdm import tqdm

    from unseg_jax.export.folder import REPORT, segment_files

    with tqdm(total=len(images), unit="image", file=sys.stderr, dynamic_ncols=True) as bar:

        def show(entry: Any) -> None:
            if entry.error:
                bar.clear()
                say(entry.error)
            bar.update()

        try:
            run = segment_files(segmenter, images, out, coco=coco, on_entry=show)
        except KeyboardInterrupt:
            bar.close()
            say(f"stopped; what was found in {bar.n} images is written to {out}.")
            return 130
    print(
        f"{len(run.done)} of {len(run.entries)} images in {run.seconds:.1f} s, "
        f"{run.images_per_second:.2f} images a second (and {run.compile_seconds:.1f} s compiling)"
    )
    print(f"look at {out / REPORT}")
    return 1 if run.failed else 0


@app.command()
def fit(
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of images, and images.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File for the model, .safetensors.")
    ] = Path("model.safetensors"),
    method: MethodOption = "collective",
    backbone: BackboneOption = "auto",
    k: ClustersOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=0, help="Training steps of the shared head.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option("--passes", min=0, help="Shared passes over the images.")
    ] = None,
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, help="Fit on so many, drawn at random.")
    ] = 512,
    image_size: SizeOption = None,
    stride: StrideOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    dtype: DtypeOption = "float32",
    settings: SetOption = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search folders within folders as well.")
    ] = False,
) -> None:
    """Fits one model on a set of unlabelled images; use it with `unseg-jax segment --model`."""
    overrides = overrides_from(settings, image_size=image_size, stride=stride, epochs=epochs)
    import jax

    from unseg_jax.collective.fitting import fit as fit_model
    from unseg_jax.data.folders import find_images
    from unseg_jax.files import check_writable
    from unseg_jax.methods import resolve

    resolve(method, **overrides)
    images = find_images(paths, recursive=recursive)
    check_writable(out.parent)
    enable_compilation_cache()
    model = fit_model(
        [image.path for image in images],
        method=method,
        num_clusters=k,
        steps=steps,
        passes=passes,
        key=jax.random.key(seed),
        backbone=backbone,
        batch_size=batch_size,
        max_images=max_images,
        dtype=dtype,
        **overrides,
    )
    for message in model.skipped:
        say(message)
    model.save(out)
    print(f"{model.method.name} fitted on {model.images} images: {out}")
    print(f"use it: unseg-jax segment PATH... --model {out}")
    raise typer.Exit(1 if model.skipped else 0)


@app.command()
def video(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="A film, an animated GIF or WebP, or a folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A film, .gif, .webp, .apng, or a folder of PNGs.")
    ] = Path("segmented.gif"),
    method: MethodOption = "deepcut",
    backbone: BackboneOption = "auto",
    k: ClustersOption = None,
    image_size: SizeOption = None,
    stride: StrideOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    dtype: DtypeOption = "float32",
    compare: Annotated[
        bool, typer.Option(help="Also segment each frame on its own, to compare the flicker.")
    ] = True,
    settings: SetOption = None,
) -> None:
    """Segments a video into parts that keep their colours from frame to frame."""
    overrides = overrides_from(
        settings, num_clusters=k, image_size=image_size, stride=stride, epochs=epochs
    )
    from unseg_jax.methods import resolve
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


@app.command()
def methods(
    form: Annotated[
        str, typer.Option("--format", help="How to print: text, markdown or json.")
    ] = "text",
) -> None:
    """Prints every method: source, backbone, size, stride, affinity, layers, loss, epochs."""
    from unseg_jax.cli.tables import format_table, method_rows

    print(format_table(method_rows(), form))


@weights_app.command("list")
def weights_list(
    form: Annotated[
        str, typer.Option("--format", help="How to print: text, markdown or json.")
    ] = "text",
) -> None:
    """Prints the backbones that have a name, where their weights come from, and which are here."""
    from unseg_jax.backbones import list_weights
    from unseg_jax.cli.tables import format_table, weight_rows

    print(format_table(weight_rows(list_weights()), form))


@weights_app.command("get")
def weights_get(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Backbones; none is auto.")
    ] = None,
) -> None:
    """Fetches weights, once, and prints where they are."""
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
        0 all went well, 1 something could not be done, 2 a wrong option, 130 stopped by the user.
    """
    command = None if arguments is None else list(arguments)
    return guarded(lambda: app(args=command, prog_name="unseg-jax"))


if __name__ == "__main__":
    sys.exit(main())
