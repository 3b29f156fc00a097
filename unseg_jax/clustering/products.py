"""Products whose gradients are written so that XLA for CPU computes them fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def _barrier_on_cpu(x: Array) -> Array:
    """Keeps XLA for CPU from rewriting products. On a GPU barriers only keep kernels from being
    fused: without them an epoch of DeepCut's head takes 28 instead of 30."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


@jax.custom_vjp
def fixed_product(x: Float[Array, "n d"], kernel: Float[Array, "d f"]) -> Float[Array, "n f"]:
    """x · kernel where only the kernel changes from epoch to epoch.

    The kernel's gradient is xᵀ·g. XLA for CPU takes twice as long for it as for x·kernel unless xᵀ
    lies in memory; of an x that stays the same it is made once, before the loop.
    """
    return x @ kernel


def _fixed_product_backward(saved, cotangent):
    x, kernel = saved
    transposed = _barrier_on_cpu(x.T)
    return cotangent @ kernel.T, transposed @ cotangent


fixed_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _fixed_product_backward)


@jax.custom_vjp
def product(x: Float[Array, "n d"], kernel: Float[Array, "d f"]) -> Float[Array, "n f"]:
    """x · kernel where both change from epoch to epoch.

    The kernel's gradient is taken as (gᵀ·x)ᵀ, which XLA for CPU is faster at than at xᵀ·g; the
    barrier keeps it from making the one into the other.
    """
    return x @ kernel


def _product_backward(saved, cotangent):
    x, kernel = saved
    gradient = jax.lax.dot_general(cotangent, x, (((0,), (0,)), ((), ())))
    return cotangent @ kernel.T, _barrier_on_cpu(gradient).T


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


@jax.custom_vjp
def propagate(propagation: Float[Array, "n n"], x: Float[Array, "n f"]) -> Float[Array, "n f"]:
    """P · x of a symmetric P, whose gradient in x is P·g: no transposed product."""
    return propagation @ x


def _propagate_backward(saved, cotangent):
    propagation, x = saved
    return cotangent @ x.T, propagation @ cotangent


propagate.defvjp(lambda propagation, x: (propagation @ x, (propagation, x)), _propagate_backward)
