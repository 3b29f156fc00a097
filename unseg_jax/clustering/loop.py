"""The per-image optimisation loop: features in, cluster assignments out, one `lax.scan` an image.

`cluster` is the public function. Under it `cluster_batch` is the pure function of a batch, and
`cluster_graph` that of one graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from unseg_jax.batching import Batching, check_batching, map_batch, map_images
from unseg_jax.clustering import graphs, head, parts
from unseg_jax.clustering.graphs import Graph
from unseg_jax.clustering.optimiser import adamw, descend
from unseg_jax.clustering.probe import check_own_parts
from unseg_jax.method import Method
from unseg_jax.registry import resolve

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Bool, Float, Int, UInt32

Params = dict[str, Any]


class Clustering(NamedTuple):
    """What `cluster` found; leading axes `…` are those of the features.

    Attributes:
        assignments: (…, N, K) float32 soft assignments, rows summing to 1 (zero if padded).
        labels: (…, N) int32, the most likely cluster, in 0..K−1.
        losses: (…, epochs) float32; losses[e] is taken before update e. (…, 0) for baselines.
        params: the optimised parameters of the head, with the same leading axes.
        history: (…, 1 + ⌈epochs / record_every⌉, N) int32 labels at epochs 0, record_every,
            2·record_every, … and at the last one; None unless `record_every` was given.
    """

    assignments: Float[Array, "*b n k"]
    labels: Int[Array, "*b n"]
    losses: Float[Array, "*b e"]
    params: Params
    history: Int[Array, "*b h n"] | None = None


def cluster(
    features: Float[Array, "*b n d"],
    *,
    method: str | Method = "deepcut",
    adjacency: Float[Array, "*b n n"] | None = None,
    node_mask: Bool[Array, "*b n"] | None = None,
    params: Params | None = None,
    num_clusters: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    dropout: float | None = None,
    key: Array | None = None,
    quirks: str | None = None,
    record_every: int = 0,
    grid: tuple[int, int] | None = None,
    batching: Batching | None = None,
    **overrides: Any,
) -> Clustering:
    """Clusters the nodes of one graph, or of each graph of a batch on its own.

    Args:
        features: (N, D) or (B, N, D) node features.
        method: name or `Method`.
        adjacency: (…, N, N) affinity W to use instead of the method's own, symmetric (its
            symmetric part is taken); GNN edges are its positive entries.
        node_mask: (…, N) bool, True for real nodes; None means all.
        params: parameters to start from, with a leading batch axis or without (shared start);
            None draws them from `key`, the same for every image.
        num_clusters, epochs, learning_rate, dropout, quirks: override the method's. `dropout`
            sets every dropout rate of the head.
        key: `jax.random.key` of the initial parameters and of dropout; None is key(0). An image
            gets the same numbers in every batch.
        record_every: also record the labels of a deterministic pass every this many epochs.
        grid: (height, width) of the patch grid; only `spatial_decay` needs it.
        batching: how a batch is taken: "vmap", one program for all graphs at once; "loop", one
            program that takes them in turn; "threads", one call per graph, as many at a time as the
            CPU has cores (under a transformation of JAX, where there is one call, as None). None
            is "threads" on a CPU and "vmap" on accelerators.
        **overrides: other fields of `Method`.

    Returns:
        A `Clustering`. Its assignments come from a deterministic pass with the final parameters;
        with `quirks="code"` from the last training pass, before the last update.

    Example:
        Two groups of nodes:

        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=(20, 8))
        >>> features = np.repeat([[3.0], [-3.0]], 10, axis=0) + noise
        >>> result = cluster(features, method="deepcut", epochs=60)
        >>> labels = np.asarray(result.labels)
        >>> len(set(labels[:10])), len(set(labels[10:])), bool(labels[0] != labels[-1])
        (1, 1, True)
        >>> result.assignments.shape, result.losses.shape
        ((20, 2), (60,))

    Raises:
        ValueError: an unknown method or field, arrays of the wrong shape or without nodes, values
            of real nodes or parameters that are not finite, negative affinities under a loss that
            cannot weigh them, a loss or layer of your own that gives something else than it
            should, or a result that is not finite.
    """
    check_batching(batching)
    method = resolve(
        method,
        epochs=epochs,
        learning_rate=learning_rate,
        dropout=dropout,
        quirks=quirks,
        **overrides,
    )
    if params is not None:
        method = resolve(method, **head.describe_params(params, method))
        in_params = method.num_clusters
        if num_clusters is not None and num_clusters != in_params:
            raise ValueError(
                f"num_clusters={num_clusters}, but params end in {in_params} clusters: "
                "pass one or the other."
            )
    method = resolve(method, num_clusters=num_clusters)
    features = jnp.asarray(features)
    single = features.ndim == 2
    if features.ndim not in (2, 3):
        raise ValueError(f"features have shape {features.shape}; (N, D) or (B, N, D) is needed.")
    if single:
        features = features[None]
        adjacency = None if adjacency is None else jnp.asarray(adjacency)[None]
        node_mask = None if node_mask is None else jnp.asarray(node_mask)[None]
    if 0 in features.shape[1:]:
        raise ValueError(
            f"features have shape {features.shape[1:]}: at least one node with one feature is "
            "needed."
        )
    _check_shape("adjacency", adjacency, (*features.shape[:2], features.shape[1]))
    _check_shape("node_mask", node_mask, features.shape[:2])
    _check_finite("features", features, node_mask)
    _check_finite("adjacency", adjacency, None)
    _check_finite("params", params, None)
    _check_sign(adjacency, method)
    if not isinstance(features, Tracer):
        check_own_parts(method, *features.shape[1:])
    if node_mask is None:
        node_mask = jnp.ones(features.shape[:2], bool)
    key = jax.random.key(0) if key is None else key

    def run(shared, batch):
        params, key = shared
        features, adjacency, node_mask, own = batch
        start = params if own is None else own
        return _cluster_batch(
            features,
            adjacency,
            node_mask,
            start,
            key,
            method=method,
            record_every=record_every,
            grid=grid,
            batching=None if batching == "threads" else batching,
        )

    own, common = (params, None) if has_batch_axis(params) else (None, params)
    result = map_images(run, (common, key), (features, adjacency, node_mask, own), batching)
    _check_result(result, features, method)
    return _first(result) if single else result


_first = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree))


def cluster_batch(
    features: Float[Array, "b n d"],
    adjacency: Float[Array, "b n n"] | None,
    mask: Bool[Array, "b n"],
    params: Params | None,
    key: Array,
    *,
    method: Method,
    record_every: int = 0,
    grid: tuple[int, int] | None = None,
    batching: Batching | None = None,
) -> Clustering:
    """Pure function behind `cluster`: a batch of graphs, each optimised on its own.

    Args:
        features: (B, N, D) float32.
        adjacency: (B, N, N) to use instead of the method's affinity, or None.
        mask: (B, N) bool of real nodes.
        params: start of the heads, shared or with a batch axis; None draws them.
        key: of initial parameters and dropout.
        method: static.
        record_every, grid: see `cluster`, static.
        batching: "vmap" or "loop", static; None as in `unseg_jax.batching.map_batch`.
    """
    if params is None and method.algorithm == "gnn":
        params = head.init_head(init_key(key), method, features.shape[-1])
    in_batch = has_batch_axis(params)

    def one(arrays):
        features, adjacency, mask, own = arrays
        graph = graphs.build_graph(features, method, mask, adjacency=adjacency, grid=grid)
        start = own if in_batch else params
        return cluster_graph(graph, start, key, method=method, record_every=record_every)

    arrays = (features, adjacency, mask, params if in_batch else None)
    return map_batch(one, arrays, batching)


_cluster_batch = jax.jit(
    cluster_batch, static_argnames=("method", "record_every", "grid", "batching")
)


def cluster_graph(
    graph: Graph, params: Params | None, key: Array, *, method: Method, record_every: int = 0
) -> Clustering:
    """Clusters one graph: the loop itself, or the baseline that the method names.

    Args:
        graph: of one image.
        params: parameters to start from; None for baselines.
        key: for dropout, or for the baseline's chance.
        method: static.
        record_every: see `cluster`.
    """
    if method.algorithm != "gnn":
        from unseg_jax.clustering import baselines

        assignments = baselines.ALGORITHMS[method.algorithm](graph, method, key)
        history = jnp.argmax(assignments, -1).astype(jnp.int32)[None] if record_every else None
        return _finish(graph, assignments, jnp.zeros(0, jnp.float32), {}, history)
    assert params is not None
    prepared = head.prepare_head(method, graph)
    objective = make_objective(method, graph, prepared)
    optimiser = make_optimiser(method, params)
    start: Params = jax.tree.map(lambda leaf: _varying_like(leaf, graph.nodes), params)

    def step(carry, seeds):
        params, state, _ = carry
        params, state, loss, assignments = descend(objective, optimiser, params, state, seeds)
        # Only `quirks="code"` reads the assignments of the last training pass.
        return (params, state, assignments if method.quirks == "code" else None), loss

    def predict(params):
        return head.assign(params, prepared, method)

    def label(params):
        return jnp.argmax(predict(params), -1).astype(jnp.int32)

    seeds = dropout_seeds(jax.random.fold_in(key, 1), method, method.epochs)
    kept = predict(start) if method.quirks == "code" else None
    carry = (start, optimiser.init(start), kept)
    history = None
    if record_every:
        rounds = method.epochs // record_every

        def span(carry, seeds):
            carry, span_losses = jax.lax.scan(step, carry, seeds)
            return carry, (span_losses, label(carry[0]))

        first = label(start)
        spans = seeds[: rounds * record_every].reshape(rounds, record_every, seeds.shape[1])
        carry, (span_losses, span_labels) = jax.lax.scan(span, carry, spans)
        carry, rest_losses = jax.lax.scan(step, carry, seeds[rounds * record_every :])
        loss_history = jnp.concatenate([span_losses.reshape(-1), rest_losses])
        history = jnp.concatenate([first[None], span_labels])
        if method.epochs % record_every:
            history = jnp.concatenate([history, label(carry[0])[None]])
    else:
        carry, loss_history = jax.lax.scan(step, carry, seeds)
    params, _, kept = carry
    assignments = kept if method.quirks == "code" else predict(params)
    return _finish(graph, assignments, loss_history, params, history)


def make_objective(method: Method, graph: Graph, prepared: dict[str, Any]):
    """What is minimised on one graph: (params, seeds) → (loss, assignments (N, K)).

    Args:
        method: its head and loss are read.
        graph: one image's.
        prepared: `head.prepare_head` of the graph.
    """
    loss_of = parts.make_loss(method, graph)

    def objective(params, seeds):
        # Without dropout there are no seeds, and the pass is deterministic.
        assignments = head.assign(params, prepared, method, seeds if seeds.size else None)
        return loss_of(assignments), assignments

    return objective


def make_optimiser(method: Method, params: Params) -> optax.GradientTransformation:
    """AdamW with the method's rate and decay, for parameters shaped as the given ones.

    Parameters that the method does not use are not decayed: PyTorch leaves alone what has no
    gradient.

    Args:
        method: its `learning_rate`, `weight_decay` and layer are read.
        params: of its head.
    """
    unused = parts.unused_params(parts.layer_of(method))
    if not unused:
        return adamw(method.learning_rate, method.weight_decay)

    def decay(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        rate = 0.0 if "layers" in names and names[-1] in unused else method.weight_decay
        return jnp.full(jnp.shape(leaf), rate, jnp.float32)

    return adamw(method.learning_rate, jax.tree_util.tree_map_with_path(decay, params))


def key_from_seed(seed: int) -> Array:
    """`jax.random.key` of a seed.

    Raises:
        ValueError: a seed that is not a whole number from 0 to 2⁶³ − 1.
    """
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 2⁶³ − 1.")
    return jax.random.key(seed)


def init_key(key: Array) -> Array:
    """The key that initial parameters are drawn from."""
    return jax.random.fold_in(key, 0)


def dropout_seeds(key: Array, method: Method, *shape: int) -> UInt32[Array, "*shape s"]:
    """Seeds of dropout for a whole run: (*shape, sites) uint32, with sites = 0 without dropout."""
    own = parts.layer_seeds(parts.layer_of(method))
    dropped = method.dropout > 0 or method.layer_dropout > 0 or own > 0
    sites = head.count_seeds(method) if dropped else 0
    shape = (*shape, sites)
    # The same numbers as with the shape given, sooner compiled.
    return jax.random.bits(key, (math.prod(shape),), jnp.uint32).reshape(shape)


def _varying_like(array: Array, other: Array) -> Array:
    """The array as each device's own where the other is, under the caller's `jax.shard_map`.

    Parameters that are known to be the same on all devices would get the sum of the gradients of
    all devices' images.
    """
    axes = _varying_axes(other) - _varying_axes(array)
    return jax.lax.pcast(array, tuple(axes), to="varying") if axes else array


def _varying_axes(array: Array) -> frozenset[str]:
    kind: Any = jax.typeof(array)
    # The name has changed between releases of JAX.
    manual = getattr(kind, "mat", None)
    return frozenset(manual.varying if manual is not None else getattr(kind, "vma", ()))


def _finish(graph, assignments, loss_history, params, history):
    assignments = jnp.where(graph.mask[:, None], assignments, 0.0)
    labels = jnp.argmax(assignments, -1).astype(jnp.int32)
    return Clustering(assignments, labels, loss_history, params, history)


def has_batch_axis(params: Params | None) -> bool:
    """Whether parameters of a head are one set for each image of a batch."""
    return params is not None and params["mlp"][-1]["bias"].ndim == 2


def _check_finite(name, arrays, mask):
    count = _count_not_finite(arrays, mask)
    if count:
        raise ValueError(
            f"{name} hold {count} values that are not finite numbers; check the weights that they "
            "come from, or mask those nodes by node_mask."
        )


def _count_not_finite(arrays, mask=None):
    """Of arrays that have values: under `jax.jit` and its like there is nothing to look at."""
    given = jax.tree.leaves((arrays, mask))
    traced = any(isinstance(array, Tracer) for array in given)
    return 0 if traced or not given else int(_sum_not_finite(arrays, mask))


@jax.jit
def _sum_not_finite(arrays, mask):
    wrong = [~jnp.isfinite(array) for array in jax.tree.leaves(arrays)]
    if mask is not None:
        wrong = [array & mask.astype(bool)[..., None] for array in wrong]
    return sum(array.sum() for array in wrong)


def _check_sign(adjacency, method):
    """Cuts and modularity divide by sums of affinities, which may vanish if some are negative.

    What a custom loss can weigh is not known."""
    if method.algorithm != "gnn" or method.loss == "cc" or not isinstance(method.loss, str):
        return
    if adjacency is not None and not isinstance(adjacency, Tracer) and jnp.any(adjacency < 0):
        raise ValueError(
            f"adjacency has negative entries (down to {float(jnp.min(adjacency)):.3g}), which "
            f"loss='{method.loss}' cannot weigh: take loss='cc', or cut them off at 0."
        )


def _check_result(result, features, method):
    """Finite inputs may still overflow: features of 1e30 have no finite squares in float32."""
    if _count_not_finite((result.assignments, result.losses)):
        largest = float(jnp.max(jnp.abs(features)))
        suspects = f", or look at {parts.describe(method)}" if method.own_parts else ""
        raise ValueError(
            f"the optimisation left the range of float32 (the largest feature is {largest:.3g}): "
            f"scale the features, or lower learning_rate{suspects}."
        )


def _check_shape(name, array, shape):
    if array is not None and jnp.shape(array) != shape:
        raise ValueError(f"{name} has shape {jnp.shape(array)}; these features need {shape}.")
