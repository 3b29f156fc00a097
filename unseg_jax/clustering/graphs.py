"""The patch graph: affinities between features, normalisations, and the `Graph` they make.

Graphs are dense and padded: every image of a bucket has the same number of nodes N, and `mask`
says which of them are real. A masked graph gives what the compacted graph gives.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

_TINY = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph over the patches (or superpixels, or pixels) of one image, or a batch of them.

    Attributes:
        nodes: (..., N, D) float32 node features; rows of padded nodes are zero.
        adjacency: (..., N, N) float32 symmetric affinity W. It may be signed (correlation
            clustering); the edges that a graph neural network sees are its positive entries.
            Rows and columns of padded nodes are zero.
        mask: (..., N) bool, True for real nodes.
    """

    nodes: Float[Array, "*b n d"]
    adjacency: Float[Array, "*b n n"]
    mask: Bool[Array, "*b n"]


def build_graph(
    features: Float[Array, "n d"],
    method: Method,
    mask: Bool[Array, " n"] | None = None,
    *,
    adjacency: Float[Array, "n n"] | None = None,
    grid: tuple[int, int] | None = None,
) -> Graph:
    """The graph of one image.

    Args:
        features: (N, D) node features.
        method: its `affinity`, `tau`, `alpha`, `neighbours` and `spatial_decay` are read.
        mask: (N,) bool of real nodes; None means all.
        adjacency: (N, N) to use instead of the method's affinity. Its symmetric part is taken,
            which is all that the losses depend on.
        grid: (height, width) of the patch grid; needed for `spatial_decay`.
    """
    features = features.astype(jnp.float32)
    if mask is None:
        mask = jnp.ones(features.shape[0], bool)
    features = jnp.where(mask[:, None], features, 0.0)
    if adjacency is None:
        adjacency = affinity(features, method, mask, grid=grid)
    else:
        adjacency = adjacency.astype(jnp.float32)
        adjacency = jnp.where(_pairs(mask), 0.5 * (adjacency + adjacency.T), 0.0)
    return Graph(features, adjacency, mask)


def affinity(
    features: Float[Array, "n d"],
    method: Method,
    mask: Bool[Array, " n"] | None = None,
    *,
    grid: tuple[int, int] | None = None,
) -> Float[Array, "n n"]:
    """The affinity W of a method, (N, N) float32, zero in padded rows and columns.

    * "ncut": FFᵀ · (FFᵀ > τ) / max FFᵀ, with τ = 0 max(0, FFᵀ) / max FFᵀ (DeepCut, Eq. 7).
    * "cc": FFᵀ − max FFᵀ / α, signed (DeepCut, Eq. 9).
    * "dmon": 1 where cos(f_i, f_j) ≥ τ, else 0 (UnSegGNet).
    * "cosine": cos · (cos ≥ τ), divided by its maximum (UnSegMedGAT, Eq. 1).

    Args:
        features: (N, D) node features.
        method: its `affinity`, `tau`, `alpha`, `neighbours` and `spatial_decay` are read.
        mask: (N,) bool of real nodes; None means all.
        grid: (height, width) of the patch grid; needed for `spatial_decay`.

    Example:
        >>> from unseg_jax.registry import resolve
        >>> features = jnp.array([[2.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
        >>> affinity(features, resolve("unseggnet", tau=0.5)).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 1]]

    Raises:
        ValueError: "colour", which is not a function of the features: see
            `unseg_jax.clustering.superpixels`; or `spatial_decay` without a grid.
    """
    if mask is None:
        mask = jnp.ones(features.shape[0], bool)
    pairs = _pairs(mask)
    kind, tau = method.affinity, method.tau
    if kind == "colour":
        raise ValueError(
            "affinity='colour' compares superpixels or pixels, not features: pass adjacency, or "
            "take another affinity."
        )
    if kind in ("dmon", "cosine"):
        features = normalise_rows(features)
    # Thresholds cut this product, so it is computed in full float32 on every device.
    gram = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    gram = jnp.where(pairs, gram, 0.0)
    if kind == "dmon":
        weights = (pairs & (gram >= tau)).astype(jnp.float32)
    elif kind == "cc":
        top = jnp.max(jnp.where(pairs, gram, -jnp.inf))
        weights = jnp.where(pairs, gram - top / method.alpha, 0.0)
    else:
        kept = gram > tau if kind == "ncut" else gram >= tau
        weights = jnp.where(kept, gram, 0.0)
        weights = weights / jnp.maximum(jnp.max(weights), _TINY)
    if method.spatial_decay > 0:
        if grid is None:
            raise ValueError("spatial_decay needs the patch grid: pass grid=(height, width).")
        weights = weights * spatial_decay(grid, method.spatial_decay)
    if method.neighbours > 0:
        weights = nearest_neighbours(weights, method.neighbours, mask)
    return weights


def normalise_rows(features: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows of length 1, so that their products are cosines; rows of zeros stay zero.

    Example:
        >>> normalise_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), _TINY)


def spatial_decay(grid: tuple[int, int], deviation: float) -> Float[Array, "n n"]:
    """exp(−d² / 2σ²) for the distance d, in patches, of every two patches of a grid, (N, N)."""
    rows, columns = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return jnp.exp(-squared.astype(jnp.float32) / (2 * deviation**2))


def nearest_neighbours(
    weights: Float[Array, "n n"], count: int, mask: Bool[Array, " n"] | None = None
) -> Float[Array, "n n"]:
    """Keeps each node's `count` largest affinities (except to itself), made symmetric.

    Entries equal to the smallest one kept are kept too. The diagonal stays as it is.

    Args:
        weights: (N, N) symmetric affinities.
        count: neighbours per node, at least 0.
        mask: (N,) bool of real nodes; None means all.
    """
    own = jnp.eye(weights.shape[0], dtype=bool)
    count = min(count, weights.shape[0] - 1)
    if count == 0:
        return jnp.where(own, weights, 0.0)
    # Padding must not count as a neighbour: its zero is larger than a negative affinity.
    barred = own if mask is None else own | ~_pairs(mask)
    others = jnp.where(barred, -jnp.inf, weights)
    least = jax.lax.top_k(others, count)[0][:, -1:]
    kept = others >= least
    return jnp.where(kept | kept.T | own, weights, 0.0)


def gcn_propagation(
    adjacency: Float[Array, "n n"], mask: Bool[Array, " n"], *, normalise: bool = True
) -> Float[Array, "n n"]:
    """Â = D^−½ A D^−½ with D the row sums of A (Kipf and Welling, ICLR 2017, Eq. 2).

    A holds the positive entries of W and, where the diagonal has none, self-loops of weight 1.
    With `normalise=False` the positive entries alone, without self-loops.

    Args:
        adjacency: W, (N, N) float32, symmetric.
        mask: (N,) bool of real nodes; only they get self-loops.
        normalise: whether to add self-loops and divide by degrees.

    Example:
        >>> linked = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> gcn_propagation(linked, jnp.array([True, True])).round(3).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    edges = jnp.maximum(adjacency, 0.0)
    if not normalise:
        return edges
    diagonal = jnp.diagonal(edges)
    loops = (mask & (diagonal <= 0)).astype(jnp.float32)
    return _symmetric_normalised(edges + jnp.diag(loops))


def arma_propagation(adjacency: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L̂ = D^−½ A D^−½ without added self-loops; isolated nodes get rows of zeros
    (Bianchi et al., Graph neural networks with convolutional ARMA filters, Eq. 10)."""
    return _symmetric_normalised(jnp.maximum(adjacency, 0.0))


def gat_edges(
    adjacency: Float[Array, "n n"],
) -> tuple[Float[Array, "n n"], Bool[Array, "n n"]]:
    """Edge features and the mask of edges for graph attention.

    Self-loops are replaced: each node's has the mean of its incoming edge features as its own
    (0 for an isolated node), as PyG does with `fill_value="mean"`.

    Returns:
        (N, N) float32 edge features, row i holding those of the edges into i; (N, N) bool.
    """
    own = jnp.eye(adjacency.shape[0], dtype=bool)
    weights = jnp.where(own, 0.0, jnp.maximum(adjacency, 0.0))
    edges = weights > 0
    mean = weights.sum(1) / jnp.maximum(edges.sum(1), 1)
    return jnp.where(own, mean[:, None], weights), edges | own


def _symmetric_normalised(weights):
    degrees = weights.sum(-1)
    scale = jnp.where(degrees > 0, jax.lax.rsqrt(jnp.where(degrees > 0, degrees, 1.0)), 0.0)
    return scale[:, None] * weights * scale


def _pairs(mask):
    return mask[:, None] & mask[None, :]
