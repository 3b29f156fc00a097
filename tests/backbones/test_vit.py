"""The transformer against the published extractor's values, and its contracts."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax.backbones import Backbone, ViTConfig, vit
from unseg_jax.backbones.backbone import _features
from unseg_jax.backbones.grids import log_bin
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.vit import IMAGENET_MEAN, IMAGENET_STD, normalise_pixels

TINY = ViTConfig(patch_size=8, width=48, depth=3, heads=3, grid=4)
VERSION2 = ViTConfig(14, 64, depth=2, heads=2, grid=3, layer_scale=True, position_offset=0.0)
VERSION2 = dataclasses.replace(VERSION2, normalised_tokens=True, facet="token")


@pytest.fixture(scope="module")
def values(golden):
    return golden("vit_tiny_patch8")


@pytest.fixture(scope="module")
def tiny(values):
    weights = {name[6:]: value for name, value in values.items() if name.startswith("param.")}
    return Backbone("tiny", "golden", build_params(weights, TINY, "golden"), TINY)


@pytest.fixture(scope="module")
def version2(state_dict):
    plain = {"norm.weight": np.ones(64, np.float32), "norm.bias": np.zeros(64, np.float32)}
    params = build_params(state_dict(VERSION2) | plain, VERSION2, "random")
    return Backbone("random", "random", params, VERSION2)


def golden_pixels(values, size):
    """The golden inputs are already normalised: undone here, as pixels in [0, 1] may be any."""
    x = values[f"{size}.input"].transpose(0, 2, 3, 1)
    return x * np.array(IMAGENET_STD, np.float32) + np.array(IMAGENET_MEAN, np.float32)


EVERY = ("key", "query", "value", "token", "key.logbin")


# What the facets are made of at other sizes and strides, the last block's output shows.
@pytest.mark.parametrize(
    ("size", "stride", "names"),
    [
        ("64x40", 8, EVERY),
        ("32x32", 8, ("token",)),
        ("32x32", 2, ("token", "key.logbin")),
        ("48x48", 4, ("token",)),
        ("64x40", 2, ("token",)),
        ("56x72", 4, ("token",)),
    ],
)
def test_features_equal_the_published_extractor(tiny, values, size, stride, names):
    wanted = {name: {"facet": name.split(".")[0], "log_bin": "." in name} for name in names}

    @jax.jit
    def every(params, pixels):
        return {n: tiny.features(params, pixels, stride=stride, **w) for n, w in wanted.items()}

    for name, features in every(tiny.params, golden_pixels(values, size)).items():
        expected = values[f"{size}.s{stride}.{name}"]
        assert features.dtype == jnp.float32
        assert features.shape == expected.shape
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4, err_msg=name)


def test_grid_counts_patches(tiny):
    assert tiny.grid((32, 48)) == (4, 6)
    assert tiny.grid((32, 48), 4) == (7, 11)
    assert tiny.grid((33, 55), 2) == (13, 24)
    with pytest.raises(ValueError, match=r"stride 3 does not divide the patch size 8"):
        tiny.grid((32, 32), 3)
    with pytest.raises(ValueError, match="smaller than one patch"):
        tiny.grid((32, 7))


def attention_by_hand(tiny, x, index):
    """Softmax attention of a block, in NumPy float64, all tokens."""
    leaf = {k: np.asarray(v, np.float64) for k, v in tiny.params.items()}
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) / np.sqrt(variance + TINY.norm_epsilon)
    y = y * leaf["blocks.norm1.scale"][index] + leaf["blocks.norm1.bias"][index]
    qkv = y @ leaf["blocks.qkv.kernel"][index] + leaf["blocks.qkv.bias"][index]
    queries, keys, _ = qkv.reshape(*x.shape[:2], 3, TINY.heads, -1).transpose(2, 0, 3, 1, 4)
    logits = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_attention_is_the_softmax_of_queries_and_keys(tiny, values):
    """Class attention of the last block, and the facet of each patch over all tokens."""
    pixels = golden_pixels(values, "32x32")

    @jax.jit
    def tokens(params, pixels):
        model = vit.with_params(tiny.config, params)
        first = model.tokens(pixels)
        return model.run_blocks(first, 1), model.run_blocks(first, 2)

    first, last = (
        attention_by_hand(tiny, np.asarray(entering, np.float64), block)
        for block, entering in enumerate(tokens(tiny.params, pixels), start=1)
    )
    attention = tiny.class_attention(tiny.params, pixels)
    assert attention.shape == (2, 16)
    np.testing.assert_allclose(attention, last[:, :, 0, 1:].mean(1), atol=1e-6)
    features = tiny.features(tiny.params, pixels, facet="attn", block=1)
    expected = first[:, :, 1:].transpose(0, 2, 3, 1).reshape(2, 16, 17 * 3)
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_settings_that_do_not_exist_are_refused(tiny, pixels):
    model = vit.with_params(tiny.config, tiny.params)
    assert [model.block_index(block) for block in range(-3, 3)] == [0, 1, 2, 0, 1, 2]
    for wanted, says in (
        ({"block": 3}, "there is no block"),
        ({"block": -4}, "there is no block"),
        ({"facet": "keys"}, "there is no facet 'keys'"),
        ({"facet": "attn", "log_bin": True}, "log-bin"),
    ):
        with pytest.raises(ValueError, match=says):
            tiny.features(tiny.params, pixels(1, 32, 32, 3), **wanted)


def test_bytes_and_fractions_are_the_same_pixels(pixels):
    image = pixels(1, 32, 40, 3)
    fractions = image.astype(np.float32) / 255
    expected = (fractions - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    for given in (image, fractions):
        np.testing.assert_allclose(normalise_pixels(jnp.asarray(given)), expected, atol=1e-6)


def test_many_tokens_give_the_same_head_by_head(tiny, pixels, monkeypatch):
    image = pixels(2, 40, 32, 3)
    model = vit.with_params(tiny.config, tiny.params)
    together = jax.jit(lambda pixels: model.block(0)(model.tokens(pixels)))(image)
    monkeypatch.setattr(vit, "_TOKENS_AT_ONCE", 8)
    in_turn = jax.jit(lambda pixels: model.block(0)(model.tokens(pixels)))(image)
    np.testing.assert_allclose(in_turn, together, rtol=1e-5, atol=1e-5)


def test_pixels_beyond_the_last_whole_patch_do_not_count(tiny, pixels):
    image = pixels(1, 37, 35, 3)
    model = vit.with_params(tiny.config, tiny.params)
    # Both have a 4 x 4 grid, but only square images keep the embedding as it is.
    tokens = jax.jit(lambda pixels: model.tokens(pixels))
    np.testing.assert_allclose(tokens(image), tokens(image[:, :36, :35]), atol=1e-6)


def test_bfloat16_stays_near_float32_and_the_last_tokens_are_normalised(version2, pixels):
    image = pixels(1, 42, 70, 3)
    wanted = [("key", 1), ("token", 1), ("attn", 1), ("token", 0)]

    @jax.jit
    def every(params):
        return [version2.features(params, image, facet=f, block=block) for f, block in wanted]

    exact = every(version2.params)
    rounded = every(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), version2.params))
    for which, ours, theirs in zip(wanted, rounded, exact, strict=True):
        assert ours.dtype == jnp.float32
        # bfloat16 keeps 8 bits: a few roundings of 2^-8 each.
        assert np.abs(ours - theirs).max() <= 0.03 * np.abs(theirs).max(), which
    assert exact[1].shape == (1, 3 * 5, 64)
    np.testing.assert_allclose(exact[1].mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(exact[1].std(-1), 1, atol=1e-2)
    assert np.abs(exact[3].std(-1) - 1).max() > 0.1


def test_several_blocks_stand_side_by_side(tiny, version2, pixels):
    """In the order given, each as it is alone."""
    for backbone, facet, blocks in ((tiny, "key", (-1, 0, 1)), (version2, "token", (-1, 0))):
        image = pixels(1, 42, 70, 3)
        together = backbone.features(backbone.params, image, facet=facet, block=blocks)
        alone = [
            backbone.features(backbone.params, image, facet=facet, block=block) for block in blocks
        ]
        np.testing.assert_allclose(together, np.concatenate(alone, -1), rtol=1e-5, atol=1e-5)
        assert np.abs(alone[0] - alone[1]).max() > 0.01
    with pytest.raises(ValueError, match="there is no block 7"):
        tiny.features(tiny.params, image, block=(0, 7))


def test_keys_need_nothing_that_comes_after_them(tiny, values):
    """What the last block does after its keys is not even read."""
    pixels = golden_pixels(values, "32x32")
    before = _features._cache_size()
    used = ("blocks.norm1", "blocks.qkv")
    poisoned = {
        name: leaf.at[-1].set(jnp.nan)
        if name.startswith("blocks.") and not name.startswith(used)
        else leaf
        for name, leaf in tiny.params.items()
    }
    np.testing.assert_array_equal(
        tiny.features(poisoned, pixels, facet="key"),
        tiny.features(tiny.params, pixels, facet="key"),
    )
    assert _features._cache_size() == before + 1  # a setting compiles once
    assert np.isnan(np.asarray(tiny.features(poisoned, pixels, facet="token"))).all()


def test_log_bins_of_a_grid_written_out():
    """Bins of one patch, by loops: its neighbours, then the averages around it."""
    x = np.random.default_rng(0).normal(size=(1, 5 * 4, 2)).astype(np.float32)
    grid = x.reshape(5, 4, 2)
    pooled = np.empty_like(grid)
    for i, j in np.ndindex(5, 4):
        pooled[i, j] = grid[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((0, 1))
    got = np.asarray(log_bin(jnp.asarray(x), (5, 4))).reshape(5, 4, 17, 2)
    for y, c in np.ndindex(5, 4):
        bins = [
            (grid if step == 1 else pooled)[np.clip(i, 0, 4), np.clip(j, 0, 3)]
            for step in (1, 3)
            for i in (y - step, y, y + step)
            for j in (c - step, c, c + step)
            if step == 1 or (i, j) != (y, c)
        ]
        np.testing.assert_allclose(got[y, c], bins, atol=1e-6)


def test_images_run_in_turn_on_a_cpu_and_together_elsewhere(tiny, pixels):
    """Read off the programs lowered for each platform; nothing needs to be there to run them."""
    images = pixels(5, 32, 32, 3)
    for platform, together in (("cpu", False), ("cuda", True)):
        program = jax.export.export(jax.jit(tiny.features), platforms=[platform])
        text = program(tiny.params, images).mlir_module()
        # (images, heads, tokens, tokens) weights of the attention
        assert ("tensor<5x3x17x17xf32>" in text) == together
        assert ("tensor<1x3x17x17xf32>" in text) != together
