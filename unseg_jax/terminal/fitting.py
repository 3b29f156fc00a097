"""`unseg-jax fit`: from paths and options to a model file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.errors import InputError
from unseg_jax.terminal.console import expand, progress, say


def fit_paths(
    paths: Sequence[str],
    out: Path,
    *,
    recursive: bool = False,
    page: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    examples: Path | None = None,
    **options: Any,
) -> int:
    """Fits a model on images and folders, and writes it.

    Args:
        paths: images, folders and patterns.
        out: file of the model.
        recursive: search folders within folders as well.
        page: of files with several pages, from 1; None takes all.
        overwrite: replace a model that is there.
        quiet: no progress bar and no summary.
        examples: folder of masks that steer the model, paired with the images by stem.
        **options: of `unseg_jax.fit`.

    Returns:
        0 if all went well, 1 if some image was left out.

    Raises:
        InputError: `out` is there, and is no model or is not to be replaced.
    """
    from unseg_jax.collective.fitting import fit
    from unseg_jax.data.folders import find_images
    from unseg_jax.data.sources import masks_by_stem
    from unseg_jax.files import check_writable

    check_model_path(out, overwrite=overwrite)
    images = find_images(expand(paths), recursive=recursive, page=page)
    for message in images.left_out:
        say(message)
    check_writable(out.parent)
    sources = [image.source for image in images]
    marked = None if examples is None else masks_by_stem(examples, sources)
    with fitting_bar(len(sources), quiet) as show:
        model = fit(sources, on_image=show, examples=marked, **options)
    for message in model.skipped:
        say(message)
    model.save(out)
    if not quiet:
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
            f"{out} is a model already: choose another path with --out, or --overwrite to replace "
            "it."
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
            bar.refresh() if count == total else bar.update(0)

        yield show
