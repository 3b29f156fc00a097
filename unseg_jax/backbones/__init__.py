"""Frozen self-supervised vision transformers: pixels in, patch features out."""

from __future__ import annotations

from pathlib import Path

from unseg_jax.backbones.backbone import Backbone, from_callable
from unseg_jax.backbones.compare import compare_weights
from unseg_jax.backbones.config import Facet, ViTConfig
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.weights import (
    AUTO,
    SOURCES,
    convert_weights,
    find,
    get_weights,
    list_weights,
)
from unseg_jax.devices import resolve_dtype, usable_devices
from unseg_jax.errors import WeightsError

__all__ = [
    "Backbone",
    "Facet",
    "ViTConfig",
    "WeightsError",
    "compare_weights",
    "convert_weights",
    "from_callable",
    "get_weights",
    "list_backbones",
    "list_weights",
    "load_backbone",
]


def list_backbones() -> list[str]:
    """The names that `load_backbone` knows, besides "auto" and paths."""
    return list(SOURCES)


def load_backbone(name_or_path: str | Path = AUTO, *, dtype: str = "auto") -> Backbone:
    """A backbone with its weights, fetched if they are not on this machine yet.

    Args:
        name_or_path: one of `list_backbones()`; "auto" for `dino_vits8` if it is cached or can
            be fetched, else `dinov2_vits14_focus`; hf:ORG/NAME for a ViT of a known layout on
            the Hugging Face hub; or the path of a weights file (.safetensors, .npz, .pth) in the
            official, timm or Hugging Face layout.
        dtype: of weights and activations, "float32", "bfloat16", or "auto" for the faster one
            here; normalisations and softmax are computed in float32 either way.

    Raises:
        ValueError: an unknown name (the nearest is suggested) or dtype, or a function.
        WeightsError: the weights cannot be found, read or fitted.
        ImportError: reading the file needs a package that is not installed.
        PlatformError: the platform that JAX_PLATFORMS names is not here.
    """
    usable_devices()
    dtype = resolve_dtype(dtype)
    if not isinstance(name_or_path, str | Path):
        remedy = (
            "wrap the function: unseg_jax.from_callable(fn, patch=...)"
            if callable(name_or_path)
            else "give a name, a path, or a loaded Backbone"
        )
        raise ValueError(f"a {type(name_or_path).__name__} is not a backbone; {remedy}.")
    name, source, weights, config = find(name_or_path)
    params = build_params(weights.tensors, config, str(weights.path), dtype)
    return Backbone(name, source, params, config)
