"""Any ViT of a known layout by its name on the hub, from a repository made here; no network."""

import json

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from unseg_jax.backbones import ViTConfig, WeightsError, load_backbone, weights
from unseg_jax.backbones.grids import interpolate_positions
from unseg_jax.backbones.hub import parse_name

from .conftest import hugging_face

VERSION2 = ViTConfig(patch_size=14, width=64, depth=2, heads=1, grid=3, layer_scale=True)
HUGGING = {"num_attention_heads": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
STUB = "org/tiny"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that the hub's client serves as the repository org/tiny."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def download(name, file, *, revision=None, etag_timeout=None):
        if name != STUB or not (folder / file).is_file():
            raise FileNotFoundError(f"404: {name} has no {file}\nin any revision")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def write(folder, tensors, **facts):
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    if facts:
        (folder / "config.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def named(state_dict):
    """The same weights with registers, under the names of their three publishers."""
    official = state_dict(VERSION2)
    registers = np.random.default_rng(5).normal(size=(1, 4, 64)).astype(np.float32)
    hugging = hugging_face(official) | {"embeddings.register_tokens": registers}
    # timm adds the class token's position to the token, and leaves it out of the table.
    timm = {**official, "reg_token": registers, "pos_embed": official["pos_embed"][:, 1:]}
    timm["cls_token"] = official["cls_token"] + official["pos_embed"][:, :1]
    return {
        "official": {**official, "register_tokens": registers},
        "hugging face": {f"dinov2_with_registers.{k}": x for k, x in hugging.items()},
        "timm": timm,
    }


def by_hand(tensors, image):
    """The whole transformer on one image, in NumPy float64, at the grid of the embedding."""
    from scipy.special import erf

    x = {name: value.astype(np.float64) for name, value in tensors.items()}
    pixels = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    patches = pixels.reshape(3, 14, 3, 14, 3).transpose(0, 2, 4, 1, 3).reshape(9, -1)
    kernel = x["patch_embed.proj.weight"].reshape(64, -1)
    tokens = np.concatenate([x["cls_token"][0], patches @ kernel.T + x["patch_embed.proj.bias"]])
    tokens = tokens + x["pos_embed"][0]
    tokens = np.concatenate([tokens[:1], x["register_tokens"][0], tokens[1:]])

    def norm(tokens, name):
        centred = tokens - tokens.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * x[f"{name}.weight"] + x[f"{name}.bias"]

    def linear(tokens, name):
        return tokens @ x[f"{name}.weight"].T + x[f"{name}.bias"]

    for block in ("blocks.0.", "blocks.1."):
        q, k, v = np.split(linear(norm(tokens, block + "norm1"), block + "attn.qkv"), 3, -1)
        logits = q @ k.T / 8
        attention = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = attention / attention.sum(-1, keepdims=True) @ v
        tokens = tokens + linear(mixed, block + "attn.proj") * x[block + "ls1.gamma"]
        hidden = linear(norm(tokens, block + "norm2"), block + "mlp.fc1")
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        tokens = tokens + linear(hidden, block + "mlp.fc2") * x[block + "ls2.gamma"]
    return norm(tokens, "norm")[5:]


@pytest.mark.parametrize("layout", ["official", "hugging face", "timm"])
def test_registers_load_in_every_layout(repository, named, pixels, layout, caplog):
    facts = HUGGING if layout == "hugging face" else {"architecture": "vit_small"}
    write(repository, named[layout], **facts)
    weights._say_unverified.cache_clear()
    with caplog.at_level("INFO", "unseg_jax"):
        backbone = load_backbone("hf:org/tiny")
        load_backbone("hf:org/tiny")
    assert caplog.messages == [
        "the weights hf:org/tiny are not verified, as no hash of them is known."
    ]
    assert backbone.name == backbone.source == "hf:org/tiny"
    assert (backbone.config.registers, backbone.config.heads) == (4, 1)
    image = pixels(1, 42, 42, 3)
    features = backbone.features(backbone.params, image)
    np.testing.assert_allclose(features[0], by_hand(named["official"], image[0]), atol=1e-4)
    attention = backbone.class_attention(backbone.params, image)
    assert attention.shape == (1, 9)
    assert backbone.features(backbone.params, image, facet="attn", block=0).shape == (1, 9, 14)


@pytest.mark.parametrize("grid", [(2, 2), (5, 3), (7, 9)])
def test_positions_with_antialiasing_are_pillows(grid):
    """PyTorch's antialiased bicubic interpolation follows Pillow's."""
    table = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    expected = Image.fromarray(table).resize(grid[::-1], Image.Resampling.BICUBIC)
    found = interpolate_positions(table[..., None], grid, 0.0, antialias=True)
    np.testing.assert_allclose(found[..., 0], np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"hidden_act": "silu"}, "trained with the activation silu"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "trained with the mean of pixels"),
        ({"pretrained_cfg": {"std": [0.5, 0.5, 0.5]}}, "trained with the deviation of pixels"),
        ({"image_mean": "dark"}, "trained with the mean of pixels dark"),
        ({"num_attention_heads": 7}, "7 attention heads, which do not divide"),
        ({"num_attention_heads": "six"}, "'six' attention heads"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps=-1.0"),
    ],
)
def test_models_that_work_otherwise_are_refused(repository, named, facts, message):
    write(repository, named["official"], **facts)
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone("hf:org/tiny")
    assert str(caught.value).endswith(".")


def test_the_layer_that_differs_is_named(repository, named):
    tensors = {**named["official"], "blocks.1.mlp.w12.weight": np.ones((3, 3), np.float32)}
    write(repository, tensors)
    with pytest.raises(WeightsError, match=r"unexpected blocks\.1\.mlp\.w12\.weight"):
        load_backbone("hf:org/tiny")
    rotary = {
        "embeddings.cls_token": np.ones((1, 1, 64), np.float32),
        "embeddings.patch_embeddings.weight": np.ones((64, 3, 16, 16), np.float32),
        "layer.0.attention.q_proj.weight": np.ones((64, 64), np.float32),
    }
    write(repository, rotary)
    with pytest.raises(WeightsError, match=r"no position embedding.*layer\.0\.attention\.q_proj"):
        load_backbone("hf:org/tiny")


def test_what_is_not_there_or_no_name_is_said_in_one_sentence(repository, named):
    for name in ("hf:org/tiny", "hf:org/other"):
        with pytest.raises(WeightsError, match=f"{name} cannot be fetched") as caught:
            load_backbone(name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")
    write(repository, named["official"])
    for content in (b"{", b"[1]", b"3", b"\xff\xfe"):
        (repository / "config.json").write_bytes(content)
        with pytest.raises(WeightsError, match=r"config.json of hf:org/tiny is not readable"):
            load_backbone("hf:org/tiny")
    assert parse_name("hf:a/b@v1.0") == ("a/b", "v1.0")
    for name in ("hf:a", "hf:a/b/c", "hf:/b", "hf:a/b@", "hf:../../etc passwd"):
        with pytest.raises(ValueError, match="is not of the form"):
            parse_name(name)
