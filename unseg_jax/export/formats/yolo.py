"""YOLO segmentation labels: a line for each object, its class and its outline."""

from typing import Any

import numpy as np

from unseg_jax.export.formats.polygons import outlines

SUFFIXES = (".txt",)


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → labels of a `Segmentation`: class (label - 1), then x and y of the outer outline in
    shares of the image's width and height. Holes have no place in this format."""
    height, width = found.size
    lines = []
    for item in found.objects:
        ring = outlines(item)[0][:-1] / np.array([width, height])
        lines.append(f"{item.label - 1} " + " ".join(f"{value:.6f}" for value in ring.ravel()))
    return {SUFFIXES[0]: "".join(line + "\n" for line in lines).encode()}
