"""The vision transformers of DINO and DINOv2, in Flax NNX.

All blocks of a model are one `Block` whose parameters have a leading axis of length depth, and
run in a scan: one block is compiled, not twelve. A model stops as soon as it has what was asked
for: keys of the last block need that block's first normalisation and a third of its projection.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unseg_jax.backbones import attention, grids
from unseg_jax.backbones.config import FACETS, IMAGENET_MEAN, IMAGENET_STD, Facet, ViTConfig
from unseg_jax.batching import take_by_platform

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

# With more tokens (small strides), heads run in turn: their (T, T) weights would fill memory.
_TOKENS_AT_ONCE = 4096
_THIRDS = {"query": 0, "key": 1, "value": 2}


def normalise_pixels(
    pixels: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
) -> Float[Array, "b h w 3"]:
    """uint8, or float in [0, 1], to float32 with ImageNet's mean 0 and deviation 1."""
    if jnp.issubdtype(pixels.dtype, jnp.integer):
        pixels = pixels.astype(jnp.float32) / 255
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return (pixels.astype(jnp.float32) - mean) / std


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """The exact GELU, by erf as PyTorch does: cheaper on CPU than `jax.nn.gelu`, by erfc."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.float32(0.5**0.5)))).astype(x.dtype)


def over_images(function: Callable[[Array], Array], pixels: Array) -> Array:
    """`function` of a batch, run in the way that is fast on the platform compiled for.

    On a CPU that is one device, one image after the other: a block's activations then stay in the
    cache, and the matrix products are large enough to occupy every core. Elsewhere, the whole batch
    at once.
    """
    if pixels.shape[0] == 1:
        return function(pixels)

    def in_turn(pixels: Array) -> Array:
        return jax.lax.map(lambda image: function(image[None])[0], pixels)

    return take_by_platform(pixels, at_once=function, in_turn=in_turn)


class LayerNorm(nnx.Module):
    """Layer normalisation with statistics in float32 for inputs of any dtype."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        variance = jnp.square(y).mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class PatchEmbedding(nnx.Module):
    """Patches to tokens: a convolution, written as one matrix product at every stride."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        p = config.patch_size
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (p, p, 3, config.width)))
        self.bias = nnx.Param(jnp.zeros(config.width))

    def __call__(
        self, pixels: Float[Array, "b h w 3"], grid: tuple[int, int], stride: int
    ) -> Float[Array, "b n d"]:
        kernel = self.kernel[...]
        ratio = kernel.shape[0] // stride
        height, width = grid
        cells_high, cells_wide = height + ratio - 1, width + ratio - 1
        batch = pixels.shape[0]
        # A patch is ratio × ratio cells of stride × stride pixels; what does not fill one is left.
        cells = pixels[:, : cells_high * stride, : cells_wide * stride]
        cells = cells.reshape(batch, cells_high, stride, cells_wide, stride, 3)
        cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, cells_high, cells_wide, -1)
        shifts = itertools.product(range(ratio), repeat=2)
        patches = jnp.concatenate(
            [cells[:, row : row + height, column : column + width] for row, column in shifts], -1
        )
        matrix = kernel.reshape(ratio, stride, ratio, stride, 3, -1).transpose(0, 2, 1, 3, 4, 5)
        matrix = matrix.reshape(patches.shape[-1], -1)
        tokens = patches.astype(matrix.dtype) @ matrix + self.bias[...]
        return tokens.reshape(batch, height * width, -1)


class Block(nnx.Module):
    """A pre-norm transformer block; `scale1` and `scale2` are DINOv2's LayerScale, or None."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        width, hidden = config.width, config.width * config.mlp_ratio
        self.heads = config.heads
        self.norm1 = LayerNorm(width, config.norm_epsilon)
        # Flax's default, a truncated normal, takes a fifth of a second to trace.
        normal = nnx.initializers.normal(0.02)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs, kernel_init=normal)
        self.proj = nnx.Linear(width, width, rngs=rngs, kernel_init=normal)
        self.norm2 = LayerNorm(width, config.norm_epsilon)
        self.fc1 = nnx.Linear(width, hidden, rngs=rngs, kernel_init=normal)
        self.fc2 = nnx.Linear(hidden, width, rngs=rngs, kernel_init=normal)
        self.scale1 = nnx.Param(jnp.ones(width)) if config.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(width)) if config.layer_scale else None

    def third(self, x: Float[Array, "b t d"], which: int) -> Float[Array, "b k t c"]:
        """Queries (0), keys (1) or values (2), by head: (B, heads, T, D / heads)."""
        width = x.shape[-1]
        part = slice(which * width, (which + 1) * width)
        assert self.qkv.bias is not None
        y = self.norm1(x) @ self.qkv.kernel[:, part] + self.qkv.bias[part]
        return y.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

    def _exponentials(
        self, queries: Float[Array, "b k q c"], keys: Float[Array, "b k t c"]
    ) -> Float[Array, "b k q t"]:
        """exp(q·k/√c - max) in float32: a softmax over t that is not yet divided by its sums."""
        queries = queries * np.asarray(queries.shape[-1] ** -0.5, queries.dtype)
        logits = jnp.einsum("bkqc,bktc->bkqt", queries, keys, preferred_element_type=jnp.float32)
        return jnp.exp(logits - logits.max(axis=-1, keepdims=True))

    def attention_weights(
        self, x: Float[Array, "b t d"], *, queries: slice = slice(None)
    ) -> Float[Array, "b k q t"]:
        """softmax(QKᵀ/√c), float32, for the tokens of `queries` only."""
        weights = self._exponentials(self.third(x[:, queries], 0), self.third(x, 1))
        return weights / weights.sum(axis=-1, keepdims=True)

    def attention(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        qkv = self.qkv(self.norm1(x))
        return self.proj(attention.attend(qkv, self.heads, self._attend))

    def _attend(self, qkv: Float[Array, "b t w"]) -> Float[Array, "b t d"]:
        batch, tokens, width = *qkv.shape[:2], qkv.shape[2] // 3
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.transpose(2, 0, 3, 1, 4)
        if tokens <= _TOKENS_AT_ONCE:
            mixed = self._mix(queries, keys, values)
        else:
            parts = [jnp.moveaxis(part, 1, 0)[:, :, None] for part in (queries, keys, values)]
            mixed = jax.lax.map(lambda head: self._mix(*head), parts)
            mixed = jnp.moveaxis(mixed[:, :, 0], 0, 1)
        return mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, width)

    def _mix(self, queries: Array, keys: Array, values: Array) -> Float[Array, "b k t c"]:
        weights = self._exponentials(queries, keys).astype(values.dtype)
        # A column of ones gives the sums by the same product: no pass over the weights for them,
        # which do not fit the cache.
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)
        mixed = jnp.einsum("bkqt,bktc->bkqc", weights, values, preferred_element_type=jnp.float32)
        # Dividing the (T, c) product costs less than dividing the (T, T) weights.
        return (mixed[..., :-1] / mixed[..., -1:]).astype(values.dtype)

    def mlp(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.fc2(gelu(self.fc1(self.norm2(x))))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        update = self.attention(x)
        x = x + (update if self.scale1 is None else update * self.scale1[...])
        update = self.mlp(x)
        return x + (update if self.scale2 is None else update * self.scale2[...])


class VisionTransformer(nnx.Module):
    """A vision transformer that gives out patch features.

    Its parameters: `patch_embed`, `class_token` (D,), `positions` (1 + G², D) with the class
    token's first, `registers` (R, D) or None, `blocks` (every leaf with a leading axis of length
    depth), `norm`.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbedding(config, rngs)
        self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,)))
        positions = jax.random.normal(rngs.params(), (1 + config.grid**2, config.width))
        self.positions = nnx.Param(0.02 * positions)
        registers = (config.registers, config.width)
        self.registers = nnx.Param(jnp.zeros(registers)) if config.registers else None
        stack = nnx.split_rngs(splits=config.depth)(nnx.vmap(lambda rngs: Block(config, rngs)))
        self.blocks = stack(rngs)
        self.norm = LayerNorm(config.width, config.norm_epsilon)

    def tokens(self, pixels: Array, *, stride: int | None = None) -> Float[Array, "b t d"]:
        """The tokens that enter block 0: class token, registers, patches with positions added."""
        config = self.config
        size = (pixels.shape[1], pixels.shape[2])
        grid = config.patch_grid(size, stride)
        patches = self.patch_embed(normalise_pixels(pixels), grid, config.stride(stride))
        table = self.positions[...].astype(jnp.float32)
        native = table[1:].reshape(config.grid, config.grid, config.width)
        # The reference leaves the embedding alone only for square images on the native grid.
        if size[0] != size[1] or grid[0] * grid[1] != config.grid**2:
            native = grids.interpolate_positions(
                native, grid, config.position_offset, config.position_antialias
            )
        positions = native.reshape(-1, config.width)
        patches = patches + positions.astype(patches.dtype)
        first = (self.class_token[...] + table[0]).astype(patches.dtype)[None]
        if self.registers is not None:
            first = jnp.concatenate([first, self.registers[...].astype(patches.dtype)])
        first = jnp.broadcast_to(first, (patches.shape[0], *first.shape))
        return jnp.concatenate([first, patches], axis=1)

    def block(self, index: int | Array) -> Block:
        """Block `index` of the stack."""
        graphdef, state = nnx.split(self.blocks)
        one = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), state
        )
        return nnx.merge(graphdef, one)

    def run_blocks(self, x: Float[Array, "b t d"], count: int) -> Float[Array, "b t d"]:
        """The tokens after the first `count` blocks."""
        if not count:
            return x
        # Indices are scanned over, not parameters: a slice of the stack would be a copy.
        return jax.lax.scan(lambda x, i: (self.block(i)(x), None), x, jnp.arange(count))[0]

    def after_blocks(
        self, x: Float[Array, "b t d"], counts: Sequence[int]
    ) -> list[Float[Array, "b t d"]]:
        """The tokens after as many blocks as each of `counts` says, ascending numbers of blocks."""
        if len(counts) == 1:
            return [self.run_blocks(x, counts[0])]

        def to_next(x, ends):
            x = jax.lax.fori_loop(ends[0], ends[1], lambda i, x: self.block(i)(x), x)
            return x, x

        # Two loops, so that XLA compiles one block and not one for each part of the way.
        ends = jnp.array([(0, *counts[:-1]), counts]).T
        return list(jax.lax.scan(to_next, x, ends)[1])

    def block_index(self, block: int) -> int:
        """`block` counted from 0; raises ValueError if there is none."""
        depth = self.config.depth
        if not -depth <= block < depth:
            raise ValueError(
                f"there is no block {block}; this backbone has {depth}, counted from 0."
            )
        return block % depth

    def features(
        self,
        pixels: Array,
        *,
        facet: Facet | None = None,
        block: int | tuple[int, ...] = -1,
        stride: int | None = None,
        log_bin: bool = False,
    ) -> Float[Array, "b n d"]:
        """See `Backbone.features`."""
        facet = self.config.facet if facet is None else facet
        if facet not in FACETS:
            raise ValueError(f"there is no facet '{facet}'; use one of {', '.join(FACETS)}.")
        if log_bin and facet == "attn":
            raise ValueError(
                "log-bin descriptors are not defined for the facet 'attn'; leave one of them out."
            )
        blocks = block if isinstance(block, tuple) else (block,)
        indices = [self.block_index(one) for one in blocks]
        grid = self.config.patch_grid((pixels.shape[1], pixels.shape[2]), stride)

        places = sorted(set(indices))
        # Where the facet is the output of its block, that block is run only once.
        counts = [index + 1 if facet == "token" else index for index in places]

        def extract(pixels: Array) -> Array:
            found = {}
            passed = self.after_blocks(self.tokens(pixels, stride=stride), counts)
            for index, x in zip(places, passed, strict=True):
                one = self.facet(x, facet, index)[:, 1 + self.config.registers :]
                one = one.astype(jnp.float32)
                found[index] = grids.log_bin(one, grid) if log_bin else one
            parts = [found[index] for index in indices]
            return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)

        return over_images(extract, pixels)

    def facet(self, x: Float[Array, "b t d"], facet: Facet, index: int) -> Float[Array, "b t f"]:
        """A facet of block `index` (from 0) for the tokens that enter that block, or for "token"
        those that leave it."""
        if facet == "token":
            last = index == self.config.depth - 1
            return self.norm(x) if last and self.config.normalised_tokens else x
        block = self.block(index)
        by_head = block.attention_weights(x) if facet == "attn" else block.third(x, _THIRDS[facet])
        # The published extractor flattens (channel, head): heads vary fastest.
        return by_head.transpose(0, 2, 3, 1).reshape(*x.shape[:2], -1)

    def class_attention(self, pixels: Array, *, stride: int | None = None) -> Float[Array, "b n"]:
        """See `Backbone.class_attention`."""
        last = self.config.depth - 1

        def extract(pixels: Array) -> Array:
            x = self.run_blocks(self.tokens(pixels, stride=stride), last)
            weights = self.block(last).attention_weights(x, queries=slice(0, 1))
            return weights[:, :, 0, 1 + self.config.registers :].mean(axis=1)

        return over_images(extract, pixels)


@functools.cache
def _without_arrays(config: ViTConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: VisionTransformer(config, rngs=nnx.Rngs(0))))


def with_params(config: ViTConfig, params: Mapping[str, Array]) -> VisionTransformer:
    """The model with these parameters, by their dotted paths: see `ViTConfig.shapes`."""
    graphdef, state = _without_arrays(config)
    leaves = nnx.to_flat_state(state)
    filled = [(path, leaf.replace(params[".".join(map(str, path))])) for path, leaf in leaves]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))
