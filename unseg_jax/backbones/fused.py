"""Attention in one kernel for TPUs: weights of tokens by tokens stay in VMEM.

XLA writes these weights to HBM and reads them again, three quarters of all that a pass moves. A
row of them fits VMEM for any image that is passed at once, so that the softmax is the plain one,
not that of tiles (Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# A block's last axis fills the lanes of a register: two heads of 64.
_LANES = 128
# Rows of weights at a time: with 4,096 tokens they take 10 MB of the 16 that a kernel may use.
_ROWS = 256


def is_fused(qkv: Float[Array, "b t w"], heads: int) -> bool:
    """Whether `attend` takes these on this machine: bfloat16 on a TPU, heads that fill the lanes,
    and a batch that lies on one device. That is so where there is one, and under `jax.shard_map`:
    XLA divides no kernel among devices.
    """
    width = qkv.shape[-1] // 3
    whole = qkv.dtype == jnp.bfloat16 and width % _LANES == 0 and _LANES % (width // heads) == 0
    if not whole or not _on_tpu():
        return False
    return jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)


def _on_tpu() -> bool:
    return jax.default_backend() == "tpu"


def attend(
    qkv: Float[Array, "b t w"], heads: int, *, interpret: bool = False
) -> Float[Array, "b t v"]:
    """softmax(QKᵀ/√c)V of all heads.

    Args:
        qkv: (B, T, 3·D) bfloat16, queries, keys and values side by side, each of all heads.
        heads: c = D / heads divides 128.
        interpret: run it without a TPU, slowly.

    Returns:
        (B, T, D) bfloat16.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, tokens, width = *qkv.shape[:2], qkv.shape[2] // 3
    blocks, rows = width // _LANES, min(_ROWS, tokens)

    def all_tokens(third):
        return pl.BlockSpec(
            (1, tokens, _LANES), lambda image, block, part: (image, 0, block + third * blocks)
        )

    some = pl.BlockSpec((1, rows, _LANES), lambda image, block, part: (image, part, block))
    # Under `jax.shard_map` a shape also says which devices' own it is.
    result = jax.eval_shape(lambda whole: whole[..., :width], qkv)
    return pl.pallas_call(
        functools.partial(_attend_block, width=width // heads),
        out_shape=result,
        grid=(batch, blocks, pl.cdiv(tokens, rows)),
        in_specs=[some, all_tokens(1), all_tokens(2)],
        out_specs=some,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(qkv, qkv, qkv)


def _attend_block(queries_ref, keys_ref, values_ref, result_ref, *, width):
    """Some queries of the heads of one block, as `Block.attention` computes them."""
    for first in range(0, _LANES, width):
        head = slice(first, first + width)
        queries, keys, values = (ref[0, :, head] for ref in (queries_ref, keys_ref, values_ref))
        queries = queries * np.asarray(width**-0.5, queries.dtype)
        logits = jax.lax.dot_general(
            queries, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        mixed = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        result_ref[0, :, head] = (mixed / total).astype(result_ref.dtype)
