"""Connected components, their boxes, and label maps at the size of the image.

Host side, NumPy. Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive.
Neighbours are the four that share an edge.
"""

import numpy as np

Box = tuple[int, int, int, int]


def upsample_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resizing of label maps or masks, as OpenCV's INTER_NEAREST does it:
    pixel i of the result shows pixel ⌊i·scale⌋ of the input.

    Args:
        labels: (..., h, w), any dtype.
        size: (H, W) wanted, smaller or larger.

    Returns:
        (..., H, W), same dtype.

    Raises:
        ValueError: an empty map or size.
    """
    labels = np.asarray(labels)
    rows = source_indices(labels.shape[-2], size[0])
    columns = source_indices(labels.shape[-1], size[1])
    # Rows last: whole rows are copied at once, which is most of the work.
    return labels.take(columns, -1).take(rows, -2)


def source_indices(length: int, new_length: int) -> np.ndarray:
    """(new_length,) int64: the pixel that each pixel of the result of `upsample_labels` shows.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1 or new_length < 1:
        raise ValueError(f"cannot resize {length} to {new_length} pixels; both must be at least 1.")
    # The reciprocal of a quotient, not the quotient: OpenCV rounds twice, and ⌊·⌋ shows it.
    scale = 1.0 / (new_length / length)
    return np.minimum(np.floor(np.arange(new_length) * scale).astype(np.int64), length - 1)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of a mask; between equals, the uppermost, leftmost.

    Args:
        mask: (H, W) bool, or anything whose non-zero entries are the mask.

    Returns:
        (H, W) bool, all False if the mask is empty.
    """
    mask = np.asarray(mask) != 0
    box = bounding_box(mask)
    if box is None:
        return mask
    inside = np.s_[box[1] : box[3], box[0] : box[2]]
    components, sizes = _components(mask[inside])
    largest = np.zeros_like(mask)
    largest[inside] = components == 1 + np.argmax(sizes)
    return largest


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fills what the mask encloses: background that no 4-connected path joins to the edge.

    Args:
        mask: (H, W) bool, or anything whose non-zero entries are the mask.

    Returns:
        (H, W) bool.
    """
    from scipy import ndimage

    mask = np.asarray(mask) != 0
    box = bounding_box(mask)
    if box is None:
        return mask
    # A frame of background joins all that is outside into the component of its corner.
    inside = np.s_[box[1] : box[3], box[0] : box[2]]
    framed = np.ones((box[3] - box[1] + 2, box[2] - box[0] + 2), bool)
    np.logical_not(mask[inside], out=framed[1:-1, 1:-1])
    background = np.zeros(framed.shape, np.int32)
    ndimage.label(framed, output=background)
    filled = mask.copy()
    filled[inside] = (background != background[0, 0])[1:-1, 1:-1]
    return filled


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box around all of a mask (H, W), or None if the mask is empty."""
    mask = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def object_box(mask: np.ndarray) -> Box | None:
    """The box of the largest 4-connected component, or None if the mask is empty."""
    return bounding_box(largest_component(mask))


def component_boxes(mask: np.ndarray, min_area: int = 1) -> list[Box]:
    """The boxes of all 4-connected components, largest component first.

    Args:
        mask: (H, W) bool, or anything whose non-zero entries are the mask.
        min_area: components with fewer pixels are left out.
    """
    from scipy import ndimage

    components, sizes = _components(mask)
    slices = ndimage.find_objects(components)
    return [
        (
            int(slices[index][1].start),
            int(slices[index][0].start),
            int(slices[index][1].stop),
            int(slices[index][0].stop),
        )
        for index in np.argsort(-sizes, kind="stable")
        if sizes[index] >= min_area
    ]


def scale_box(box: Box | None, grid: tuple[int, int], size: tuple[int, int]) -> Box | None:
    """The box that a box on a grid (h, w) covers after `upsample_labels` to (H, W).

    None for None, and for a box that no pixel of a smaller map shows.
    """
    if box is None:
        return None
    left, top, right, bottom = box
    columns, rows = source_indices(grid[1], size[1]), source_indices(grid[0], size[0])
    left, right = np.searchsorted(columns, (left, right))
    top, bottom = np.searchsorted(rows, (top, bottom))
    if left >= right or top >= bottom:
        return None
    return int(left), int(top), int(right), int(bottom)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Component numbers (H, W), 0 outside the mask, and the size of each from number 1."""
    from scipy import ndimage

    components = np.zeros(np.shape(mask), np.int32)
    ndimage.label(np.asarray(mask) != 0, output=components)
    return components, np.bincount(components.ravel())[1:]
