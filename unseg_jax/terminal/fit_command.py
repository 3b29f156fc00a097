"""`unseg-jax fit`: its options, and the way from them to a model file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unseg_jax.errors import InputError, nearest
from unseg_jax.terminal.console import expand, progress, say
from unseg_jax.terminal.costs import TWICE_COSTS
from unseg_jax.terminal.shared_options import Images, expand_home, parse_page, parse_range

if TYPE_CHECKING:
    from unseg_jax.collective.marks import Click
    from unseg_jax.data.decoding import Page


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
            metavar="MASKS|FILE",
            callback=expand_home,
            help="Steer the model: a folder with masks of a few images, decisions exported from a "
            "report, or a JSON export of Label Studio.",
        ),
    ] = None
    click: Annotated[
        list[str] | None,
        typer.Option(
            "--click",
            metavar="IMAGE:X,Y,+|-",
            help="A pixel of an image that is on a thing (+) or on background (-); repeatable.",
        ),
    ] = None
    look_for: Annotated[
        str | None,
        typer.Option(
            "--look-for",
            metavar="bright|dark|centre|small|large",
            help="How objects differ from the rest of their images; a weak cue.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=0,
            help="Training steps of the shared head; a fit of collective then stays alone.",
        ),
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
    from unseg_jax.export.formats.label_studio import is_export, read_label_studio
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
    marked, clicks = None, parse_clicks(asked.click, sources) if asked.click else {}
    if asked.examples is not None and asked.examples.is_file() and is_export(asked.examples):
        marked = read_label_studio(asked.examples, sources)
    elif asked.examples is not None and asked.examples.is_file():
        from unseg_jax.export.decisions import marks_from, read_decisions
        from unseg_jax.export.naming import names_in

        named = names_in(images, {}, recursive=asked.recursive)
        sources, marked, decided = marks_from(read_decisions(asked.examples), named)
        for path, points in decided.items():
            clicks[path] = [*points, *clicks.get(path, ())]
    elif asked.examples is not None:
        marked = masks_by_stem(asked.examples, sources)
    with fitting_bar(len(sources), asked.quiet) as show:
        model = fit(
            sources,
            method=asked.method,
            examples=marked,
            clicks=clicks or None,
            look_for=asked.look_for,
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
        marked = 0 if model.steering is None else int(model.steering.examples)
        steered = f", steered by {marked} of them" if marked else ""
        print(f"{model.method.name} fitted on {model.images} images{steered}: {out}")
        if model.method.scales > 1:
            print(
                "it sees an image at twice the size as well, for small things, which takes about "
                f"{TWICE_COSTS} times as long: --scales 1 leaves that out"
            )
        print(f"use it: unseg-jax segment PATH... --model {out}")
    return 1 if model.skipped else 0


def parse_clicks(
    texts: Sequence[str], sources: Sequence[Path | Page]
) -> dict[Path | Page, list[Click]]:
    """Clicks by their image, from texts such as "photos/a.jpg:120,80,+".

    Args:
        texts: an image is given by its path, or by its name where only one has it, and a page of a
            file as "stack.tif (page 2)".
        sources: the images.

    Raises:
        ValueError: another form, or an image that is not there once.
    """
    clicks: dict[Path | Page, list[Click]] = {}
    for text in texts:
        found = re.fullmatch(r"(.+):([0-9.]+),([0-9.]+),([+-])", text, re.DOTALL)
        if found is None:
            raise ValueError(f"--click {text} is not of the form IMAGE:X,Y,+ or IMAGE:X,Y,-.")
        path = Path(found[1]).expanduser().absolute()
        named = [source for source in sources if path in _paths(source)]
        named = named or [one for one in sources if found[1] in {p.name for p in _paths(one)}]
        if len(named) != 1:
            hint = (
                f"give its path, such as {named[0]}."
                if named
                else nearest(found[1], map(str, sources))
            )
            raise ValueError(f"--click {text}: {len(named)} of the images are called so; {hint}")
        clicks.setdefault(named[0], []).append((float(found[2]), float(found[3]), found[4] == "+"))
    return clicks


def _paths(source: Path | Page) -> set[Path]:
    """How an image may be given: a page by the path of its file, or as messages call it."""
    return {Path(source).absolute(), Path(str(source)).absolute()}


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
