"""The objects on a transparent background or another one, as PNG."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from unseg_jax.files import encode_png

SUFFIXES = ("_cutout.png",)


@dataclasses.dataclass(frozen=True)
class Cutout:
    """How objects are cut out.

    Attributes:
        edges: "soft", an alpha matte with the background taken out of the edge's colours; or
            "hard", the mask and the image's own colours.
        crop: cut the picture to the box of the objects.
        margin: pixels around that box.
        background: a colour such as "white" or "#f0f0f0"; "" is transparent.
        canvas: (width, height) that the picture is centred on, made smaller where it is too large;
            None leaves it at its size.
    """

    edges: str = "soft"
    crop: bool = False
    margin: int = 0
    background: str = ""
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.edges not in ("soft", "hard"):
            raise ValueError(f"edges='{self.edges}' is not known: choose 'soft' or 'hard'.")
        if self.margin < 0:
            raise ValueError(f"margin={self.margin} must be at least 0 pixels.")
        if self.canvas is not None and min(self.canvas) < 1:
            raise ValueError(f"canvas={self.canvas} must be at least 1 by 1 pixels.")
        if self.background:
            _colour(self.background)


CUTOUT = Cutout()
"""Of the image's own size, with soft edges, on nothing."""


def encode(found: Any, cutout: Cutout = CUTOUT) -> dict[str, bytes]:
    """Suffix → PNG of a `Segmentation`, of the size of the kept pixels or as `cutout` says."""
    rgba = found.cutout(soft=cutout.edges == "soft")
    return {SUFFIXES[0]: encode_png(arrange(rgba, cutout), level=1)}


def arrange(rgba: np.ndarray, cutout: Cutout) -> np.ndarray:
    """A cut-out as `cutout` says.

    Args:
        rgba: (h, w, 4) uint8, straight alpha.
        cutout: how; its `edges` is not read.

    Returns:
        (h, w, 4) uint8, or (h, w, 3) on a background.
    """
    from PIL import Image

    if cutout.crop:
        rgba = rgba[_box(rgba[..., 3], cutout.margin)]
    picture = Image.fromarray(rgba)
    if cutout.canvas is not None:
        width, height = cutout.canvas
        if picture.width > width or picture.height > height:
            # Premultiplied, or hidden colours would bleed into the edge.
            premultiplied = picture.convert("RGBa")
            premultiplied.thumbnail((width, height), Image.Resampling.LANCZOS)
            picture = premultiplied.convert("RGBA")
        canvas = Image.new("RGBA", (width, height))
        canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        picture = canvas
    if cutout.background:
        ground = Image.new("RGBA", picture.size, _colour(cutout.background))
        picture = Image.alpha_composite(ground, picture).convert("RGB")
    return np.asarray(picture)


def _box(alpha: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of what is not transparent, with a margin; all where nothing is."""
    ends = []
    for axis, length in ((1, alpha.shape[0]), (0, alpha.shape[1])):
        used = np.flatnonzero(alpha.any(axis))
        if not len(used):
            return slice(None), slice(None)
        ends.append(slice(max(0, used[0] - margin), min(length, used[-1] + 1 + margin)))
    return ends[0], ends[1]


def _colour(name: str) -> tuple[int, int, int, int]:
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except ValueError as error:
        raise ValueError(
            f"background='{name}' is no colour: give a name such as white, or #rrggbb."
        ) from error
    return red, green, blue, 255
