"""The objects on a transparent background or another one, as PNG, JPEG or WebP."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.data.decoding import load_image
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
        background: a colour such as "white" or "#f0f0f0", or the path of an image, which is cropped
            to the shape of the cut-out; "" is transparent.
        canvas: (width, height) that the picture is centred on, made smaller where it is too large;
            None leaves it at its size.
        file: "png", "webp", or "jpg", which needs a background.
        each: one file for each object, cropped to it, instead of one for the image.
    """

    edges: str = "soft"
    crop: bool = False
    margin: int = 0
    background: str = ""
    canvas: tuple[int, int] | None = None
    file: str = "png"
    each: bool = False

    def __post_init__(self) -> None:
        if self.edges not in ("soft", "hard"):
            raise ValueError(f"edges='{self.edges}' is not known: choose 'soft' or 'hard'.")
        if self.margin < 0:
            raise ValueError(f"margin={self.margin} must be at least 0 pixels.")
        if self.canvas is not None and min(self.canvas) < 1:
            raise ValueError(f"canvas={self.canvas} must be at least 1 by 1 pixels.")
        if self.background:
            _ground(self.background, (1, 1))
        if self.file not in ("png", "webp", "jpg"):
            raise ValueError(f"file='{self.file}' is not known: choose 'png', 'webp' or 'jpg'.")
        if self.file == "jpg" and not self.background:
            raise ValueError("file='jpg' has no transparency: give background='white', or another.")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ends of the names of the files of an image, as far as they are the same for all."""
        return () if self.each else (f"_cutout.{self.file}",)


CUTOUT = Cutout()
"""Of the image's own size, with soft edges, on nothing."""


def encode(found: Any, cutout: Cutout = CUTOUT) -> dict[str, bytes]:
    """Suffix → picture of a `Segmentation`, of the size of the kept pixels or as `cutout` says."""
    soft = cutout.edges == "soft"
    if not cutout.each:
        return {cutout.suffixes[0]: _encode(arrange(found.cutout(soft=soft), cutout), cutout.file)}
    cropped, content = dataclasses.replace(cutout, crop=True), {}
    for number, item in enumerate(found.objects, 1):
        picture = arrange(found.cutout(soft=soft, item=item), cropped)
        content[f"_cutout_{number:03d}.{cutout.file}"] = _encode(picture, cutout.file)
    return content


def _encode(picture: np.ndarray, file: str) -> bytes:
    from PIL import Image

    if file == "png":
        return encode_png(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, {"jpg": "JPEG", "webp": "WEBP"}[file], quality=90)
    return buffer.getvalue()


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
        ground = _ground(cutout.background, picture.size)
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


def _ground(background: str, size: tuple[int, int]) -> Any:
    """An RGBA picture of a colour, or of an image that covers it."""
    from PIL import Image, ImageColor, ImageOps

    try:
        return Image.new("RGBA", size, (*ImageColor.getrgb(background)[:3], 255))
    except ValueError as error:
        path = Path(background).expanduser()
        if not path.is_file():
            raise ValueError(
                f"background='{background}' is no colour and no file: give a name such as white, "
                "#rrggbb, or the path of an image."
            ) from error
    return ImageOps.fit(_read(path), size).convert("RGBA")


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Any:
    from PIL import Image

    return Image.fromarray(load_image(path))
