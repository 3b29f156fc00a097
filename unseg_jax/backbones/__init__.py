"""Frozen self-supervised vision transformers: pixels in, patch features out."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from unseg_jax.backbones import hub
from unseg_jax.backbones.layouts import build_params, infer_config
from unseg_jax.backbones.vit import Facet, VisionTransformer, ViTConfig
from unseg_jax.backbones.weights import (
    AUTO,
    REMEDY,
    SOURCES,
    check_name,
    convert_weights,
    fetch,
    fetch_auto,
    fetch_hub_model,
    get_weights,
    list_weights,
    read_weights,
)
from unseg_jax.errors import WeightsError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

__all__ = [
    "Backbone",
    "Facet",
    "ViTConfig",
    "VisionTransformer",
    "WeightsError",
    "convert_weights",
    "get_weights",
    "list_backbones",
    "list_weights",
    "load_backbone",
]

Dtype = Literal["float32", "bfloat16"]


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
        name: of `list_backbones()`, or the stem of the weights file.
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


def list_backbones() -> list[str]:
    """The names that `load_backbone` knows, besides "auto" and paths."""
    return list(SOURCES)


def load_backbone(name_or_path: str | Path = AUTO, *, dtype: Dtype = "float32") -> Backbone:
    """A backbone with its weights, fetched if they are not on this machine yet.

    Args:
        name_or_path: one of `list_backbones()`; "auto" for `dino_vits8` if it is cached or can
            be fetched, else `dinov2_vits14_focus`; hf:ORG/NAME for a ViT of a known layout on
            the Hugging Face hub; or the path of a weights file (.safetensors, .npz, .pth) in the
            official, timm or Hugging Face layout.
        dtype: of weights and activations, "float32" or "bfloat16"; normalisations and softmax
            are computed in float32 either way.

    Raises:
        ValueError: an unknown name (the nearest is suggested) or dtype, or a function.
        WeightsError: the weights cannot be found, read or fitted.
        ImportError: reading the file needs a package that is not installed.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is '{dtype}'; use 'float32' or 'bfloat16'.")
    if not isinstance(name_or_path, str | Path):
        remedy = (
            "wrap the function: unseg_jax.from_callable(fn, patch=...)"
            if callable(name_or_path)
            else "give a name, a path, or a loaded Backbone"
        )
        raise ValueError(f"a {type(name_or_path).__name__} is not a backbone; {remedy}.")
    name = str(name_or_path)
    if name == AUTO:
        name, weights = fetch_auto()
        source, config = SOURCES[name].label, SOURCES[name].config
    elif name in SOURCES:
        try:
            weights = fetch(name)
        except WeightsError as error:
            raise WeightsError(f"{str(error).rstrip('.')}; {REMEDY}") from error
        source, config = SOURCES[name].label, SOURCES[name].config
    elif name.startswith(hub.PREFIX):
        weights, config = fetch_hub_model(name)
        source = name
    else:
        path = Path(name_or_path).expanduser()
        if not path.suffix and not path.exists():
            check_name(name)
        weights = read_weights(path)
        config = infer_config(weights.tensors, str(path))
        name, source = path.stem, str(path)
    graphdef, params = build_params(weights.tensors, config, str(weights.path), dtype)
    return Backbone(name, source, graphdef, params, config)
