"""The few generalised eigenvectors that spectral methods need, without a full decomposition.

A graph's normalised affinity D^−½WD^−½ has its largest eigenvalue, 1, at D^½1, which is known.
The next ones are found by a block Krylov method around it: some dozens of products with W, where
a full decomposition costs O(N³) and, on an accelerator, runs one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# Lengths below which a direction counts as already spanned: after the first projection, relative
# to an operator of norm at most 1, and after the second, relative to a unit vector.
_FLOORS = (3e-6, 0.5)
# Added to the Laplacian before it is inverted; eigenvalues far above it are damped.
_SHIFT = 1e-3


def spectral_embedding(
    adjacency: Float[Array, "n n"],
    mask: Bool[Array, " n"],
    count: int,
    key: Array,
    *,
    steps: int = 24,
    smoothing: float = 0.0,
    inverse: bool = False,
) -> Float[Array, "n count"]:
    """Generalised eigenvectors of (D − W) y = λ D y, from the second smallest λ upwards
    (Shi and Malik, PAMI 2000, Eq. 6).

    Args:
        adjacency: (N, N) float32 symmetric affinities; only the positive ones count.
        mask: (N,) bool of real nodes.
        count: how many eigenvectors.
        key: of the random start, on which a converged result does not depend.
        steps: products of the iteration. Patch graphs, whose eigenvalues decay fast, need 10.
        smoothing: adds this share of the mean degree to every node, spread evenly over all edges
            (Amini et al., Annals of Statistics 2013). Without it the eigenvectors of a graph
            that all but falls apart are lost in rounding.
        inverse: multiply with the inverse of the Laplacian, factorised once, instead of with W.
            Sparse graphs of neighbours need it: their smallest eigenvalues lie close together.

    Returns:
        (N, count) float32, columns of unit D-norm up to rounding and of arbitrary sign; zero in
        padded rows and in nodes without edges.
    """
    weights = jnp.maximum(adjacency, 0.0)
    real = mask.astype(jnp.float32)
    if smoothing > 0:
        nodes = jnp.maximum(real.sum(), 1.0)
        weights = weights + smoothing * weights.sum() / nodes**2 * real[:, None] * real
    degrees = weights.sum(-1)
    linked = degrees > 0
    root = jnp.sqrt(jnp.where(linked, degrees, 1.0))
    scale = jnp.where(linked, 1 / root, 0.0)[:, None]
    root = jnp.where(linked, root, 0.0)
    first = root / jnp.maximum(jnp.linalg.norm(root), 1e-30)

    # Both operators have their spectrum in [0, 1], and 0 on what is not a direction of the graph
    # (padding, an exhausted space), so that it is never among the largest.
    if inverse:
        laplacian = jnp.eye(len(real), dtype=jnp.float32) * (1 + _SHIFT) - scale * weights * scale.T
        factor = jax.scipy.linalg.cho_factor(laplacian)

        def invert(block):
            return _SHIFT * real[:, None] * jax.scipy.linalg.cho_solve(factor, block)

        product = invert
    else:

        def multiply(block):
            return 0.5 * (real[:, None] * block + scale * (weights @ (scale * block)))

        product = multiply

    with jax.default_matmul_precision("highest"):
        start = jax.random.normal(key, (len(real), count), jnp.float32) * real[:, None]
        return scale * leading_eigenvectors(product, first, start, steps)


def leading_eigenvectors(
    product: Callable[[Array], Array],
    first: Float[Array, " n"],
    start: Float[Array, "n b"],
    steps: int,
) -> Float[Array, "n b"]:
    """Eigenvectors of the b largest eigenvalues on the complement of a known eigenvector.

    Block Lanczos with full reorthogonalisation and one Rayleigh–Ritz step at the end.

    Args:
        product: (N, b) to (N, b), a symmetric operator with eigenvalues in [0, 1].
        first: (N,) the known eigenvector, of unit length or zero.
        start: (N, b) random block; with b columns, eigenvalues of multiplicity up to b are found.
        steps: number of products.
    """
    nodes, width = start.shape
    basis = jnp.zeros((nodes, 1 + steps * width), jnp.float32).at[:, 0].set(first)
    images = jnp.zeros((nodes, steps * width), jnp.float32)

    def orthonormal(block, basis):
        # Twice is enough: the second pass removes what rounding left of the first.
        for floor in _FLOORS:
            block = _orthonormalised(block - basis @ (basis.T @ block), floor)
        return block

    def step(index, carry):
        block, basis, images = carry
        block = orthonormal(block, basis)
        image = product(block)
        basis = jax.lax.dynamic_update_slice(basis, block, (0, 1 + index * width))
        images = jax.lax.dynamic_update_slice(images, image, (0, index * width))
        return image, basis, images

    _, basis, images = jax.lax.fori_loop(0, steps, step, (start, basis, images))
    basis = basis[:, 1:]
    projected = basis.T @ images
    _, coordinates = jnp.linalg.eigh(0.5 * (projected + projected.T))
    return basis @ coordinates[:, : -width - 1 : -1]


def _orthonormalised(block, floor: float):
    """An orthonormal basis of the block's columns; directions shorter than `floor` become zero."""
    if block.shape[1] == 1:
        lengths, rotation = jnp.sum(jnp.square(block), 0), jnp.eye(1, dtype=jnp.float32)
    else:
        lengths, rotation = jnp.linalg.eigh(block.T @ block)
    kept = lengths > floor**2
    return block @ (rotation * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, lengths, 1.0)), 0.0))
