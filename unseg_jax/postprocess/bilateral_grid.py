"""The sparse grid of the bilateral solver: pixels close in position and colour share a vertex.

Host side, NumPy and SciPy. Vertices and their neighbours are found in tables of all possible
cells, which are small because an image has few distinct colours.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# JPEG's colours: rows give Y, U and V of red, green and blue.
_YUV = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_BISTOCHASTIC_STEPS = 10
# Weight of a vertex itself in the [1 2 1] blurs of five dimensions, summed.
CENTRE = 10.0
_MILLION = 1_000_000
_NOWHERE = -(2**62)
# Cells; a table of them takes 4 bytes each.
_LARGEST_TABLE = 2**25


@dataclasses.dataclass(frozen=True)
class BilateralGrid:
    """An image's grid, with V vertices; made by `build_grid`, shared by all targets.

    Attributes:
        shape: (H, W) of the image.
        vertex: (H·W,) int32, the vertex of each pixel.
        pixels: (V,) float64, the number of pixels of each vertex.
        neighbours: (V, V) float32 symmetric CSR matrix, 1 where two vertices are one step apart.
        exact_neighbours: the same in float64.
        scale: (V,) float64, the diagonal of D_n.
        mass: (V,) float64, the diagonal of D_m.
    """

    shape: tuple[int, int]
    vertex: np.ndarray
    pixels: np.ndarray
    neighbours: "csr_array"
    exact_neighbours: "csr_array"
    scale: np.ndarray
    mass: np.ndarray


def build_grid(
    image: np.ndarray,
    sigma_spatial: float = 24.0,
    sigma_luma: float = 4.0,
    sigma_chroma: float = 4.0,
) -> BilateralGrid:
    """The grid of an image, bistochastised.

    Args:
        image: (H, W, 3) RGB or (H, W) grey uint8.
        sigma_spatial: side of a vertex in pixels.
        sigma_luma, sigma_chroma: its extent in grey levels of luma and of either chroma.

    Raises:
        ValueError: an image of another kind, or a sigma that is not positive.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"the bilateral grid cannot take an image of shape {image.shape} and type "
            f"{image.dtype}; pass uint8 of shape (H, W, 3) or (H, W)."
        )
    if not min(sigma_spatial, sigma_luma, sigma_chroma) > 0:
        raise ValueError(
            f"the bandwidths {sigma_spatial}, {sigma_luma}, {sigma_chroma} must all be positive."
        )
    colours, colour_steps = _colour_cells(image, sigma_luma, sigma_chroma)
    tiles, tile_steps = _tile_cells(image.shape[:2], sigma_spatial)
    vertex, pairs = _vertices(tiles, tile_steps, colours, colour_steps)
    indices, starts, vertex = _neighbours(vertex, pairs)
    pixels = np.bincount(vertex, minlength=starts.size - 1).astype(np.float64)
    neighbours, exact_neighbours = _matrices(indices, starts)
    scale, mass = _bistochastic(neighbours, exact_neighbours, pixels)
    return BilateralGrid(
        shape=image.shape[:2],
        vertex=vertex,
        pixels=pixels,
        neighbours=neighbours,
        exact_neighbours=exact_neighbours,
        scale=scale,
        mass=mass,
    )


def _colour_cells(
    image: np.ndarray, sigma_luma: float, sigma_chroma: float
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(H·W,) int64, the three colour coordinates of each pixel as one number, and how much one
    step in each adds to it. A spare cell a dimension keeps steps off the next row."""
    channels = [image[..., channel].astype(np.int32).ravel() for channel in range(3)]
    sigmas = (sigma_luma, sigma_chroma, sigma_chroma)
    cells = []
    for row, sigma, shift in zip(_YUV, sigmas, (0, 128, 128), strict=True):
        red, green, blue = np.rint(row * _MILLION).astype(np.int32)
        # Millionths of a grey level are whole numbers.
        level = red * channels[0]
        level += green * channels[1]
        level += blue * channels[2]
        level += np.int32(shift * _MILLION)
        extent = np.int32(np.clip(round(sigma * _MILLION), 1, np.iinfo(np.int32).max))
        cell = level // extent
        if shift == 0:
            _round_as_published(cell, np.flatnonzero(cell * extent == level), image, sigma)
        cells.append(cell)
    blue, red = (int(cell.max()) + 2 for cell in cells[1:])
    kind = np.int32 if (int(cells[0].max()) + 1) * blue * red < 2**31 else np.int64
    combined = cells[0].astype(kind)
    combined *= blue
    combined += cells[1]
    combined *= red
    combined += cells[2]
    return combined, (blue * red, red, 1)


def _round_as_published(
    luma: np.ndarray, edge: np.ndarray, image: np.ndarray, sigma: float
) -> None:
    """Sets the cells of the pixels `edge`, whose luma is exactly the edge of a cell.

    The published code's floating product lands a hair above or below that edge, and grey images
    have many such pixels. This is the same product, in blocks too small for the linear algebra
    to start threads, which would cost more than it does. (Chroma is shifted by 128, which rounds
    such hairs away.)
    """
    if edge.size:
        colours = np.resize(image.reshape(-1, 3)[edge], (-(-edge.size // 64), 64, 3))
        product = (colours.astype(np.float64) @ _YUV.T)[..., 0].ravel()[: edge.size]
        luma[edge] = (product / sigma).astype(luma.dtype)


def _tile_cells(shape: tuple[int, int], sigma_spatial: float) -> tuple[np.ndarray, tuple[int, int]]:
    """(H·W,) int64, the tile of each pixel, and how much one step down and right adds to it."""
    y, x = ((np.arange(side) / sigma_spatial).astype(np.int64) for side in shape)
    width = int(x[-1]) + 2
    return (y[:, None] * width + x).ravel(), (width, 1)


class _Index:
    """Numbers the distinct ones of many cells: `cells` (n,), and the number of each input in
    `inverse`. As `np.unique`, but in no order, and if the cells are not too many by a table of
    all of them, several times faster than sorting."""

    def __init__(self, cells: np.ndarray):
        size = int(cells.max()) + 1
        self._table = None
        if size > _LARGEST_TABLE:
            self.cells, inverse = np.unique(cells, return_inverse=True)
            self.inverse = inverse.astype(np.int32)
            return
        # The table is never cleared: what it holds for a cell is believed only if that number's
        # cell is the one asked for (Briggs and Torczon, 1993).
        self._table = np.empty(size, np.int32)
        order = np.arange(cells.size, dtype=np.int32)
        if size <= cells.size:
            present = np.zeros(size, bool)
            present[cells] = True
            self.cells = np.flatnonzero(present)
        else:
            self._table[cells] = order
            kept = np.flatnonzero(self._table.take(cells) == order)
            self.cells = cells.take(kept).astype(np.int64)
        self._table[self.cells] = order[: self.cells.size]
        self.inverse = self._table.take(cells)

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the wanted cells are there (places in `wanted`), and their numbers."""
        if self._table is None:
            number = np.searchsorted(self.cells, wanted)
        else:
            number = self._table.take(wanted, mode="clip")
        # Anything out of range becomes some number in range, and fails the comparison.
        number = np.clip(number, 0, self.cells.size - 1)
        here = np.flatnonzero(self.cells.take(number) == wanted)
        return here, number[here]


def _vertices(
    tiles: np.ndarray,
    tile_steps: tuple[int, ...],
    colours: np.ndarray,
    colour_steps: tuple[int, ...],
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The vertex of each pixel (H·W,), and for each dimension the pairs of vertices that one step
    parts. An image has few distinct colours, so that tile and colour's number make a small
    cell number, and steps in colour are found among the colours first."""
    palette = _Index(colours)
    count = palette.cells.size
    cells = tiles * count
    cells += palette.inverse
    index = _Index(cells)
    tile, colour = np.divmod(index.cells, count)
    tile *= count
    pairs = [index.find(index.cells + step * count) for step in tile_steps]
    for step in colour_steps:
        # Where no colour of the image lies, the step leads to a cell that never is.
        shift = np.full(count, _NOWHERE, np.int64)
        here, there = palette.find(palette.cells + step)
        shift[here] = there
        pairs.append(index.find(tile + shift.take(colour)))
    return index.inverse, pairs


def _neighbours(
    vertex: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each vertex's neighbours in turn, where each one's begin (V + 1,), and the vertex of each
    pixel after renumbering.

    Vertices are renumbered by their number of neighbours: rows of one length in turn make
    the sparse product about four times as fast, because the processor foresees their ends.
    """
    number = int(vertex.max()) + 1
    steps = [pair for here, there in pairs for pair in ((here, there), (there, here))]
    lengths = np.zeros(number, np.uint8)
    for here, _ in steps:
        lengths[here] += 1
    order = np.argsort(lengths, kind="stable")
    rank = np.empty(number, np.int32)
    rank[order] = np.arange(number, dtype=np.int32)
    starts = np.zeros(number + 1, np.int32)
    np.cumsum(lengths[order], out=starts[1:])

    indices = np.empty(starts[-1], np.int32)
    free = starts[rank]
    for here, there in steps:
        place = free[here]
        indices[place] = rank[there]
        free[here] = place + 1
    return indices, starts, rank.take(vertex)


def _matrices(indices: np.ndarray, starts: np.ndarray) -> list["csr_array"]:
    from scipy.sparse import csr_array

    shape = (starts.size - 1, starts.size - 1)
    return [
        csr_array((np.ones(indices.size, kind), indices, starts), shape=shape)
        for kind in (np.float32, np.float64)
    ]


def _bistochastic(
    neighbours: "csr_array", exact_neighbours: "csr_array", pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The diagonals n and m with which D_n B D_n keeps constants (paper, algorithm 1)."""
    scale, counts = np.ones(pixels.size, np.float32), pixels.astype(np.float32)
    for _ in range(_BISTOCHASTIC_STEPS):
        blurred = neighbours @ scale
        blurred += np.float32(CENTRE) * scale
        scale *= counts
        scale /= blurred
        np.sqrt(scale, out=scale)
    # m from the last n, not the pixel counts, and in double precision: constants are kept
    # however far the steps have come.
    scale = scale.astype(np.float64)
    return scale, scale * (exact_neighbours @ scale + CENTRE * scale)
