"""Graphs whose nodes are not patches: SLIC superpixels, and the pixels of a reduced image.

Cut on the host, and padded to a bucket of node counts, so that images of many counts share one
compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8

# SLIC's n_segments = 400 gives about 390 to 410 superpixels, which 416 holds; 4096 holds the
# pixels of an image of 256 × 256 reduced four times.
BUCKETS = (64, 128, 256, 416, 640, 1024, 1536, 2048, 3072, 4096)
"""Node counts that graphs are padded to; above the last, the next multiple of it."""

_SEGMENTS, _COMPACTNESS, _SMOOTHING = 400, 40.0, 1.0
_REDUCTION, _RADIUS = 4, 3


class Regions(NamedTuple):
    """The padded graph of one image, or with a leading axis of a batch; NumPy arrays.

    Attributes:
        nodes: (P, 5) float32: red, green, blue in 0..1, y/H and x/W, each the region's mean.
        adjacency: (P, P) float32 affinities in 0..1, symmetric, zero on the diagonal.
        mask: (P,) bool, True for real nodes; they come first.
        index_map: (H, W) int32, the node that each pixel belongs to.
    """

    nodes: Float[np.ndarray, "*b p 5"]
    adjacency: Float[np.ndarray, "*b p p"]
    mask: Bool[np.ndarray, "*b p"]
    index_map: Int[np.ndarray, "*b h w"]


def region_graph(image: UInt8[np.ndarray, "h w 3"], method: Method) -> Regions:
    """The graph of colours of an image: w_ij = exp(−‖c_i − c_j‖² / σ) for neighbours i and j.

    Colours are means in 0..255 and σ is `method.alpha`. With `method.nodes == "superpixels"`
    nodes are SLIC superpixels (400 of them, compactness 40, sigma 1) and neighbours share an edge
    of the region adjacency graph of scikit-image; with "pixels" they are pixels of the image
    reduced four times, within 3 pixels of one another. The graph of an image of 256 × 256 pixels
    then has 4096 nodes and takes 64 MiB.

    Args:
        image: (H, W, 3) uint8.
        method: its `nodes` and `alpha` are read.

    Raises:
        ValueError: `nodes` is "patches", or the image is not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"the image has shape {image.shape} and type {image.dtype}: (H, W, 3) uint8 is needed."
        )
    if method.nodes == "superpixels":
        index_map = superpixels(image)
        means = region_means(image, index_map)
        adjacency = np.zeros((len(means),) * 2, np.float32)
        one, other = neighbouring_regions(index_map)
        adjacency[one, other] = adjacency[other, one] = _affinity(
            means[one, :3] - means[other, :3], method.alpha
        )
    elif method.nodes == "pixels":
        rows, columns = (np.arange(size) // _REDUCTION for size in image.shape[:2])
        index_map = (rows[:, None] * (columns[-1] + 1) + columns).astype(np.int32)
        means = region_means(image, index_map)
        reduced = np.asarray(Image.fromarray(image).reduce(_REDUCTION))
        means[:, :3] = reduced.reshape(-1, 3)
        adjacency = grid_affinity(reduced, method.alpha)
    else:
        raise ValueError(
            f"nodes='{method.nodes}' of method '{method.name}' come from a backbone: "
            "use nodes='superpixels' or nodes='pixels'."
        )
    height, width = image.shape[:2]
    nodes = means / np.array([255, 255, 255, height, width])
    mask = np.ones(len(nodes), bool)
    return _padded(Regions(nodes.astype(np.float32), adjacency, mask, index_map))


def stack_regions(regions: Sequence[Regions]) -> Regions:
    """A batch of graphs, padded to the bucket of the largest; leading axis B on every field."""
    size = max(len(graph.mask) for graph in regions)
    return Regions(*map(np.stack, zip(*(_padded(graph, size) for graph in regions), strict=True)))


def bucket(count: int) -> int:
    """The smallest of `BUCKETS`, or multiple of its last, that holds the nodes."""
    largest = BUCKETS[-1]
    return next((size for size in BUCKETS if size >= count), -(-count // largest) * largest)


def superpixels(image: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """SLIC superpixels of an image, numbered from 0 without gaps."""
    from skimage.segmentation import slic

    labels = slic(
        image,
        n_segments=_SEGMENTS,
        compactness=_COMPACTNESS,
        sigma=_SMOOTHING,
        start_label=0,
        channel_axis=-1,
    )
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def region_means(
    image: UInt8[np.ndarray, "h w 3"], index_map: Int[np.ndarray, "h w"]
) -> Float[np.ndarray, "n 5"]:
    """Mean red, green, blue (0..255), row and column (pixels) of each region, float64."""
    flat = index_map.ravel()
    sizes = np.bincount(flat)
    rows, columns = np.indices(index_map.shape)
    values = [*np.moveaxis(image, -1, 0), rows, columns]
    sums = [np.bincount(flat, weights=value.ravel()) for value in values]
    return np.stack(sums, 1) / sizes[:, None]


def neighbouring_regions(
    index_map: Int[np.ndarray, "h w"],
) -> tuple[Int[np.ndarray, " e"], Int[np.ndarray, " e"]]:
    """Pairs of regions that touch, each pair once, the lower number first.

    Pixels touch their eight neighbours, as in scikit-image's `rag_mean_color`.
    """
    count = int(index_map.max()) + 1
    right, below = (index_map[:, :-1], index_map[:, 1:]), (index_map[:-1], index_map[1:])
    falling = index_map[:-1, :-1], index_map[1:, 1:]
    rising = index_map[1:, :-1], index_map[:-1, 1:]
    codes = []
    for here, there in (right, below, falling, rising):
        low, high = np.minimum(here, there), np.maximum(here, there)
        codes.append((low.astype(np.int64) * count + high)[low != high])
    return np.divmod(np.unique(np.concatenate(codes)), count)


def grid_affinity(
    colours: np.ndarray, sigma: float, radius: int = _RADIUS
) -> Float[np.ndarray, "n n"]:
    """exp(−‖c_i − c_j‖² / σ) of all cells of a grid within a radius of one another.

    Args:
        colours: (h, w, C), in 0..255; the pixels of a reduced image, or mean colours of patches.
        sigma: σ, in squared units of the colours.
        radius: the largest distance between two neighbours, in cells.

    Returns:
        (h·w, h·w) float32, zero on the diagonal.
    """
    height, width = colours.shape[:2]
    colours = colours.astype(np.float64)
    index = np.arange(height * width).reshape(height, width)
    adjacency = np.zeros((height * width,) * 2, np.float32)
    for down in range(min(radius, height - 1) + 1):
        for right in range(-min(radius, width - 1), min(radius, width - 1) + 1):
            # Half of the disc: the other half is its mirror image.
            if not 0 < down**2 + right**2 <= radius**2 or (down == 0 and right < 0):
                continue
            here = np.s_[: height - down, max(-right, 0) : width - max(right, 0)]
            there = np.s_[down:, max(right, 0) : width - max(-right, 0)]
            one, other = index[here].ravel(), index[there].ravel()
            difference = (colours[here] - colours[there]).reshape(one.size, -1)
            adjacency[one, other] = adjacency[other, one] = _affinity(difference, sigma)
    return adjacency


def _affinity(difference, sigma: float):
    return np.exp(-np.square(difference).sum(-1) / sigma)


def _padded(graph: Regions, size: int | None = None) -> Regions:
    extra = (size or bucket(len(graph.mask))) - len(graph.mask)
    if not extra:
        return graph
    return Regions(
        np.pad(graph.nodes, ((0, extra), (0, 0))),
        np.pad(graph.adjacency, ((0, extra), (0, extra))),
        np.pad(graph.mask, (0, extra)),
        graph.index_map,
    )
