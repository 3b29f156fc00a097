"""Image layers as planes to segment, and what was found in them as the data of a Labels layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN = ("objects", "parts", "mask")
"""What a Labels layer may hold: a number for each object, the label of each part, or 1."""


def planes_of(data: Any, rgb: bool) -> list[np.ndarray]:
    """The planes of an image layer, in the order of `np.ndindex` over its leading axes.

    Args:
        data: (…, H, W), or (…, H, W, 3) or (…, H, W, 4) if `rgb`; any array, also a lazy one.
        rgb: whether the last axis holds colours.

    Returns:
        Arrays (H, W), (H, W, 3) or (H, W, 4), at least one.

    Raises:
        ValueError: fewer than two axes of space, or an axis without a plane.
    """
    axes = len(data.shape) - (3 if rgb else 2)
    if axes < 0 or 0 in data.shape:
        raise ValueError(
            f"the layer has the shape {tuple(data.shape)}, which holds no plane: choose another."
        )
    return [np.asarray(data[index]) for index in np.ndindex(*data.shape[:axes])]


def labels_of(results: Sequence[Any], leading: tuple[int, ...], shown: str) -> np.ndarray:
    """What was found in the planes, as the data of a Labels layer.

    Args:
        results: a `Segmentation` each, of one size (H, W).
        leading: the leading axes of the layer; their product is the number of planes.
        shown: one of SHOWN. Objects are numbered from 1 in each plane, the largest first.

    Returns:
        (*leading, H, W) int32, 0 = background.

    Raises:
        ValueError: another word, or another number of planes.
    """
    if shown not in SHOWN:
        raise ValueError(f"'{shown}' is not one of {', '.join(SHOWN)}.")
    if len(results) != math.prod(leading):
        raise ValueError(f"{len(results)} results are not the planes of {leading}.")
    return np.stack([_labels(result, shown) for result in results]).reshape(
        *leading, *results[0].size
    )


def marks_of(labels: Any) -> dict[int, np.ndarray]:
    """The planes of a Labels layer on which something is drawn, as masks of examples.

    Args:
        labels: (…, H, W) integers, 0 where nothing is drawn.

    Returns:
        (H, W) bool of each such plane, by its place among all planes.
    """
    planes = enumerate(planes_of(labels, rgb=False))
    return {place: plane > 0 for place, plane in planes if plane.any()}


def _labels(result: Any, shown: str) -> np.ndarray:
    if shown == "parts":
        return result.labels
    if shown == "mask":
        return result.mask.astype(np.int32)
    numbers = np.zeros(result.size, np.int32)
    for number, item in enumerate(result.objects, 1):
        left, top, right, bottom = item.box
        numbers[top:bottom, left:right][item.mask] = number
    return numbers
