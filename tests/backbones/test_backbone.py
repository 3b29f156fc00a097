"""A function as a backbone: the same features, jitted and batched wherever a ViT goes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.backbones.grids import log_bin
from unseg_jax.collective.shipped import load_shipped
from unseg_jax.registry import resolve


def colours(pixels):
    """Means and deviations of 16 x 16 patches."""
    batch, height, width, _ = pixels.shape
    patches = pixels.reshape(batch, height // 16, 16, width // 16, 16, 3)
    features = jnp.concatenate([patches.mean((2, 4)), patches.std((2, 4))], -1)
    return features.reshape(batch, -1, 6)


def photograph():
    draw = np.random.default_rng(0)
    image = np.full((96, 96, 3), 40, np.uint8)
    image[32:64, 32:80] = (220, 90, 60)
    return image + draw.integers(0, 10, image.shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone():
    return us.from_callable(colours, patch=16)


def test_features_are_those_of_the_function(backbone):
    pixels = np.stack([photograph(), photograph()[:, ::-1]])
    expected = pixels.reshape(2, 6, 16, 6, 16, 3).astype(np.float64) / 255
    means = expected.mean((2, 4)).reshape(2, 36, 3)
    features = backbone.features(backbone.params, pixels)
    assert (features.shape, features.dtype) == ((2, 36, 6), jnp.float32)
    np.testing.assert_allclose(features[..., :3], means, atol=1e-5)
    assert backbone.name == "colours"
    assert backbone.config.width == 6
    # Pixels beyond the last whole patch do not count.
    np.testing.assert_allclose(
        backbone.features(backbone.params, pixels[:, :90, :93]),
        backbone.features(backbone.params, pixels[:, :80, :80]),
        atol=1e-6,
    )
    # jax 0.10 rounds the last bit otherwise where both are one program.
    np.testing.assert_allclose(
        backbone.features(backbone.params, pixels, log_bin=True),
        log_bin(features, (6, 6)),
        rtol=1e-6,
    )


def test_params_are_an_argument():
    mix = {"mix": np.eye(6, 4, dtype=np.float32)}
    backbone = us.from_callable(
        lambda params, pixels: colours(pixels) @ params["mix"], 16, width=4, params=mix, name="mix"
    )
    pixels = photograph()[None]
    one = backbone.features(backbone.params, pixels)
    double = backbone.features({"mix": 2 * mix["mix"]}, pixels)
    np.testing.assert_allclose(double, 2 * one, rtol=1e-5)
    assert one.shape == (1, 36, 4)


def test_it_segments_in_batches_and_compiles_once(backbone):
    options = {"backbone": backbone, "image_size": 96}
    segmenter = us.Segmenter("vit-kmeans", **options, foreground="border")
    results = segmenter([photograph()] * 3)
    assert segmenter.compilations == 1
    for result in results:
        assert result.backbone == "colours"
        assert result.mask[40:56, 40:72].mean() > 0.9
        assert result.mask[:16].mean() < 0.1
    # Published strides become the patch.
    assert us.Segmenter("mincutpool", **options).method.stride == 16
    with pytest.raises(ValueError, match="leave out stride=4"):
        us.Segmenter("mincutpool", **options, stride=4)(photograph())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": "colours", "patch": 16}, "takes a function, not a str"),
        ({"fn": colours, "patch": 0}, "patch=0 must be a whole number"),
        ({"fn": colours, "patch": 16, "width": True}, "width=True must be"),
        ({"fn": lambda pixels: np.asarray(pixels).sum(), "patch": 8}, "cannot be traced by JAX"),
        ({"fn": lambda pixels: pixels, "patch": 8}, r"gives an array of shape \(1, 112, 112, 3\)"),
        ({"fn": lambda pixels: None, "patch": 8}, "cannot be traced by JAX|gives a NoneType"),
        ({"fn": colours, "patch": 8}, r"where \(1, 196, D\) is expected"),
    ],
)
def test_functions_that_cannot_be_used(arguments, message):
    with pytest.raises(ValueError, match=rf"({message}).*\.$"):
        us.from_callable(**arguments)


def test_what_a_function_does_not_have_is_said(backbone):
    pixels = photograph()[None]
    with pytest.raises(ValueError, match="leave out facet and block"):
        backbone.features(backbone.params, pixels, facet="key")
    with pytest.raises(ValueError, match="has no class token"):
        backbone.class_attention(backbone.params, pixels)
    wider = us.from_callable(colours, patch=16, width=7)
    with pytest.raises(ValueError, match=r"gives an array of shape \(1, 36, 6\).*\(1, 36, 7\)"):
        wider.features(wider.params, pixels)
    for given, message in ((colours, "from_callable"), (3, "a int is not")):
        with pytest.raises(ValueError, match=rf"{message}.*\.$"):
            us.Segmenter("deepcut", backbone=given)


def test_a_model_fitted_on_a_function_needs_it_again(tmp_path):
    backbone = us.from_callable(lambda pixels: jnp.tile(colours(pixels), 64), patch=16)
    model = load_shipped(backbone=backbone)
    model = dataclasses.replace(model, method=resolve(model.method, image_size=96))
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="fitted on the features of a function"):
        us.load_model(tmp_path / "model.safetensors")
    again = us.load_model(tmp_path / "model.safetensors", backbone=backbone)
    np.testing.assert_array_equal(
        again.segment(photograph())[0].mask, model.segment(photograph())[0].mask
    )
