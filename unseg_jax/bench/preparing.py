"""Ahead of the device: an item of a data set becomes the pixels that the methods want."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unseg_jax.bench.protocols import Box, Protocol, crop_box
from unseg_jax.data import Item, MaskRule, Truth, fit_mask, read_mask, resize_image
from unseg_jax.data.framing import Framing
from unseg_jax.data.reading import PLAIN, Reading
from unseg_jax.runs.stamps import stamp_source

THUMBNAIL = 128
"""Longer side of a thumbnail, in pixels."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image ready for the device.

    Attributes:
        size: (height, width) of what is segmented: the image, or the crop of it.
        pixels: by framing, uint8 (height, width, 3).
        image: uint8 (H, W, 3) of that `size`, or None if no method needs it afterwards.
        whole: (height, width) of the image.
        crop: (left, top, right, bottom) in the image, or None.
        thumbnail: an encoded JPEG, or None.
        stamp: of the image file, see `stamp_source`.
        notes: what was done to the image while it was read.
    """

    size: tuple[int, int]
    pixels: dict[Framing, np.ndarray]
    image: np.ndarray | None
    whole: tuple[int, int]
    crop: Box | None
    thumbnail: bytes | None
    stamp: str | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Decodes, crops if the protocol does, and resizes; called in threads or other processes.

    Under a protocol without a crop it never looks at the mask.

    Attributes:
        framings: sizes that the methods want.
        protocol: whether to crop.
        rule: which mask values are foreground.
        keep_image: whether a method needs the image at its own size afterwards.
        draft: whether large JPEGs may be decoded at a reduced size.
        reading: how images are read.
    """

    framings: Sequence[Framing]
    protocol: Protocol
    rule: MaskRule
    keep_image: bool = False
    draft: bool = True
    reading: Reading = PLAIN

    def __call__(self, item: Item, thumbnail: bool = False) -> Prepared:
        """Prepares one item.

        Raises:
            ImageError: the image, or the mask that the crop needs, cannot be read.
        """
        crops = self.protocol.crop is not None and item.mask is not None
        at_least = None
        if self.draft and not crops and not self.keep_image:
            sizes = [framing.at_least for framing in self.framings]
            at_least = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        stamp = stamp_source(item.image)
        picture = self.reading.read(item.image, at_least)
        pixels, size, crop = picture.pixels, picture.size, None
        if crops:
            crop = crop_box(load_truth(item, self.rule, size)[0].mask, self.protocol.crop or 0)
            left, top, right, bottom = crop
            pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
            size = pixels.shape[:2]
        return Prepared(
            (size[0], size[1]),
            {framing: resize_image(pixels, framing.size_for(*size)) for framing in self.framings},
            pixels if self.keep_image else None,
            picture.size,
            crop,
            encode_thumbnail(pixels) if thumbnail else None,
            stamp,
            picture.notes,
        )


def collect_pixels(prepared: Sequence[Prepared]) -> dict[Framing, list[np.ndarray]]:
    """The pixels of a batch: by framing, uint8 (height, width, 3) of each image."""
    return {framing: [one.pixels[framing] for one in prepared] for framing in prepared[0].pixels}


def load_truth(item: Item, rule: MaskRule, size: tuple[int, int]) -> tuple[Truth, bool]:
    """The true mask of an item, and whether it had to be resized.

    Args:
        item: with a mask.
        rule: which mask values are foreground.
        size: (height, width) of the image.

    Raises:
        ImageError: it cannot be read.
    """
    return fit_mask(read_mask(item.mask, rule), size)


def encode_thumbnail(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a small JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def shrink_mask(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool at the size of its image's thumbnail."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST)
    return np.asarray(image) > 127
