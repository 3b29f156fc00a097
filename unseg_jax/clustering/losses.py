"""Unsupervised graph losses of a soft assignment S (N, K): normalised cut, correlation clustering,
modularity.

None of them builds an N×N product: Tr(SᵀWS) is the sum of S ∘ (WS), the degree matrix is a
vector, and the modularity's ddᵀ has rank one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

_TINY = 1e-12


@jax.custom_vjp
def within(assignments: Float[Array, "n k"], adjacency: Float[Array, "n n"]) -> Float[Array, ""]:
    """Tr(SᵀWS) of a symmetric W: the affinity that stays within clusters.

    Its gradient in S is 2WS, for which the product of the forward pass is kept; plain automatic
    differentiation would read W a second time.
    """
    return jnp.sum(assignments * (adjacency @ assignments))


def _within_forward(assignments, adjacency):
    product = adjacency @ assignments
    return jnp.sum(assignments * product), (assignments, product)


def _within_backward(saved, cotangent):
    assignments, product = saved
    return 2 * cotangent * product, cotangent * (assignments @ assignments.T)


within.defvjp(_within_forward, _within_backward)


@jax.custom_vjp
def between(
    assignments: Float[Array, "n k"],
    adjacency: Float[Array, "n n"],
    degrees: Float[Array, " n"],
) -> Float[Array, ""]:
    """Tr(Sᵀ(D − W)S) of a symmetric W: the affinity that is cut.

    Volume and inner affinity are nearly equal where clusters are soft. Their difference, taken
    entry by entry, keeps the digits that the difference of their sums would lose, and so does
    its gradient 2(D − W)S.
    """
    return jnp.sum(assignments * (degrees[:, None] * assignments - adjacency @ assignments))


def _between_forward(assignments, adjacency, degrees):
    product = degrees[:, None] * assignments - adjacency @ assignments
    return jnp.sum(assignments * product), (assignments, product)


def _between_backward(saved, cotangent):
    assignments, product = saved
    outer = cotangent * (assignments @ assignments.T)
    return 2 * cotangent * product, -outer, jnp.diagonal(outer)


between.defvjp(_between_forward, _between_backward)


def ncut(
    assignments: Float[Array, "n k"],
    adjacency: Float[Array, "n n"],
    *,
    mask: Bool[Array, " n"] | None = None,
    degrees: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Relaxed normalised cut with orthogonality term.

    −Tr(SᵀWS) / Tr(SᵀDS) + ‖SᵀS/‖SᵀS‖_F − I_K/√K‖_F (Bianchi et al., MinCutPool, Eq. 9;
    DeepCut, Eq. 6).

    Args:
        assignments: S, (N, K) float32, rows summing to 1.
        adjacency: W, (N, N) float32, symmetric.
        mask: (N,) bool of real nodes; None means all.
        degrees: (N,) row sums of W, where they are known already.

    Example:
        Two pairs of nodes that are not linked, each in a cluster of its own:

        >>> import jax.numpy as jnp
        >>> pairs = jnp.kron(jnp.eye(2), jnp.ones((2, 2)))
        >>> good = jnp.repeat(jnp.eye(2), 2, axis=0)
        >>> float(ncut(good, pairs))
        -1.0
        >>> bool(ncut(good[jnp.array([0, 2, 1, 3])], pairs) > ncut(good, pairs))
        True

    Returns:
        () float32; at least −1.
    """
    assignments = _masked(assignments, mask)
    if degrees is None:
        degrees = adjacency.sum(-1)
    volume = jnp.sum(degrees[:, None] * jnp.square(assignments))
    # −Tr(SᵀWS) / Tr(SᵀDS) is −1 and this; without any edge both are taken as 0.
    excess = between(assignments, adjacency, degrees) / jnp.maximum(volume, _TINY)
    overlap = assignments.T @ assignments
    count = assignments.shape[-1]
    target = jnp.eye(count, dtype=jnp.float32) / count**0.5
    orthogonality = _norm(overlap / jnp.maximum(_norm(overlap), _TINY) - target)
    # Both are near 1 at the start, and their difference near 0.
    return excess + (orthogonality - jnp.where(volume > 0, 1.0, 0.0))


def correlation_clustering(
    assignments: Float[Array, "n k"],
    adjacency: Float[Array, "n n"],
    *,
    mask: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """−Σ_ij W_ij (SSᵀ)_ij of a signed W (DeepCut, Eq. 8).

    Args:
        assignments: S, (N, K) float32, rows summing to 1.
        adjacency: W, (N, N) float32, symmetric, of either sign.
        mask: (N,) bool of real nodes; None means all.

    Returns:
        () float32.

    Example:
        >>> import jax.numpy as jnp
        >>> float(correlation_clustering(jnp.eye(2), jnp.array([[1.0, -3.0], [-3.0, 1.0]])))
        -2.0
    """
    return -within(_masked(assignments, mask), adjacency)


def modularity(
    assignments: Float[Array, "n k"],
    adjacency: Float[Array, "n n"],
    *,
    mask: Bool[Array, " n"] | None = None,
    degrees: Float[Array, " n"] | None = None,
    quirks: str = "paper",
    collapse: str = "nodes",
) -> Float[Array, ""]:
    """Negative modularity with collapse regularisation (DMoN).

    −(1/2m) Tr(SᵀBS) + (√K/N) ‖Σ_i S_i‖ − 1 with B = W − ddᵀ/2m and 2m = ΣW
    (Tsitsulin et al., Graph clustering with GNNs, Eq. 6).

    Args:
        assignments, adjacency, mask, degrees: as for `ncut`.
        quirks: "code" follows the published code of UnSegGNet, UnSeGArmaNet and UnSegMedGAT:
            m = ΣW, and K^¼ in place of √K.
        collapse: "nodes" sums S over nodes, as in the paper; "clusters" sums over clusters, as
            the code of UnSegGNet and UnSeGArmaNet does, which makes the term constant.

    Returns:
        () float32.

    Example:
        Two pairs of nodes that are not linked have modularity ½:

        >>> import jax.numpy as jnp
        >>> pairs = jnp.kron(jnp.eye(2), jnp.ones((2, 2)))
        >>> round(float(modularity(jnp.repeat(jnp.eye(2), 2, axis=0), pairs)), 5)
        -0.5
    """
    assignments = _masked(assignments, mask)
    if degrees is None:
        degrees = adjacency.sum(-1)
    total = degrees.sum()
    twice_edges = jnp.maximum(2 * total if quirks == "code" else total, _TINY)
    expected = jnp.sum(jnp.square(degrees @ assignments)) / twice_edges
    modular = (within(assignments, adjacency) - expected) / twice_edges
    nodes, clusters = assignments.shape
    count = nodes if mask is None else jnp.maximum(mask.sum(), 1)
    scale = clusters ** (0.25 if quirks == "code" else 0.5)
    sizes = assignments.sum(0 if collapse == "nodes" else 1)
    return -modular + scale / count * _norm(sizes) - 1


def _masked(assignments, mask):
    assignments = assignments.astype(jnp.float32)
    return assignments if mask is None else jnp.where(mask[:, None], assignments, 0.0)


def _norm(values):
    """Frobenius norm whose gradient at zero is zero, not NaN."""
    squared = jnp.sum(jnp.square(values))
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
