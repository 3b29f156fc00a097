"""The mask alone as PNG: for data sets, where nobody looks at every overlay."""

from typing import Any

from unseg_jax.export.formats.png import encode_mask

SUFFIXES = ("_mask.png",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → PNG of a `Segmentation`: 255 inside, 0 outside, at the image's size."""
    return {SUFFIXES[0]: encode_mask(found)}
