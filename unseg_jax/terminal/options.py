"""Options that the command lines share: FIELD=VALUE, HEIGHTxWIDTH, pages and ranges."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from unseg_jax.method import FIELDS

# "--fit" is the earlier name, kept for one release.
_FLAGS = {"num_clusters": ("--k",), "resize": ("--resize", "--fit")}


def method_parameters(*names: str, panel: str | None = None) -> list[inspect.Parameter]:
    """Parameters of a Typer command for these fields of `Method`; None where not given."""
    import typer

    parameters = []
    for name in names:
        field = FIELDS[name]
        # What is not one plain type is typed as a string, read by `overrides_from` or `Method`.
        kind = field.kinds[0] if len(field.kinds) == 1 else str
        option = typer.Option(
            *_FLAGS.get(name, ("--" + name.replace("_", "-"),)),
            metavar="|".join(field.rule.choices) or None,
            help=field.words.split(". ")[0].rstrip(".") + ".",
            rich_help_panel=panel,
            min=int(not field.holds(0)) if kind is int else None,
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return parameters


def overrides_from(settings: Sequence[str] | None, **named: Any) -> dict[str, Any]:
    """Overrides of `Method` from the command line.

    Args:
        settings: "FIELD=VALUE" texts; values are Python literals, anything else is text.
        **named: options with a name of their own; None where not given. `image_size` is a text.

    Returns:
        Field → value; a text wins over a named option.

    Raises:
        ValueError: a text without "=", or an image size that is none.
    """
    overrides = {name: value for name, value in named.items() if value is not None}
    if "image_size" in overrides:
        overrides["image_size"] = parse_size(overrides["image_size"])
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} has no value: write FIELD=VALUE, as in parts=4.")
        overrides[name.strip()] = parse_value(text.strip())
    return overrides


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
