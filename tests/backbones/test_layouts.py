"""Every kind of file and every layout fills the same parameters, or says all that is wrong."""

import argparse
import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from unseg_jax.backbones import ViTConfig, WeightsError, convert_weights, load_backbone
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.readers import read_tensors

from .conftest import hugging_face

VERSION1 = ViTConfig(patch_size=8, width=128, depth=2, heads=2, grid=3)
VERSION2 = dataclasses.replace(
    VERSION1, patch_size=14, layer_scale=True, normalised_tokens=True, facet="token"
)


def variants(weights, config):
    """The weights under every naming that users hold."""
    hugging = hugging_face(weights, config.layer_scale)
    prefix = "dinov2." if config.layer_scale else "vit."
    heads = {"head.mlp.0.weight": np.ones((3, 3)), "mask_token": np.ones((1, config.width))}
    inner = {prefix + name: x for name, x in hugging.items()}
    return {
        "official": weights,
        "module first": {f"module.backbone.{name}": x for name, x in weights.items()},
        "backbone first": {f"backbone.module.{name}": x for name, x in weights.items()} | heads,
        "hugging face": hugging,
        "hugging face, inner": inner | {"pooler.dense.bias": np.ones(3)},
    }


@pytest.fixture(scope="module", params=[VERSION1, VERSION2], ids=["dino", "dinov2"])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def weights(config, state_dict):
    return state_dict(config)


@pytest.fixture(scope="module")
def expected(config, weights):
    """The parameters, written out by hand."""
    leaves = {"class_token": weights["cls_token"][0, 0], "positions": weights["pos_embed"][0]}
    leaves["patch_embed.kernel"] = weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    leaves["patch_embed.bias"] = weights["patch_embed.proj.bias"]
    leaves |= {"norm.scale": weights["norm.weight"], "norm.bias": weights["norm.bias"]}
    names = {"scale1": "ls1.gamma", "scale2": "ls2.gamma"} if config.layer_scale else {}
    for norm in ("norm1", "norm2"):
        names |= {f"{norm}.scale": f"{norm}.weight", f"{norm}.bias": f"{norm}.bias"}
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        ours = layer.partition(".")[2]
        names |= {f"{ours}.kernel": f"{layer}.weight", f"{ours}.bias": f"{layer}.bias"}
    for ours, theirs in names.items():
        stack = [weights[f"blocks.{i}.{theirs}"] for i in range(config.depth)]
        leaves[f"blocks.{ours}"] = np.stack([x.T if ".kernel" in ours else x for x in stack])
    return leaves


def assert_params(params, expected):
    assert set(params) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_every_naming_loads_from_a_file(config, weights, expected, tmp_path):
    for kind, tensors in variants(weights, config).items():
        np.savez(tmp_path / "mine.npz", **tensors)
        save_file(
            {k: np.ascontiguousarray(x) for k, x in tensors.items()}, tmp_path / "mine.safetensors"
        )
        exact = config.layer_scale and "hugging" in kind
        wanted = dataclasses.replace(config, position_offset=0.0 if exact else 0.1)
        for path in (tmp_path / "mine.npz", tmp_path / "mine.safetensors"):
            backbone = load_backbone(path)
            assert (backbone.name, backbone.source, backbone.config) == ("mine", str(path), wanted)
            assert_params(backbone.params, expected)


FORMS = ("plain.pt", "plain.bin", "plain.pth", "student.pth", "teacher.pth", "state_dict.pth")


@pytest.mark.pytorch
@pytest.mark.parametrize("name", [*FORMS, "model.pth", "full.pth"])
def test_checkpoints_of_pytorch(weights, expected, tmp_path, name):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    wrapped = {f"module.backbone.{name}": value for name, value in tensors.items()}
    wrapped["module.head.last_layer.weight_g"] = torch.ones(3)
    form = name.partition(".")[0]
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
    torch.save(checkpoint, tmp_path / name)
    assert_params(load_backbone(tmp_path / name).params, expected)


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
    broken = hugging_face(weights, config.layer_scale)
    del broken["encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(WeightsError, match=re.escape("missing blocks.qkv.bias of block 0 (key)")):
        build_params(broken, config, "here.npz")
    if config.layer_scale:  # refused where the backbone has none
        with pytest.raises(WeightsError, match=r"unexpected blocks\.0\.ls1\.gamma"):
            build_params(weights, VERSION1, "here.npz")


@pytest.mark.parametrize("half", [np.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(state_dict, tmp_path, half):
    weights = {name: x.astype(half) for name, x in state_dict(VERSION1).items()}
    path = tmp_path / "half.safetensors"
    save_file(weights, path)
    scale = load_backbone(path).params["norm.scale"]
    assert scale.dtype == jnp.float32
    np.testing.assert_array_equal(scale, weights["norm.weight"].astype(np.float32))
    halved = load_backbone(path, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(halved.params)} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match="dtype is 'float64'"):
        load_backbone(path, dtype="float64")  # pyright: ignore


def test_converting_keeps_the_weights(config, weights, expected, tmp_path):
    np.savez(tmp_path / "mine.npz", **{f"backbone.{name}": x for name, x in weights.items()})
    written = convert_weights(tmp_path / "mine.npz", tmp_path / "new" / "mine.safetensors")
    assert_params(load_backbone(written).params, expected)
    assert sorted(read_tensors(written)) == sorted(weights)
    assert [path.name for path in written.parent.iterdir()] == ["mine.safetensors"]
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        convert_weights(written, tmp_path / "mine.npz")


def test_files_that_are_no_weights(tmp_path, monkeypatch):
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "notes.txt").write_text("hello")
    np.savez(tmp_path / "other.npz", weight=np.ones(3))
    for name, says in (
        ("none.safetensors", "there is no weights file"),
        ("torn.safetensors", r"torn\.safetensors cannot be read"),
        ("notes.txt", "of an unknown kind"),
        ("other.npz", "does not hold the weights of a DINO"),
    ):
        with pytest.raises(WeightsError, match=says):
            load_backbone(tmp_path / name)
    (tmp_path / "mine.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"unseg_jax\[reference\]"):
        load_backbone(tmp_path / "mine.pth")
