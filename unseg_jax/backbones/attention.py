"""Attention in one kernel: a kernel of our own on a TPU, cuDNN's on a GPU.

XLA writes the weights of tokens by tokens to memory and reads them again, two thirds or more of all
that a pass moves. A row of them fits a TPU's VMEM for any image that is passed at once, so that the
softmax there is the plain one, not that of tiles (Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# A block's last axis fills the lanes of a register: two heads of 64.
_LANES = 128
# Rows of weights at a time: with so many tokens they take 10 MB of the 16 that a kernel may use.
_ROWS, _TOKENS = 256, 4096


def attend(
    qkv: Float[Array, "b t w"], heads: int, plain: Callable[[Array], Array]
) -> Float[Array, "b t v"]:
    """softmax(QKᵀ/√c)V of all heads, in one kernel where this machine has one for it.

    Args:
        qkv: (B, T, 3·D), queries, keys and values side by side, each of all heads.
        heads: number of heads; c = D / heads.
        plain: the same function of `qkv`, for any other case and platform.

    Returns:
        (B, T, D), of the type of `qkv`.
    """
    if is_for_tpu(qkv, heads):
        kernel = functools.partial(attend_on_tpu, heads=heads)
        return jax.lax.platform_dependent(qkv, tpu=kernel, default=plain)
    if is_for_gpu(qkv, heads):
        kernel = functools.partial(attend_on_gpu, heads=heads)
        return jax.lax.platform_dependent(qkv, cuda=kernel, default=plain)
    return plain(qkv)


def is_for_tpu(qkv: Float[Array, "b t w"], heads: int) -> bool:
    """Whether a TPU is here and `attend_on_tpu` takes these: bfloat16, heads that fill the lanes,
    rows that fit VMEM, and a batch that lies on one device. That is so where there is one, and
    under `jax.shard_map`: XLA divides no kernel among devices.
    """
    width = qkv.shape[-1] // 3
    whole = qkv.dtype == jnp.bfloat16 and width % _LANES == 0 and _LANES % (width // heads) == 0
    if not whole or qkv.shape[1] > _TOKENS or not _is_here("tpu"):
        return False
    return jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)


def is_for_gpu(qkv: Float[Array, "b t w"], heads: int) -> bool:
    """Whether an NVIDIA GPU is here whose cuDNN takes these: bfloat16, c up to 128."""
    width = qkv.shape[-1] // 3 // heads
    fits = qkv.dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128
    return fits and _is_here("gpu") and _cudnn_attends()


def _is_here(platform: str) -> bool:
    return jax.default_backend() == platform


@functools.cache
def _cudnn_attends() -> bool:
    """Whether this GPU and its cuDNN are new enough; JAX says so as it traces."""
    shape = jax.ShapeDtypeStruct((1, 8, 3 * 64), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(attend_on_gpu, heads=1), shape)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def attend_on_gpu(
    qkv: Float[Array, "b t w"], heads: int, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> Float[Array, "b t v"]:
    """See `attend`; `implementation` is that of `jax.nn.dot_product_attention`."""
    batch, tokens, width = *qkv.shape[:2], qkv.shape[2] // 3
    parts = jnp.moveaxis(qkv.reshape(batch, tokens, 3, heads, width // heads), 2, 0)
    mixed = jax.nn.dot_product_attention(*parts, implementation=implementation)
    return mixed.reshape(batch, tokens, width)


def attend_on_tpu(
    qkv: Float[Array, "b t w"], heads: int, *, interpret: bool = False
) -> Float[Array, "b t v"]:
    """See `attend`; with `interpret` it runs without a TPU, slowly."""
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
