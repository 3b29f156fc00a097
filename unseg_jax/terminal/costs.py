"""What a slow choice will cost, said before it is paid, and how closely small objects are seen."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from unseg_jax.method import override

if TYPE_CHECKING:
    from unseg_jax.collective.choosing import Choice
    from unseg_jax.data.folders import ImageFile
    from unseg_jax.method import Method

_SLOW = 4
_LOOKED_AT = 32
TWICE_COSTS = 10
"""About how many times as long an image takes that is seen at twice the size as well."""
# Lengths of an object that a tile for objects of its size has. On nuclei and on crops among weeds
# tiles of half an image have four to seven of a typical piece, and on the slides of the
# documentation those with four to five find all objects.
_LENGTHS = 6


def tile_for(object_size: float) -> int:
    """Side of the tiles in which objects of about that length are seen well, in pixels.

    >>> tile_for(25)
    150
    """
    return max(1, round(_LENGTHS * object_size))


def expected_cost(chosen: Choice, images: Sequence[ImageFile]) -> str:
    """What a choice costs if that is four times the usual or more, as one sentence; else "".

    Args:
        chosen: from `choose`.
        images: all of them; the sizes of at most 32 are read.
    """
    tile = chosen.options.get("tile", chosen.method.tile)
    if tile and (count := _tiles(images, tile)) >= _SLOW:
        return (
            f"slow: tile={tile} cuts an image into {count:.0f} tiles on average, so expect about "
            f"{count:.0f} passes of the backbone per image instead of 1."
        )
    if chosen.options.get("scales", chosen.method.scales) > 1:
        return (
            "slow: scales=2 sees an image at twice the size as well, so expect about "
            f"{TWICE_COSTS} times the time."
        )
    shown = override(chosen.method, stride=chosen.options.get("stride"))
    if (ratio := _grid_ratio(shown)) >= _SLOW:
        return (
            f"slow: this size and stride give about {ratio:.0f} times as many patches per image as "
            f"{chosen.method.name} has by default, so expect {ratio:.0f} times the time or more."
        )
    return ""


def _tiles(images: Sequence[ImageFile], side: int) -> float:
    from unseg_jax.collective.tiling import tile_boxes

    counts = []
    for image in images[:: -(-len(images) // _LOOKED_AT) or 1]:
        unreadable = contextlib.suppress(OSError, Image.DecompressionBombError)
        with unreadable, Image.open(image.path) as file:
            counts.append(len(tile_boxes(file.height, file.width, side)))
    return statistics.fmean(counts) if counts else 0.0


def _grid_ratio(method: Method) -> float:
    """How many times as many patches an image has as with the method's own settings."""
    from unseg_jax.registry import METHODS

    usual = METHODS.get(method.name)
    if usual is None or method.nodes != "patches":
        return 1.0
    return _patches(method) / _patches(usual)


def _patches(method: Method) -> float:
    from unseg_jax.backbones.weights import SOURCES

    source = SOURCES.get(method.backbone)
    stride = method.stride or (source.config.patch_size if source else 14)
    height, width = method.size
    return height * width / stride**2
