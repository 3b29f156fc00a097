"""The transformer at its real size against PyTorch, and the interpolation against PyTorch's."""

import jax
import numpy as np
import pytest
from flax import nnx

from unseg_jax.backbones import Backbone
from unseg_jax.backbones.grids import bicubic_matrix, interpolate_positions
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.vit import normalise_pixels
from unseg_jax.backbones.weights import SOURCES

torch = pytest.importorskip("torch")
functional = torch.nn.functional

CONFIG = SOURCES["dino_vits8"].config


@pytest.fixture(scope="module")
def weights(state_dict):
    return state_dict(CONFIG)


@pytest.fixture(scope="module")
def backbone(weights):
    return Backbone("random", "random", *build_params(weights, CONFIG, "random"), CONFIG)


def torch_blocks(weights, pixels):
    """DINO's forward pass, written with PyTorch's functions; all tokens after each block, and
    the last block's queries, keys and values as (3, B, heads, T, c)."""
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    width, patch, heads, side = CONFIG.width, CONFIG.patch_size, CONFIG.heads, CONFIG.grid
    x = torch.from_numpy(np.array(normalise_pixels(pixels))).permute(0, 3, 1, 2)
    x = functional.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    rows, columns = x.shape[2:]
    positions = w["pos_embed"]
    if (rows, columns) != (side, side):
        native = positions[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
        native = functional.interpolate(
            native,
            scale_factor=((rows + 0.1) / side, (columns + 0.1) / side),
            mode="bicubic",
            align_corners=False,
            recompute_scale_factor=False,
        )
        native = native.permute(0, 2, 3, 1).reshape(1, -1, width)
        positions = torch.cat([positions[:, :1], native], dim=1)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + positions
    after = [x]
    for i in range(CONFIG.depth):
        b = {name: w[f"blocks.{i}.{name}"] for name in BLOCK}
        y = functional.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = functional.linear(y, b["attn.qkv.weight"], b["attn.qkv.bias"])
        qkv = qkv.reshape(*y.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv
        attention = (queries @ keys.transpose(-2, -1) * (width // heads) ** -0.5).softmax(-1)
        y = (attention @ values).transpose(1, 2).reshape(x.shape)
        x = x + functional.linear(y, b["attn.proj.weight"], b["attn.proj.bias"])
        y = functional.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = functional.gelu(functional.linear(y, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + functional.linear(y, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
        after.append(x)
    return after, qkv


BLOCK = [
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]


@pytest.mark.parametrize("size", [(224, 224), (280, 360)])
def test_every_block_equals_pytorch_at_the_real_size(backbone, weights, pixels, size):
    images = pixels(1, *size, 3)
    with torch.inference_mode():
        expected, (_, keys, _) = torch_blocks(weights, images)

    @jax.jit
    def after_each(params, images):
        model = nnx.merge(backbone.graphdef, params)
        first = model.tokens(images)

        def step(x, index):
            x = model.block(index)(x)
            return x, x

        return first, jax.lax.scan(step, first, np.arange(CONFIG.depth))[1]

    first, rest = after_each(backbone.params, images)
    assert len(expected) == CONFIG.depth + 1
    for index, (ours, theirs) in enumerate(zip([first, *rest], expected, strict=True)):
        error = np.abs(ours - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error <= 1e-4, f"after block {index - 1}: {error}"
    ours = backbone.features(backbone.params, images, facet="key")
    theirs = keys[:, :, 1:].permute(0, 2, 3, 1).flatten(-2).numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


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


def test_interpolation_weights_sum_to_one():
    matrix = bicubic_matrix(28, 55, 55.1 / 28)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_array_equal(bicubic_matrix(9, 9, 1.0), np.eye(9))
