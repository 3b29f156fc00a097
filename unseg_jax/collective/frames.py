"""When a fit on a set is better than the model that ships, as told before any pass."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unseg_jax.data.reading import PLAIN
from unseg_jax.errors import ImageError

if TYPE_CHECKING:
    from unseg_jax.data.images import Source

SET_SIZE = 8
"""Images from which on `auto` may fit a set."""
FRAME_SHARES = (0.05, 0.5)
"""Shares of the image between which a black frame makes `auto` fit a set."""
# A patch below this mean value, 0 to 1, is black; a place that is black in this share of the images
# belongs to the frame. So many images are looked at, on so many patches a side.
_BLACK, _STEADY, _LOOKED_AT, _SIDE = 0.1, 0.8, 32, 28


def calls_for_fit(images: Sequence[Source]) -> bool:
    """Whether a set is large enough, and its images have a black frame in common."""
    return len(images) >= SET_SIZE and has_black_frame(images)


def has_black_frame(images: Sequence[Source]) -> bool:
    """Whether images show their scene through one opening, as endoscopes and ultrasound do.

    The frame is what is black in most images at the same place. It is none below a twentieth of
    the image, and above half of it, as in images of dark fields.

    Args:
        images: all of a set; at most 32 of them are read, evenly spread. Those that cannot be read
            are passed over.
    """
    from PIL import Image

    spread = range(0, len(images), -(-len(images) // _LOOKED_AT) or 1)
    found = []
    for index in spread:
        with contextlib.suppress(ImageError):
            pixels = PLAIN.read(images[index], (_SIDE, _SIDE)).pixels
            small = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX)
            found.append(np.asarray(small).mean(-1) < 255 * _BLACK)
    if not found:
        return False
    share = (np.mean(found, 0) > _STEADY).mean()
    return bool(FRAME_SHARES[0] <= share <= FRAME_SHARES[1])
