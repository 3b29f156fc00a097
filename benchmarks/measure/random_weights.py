"""Random weights of a DINO ViT under the official names: enough to measure speed with."""

import math

import numpy as np

DINOV2 = {"patch": 14, "native_grid": 37, "layer_scale": True}
"""Shapes of DINOv2 ViT-S/14 for `random_state`."""


def random_state(
    seed: int = 0, *, patch=8, width=384, depth=12, native_grid=28, layer_scale=False, **_: int
) -> dict[str, np.ndarray]:
    """A state dict, {official name: float32 array}; the defaults are ViT-S/8.

    With `**DINOV2` it is DINOv2 ViT-S/14, which `layer_scale` tells from a DINO.

    The weights are spread so that attention and activations are neither flat nor saturated: a
    timing sees ordinary numbers.
    """
    generator = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def draw(name, *shape, scale):
        state[name] = scale * generator.standard_normal(shape, dtype=np.float32)

    def linear(name, outputs, inputs):
        draw(f"{name}.weight", outputs, inputs, scale=np.float32(1 / math.sqrt(inputs)))
        draw(f"{name}.bias", outputs, scale=np.float32(0.02))

    def norm(name):
        draw(f"{name}.weight", width, scale=np.float32(0.05))
        state[f"{name}.weight"] += 1
        draw(f"{name}.bias", width, scale=np.float32(0.05))

    draw("cls_token", 1, 1, width, scale=np.float32(0.02))
    draw("pos_embed", 1, native_grid**2 + 1, width, scale=np.float32(0.02))
    fan_in = 3 * patch**2
    draw("patch_embed.proj.weight", width, 3, patch, patch, scale=np.float32(fan_in**-0.5))
    draw("patch_embed.proj.bias", width, scale=np.float32(0.02))
    for block in range(depth):
        norm(f"blocks.{block}.norm1")
        linear(f"blocks.{block}.attn.qkv", 3 * width, width)
        linear(f"blocks.{block}.attn.proj", width, width)
        norm(f"blocks.{block}.norm2")
        linear(f"blocks.{block}.mlp.fc1", 4 * width, width)
        linear(f"blocks.{block}.mlp.fc2", width, 4 * width)
        for half in (1, 2) if layer_scale else ():
            state[f"blocks.{block}.ls{half}.gamma"] = np.ones(width, np.float32)
    norm("norm")
    return state
