"""Options that several commands of `unseg-jax` share."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unseg_jax.terminal.options import method_parameters, overrides_from


def expand_home(path: Path | None) -> Path | None:
    """The path with ~ as the home folder, which shells leave in --out=~/found."""
    return path and path.expanduser()


def _hush(quiet: bool) -> bool:
    """Leaves out what the library tells of its work."""
    if quiet:
        logging.getLogger("unseg_jax").setLevel(logging.WARNING)
    return quiet


MethodOption = Annotated[
    str, typer.Option("--method", "-m", help="auto, or a name that `unseg-jax methods` prints.")
]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        "-b",
        help="A name that `unseg-jax weights list` prints, hf:ORG/NAME, a file, or auto.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Random seed.")]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images per batch on the device.")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype", help="Of the backbone: float32, bfloat16, or auto for the faster one here."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of Method; repeatable."),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        help="Threads that decode images, and that write results: one a core if not given.",
    ),
]
PageOption = Annotated[
    str, typer.Option("--page", metavar="N|all", help="Of files with several pages: one, or all.")
]
RangeOption = Annotated[
    str,
    typer.Option(
        "--range",
        metavar="image|set|LOW:HIGH",
        help="Values of deep images that become black and white: of each image, of all of them, "
        "or as given.",
    ),
]
RecursiveOption = Annotated[
    bool, typer.Option("--recursive", "-r", help="Search folders within folders as well.")
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_hush, help="No progress bar and no summary, only errors."
    ),
]


def with_fields(*names: str) -> Callable[[Any], Any]:
    """Gives a command options for these fields of `Method`, in place of its `**fields`."""

    def decorate(command: Any) -> Any:
        signature = inspect.signature(command, eval_str=True)
        *own, _ = signature.parameters.values()
        command.__signature__ = signature.replace(parameters=[*own, *method_parameters(*names)])
        return command

    return decorate


def read_overrides(settings: Sequence[str] | None, **named: Any) -> dict[str, Any]:
    """`overrides_from`, with what is malformed as a wrong use of the command.

    Raises:
        typer.BadParameter: a setting without a value, or an image size that is none.
    """
    try:
        return overrides_from(settings, **named)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
