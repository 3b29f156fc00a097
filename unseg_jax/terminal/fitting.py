"""`unseg-jax fit`: its options, and the way from them to a model file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from unseg_jax.errors import InputError
from unseg_jax.terminal.console import expand, progress, say
from unseg_jax.terminal.options import Images, expand_home, parse_page, parse_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(Images):
    """What `unseg-jax fit` is asked for."""

    method: str = "collective"
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", callback=expand_home, help="Path of the model, a .safetensors file."
        ),
    ] = Path("model.safetensors")
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            metavar="MASKS",
            help="Folder with masks of a few of the images, which steer the model.",
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", min=0, help="Training steps of the shared head.")
    ] = None
    passes: Annotated[
        int | None, typer.Option("--passes", min=0, help="Shared passes over the images.")
    ] = None
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, help="Fit on at most this many, drawn at random.")
    ] = 512
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is already there.")
    ] = False


def fit_images(asked: Fit) -> int:
    """Fits a model on images and folders, and writes it.

    Returns:
        0 if all went well, 1 if some image was left out.

    Raises:
        InputError: `out` is there, and is no model or is not to be replaced.
    """
    from unseg_jax.collective.fitting import fit
    from unseg_jax.data.folders import find_images
    from unseg_jax.data.sources import masks_by_stem
    from unseg_jax.files import check_writable
    from unseg_jax.registry import resolve

    out = asked.out
    # For collective num_clusters are those of the whole set.
    resolve(asked.method, **{k: v for k, v in asked.overrides.items() if k != "num_clusters"})
    check_model_path(out, overwrite=asked.overwrite)
    page = parse_page(asked.page)
    images = find_images(expand(asked.paths), recursive=asked.recursive, page=page)
    for message in images.left_out:
        say(message)
    check_writable(out.parent)
    sources = [image.source for image in images]
    marked = None if asked.examples is None else masks_by_stem(asked.examples, sources)
    with fitting_bar(len(sources), asked.quiet) as show:
        model = fit(
            sources,
            method=asked.method,
            examples=marked,
            backbone=asked.backbone,
            seed=asked.seed,
            batch_size=asked.batch_size,
            dtype=asked.dtype,
            steps=asked.steps,
            passes=asked.passes,
            max_images=asked.max_images,
            value_range=parse_range(asked.value_range),
            workers=asked.jobs,
            on_image=show,
            **asked.overrides,
        )
    for message in model.skipped:
        say(message)
    model.save(out)
    if not asked.quiet:
        steered = "" if marked is None else f", steered by {len(marked)} of them"
        print(f"{model.method.name} fitted on {model.images} images{steered}: {out}")
        print(f"use it: unseg-jax segment PATH... --model {out}")
    return 1 if model.skipped else 0


def check_model_path(out: Path, *, overwrite: bool = False) -> None:
    """Refuses to write a model over what is there, unless it is a model that may be replaced.

    Raises:
        InputError: something is there that is not to be replaced.
    """
    if not os.path.lexists(out):
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(out), "numpy") as file:
            ours = str((file.metadata() or {}).get("format", "")).startswith("unseg_jax ")
    except (OSError, SafetensorError):
        ours = False
    if ours and not overwrite:
        raise InputError(
            f"{out} is a model already: choose another path with --out, or pass --overwrite to "
            "replace it."
        )
    if not ours:
        raise InputError(
            f"{out} is there already and is not a model of unseg-jax: choose another path with "
            "--out, such as model.safetensors."
        )


@contextlib.contextmanager
def fitting_bar(
    count: int, quiet: bool, *, leave: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A bar of the images read, which starts again at each pass; gives what `on_image` takes.

    Args:
        count: of images.
        quiet: no bar.
        leave: whether the finished bar stays.
    """
    with progress(count, quiet, doing="fitting", leave=leave) as bar:

        def show(count: int, total: int) -> None:
            bar.total, bar.n = total, count
            bar.set_description("fitting: learning" if count == total else "fitting: reading")

        yield show
