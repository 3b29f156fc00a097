"""Options of the command line: each is a field of a dataclass or of `Method`, and said there."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import typer

from unseg_jax.errors import why
from unseg_jax.method import FIELDS
from unseg_jax.terminal.console import guarded

if TYPE_CHECKING:
    from unseg_jax.data.reading_options import Reading

STYLE: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""How the help pages of all commands look."""


def expand_home(path: Path | None) -> Path | None:
    """The path with ~ as the home folder, which shells leave in --out=~/found."""
    return path and path.expanduser()


def hush(quiet: bool) -> bool:
    """Leaves out what the library tells of its work."""
    if quiet:
        logging.getLogger("unseg_jax").setLevel(logging.WARNING)
    return quiet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that segments; `overrides` are fields of `Method`."""

    method: Annotated[
        str, typer.Option("--method", "-m", help="auto, or a name from `unseg-jax methods`.")
    ] = "auto"
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            "-b",
            help="auto, a name from `unseg-jax weights list`, hf:ORG/NAME, or a weights file.",
        ),
    ] = "auto"
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images per batch on the device.")
    ] = 8
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Precision of the backbone: float32, bfloat16, or auto for the faster one.",
        ),
    ] = "auto"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Common):
    """Options of the commands that read images and folders."""

    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help='Images, folders, or patterns such as "a/*.jpg".'),
    ]
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search subfolders as well.")
    ] = False
    page: Annotated[
        str,
        typer.Option("--page", metavar="N|all", help="Which page of a multi-page file to read."),
    ] = "all"
    value_range: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="image|set|LOW:HIGH",
            help="Pixel values that become black and white in images of more than 8 bits: those of "
            "each image, those of the whole set, or two numbers.",
        ),
    ] = "image"
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Threads that decode images and write results (default: one per core).",
        ),
    ] = None
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", callback=hush, help="Print errors only: no progress bar, no summary."
        ),
    ] = False

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        from unseg_jax.data.reading_options import Reading

        return Reading(parse_range(self.value_range), workers=self.jobs)


_SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of Method; repeatable."),
]


def command(options: type, *fields: str) -> Callable[[Callable[[Any], int]], Callable[..., None]]:
    """Makes a function that takes `options` and returns an exit code a Typer command.

    Args:
        options: a kind of `Common`. Its fields that are annotated with an option or argument of
            Typer become those of the command, inherited ones last.
        fields: of `Method`. They become options too and, with --set, its `overrides`.
    """
    hints: dict[str, Any] = {}
    for kind in options.__mro__[:-1]:
        for name, hint in inspect.get_annotations(kind, eval_str=True).items():
            if get_origin(hint) is Annotated:
                hints.setdefault(name, hint)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    parameters = [
        *(_parameter(name, hint, defaults[name]) for name, hint in hints.items()),
        *method_parameters(*fields),
        _parameter("settings", _SetOption, None),
    ]

    def decorate(work: Callable[[Any], int]) -> Callable[..., None]:
        def run(settings: Sequence[str] | None, **given: Any) -> None:
            named = {name: given.pop(name) for name in fields}
            try:
                overrides = overrides_from(settings, **named)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
            raise typer.Exit(work(options(**given, overrides=overrides)))

        run.__name__, run.__doc__ = work.__name__, work.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def run_alone(work: Callable[..., Any], name: str) -> int:
    """Runs one command as a program called `name`; returns the exit code."""
    app = typer.Typer(add_completion=False, **STYLE)
    app.command()(work)
    return guarded(lambda: app(prog_name=name))


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    missing = default is dataclasses.MISSING
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if missing else default,
        annotation=hint,
    )


# "--fit" is the earlier name, kept for one release.
_FLAGS = {"num_clusters": ("--k",), "resize": ("--resize", "--fit")}


def method_parameters(*names: str, panel: str | None = None) -> list[inspect.Parameter]:
    """Parameters of a Typer command for these fields of `Method`; None where not given."""
    parameters = []
    for name in names:
        field = FIELDS[name]
        # What is not one plain type is typed as a string, read by `overrides_from` or `Method`.
        kind = field.kinds[0] if len(field.kinds) == 1 else str
        shown = [*field.rule.choices, *(["MODULE:NAME"] if name in ("loss", "layer") else [])]
        option = typer.Option(
            *_FLAGS.get(name, ("--" + name.replace("_", "-"),)),
            metavar="|".join(shown) or None,
            help=field.words.split(". ")[0].rstrip(".") + ".",
            rich_help_panel=panel,
            min=int(not field.holds(0)) if kind is int else None,
        )
        parameters.append(_parameter(name, Annotated[kind | None, option], None))
    return parameters


def overrides_from(settings: Sequence[str] | None, **named: Any) -> dict[str, Any]:
    """Overrides of `Method` from the command line.

    Args:
        settings: "FIELD=VALUE" texts; values are Python literals, anything else is text.
        **named: options with a name of their own; None where not given. `image_size` is a text.

    Returns:
        Field → value; a text wins over a named option.

    Raises:
        ValueError: a text without "=", an image size that is none, or see `load_part`.
    """
    overrides = {name: value for name, value in named.items() if value is not None}
    if "image_size" in overrides:
        overrides["image_size"] = parse_size(overrides["image_size"])
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} has no value: write FIELD=VALUE, as in parts=4.")
        overrides[name.strip()] = parse_value(text.strip())
    for name in ("loss", "layer"):
        if ":" in str(overrides.get(name, "")):
            overrides[name] = load_part(name, overrides[name])
    return overrides


def load_part(field: str, text: str) -> Any:
    """The loss or layer that "module:name" names; a class is called without arguments.

    Modules of the working folder are found, as with `python -m`.

    Raises:
        ValueError: there is no such thing, or it cannot be imported.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        part = pkgutil.resolve_name(text)
        return part() if isinstance(part, type) else part
    except Exception as error:  # a module of a user's may raise anything
        raise ValueError(
            f"--{field} {text} cannot be imported ({why(error)}): name MODULE:NAME, as in "
            f"my_parts:even_cut for even_cut in my_parts.py of this folder."
        ) from error


def parse_value(text: str) -> Any:
    """A field's value: a Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_size(text: str) -> int | tuple[int, int]:
    """An image size: "224", "HxW" or "H,W", in pixels.

    Raises:
        ValueError: anything else.
    """
    sides = text.lower().replace("x", ",").split(",")
    if len(sides) > 2 or not all(side.strip().isdigit() for side in sides):
        raise ValueError(
            f"--image-size {text} is not a size: write a side such as 280, or 280x360."
        )
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def parse_page(text: str) -> int | None:
    """A page number from 1, or None for "all".

    Raises:
        ValueError: anything else.
    """
    if text.strip().lower() == "all":
        return None
    if not (text.strip().isdigit() and int(text) > 0):
        raise ValueError(f"--page {text} is not a page: write a number from 1 on, or all.")
    return int(text)


def parse_kinds(text: str) -> int | Literal["auto"]:
    """How many kinds of objects there are: a number from 2, or "auto".

    Raises:
        ValueError: anything else.
    """
    if text.strip().lower() == "auto":
        return "auto"
    if not (text.strip().isdigit() and int(text) > 1):
        raise ValueError(f"--kinds {text} is no number of kinds: write 2 or more, or auto.")
    return int(text)


def parse_range(text: str) -> tuple[float, float] | Literal["set"] | None:
    """Which pixel values become black and white: "image", "set", or "LOW:HIGH".

    Returns:
        None for "image", which stretches each image on its own where it has to be; "set" for the
        range of the whole set, see `unseg_jax.data.measure_range`; or (low, high).

    Raises:
        ValueError: anything else.
    """
    text = text.strip().lower()
    if text in ("image", "set"):
        return None if text == "image" else "set"
    first, _, last = text.partition(":")
    try:
        low, high = float(first), float(last)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--range {text} is not a range: write image, set, or such as 0:4095.")
    return low, high
