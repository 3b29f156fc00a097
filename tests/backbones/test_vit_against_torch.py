"""The transformer at its real size against PyTorch, and the interpolation against PyTorch's."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional

from benchmarks.reference import torch_vit
from unseg_jax.backbones import Backbone
from unseg_jax.backbones.grids import interpolate_positions
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.vit import with_params
from unseg_jax.backbones.weights import SOURCES

pytestmark = pytest.mark.pytorch

CONFIG = SOURCES["dino_vits8"].config


@pytest.fixture(scope="module")
def weights(state_dict):
    return state_dict(CONFIG)


@pytest.fixture(scope="module")
def backbone(weights):
    return Backbone("random", "random", build_params(weights, CONFIG, "random"), CONFIG)


def torch_blocks(weights, images):
    """All tokens before the first block and after each, and the keys of the last block."""
    model, tokens = torch_vit.load(weights), []
    model.blocks[0].register_forward_pre_hook(lambda block, given: tokens.append(given[0]))
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, found: tokens.append(found))
    keys = torch_vit.features(model, images)
    with torch.inference_mode():
        model.blocks[-1](tokens[-1])  # of which the keys alone were read
    return [after.numpy() for after in tokens], keys.numpy()


@pytest.mark.parametrize("size", [(224, 224), (280, 360)])
def test_every_block_equals_pytorch_at_the_real_size(backbone, weights, pixels, size):
    images = pixels(1, *size, 3)
    expected, keys = torch_blocks(weights, images)

    @jax.jit
    def after_each(params, images):
        model = with_params(backbone.config, params)
        first = model.tokens(images)

        def step(x, index):
            x = model.block(index)(x)
            return x, x

        return first, jax.lax.scan(step, first, np.arange(CONFIG.depth))[1]

    first, rest = after_each(backbone.params, images)
    assert len(expected) == CONFIG.depth + 1
    for index, (ours, theirs) in enumerate(zip([first, *rest], expected, strict=True)):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error <= 1e-4, f"after block {index - 1}: {error}"
    ours = backbone.features(backbone.params, images, facet="key")
    assert np.abs(ours - keys).max() <= 1e-4 * np.abs(keys).max()


@pytest.mark.parametrize("offset", [0.1, 0.0])
@pytest.mark.parametrize(
    ("side", "grid"),
    [(28, (55, 55)), (28, (35, 45)), (37, (16, 16)), (37, (16, 31)), (14, (3, 60))],
)
def test_positions_are_interpolated_as_pytorch_does(side, grid, offset):
    table = np.random.default_rng(0).normal(size=(side, side, 6)).astype(np.float32)
    tensor = torch.from_numpy(table).permute(2, 0, 1)[None]
    if offset:
        expected = functional.interpolate(
            tensor,
            scale_factor=tuple((length + offset) / side for length in grid),
            mode="bicubic",
            align_corners=False,
            recompute_scale_factor=False,
        )
    else:
        expected = functional.interpolate(tensor, size=grid, mode="bicubic", align_corners=False)
    got = interpolate_positions(jax.numpy.asarray(table), grid, offset)
    assert got.shape == (*grid, 6)
    np.testing.assert_allclose(got, expected[0].permute(1, 2, 0).numpy(), atol=2e-5)
