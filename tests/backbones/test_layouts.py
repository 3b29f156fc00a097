"""Every kind of file and every layout fills the same parameters, or says all that is wrong."""

import argparse
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from unseg_jax.backbones import ViTConfig, WeightsError, convert_weights, load_backbone
from unseg_jax.backbones.layouts import build_params, strip_prefixes
from unseg_jax.backbones.readers import read_tensors

VERSION1 = ViTConfig(patch_size=8, width=128, depth=2, heads=2, grid=3)
VERSION2 = ViTConfig(
    patch_size=14,
    width=128,
    depth=2,
    heads=2,
    grid=3,
    layer_scale=True,
    normalised_tokens=True,
    facet="token",
)


def to_hugging_face(weights, version2):
    """The names that Hugging Face's ViT and DINOv2 models give the official weights."""
    out = {}
    simple = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inner = {"attn.proj": "attention.output.dense"}
    if version2:
        inner |= {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    else:
        inner |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        inner |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for name, value in weights.items():
        if name in simple:
            out[simple[name]] = value
            continue
        _, index, rest = name.split(".", 2)
        prefix = f"encoder.layer.{index}."
        stem, kind = rest.rsplit(".", 1)
        if stem == "attn.qkv":
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                out[f"{prefix}attention.attention.{part}.{kind}"] = third
        elif stem in ("ls1", "ls2"):
            out[f"{prefix}layer_scale{stem[-1]}.lambda1"] = value
        else:
            out[f"{prefix}{inner[stem]}.{kind}"] = value
    return out


def variants(weights, config):
    """The weights under every naming that users hold."""
    version2 = config.layer_scale
    hugging = to_hugging_face(weights, version2)
    model = "dinov2." if version2 else "vit."
    return {
        "official": weights,
        "wrapped": {f"module.backbone.{name}": value for name, value in weights.items()},
        "with head": weights | {"head.mlp.0.weight": np.ones((3, 3), np.float32)},
        "mask token": weights | {"mask_token": np.ones((1, config.width), np.float32)},
        "hugging face": hugging,
        "hugging face, inner": {model + name: value for name, value in hugging.items()}
        | {"pooler.dense.bias": np.ones(3, np.float32)},
    }


KINDS = ["official", "wrapped", "with head", "mask token", "hugging face", "hugging face, inner"]


@pytest.fixture(scope="module", params=[VERSION1, VERSION2], ids=["dino", "dinov2"])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def weights(config, state_dict):
    return state_dict(config)


@pytest.fixture(scope="module")
def expected(config, weights):
    """The parameters, written out by hand."""
    leaves = {
        "class_token": weights["cls_token"][0, 0],
        "positions": weights["pos_embed"][0],
        "patch_embed.kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "patch_embed.bias": weights["patch_embed.proj.bias"],
        "norm.scale": weights["norm.weight"],
        "norm.bias": weights["norm.bias"],
    }
    names = {"norm1.scale": "norm1.weight", "norm1.bias": "norm1.bias"}
    names |= {"norm2.scale": "norm2.weight", "norm2.bias": "norm2.bias"}
    for ours, theirs in (
        ("qkv", "attn.qkv"),
        ("proj", "attn.proj"),
        ("fc1", "mlp.fc1"),
        ("fc2", "mlp.fc2"),
    ):
        names |= {f"{ours}.kernel": f"{theirs}.weight", f"{ours}.bias": f"{theirs}.bias"}
    if config.layer_scale:
        names |= {"scale1": "ls1.gamma", "scale2": "ls2.gamma"}
    for ours, theirs in names.items():
        stack = [weights[f"blocks.{i}.{theirs}"] for i in range(config.depth)]
        leaves[f"blocks.{ours}"] = np.stack([x.T if ".kernel" in ours else x for x in stack])
    return leaves


def assert_params(params, expected):
    from flax import nnx

    got = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_every_naming_loads_from_a_file(config, weights, expected, tmp_path, kind, ending):
    path = tmp_path / f"mine.{ending}"
    tensors = variants(weights, config)[kind]
    if ending == "npz":
        np.savez(path, **tensors)
    else:
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    backbone = load_backbone(path)
    assert (backbone.name, backbone.source) == ("mine", str(path))
    assert_params(backbone.params, expected)
    found = backbone.config
    assert (found.patch_size, found.width, found.depth, found.heads, found.grid) == (
        config.patch_size,
        128,
        2,
        2,
        3,
    )
    assert found.layer_scale == found.normalised_tokens == config.layer_scale
    assert found.facet == config.facet
    if not config.layer_scale:
        assert found.position_offset == 0.1
    else:
        assert found.position_offset == (0.0 if "hugging" in kind else 0.1)


@pytest.mark.parametrize(
    ("form", "ending"),
    [
        ("plain", "pth"),
        ("plain", "pt"),
        ("plain", "bin"),
        ("student", "pth"),
        ("teacher", "pth"),
        ("state_dict", "pth"),
        ("model", "pth"),
        ("full", "pth"),
    ],
)
def test_checkpoints_of_pytorch(weights, expected, tmp_path, form, ending):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    wrapped = {f"module.backbone.{name}": value for name, value in tensors.items()}
    wrapped["module.head.last_layer.weight_g"] = torch.ones(3)
    checkpoint = {
        "plain": tensors,
        # DeepCut reads the student where there are both.
        "full": {
            "teacher": {name: value + 1 for name, value in wrapped.items()},
            "student": wrapped,
            "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
            "args": argparse.Namespace(arch="vit_small"),
        },
    }.get(form, {form: wrapped})
    torch.save(checkpoint, tmp_path / f"checkpoint.{ending}")
    assert_params(load_backbone(tmp_path / f"checkpoint.{ending}").params, expected)


def test_pickled_code_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"student": {"cls_token": torch.ones(1)}, "bad": print}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth cannot be read"):
        load_backbone(tmp_path / "bad.pth")


def test_every_mapping_error_is_in_one_message(config, weights):
    broken = dict(weights)
    del broken["blocks.1.attn.qkv.weight"], broken["norm.bias"]
    broken["blocks.0.mlp.fc1.bias"] = np.zeros(7, np.float32)
    broken["register_tokens"] = np.zeros((1, 4, 128), np.float32)
    broken["blocks.2.norm1.weight"] = np.zeros(128, np.float32)
    with pytest.raises(WeightsError) as caught:
        build_params(broken, config, "here.npz")
    message = str(caught.value)
    for part in (
        "here.npz does not fit",
        "(5 problems",
        "missing blocks.qkv.kernel of block 1",
        "missing norm.bias",
        "wrong shape blocks.0.mlp.fc1.bias: (7,) where (512,) is expected",
        "unexpected register_tokens",
        "unexpected blocks.2.norm1.weight",
    ):
        assert part in message


def test_a_third_of_a_projection_that_is_missing_is_named(config, weights):
    broken = to_hugging_face(weights, config.layer_scale)
    del broken["encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(WeightsError, match=re.escape("missing blocks.qkv.bias of block 0 (key)")):
        build_params(broken, config, "here.npz")


def test_layer_scale_is_refused_where_the_backbone_has_none(state_dict):
    with pytest.raises(WeightsError, match=r"unexpected blocks\.0\.ls1\.gamma"):
        build_params(state_dict(VERSION2), VERSION1, "here.npz")


@pytest.mark.parametrize("half", [np.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_files_load(state_dict, tmp_path, half):
    weights = state_dict(VERSION1)
    path = tmp_path / "half.safetensors"
    save_file({name: np.ascontiguousarray(x.astype(half)) for name, x in weights.items()}, path)
    params = load_backbone(path).params
    assert params["norm"]["scale"][...].dtype == jnp.float32
    np.testing.assert_array_equal(
        params["norm"]["scale"][...], weights["norm.weight"].astype(half).astype(np.float32)
    )


def test_bfloat16_params(state_dict, tmp_path, pixels):
    np.savez(tmp_path / "mine.npz", **state_dict(VERSION1))
    backbone = load_backbone(tmp_path / "mine.npz", dtype="bfloat16")
    import jax

    assert {leaf.dtype for leaf in jax.tree.leaves(backbone.params)} == {jnp.dtype("bfloat16")}
    assert backbone.features(backbone.params, pixels(1, 24, 24, 3)).dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype is 'float64'"):
        load_backbone(tmp_path / "mine.npz", dtype="float64")  # pyright: ignore


def test_converting_keeps_the_weights(config, weights, expected, tmp_path):
    np.savez(tmp_path / "mine.npz", **{f"backbone.{name}": x for name, x in weights.items()})
    written = convert_weights(tmp_path / "mine.npz", tmp_path / "new" / "mine.safetensors")
    assert_params(load_backbone(written).params, expected)
    assert sorted(read_tensors(written)) == sorted(weights)
    assert [path.name for path in written.parent.iterdir()] == ["mine.safetensors"]
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        convert_weights(written, tmp_path / "mine.npz")


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(WeightsError, match="there is no weights file"):
        load_backbone(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(WeightsError, match=r"torn\.safetensors cannot be read"):
        load_backbone(tmp_path / "torn.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match="of an unknown kind"):
        load_backbone(tmp_path / "notes.txt")
    np.savez(tmp_path / "other.npz", weight=np.ones(3))
    with pytest.raises(WeightsError, match="does not hold the weights of a DINO"):
        load_backbone(tmp_path / "other.npz")


def test_prefixes_are_stripped_in_any_order():
    names = ["module.backbone.norm.bias", "backbone.module.norm.bias", "vit.norm.bias"]
    for name in names:
        assert list(strip_prefixes({name: np.ones(1)})) == ["norm.bias"]


def test_checkpoints_need_pytorch(tmp_path, monkeypatch):
    import sys

    (tmp_path / "mine.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"unseg_jax\[reference\]"):
        load_backbone(tmp_path / "mine.pth")
