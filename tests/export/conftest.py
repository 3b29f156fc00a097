"""A segmenter that finds what is bright, and objects as whole masks."""

import numpy as np
import pytest

from unseg_jax.data.decoding import load_image
from unseg_jax.data.reading_options import PLAIN
from unseg_jax.errors import ImageError
from unseg_jax.registry import resolve
from unseg_jax.segmentation import Segmentation

# pycocotools' own arrays lack NumPy 2's copy keyword.
FROM_PYCOCOTOOLS = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


class Stand:
    """In place of a segmenter: what is bright are objects, and colours are features."""

    def __init__(self, shade=0, happen=lambda index: None, backbone=None):
        self.method, self.backbone, self.grid = resolve("deepcut"), backbone, (2, 2)
        self.reading, self.fitted, self.features, self.seen = PLAIN, None, False, []
        self.shade, self.happen = shade, happen

    def but(self, with_features):
        self.features = with_features
        return self

    def stream(self, images, *, full_pixels=False):
        for index, path in enumerate(images):
            self.happen(index)
            self.seen.append(path)
            try:
                pixels = load_image(path)
            except ImageError as error:
                yield error
                continue
            mask = pixels.max(2) > 128
            mask[-1, : self.shade] = True  # tells one run from another
            features = np.float16(pixels[::4, ::4]) / 255 if self.features else None
            kept = {"pixels": pixels, "id": str(path), "patch_features": features}
            yield Segmentation.of(mask, mask, confidence=0.5, **kept)


def whole(item, size):
    """The mask of an object in its image."""
    mask = np.zeros(size, bool)
    left, top, right, bottom = item.box
    mask[top:bottom, left:right] = item.mask
    return mask
