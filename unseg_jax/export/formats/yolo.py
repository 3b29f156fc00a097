"""YOLO segmentation labels: a line for each object, its class and its outline."""

from typing import Any

import numpy as np

from unseg_jax.export.formats.polygons import single_ring

SUFFIXES = (".txt",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → labels of a `Segmentation`: class (label - 1), then x and y of the outline in shares
    of the image's width and height. A slit leads into each hole; see `single_ring`."""
    height, width = found.size
    lines = []
    for item in found.objects:
        ring = single_ring(item) / np.array([width, height])
        lines.append(f"{item.label - 1} " + " ".join(f"{value:.6f}" for value in ring.ravel()))
    return {SUFFIXES[0]: "".join(line + "\n" for line in lines).encode()}
