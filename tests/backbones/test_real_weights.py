"""DINO's own weights against published numbers, on machines that hold them and the photograph."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from PIL import Image

from unseg_jax.backbones import WeightsError
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.vit import with_params
from unseg_jax.backbones.weights import SOURCES, cached_path, fetch

PHOTOGRAPH = "UNSEG_JAX_COCO_39769"


def test_dino_gives_the_published_hidden_state():
    """Last hidden state after the final normalisation, for COCO image 000000039769 at 480 x 480.

    The numbers are of Hugging Face's model, which interpolates without DINO's offset.
    """
    if PHOTOGRAPH not in os.environ:
        pytest.skip(f"set {PHOTOGRAPH} to the path of COCO image 000000039769")
    if cached_path("dino_vits8") is None:
        pytest.skip("dino_vits8 is not cached; unseg-jax weights get dino_vits8")
    with Image.open(os.environ[PHOTOGRAPH]) as image:
        resized = image.convert("RGB").resize((480, 480), Image.Resampling.BILINEAR)
    try:
        tensors = fetch("dino_vits8").tensors
    except WeightsError as error:
        pytest.fail(str(error))
    config = dataclasses.replace(SOURCES["dino_vits8"].config, position_offset=0.0)
    params = build_params(tensors, config, "dino_vits8")

    @jax.jit
    def hidden(params, pixels):
        model = with_params(config, params)
        return model.norm(model.run_blocks(model.tokens(pixels), config.depth))

    state = hidden(params, np.asarray(resized)[None])
    assert state.shape == (1, 3601, 384)
    expected = [
        [4.2325, 4.3882, -6.6678],
        [4.5372, 1.8933, -6.7355],
        [4.4454, 0.8514, -5.8747],
    ]
    np.testing.assert_allclose(state[0, :3, :3], expected, atol=1e-3)
