"""When a fit on a set is better than the model that ships, as told before any pass."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unseg_jax.data.reading_options import PLAIN
from unseg_jax.errors import ImageError

if TYPE_CHECKING:
    from jaxtyping import Bool

    from unseg_jax.data.decoding import Source

SET_SIZE = 8
"""Images from which on `auto` may fit a set."""
FRAME_SHARES = (0.05, 0.5)
"""Shares of the image between which a black frame makes `auto` fit a set."""
# A patch below this mean value, 0 to 1, is black; a place that is black in this share of the images
# belongs to the frame. `_LOOKED_AT` images are looked at, on `_SIDE` patches a side.
_BLACK, _STEADY, _LOOKED_AT, _SIDE = 0.1, 0.8, 32, 28
# In a mixed set, images of one frame have at least this IoU of what is black with one of them, and
# are at least this share of all.
_ALIKE, _SOME = 0.4, 0.25


def share_framed(images: Sequence[Source]) -> float:
    """Share of a set's images that show their scene through one opening, as endoscopes do.

    The frame is what is black in most images at the same place. It is none below a twentieth of
    the image, and above half of it, as in images of dark fields.

    Args:
        images: all of a set; at most 32 of them are read, evenly spread. Those that cannot be read
            are passed over.

    Returns:
        1 where the set has a frame, or the share of the largest group that has one in a mixed set;
        0 where that is below a quarter or eight images.
    """
    from PIL import Image

    if len(images) < SET_SIZE:
        return 0.0
    spread = range(0, len(images), -(-len(images) // _LOOKED_AT))
    found = []
    for index in spread:
        with contextlib.suppress(ImageError):
            pixels = PLAIN.read(images[index], (_SIDE, _SIDE)).pixels
            small = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX)
            found.append(np.asarray(small).mean(-1).ravel() < 255 * _BLACK)
    if not found:
        return 0.0
    black = np.stack(found)
    if _has_frame(black):
        return 1.0
    both, each = black @ black.T.astype(np.float32), black.sum(1)
    alike = both > _ALIKE * (each[:, None] + each - both)
    alike &= _of_frame(black.mean(1))[:, None]
    group = alike[alike.sum(1).argmax()]
    share = float(group.mean())
    enough = share >= max(_SOME, SET_SIZE / len(images))
    return share if enough and _has_frame(black[group]) else 0.0


def _has_frame(black: Bool[np.ndarray, "n p"]) -> bool:
    return bool(_of_frame((black.mean(0) > _STEADY).mean()))


def _of_frame(share):
    return (FRAME_SHARES[0] <= share) & (share <= FRAME_SHARES[1])
