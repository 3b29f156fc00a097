"""Dense graph layers: GCN, GAT and ARMA, each an `init_…`, a pure function of its parameters, and
both as a `unseg_jax.GraphLayer`.

All take the nodes of one graph, (N, D); `jax.vmap` adds a batch. What does not change while a
head is optimised (Â, Â·X, L̂·X, edge features) is computed once by `prepare`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from unseg_jax.clustering import graphs
from unseg_jax.clustering.graphs import Graph
from unseg_jax.clustering.products import fixed_product, product, propagate

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt32

Params = dict[str, Any]


@jax.custom_vjp
def elu(x: Array) -> Array:
    """x where positive, else eˣ − 1, of any shape (Clevert et al., ICLR 2016).

    `jax.nn.elu` takes `expm1`, which costs a GCN 8 % of its epoch on a CPU. The error of eˣ − 1,
    about 1e-7, is that of the products around it.

    Example:
        >>> elu(jnp.array([2.0, 0.0])).tolist()
        [2.0, 0.0]
    """
    return jnp.maximum(x, 0) + (jnp.exp(jnp.minimum(x, 0)) - 1)


def _elu_forward(x):
    out = elu(x)
    return out, out


elu.defvjp(_elu_forward, lambda out, cotangent: (cotangent * (jnp.minimum(out, 0) + 1),))


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "elu": elu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}

_LEAKY_SLOPE = 0.2


def dropout(x: Array, rate: float, seed: UInt32[Array, ""] | None) -> Array:
    """Zeroes each entry with probability `rate` and scales the rest by 1/(1 − rate).

    Args:
        x: any shape.
        rate: in [0, 1), to the nearest 2⁻³².
        seed: () uint32; None leaves x as it is. Which entries are dropped depends on the seed
            and on their position in row-major order alone, so rows of padding at the end of an
            array change nothing.

    Example:
        >>> kept = dropout(jnp.ones((1000, 10)), 0.5, jnp.uint32(7))
        >>> sorted(set(kept.ravel().tolist())), round(float(kept.mean()), 1)
        ([0.0, 2.0], 1.0)
    """
    if seed is None or rate == 0:
        return x
    kept = random_bits(seed, x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(kept, x * (1 / (1 - rate)), 0.0)


def random_bits(seed: UInt32[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, ...]:
    """Uniform 32-bit numbers: a counter hashed with MurmurHash3's finaliser, keyed by the seed.

    Threefry would cost more than the layers that it feeds: this is a handful of integer
    operations, which XLA fuses into the operation that uses them. Good enough for dropout; seeds
    come from `jax.random`.
    """
    counter = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        counter += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    bits = counter * jnp.uint32(0x9E3779B1) + seed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)


# ---------------------------------------------------------------- linear


def init_linear(key: Array, inputs: int, outputs: int) -> Params:
    """PyTorch's default for `Linear`: weights and biases uniform in ±1/√inputs."""
    weight_key, bias_key = jax.random.split(key)
    limit = inputs**-0.5
    return {
        "kernel": _uniform(weight_key, (inputs, outputs), limit),
        "bias": _uniform(bias_key, (outputs,), limit),
    }


def linear(params: Params, x: Float[Array, "n d"]) -> Float[Array, "n f"]:
    """x · kernel + bias; kernel (D, F), bias (F,).

    Example:
        >>> params = init_linear(jax.random.key(0), 3, 2)
        >>> linear(params, jnp.zeros((4, 3))).shape
        (4, 2)
    """
    return product(x, params["kernel"]) + params["bias"]


# ---------------------------------------------------------------- GCN


def init_gcn(key: Array, inputs: int, outputs: int) -> Params:
    """kernel (D, F), Glorot uniform; bias (F,), zero."""
    return {"kernel": _glorot(key, (inputs, outputs)), "bias": jnp.zeros(outputs, jnp.float32)}


def gcn(
    params: Params,
    x: Float[Array, "n d"],
    propagation: Float[Array, "n n"] | None = None,
) -> Float[Array, "n f"]:
    """Graph convolution Â X W + b (Kipf and Welling, ICLR 2017, Eq. 2), no activation.

    Args:
        params: from `init_gcn`.
        x: (N, D) nodes, or ÂX where that is known already.
        propagation: (N, N) Â, symmetric, from `graphs.gcn_propagation`; None where x is ÂX.

    Example:
        >>> params = init_gcn(jax.random.key(0), 3, 2)
        >>> x, propagation = jnp.ones((4, 3)), jnp.full((4, 4), 0.25)
        >>> bool(jnp.allclose(gcn(params, x, propagation), gcn(params, propagation @ x)))
        True
    """
    kernel = params["kernel"]
    if propagation is None:
        return fixed_product(x, kernel) + params["bias"]
    if kernel.shape[0] <= kernel.shape[1]:
        return product(propagate(propagation, x), kernel) + params["bias"]
    return propagate(propagation, product(x, kernel)) + params["bias"]


@dataclasses.dataclass(frozen=True)
class GCN:
    """`gcn` as a `GraphLayer`; layer="gcn" is one with the fields of the `Method`.

    Attributes:
        normalise: see `unseg_jax.graphs.gcn_propagation`.
    """

    normalise: bool = True

    def init(self, key: Array, inputs: int, outputs: int) -> Params:
        return init_gcn(key, inputs, outputs)

    def prepare(self, graph: Graph) -> tuple[Array, Array]:
        """Â and ÂX, with which the first layer costs N·D·F products an epoch instead of N²·F."""
        propagation = graphs.gcn_propagation(graph.adjacency, graph.mask, normalise=self.normalise)
        return propagation, propagation @ graph.nodes

    def apply(self, params: Params, x: Array, prepared: tuple[Array, Array]) -> Array:
        return gcn(params, x, prepared[0])

    def apply_first(self, params: Params, prepared: tuple[Array, Array]) -> Array:
        return gcn(params, prepared[1])


# ---------------------------------------------------------------- GAT


def init_gat(key: Array, inputs: int, outputs: int, heads: int = 1) -> Params:
    """Parameters of `gat` for `heads` concatenated heads of outputs/heads features each.

    kernel (D, F); edge_kernel (F,), of the 1-d edge feature; source, target and edge attention
    vectors (heads, F/heads); all Glorot uniform; bias (F,), zero.

    Raises:
        ValueError: heads do not divide outputs.

    Example:
        >>> init_gat(jax.random.key(0), 3, 4, heads=2)["source"].shape
        (2, 2)
    """
    if outputs % heads:
        raise ValueError(f"{heads} heads do not divide a layer of {outputs} features.")
    keys = jax.random.split(key, 5)
    head = (heads, outputs // heads)
    return {
        "kernel": _glorot(keys[0], (inputs, outputs)),
        "edge_kernel": _glorot(keys[1], (1, outputs))[0],
        "source": _glorot(keys[2], head),
        "target": _glorot(keys[3], head),
        "edge": _glorot(keys[4], head),
        "bias": jnp.zeros(outputs, jnp.float32),
    }


def gat(
    params: Params,
    x: Float[Array, "n d"],
    edges: Float[Array, "n n"] | None,
    neighbours: Bool[Array, "n n"],
    *,
    rate: float = 0.0,
    seed: UInt32[Array, ""] | None = None,
) -> Float[Array, "n f"]:
    """Graph attention with 1-d edge features (Veličković et al., ICLR 2018, Eqs. 3 to 6).

    e_ij = LeakyReLU_0.2(a_s·Wx_j + a_t·Wx_i + a_e·W_e w_ij), softmax over the edges into i; heads
    are concatenated; no activation. The logits are a rank-one sum plus a multiple of the edge
    feature, so nothing larger than N×N is made.

    Args:
        params: from `init_gat`.
        x: (N, D) nodes.
        edges, neighbours: from `graphs.gat_edges`; without edge features edges is None.
        rate, seed: dropout of the attention weights.

    Example:
        >>> params = init_gat(jax.random.key(0), 3, 4, heads=2)
        >>> x, neighbours = jnp.eye(3), jnp.eye(3, dtype=bool)
        >>> out = gat(params, x, None, neighbours)  # each node sees itself alone
        >>> bool(jnp.allclose(out, x @ params["kernel"] + params["bias"], atol=1e-6))
        True
    """
    hidden = x @ params["kernel"]
    heads, width = params["source"].shape
    parts = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        values = hidden[:, part]
        slope = params["edge"][head] @ params["edge_kernel"][part]
        attention = _attention(
            values @ params["target"][head],
            values @ params["source"][head],
            slope,
            edges,
            neighbours,
        )
        if seed is not None:
            attention = dropout(attention, rate, seed + jnp.uint32(head * 0x632BE5AB & 0xFFFFFFFF))
        parts.append(attention @ values)
    out = parts[0] if heads == 1 else jnp.concatenate(parts, axis=-1)
    return out + params["bias"]


@dataclasses.dataclass(frozen=True)
class GAT:
    """`gat` as a `GraphLayer`; layer="gat" is one with the fields of the `Method`.

    Attributes:
        heads: concatenated attention heads.
        edge_features: whether the affinities are read as features of the edges.
        dropout: rate of the attention weights.
    """

    heads: int = 1
    edge_features: bool = True
    dropout: float = 0.0

    @property
    def seeds(self) -> int:
        return int(self.dropout > 0)

    @property
    def unused(self) -> tuple[str, ...]:
        return () if self.edge_features else ("edge", "edge_kernel")

    def init(self, key: Array, inputs: int, outputs: int) -> Params:
        return init_gat(key, inputs, outputs, self.heads)

    def prepare(self, graph: Graph) -> tuple[Array | None, Array]:
        edges, neighbours = graphs.gat_edges(graph.adjacency)
        return edges if self.edge_features else None, neighbours

    def apply(
        self,
        params: Params,
        x: Array,
        prepared: tuple[Array | None, Array],
        seeds: Array | None = None,
    ) -> Array:
        seed = None if seeds is None else seeds[0]
        return gat(params, x, *prepared, rate=self.dropout, seed=seed)


def _attention(target, source, slope, edges, neighbours):
    logits = target[:, None] + source[None, :]
    if edges is not None:
        logits += slope * edges
    logits = jnp.where(logits >= 0, logits, _LEAKY_SLOPE * logits)
    logits = jnp.where(neighbours, logits, -jnp.inf)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - top)
    return weights / weights.sum(-1, keepdims=True)


# ---------------------------------------------------------------- ARMA


def init_arma(
    key: Array, inputs: int, outputs: int, *, stacks: int = 1, layers: int = 1, shared: bool = False
) -> Params:
    """Parameters of `arma`.

    initial (S, D, F); recurrent (T − 1, S, F, F), or (1, S, F, F) if shared; root (T, S, D, F)
    and bias (T, S, F), or T = 1 if shared. Glorot uniform; biases zero.
    """
    initial, recurrent, root = jax.random.split(key, 3)
    own = 1 if shared else layers
    later = min(1, layers - 1) if shared else layers - 1
    return {
        "initial": _glorot(initial, (stacks, inputs, outputs)),
        "recurrent": _glorot(recurrent, (later, stacks, outputs, outputs)),
        "root": _glorot(root, (own, stacks, inputs, outputs)),
        "bias": jnp.zeros((own, stacks, outputs), jnp.float32),
    }


def arma(
    params: Params,
    x: Float[Array, "n d"],
    propagated: Float[Array, "n d"],
    propagation: Float[Array, "n n"],
    *,
    layers: int,
    activation: str,
    rate: float = 0.0,
    seeds: UInt32[Array, " t"] | None = None,
) -> Float[Array, "n f"]:
    """ARMA graph convolution (Bianchi et al., GNNs with convolutional ARMA filters, Eq. 11).

    In each of S stacks X_{t+1} = act(L̂ X_t W_t + dropout(x) V_t + b_t); the output is the mean of
    the stacks.

    Args:
        params: from `init_arma`.
        x: (N, D) nodes; propagated: (N, D) L̂x, known beforehand.
        propagation: (N, N) L̂, symmetric, from `graphs.arma_propagation`.
        layers: T.
        activation: name of the activation after each layer.
        rate, seeds: dropout of the root term, one seed a layer.

    Example:
        >>> params = init_arma(jax.random.key(0), 3, 2, stacks=2)
        >>> x, propagation = jnp.ones((4, 3)), jnp.full((4, 4), 0.25)
        >>> arma(params, x, propagation @ x, propagation, layers=1, activation="relu").shape
        (4, 2)
    """
    act = ACTIVATIONS[activation]
    stacks, inputs, width = params["initial"].shape
    nodes = x.shape[0]
    own = params["root"].shape[0]
    if seeds is None or rate == 0:
        # All root terms have the same left side: one product for all layers and stacks.
        kernels = params["root"].transpose(2, 0, 1, 3).reshape(inputs, own * stacks * width)
        roots = fixed_product(x, kernels).reshape(nodes, own, stacks * width)
        terms = [roots[:, t % own] for t in range(layers)]
    else:
        kernels = params["root"].transpose(0, 2, 1, 3).reshape(own, inputs, stacks * width)
        terms = [product(dropout(x, rate, seeds[t]), kernels[t % own]) for t in range(layers)]
    biases = params["bias"].reshape(own, stacks * width)
    first = params["initial"].transpose(1, 0, 2).reshape(inputs, stacks * width)
    out = act(fixed_product(propagated, first) + terms[0] + biases[0])
    for t in range(1, layers):
        kernel = params["recurrent"][(t - 1) % params["recurrent"].shape[0]]
        # One product with the stacks' kernels along a diagonal: S times the operations of S small
        # ones, but no transposed copies, and still few beside those of L̂.
        mixed = product(out, jax.scipy.linalg.block_diag(*kernel))
        out = act(propagate(propagation, mixed) + terms[t] + biases[t % own])
    return out.reshape(nodes, stacks, width).mean(1)


@dataclasses.dataclass(frozen=True)
class ARMA:
    """`arma` as a `GraphLayer`; layer="arma" is one with the fields of the `Method`.

    Attributes:
        stacks, layers, shared: see `init_arma`.
        activation: name of the activation after each layer.
        dropout: rate of the root term.
    """

    stacks: int = 1
    layers: int = 1
    shared: bool = False
    activation: str = "relu"
    dropout: float = 0.0
    activated: ClassVar[bool] = True

    @property
    def seeds(self) -> int:
        return self.layers if self.dropout else 0

    def init(self, key: Array, inputs: int, outputs: int) -> Params:
        sizes = {"stacks": self.stacks, "layers": self.layers, "shared": self.shared}
        return init_arma(key, inputs, outputs, **sizes)

    def prepare(self, graph: Graph) -> tuple[Array, Array, Array]:
        """L̂, L̂X and X."""
        propagation = graphs.arma_propagation(graph.adjacency)
        return propagation, propagation @ graph.nodes, graph.nodes

    def apply(
        self, params: Params, x: Array, prepared: tuple[Array, ...], seeds: Array | None = None
    ) -> Array:
        return self._apply(params, x, propagate(prepared[0], x), prepared[0], seeds)

    def apply_first(
        self, params: Params, prepared: tuple[Array, ...], seeds: Array | None = None
    ) -> Array:
        propagation, propagated, x = prepared
        return self._apply(params, x, propagated, propagation, seeds)

    def _apply(self, params, x, propagated, propagation, seeds):
        facts = {"layers": self.layers, "activation": self.activation, "rate": self.dropout}
        return arma(params, x, propagated, propagation, **facts, seeds=seeds)


def _glorot(key, shape):
    """Uniform in ±√(6/(inputs + outputs)), the last two axes being inputs and outputs."""
    return _uniform(key, shape, (6 / (shape[-2] + shape[-1])) ** 0.5)


def _uniform(key, shape, limit):
    """Uniform in ±limit; float32 also where JAX_ENABLE_X64 makes float64 the default."""
    # The same numbers as with the shape given, which takes up to three times as long to compile.
    flat = jax.random.uniform(key, (math.prod(shape),), jnp.float32, -limit, limit)
    return flat.reshape(shape)
