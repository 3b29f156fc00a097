"""What graph neural networks are compared with: k-means and spectral methods.

Each is a pure function `(graph, method, key) -> assignments`, jit- and vmap-able with `method`
static; `ALGORITHMS` names them. Assignments are hard: (N, K) float32 rows with a single one, or
zeros where padded. `method.num_clusters` is K and must be the same for a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from unseg_jax.clustering.eigenvectors import spectral_embedding
from unseg_jax.clustering.graphs import Graph, normalise_rows
from unseg_jax.method import Method

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# TokenCut's weight of two patches that are not alike.
_TOKENCUT_STEPS = 64
_EPSILON = 1e-5
# Region graphs of natural images all but fall apart (affinities down to 1e-200), which makes
# their second eigenvector meaningless in any floating point; see `spectral_embedding`.
_SMOOTHING = 1e-3
_SPLITS = 32


def kmeans(
    features: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    num_clusters: int,
    key: Array,
    iterations: int = 30,
    restarts: int = 4,
) -> Float[Array, "n k"]:
    """Lloyd's algorithm from k-means++ starts; the best of several restarts.

    Args:
        features: (N, D) float32.
        mask: (N,) bool of real nodes.
        num_clusters: K. With fewer distinct rows than K some clusters may stay empty.
        key: of the starts.
        iterations: updates of the centres in each restart.
        restarts: the one with the least sum of squared distances is kept.

    Returns:
        (N, K) float32 one-hot rows; zero where padded.
    """
    features = features.astype(jnp.float32)
    real = mask.astype(jnp.float32)[:, None]
    # Distances do not depend on the origin, and small numbers lose less in ‖x‖² − 2x·c + ‖c‖².
    features = real * (features - jnp.sum(real * features, 0) / jnp.maximum(real.sum(), 1.0))
    squares = jnp.sum(jnp.square(features), -1)

    def distances(centres):
        products = jnp.matmul(features, centres.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(squares[:, None] - 2 * products + jnp.sum(centres**2, -1), 0.0)

    def members(centres):
        nearest = jnp.argmin(distances(centres), -1)
        return jax.nn.one_hot(nearest, num_clusters, dtype=jnp.float32) * real

    def update(_, centres):
        chosen = members(centres)
        sizes = chosen.sum(0)[:, None]
        means = jnp.matmul(chosen.T, features, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(sizes > 0, means / jnp.maximum(sizes, 1.0), centres)

    def run(key):
        centres = _spread_centres(features, squares, mask, num_clusters, key)
        centres = jax.lax.fori_loop(0, iterations, update, centres)
        return members(centres), jnp.sum(mask * distances(centres).min(-1))

    assignments, inertia = jax.vmap(run)(jax.random.split(key, restarts))
    return assignments[jnp.argmin(inertia)]


def _spread_centres(features, squares, mask, num_clusters, key):
    """k-means++: each next centre is drawn with a chance proportional to its squared distance."""
    keys = jax.random.split(key, num_clusters)
    uniform = jnp.where(mask, jnp.float32(0), -jnp.inf)
    uniform = jnp.where(mask.any(), uniform, 0.0)
    first = features[jax.random.categorical(keys[0], uniform)]
    centres = jnp.broadcast_to(first, (num_clusters, features.shape[1]))

    def place(index, centres_and_nearest):
        centres, nearest = centres_and_nearest
        # Distances are differences of large numbers: below this they are rounding.
        nearest = jnp.where(nearest > 1e-6 * squares.max(), nearest, 0.0)
        chance = jnp.where(nearest.any(), jnp.log(nearest) + uniform, uniform)
        centre = features[jax.random.categorical(keys[index], chance)]
        distance = jnp.sum(jnp.square(features - centre), -1)
        return centres.at[index].set(centre), jnp.minimum(nearest, distance)

    nearest = jnp.sum(jnp.square(features - first), -1)
    return jax.lax.fori_loop(1, num_clusters, place, (centres, nearest))[0]


def vit_kmeans(graph: Graph, method: Method, key: Array) -> Float[Array, "n k"]:
    """k-means on the node features themselves (the seeds' ViT-KMeans)."""
    return kmeans(graph.nodes, graph.mask, method.num_clusters, key)


def deep_spectral(graph: Graph, method: Method, key: Array) -> Float[Array, "n k"]:
    """Deep Spectral Methods (Melas-Kyriazi et al., CVPR 2022).

    K = 2: the second eigenvector of the normalised Laplacian, cut at 0. K > 2: k-means on the
    K − 1 eigenvectors after the first. The border vote decides which side is the object.

    Args:
        graph: its adjacency is the affinity, max(0, FFᵀ) for the method of this name.
        method: its `num_clusters` is read.
        key: of the start of the iteration, and of k-means.
    """
    vectors = spectral_embedding(graph.adjacency, graph.mask, method.num_clusters - 1, key)
    if method.num_clusters == 2:
        return _one_hot(vectors[:, 0] > 0, 2, graph.mask)
    return _by_kmeans(vectors, graph.mask, method.num_clusters, key)


def tokencut(graph: Graph, method: Method, key: Array) -> Float[Array, "n k"]:
    """TokenCut (Wang et al., CVPR 2022, Eqs. 3–6). Cluster 1 is the object.

    Patches whose cosine is above τ are joined by 1, others by 1e-5; the second generalised
    eigenvector is cut at its mean; the object is the side of its largest absolute value.
    """
    mask = graph.mask
    unit = normalise_rows(graph.nodes)
    cosines = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
    joined = jnp.where(cosines > method.tau, jnp.float32(1), _EPSILON)
    adjacency = jnp.where(mask[:, None] & mask, joined, 0.0)
    # Graphs that all but fall apart have several eigenvalues near the second one.
    vector = spectral_embedding(adjacency, mask, 1, key, steps=_TOKENCUT_STEPS)[:, 0]
    above = vector > jnp.sum(vector) / jnp.maximum(mask.sum(), 1)
    seed = jnp.argmax(jnp.where(mask, jnp.abs(vector), -1.0))
    return _one_hot(above == above[seed], 2, mask)


def spectral_ncut(graph: Graph, method: Method, key: Array) -> Float[Array, "n k"]:
    """Normalised cuts on the graph as it is (Shi and Malik, PAMI 2000).

    K = 2: of evenly spaced splitting points of the second generalised eigenvector, the one with
    the least normalised cut. K > 2: k-means on the K − 1 eigenvectors after the first.
    """
    mask = graph.mask
    count = method.num_clusters - 1
    vectors = spectral_embedding(
        graph.adjacency, mask, count, key, smoothing=_SMOOTHING, inverse=True
    )
    if method.num_clusters == 2:
        return _one_hot(_best_split(vectors[:, 0], graph.adjacency, mask), 2, mask)
    return _by_kmeans(vectors, mask, method.num_clusters, key)


def _best_split(values, adjacency, mask) -> Int[Array, " n"]:
    """Of evenly spaced thresholds of the values, the side of that with the least Ncut."""
    weights = jnp.maximum(adjacency, 0.0)
    least = jnp.min(jnp.where(mask, values, jnp.inf))
    most = jnp.max(jnp.where(mask, values, -jnp.inf))
    thresholds = least + (most - least) * jnp.linspace(0, 1, _SPLITS + 2, dtype=jnp.float32)[1:-1]
    sides = ((values[:, None] > thresholds) & mask[:, None]).astype(jnp.float32)
    degrees = weights.sum(-1)
    inside = jnp.sum(sides * jnp.matmul(weights, sides, precision=jax.lax.Precision.HIGHEST), 0)
    volume, total = degrees @ sides, degrees.sum()
    cut = jnp.maximum(volume - inside, 0.0)
    ratio = cut / jnp.maximum(volume, 1e-30) + cut / jnp.maximum(total - volume, 1e-30)
    halves = (volume > 0) & (volume < total)
    return sides[:, jnp.argmin(jnp.where(halves, ratio, jnp.inf))].astype(jnp.int32)


def _by_kmeans(vectors, mask, num_clusters, key):
    if num_clusters == 1:
        return _one_hot(jnp.zeros(len(mask), jnp.int32), 1, mask)
    return kmeans(vectors, mask, num_clusters, key)


def _one_hot(labels, num_clusters, mask):
    chosen = jax.nn.one_hot(labels.astype(jnp.int32), num_clusters, dtype=jnp.float32)
    return jnp.where(mask[:, None], chosen, 0.0)


ALGORITHMS: Mapping[str, Callable[[Graph, Method, Array], Array]] = MappingProxyType(
    {
        "kmeans": vit_kmeans,
        "deep-spectral": deep_spectral,
        "tokencut": tokencut,
        "spectral-ncut": spectral_ncut,
    }
)
"""`Method.algorithm` → function, for all that is not a graph neural network."""
