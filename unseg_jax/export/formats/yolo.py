"""YOLO segmentation labels: a line for each object, its class and its outline."""

from collections.abc import Mapping, Sequence
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


def with_kinds(content: bytes, objects: Sequence[Mapping[str, Any]]) -> bytes:
    """The file that `encode` gave, with the kinds of the objects (kind - 1) as classes."""
    both = zip(content.decode().splitlines(), objects, strict=True)
    lines = [f"{item['kind'] - 1} {line.partition(' ')[2]}\n" for line, item in both]
    return "".join(lines).encode()
