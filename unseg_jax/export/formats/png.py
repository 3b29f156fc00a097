"""PNG: the mask (0 and 255), the labels with their colours as a palette, and the overlay."""

from typing import Any

from unseg_jax.export.drawing import encode_labels
from unseg_jax.files import encode_png

SUFFIXES = ("_mask.png", "_labels.png", "_overlay.png")


def encode_mask(found: Any) -> bytes:
    """The mask of a `Segmentation` at the image's size, 255 inside, 0 outside."""
    return encode_png(found.mask)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → PNG of a `Segmentation`: mask and labels at the image's size, the overlay at that
    of the kept pixels."""
    labels = found.enlarged(found.small_labels)
    files = (
        encode_mask(found),
        encode_labels(labels),
        encode_png(found.overlay()),
    )
    return dict(zip(SUFFIXES, files, strict=True))
