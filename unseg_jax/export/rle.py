"""Run-length encoding of masks as in the COCO API.

Our own instead of pycocotools': there is then no C extension to build where it is used, and an
object is encoded from its crop, without an array of the whole image.
"""

from typing import Any

import numpy as np

from unseg_jax.postprocess.components import Box


def encode_rle(
    mask: np.ndarray,
    *,
    box: Box | None = None,
    size: tuple[int, int] | None = None,
    compressed: bool = True,
) -> dict[str, Any]:
    """Runs down the columns of a mask, the first of background.

    Args:
        mask: (h, w) bool, the image's mask or its crop to `box`.
        box: (left, top, right, bottom) of the crop in the image; None is all of it.
        size: (H, W) of the image; None is (h, w).
        compressed: whether `counts` is the API's ASCII string or a list of integers.

    Returns:
        {"size": [H, W], "counts": ...}

    >>> encode_rle(np.array([[0, 1], [0, 1]]), compressed=False)
    {'size': [2, 2], 'counts': [2, 2]}
    """
    mask = np.asarray(mask) != 0
    height, width = mask.shape if size is None else size
    left, top = (0, 0) if box is None else box[:2]
    # A row of background above and below makes every run of a column start and end within it.
    edges = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0)
    columns, starts = np.nonzero(edges.T == 1)
    offsets = (columns + left) * height + top
    bounds = np.stack([offsets + starts, offsets + np.nonzero(edges.T == -1)[1]], 1).ravel()
    # Where a run ends at the foot of a column and the next begins at the head, it is one run.
    same = np.flatnonzero(bounds[1:] == bounds[:-1])
    bounds = np.delete(bounds, [*same, *(same + 1)])
    ends = np.concatenate([[0], bounds, [height * width]])
    counts = np.diff(ends).tolist()
    if counts and counts[-1] == 0:
        counts.pop()
    return {
        "size": [int(height), int(width)],
        "counts": _compress(counts) if compressed else counts,
    }


def decode_rle(encoded: dict[str, Any]) -> np.ndarray:
    """The mask (H, W) bool of a run-length encoding in either form."""
    counts = encoded["counts"]
    counts = _expand(counts) if isinstance(counts, str) else counts
    height, width = encoded["size"]
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _compress(counts: list[int]) -> str:
    """The COCO API's string: each count from the fourth on as its difference to the one two
    before, in groups of 5 bits, lowest first, with bit 6 for "more follows", from ASCII 48."""
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            group = value & 31
            value >>= 5
            # The last group's high bit is the sign: stop once the rest repeats it.
            done = value == (-1 if group & 16 else 0)
            characters.append(chr(48 + (group if done else group | 32)))
            if done:
                break
    return "".join(characters)


def _expand(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
