"""The transformer against the published extractor's values, and its contracts."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
    pixels = golden_pixels(values, size)
    for name in names:
        facet, _, binned = name.partition(".")
        features = tiny.features(
            tiny.params, pixels, facet=facet, stride=stride, log_bin=bool(binned)
        )
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


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(VERSION2, registers=4)])
def test_shapes_are_those_of_the_model(config):
    model = nnx.eval_shape(lambda: vit.VisionTransformer(config, rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.state(model))
    assert {".".join(map(str, path)): leaf.shape for path, leaf in leaves} == config.shapes


def tokens_before(tiny, pixels, index):
    """All tokens that enter a block, the class token too."""

    @jax.jit
    def tokens(params, pixels):
        model = vit.with_params(tiny.config, params)
        return model.run_blocks(model.tokens(pixels), index)

    return np.asarray(tokens(tiny.params, pixels), np.float64)


def test_class_attention_is_the_softmax_of_the_last_block(tiny, values):
    pixels = golden_pixels(values, "32x32")
    weights = attention_by_hand(tiny, tokens_before(tiny, pixels, 2), 2)
    attention = tiny.class_attention(tiny.params, pixels)
    assert attention.shape == (2, 16)
    np.testing.assert_allclose(attention, weights[:, :, 0, 1:].mean(1), atol=1e-6)


def test_attention_facet_is_each_patch_over_all_tokens(tiny, values):
    pixels = golden_pixels(values, "32x32")
    weights = attention_by_hand(tiny, tokens_before(tiny, pixels, 1), 1)
    features = tiny.features(tiny.params, pixels, facet="attn", block=1)
    expected = weights[:, :, 1:].transpose(0, 2, 3, 1).reshape(2, 16, 17 * 3)
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_blocks_count_from_both_ends(tiny):
    model = vit.with_params(tiny.config, tiny.params)
    assert [model.block_index(block) for block in range(-3, 3)] == [0, 1, 2, 0, 1, 2]
    for block in (3, -4):
        with pytest.raises(ValueError, match="there is no block"):
            model.block_index(block)


def test_settings_that_do_not_exist_are_refused(tiny, pixels):
    image = pixels(1, 32, 32, 3)
    with pytest.raises(ValueError, match="there is no facet 'keys'"):
        tiny.features(tiny.params, image, facet="keys")
    with pytest.raises(ValueError, match="log-bin"):
        tiny.features(tiny.params, image, facet="attn", log_bin=True)


def test_bytes_and_fractions_are_the_same_pixels(pixels):
    image = pixels(1, 32, 40, 3)
    fractions = image.astype(np.float32) / 255
    expected = (fractions - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    for given in (image, fractions):
        np.testing.assert_allclose(normalise_pixels(jnp.asarray(given)), expected, atol=1e-6)


def test_an_image_does_not_see_its_batch(tiny, pixels):
    images = pixels(3, 32, 32, 3)

    @jax.jit
    def both(params, images):
        return tiny.features(params, images), tiny.class_attention(params, images)

    features, attention = both(tiny.params, images)
    alone = [both(tiny.params, image[None]) for image in images]
    np.testing.assert_allclose(features, np.concatenate([one[0] for one in alone]), atol=1e-6)
    np.testing.assert_allclose(attention, np.concatenate([one[1] for one in alone]), atol=1e-7)


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


def test_tokens_of_version_2_end_with_the_final_normalisation(version2, pixels):
    params, image = version2.params, pixels(1, 42, 70, 3)
    tokens = np.asarray(version2.features(params, image))
    assert tokens.shape == (1, 3 * 5, 64)
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-2)
    inner = np.asarray(version2.features(params, image, block=0))
    assert np.abs(inner.std(-1) - 1).max() > 0.1


def test_bfloat16_stays_near_float32(version2, pixels):
    image, facets = pixels(1, 42, 42, 3), ("key", "token", "attn")

    @jax.jit
    def every(params):
        return [version2.features(params, image, facet=facet, block=1) for facet in facets]

    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), version2.params)
    for facet, rounded, exact in zip(facets, every(half), every(version2.params), strict=True):
        assert rounded.dtype == jnp.float32
        # bfloat16 keeps 8 bits: a few roundings of 2^-8 each.
        assert np.abs(rounded - exact).max() <= 0.03 * np.abs(exact).max(), facet


def test_keys_need_nothing_that_comes_after_them(tiny, values):
    """What the last block does after its keys is not even read."""
    pixels = golden_pixels(values, "32x32")
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
    assert np.isnan(np.asarray(tiny.features(poisoned, pixels, facet="token"))).all()


def test_settings_compile_once(tiny, pixels):
    before = _features._cache_size()
    for seed in range(3):
        tiny.features(tiny.params, pixels(2, 24, 24, 3) + np.uint8(seed), facet="query")
    assert _features._cache_size() == before + 1


def test_log_bins_of_a_grid_written_out():
    """Bins of one patch, by loops: its neighbours, then the averages around it."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1, 5 * 4, 2)).astype(np.float32)
    got = np.asarray(log_bin(jnp.asarray(x), (5, 4))).reshape(5, 4, 17, 2)
    grid = x.reshape(5, 4, 2)

    def pooled(i, j):
        return grid[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((0, 1))

    for y in range(5):
        for c in range(4):
            bins = []
            for level, step in enumerate((1, 3)):
                for i in (y - step, y, y + step):
                    for j in (c - step, c, c + step):
                        if level and (i, j) == (y, c):
                            continue
                        i_in, j_in = min(max(i, 0), 4), min(max(j, 0), 3)
                        bins.append(pooled(i_in, j_in) if level else grid[i_in, j_in])
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
