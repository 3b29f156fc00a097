"""`Backbone`: pixels in, patch features out, as a pure function with its weights beside it."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from unseg_jax.backbones.vit import Facet, ViTConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8


@functools.partial(jax.jit, static_argnames=("graphdef", "facet", "block", "stride", "log_bin"))
def _features(graphdef, params, pixels, *, facet, block, stride, log_bin):
    model = nnx.merge(graphdef, params)
    return model.features(pixels, facet=facet, block=block, stride=stride, log_bin=log_bin)


@functools.partial(jax.jit, static_argnames=("graphdef", "stride"))
def _class_attention(graphdef, params, pixels, *, stride):
    return nnx.merge(graphdef, params).class_attention(pixels, stride=stride)


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A vision transformer with its weights, split so that `jax.jit` sees a pure function.

    It compares and hashes by identity: a program may be compiled around it, and takes `params`
    as an argument.

    Attributes:
        name: of `list_backbones()`, hf:ORG/NAME, or the stem of the weights file.
        source: where the weights came from.
        graphdef: the model without its arrays, static.
        params: the arrays, an `nnx.State` of float32 or bfloat16.
        config: the model's shape and its best facet.
    """

    name: str
    source: str
    graphdef: nnx.GraphDef
    params: Any
    config: ViTConfig

    @property
    def form(self) -> Backbone:
        """The same without its weights: one object for all backbones that differ in them alone."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _form(type(self), **{**values, "params": None})

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels that there may be between patches: the divisors of the patch size, ascending."""
        return self.config.strides

    def grid(self, size: tuple[int, int], stride: int | None = None) -> tuple[int, int]:
        """(h, w) of the patches of a (H, W) image: h = 1 + (H - p) // s, w likewise.

        Raises:
            ValueError: the image is smaller than a patch, or the stride does not divide the patch.
        """
        return self.config.patch_grid(size, stride)

    def features(
        self,
        params: Any,
        pixels: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        *,
        facet: Facet | None = None,
        block: int = -1,
        stride: int | None = None,
        log_bin: bool = False,
    ) -> Float[Array, "b n d"]:
        """Patch features. Pure; compiled for each shape and setting.

        Args:
            params: `self.params`, or others of the same structure.
            pixels: (B, H, W, 3) RGB, uint8 or float in [0, 1].
            facet: "key", "query", "value": the vectors of that name, D = width, heads varying
                fastest as in the published extractor; "token": the output of the block, for
                DINOv2's last block after the final normalisation; "attn": each patch's
                attention to all tokens, class token first, D = (N + 1) heads, heads varying
                fastest. None takes `config.facet`.
            block: the block to take it from, counted from 0; negative from the end.
            stride: pixels between patches, a divisor of the patch size; None is the patch size.
            log_bin: give log-binned descriptors instead, D 17 times as long; not for "attn".

        Returns:
            (B, N, D) float32, row-major over the grid, without the class token.

        Raises:
            ValueError: an unknown facet, block or stride, or an image smaller than a patch.
        """
        pixels = jnp.asarray(pixels)
        return _features(
            self.graphdef, params, pixels, facet=facet, block=block, stride=stride, log_bin=log_bin
        )

    def class_attention(
        self,
        params: Any,
        pixels: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        *,
        stride: int | None = None,
    ) -> Float[Array, "b n"]:
        """The class token's attention to each patch in the last block, averaged over heads.

        Args:
            params, pixels, stride: as for `features`.

        Returns:
            (B, N) float32, at least 0; with the class token's attention to itself a row sums to 1.

        Raises:
            ValueError: an unknown stride, or an image smaller than a patch.
        """
        return _class_attention(self.graphdef, params, jnp.asarray(pixels), stride=stride)


@functools.lru_cache(maxsize=64)
def _form(kind: type[Backbone], **fields: Any) -> Backbone:
    return kind(**fields)
