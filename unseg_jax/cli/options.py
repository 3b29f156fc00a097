"""Options that the command lines share: FIELD=VALUE and HEIGHTxWIDTH."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any


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
