"""The objects on a transparent background, as PNG."""

from typing import Any

from unseg_jax.files import encode_png

SUFFIXES = ("_cutout.png",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → RGBA PNG of a `Segmentation`, of the size of the kept pixels."""
    return {SUFFIXES[0]: encode_png(found.cutout(), level=1)}
