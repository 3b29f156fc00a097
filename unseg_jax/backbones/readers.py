"""Weights files: how each kind is read without running code or filling memory, and one written.

Weights come from strangers. Nothing is unpickled with code, no other file is opened on a file's
word, and what a file claims to hold is checked against its own size before memory is allocated:
see `unseg_jax.backbones.bounds`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.backbones.bounds import check_archive, check_expansion
from unseg_jax.errors import WeightsError, printable, why
from unseg_jax.files import atomic

# Wrappers of whole checkpoints, in the order in which they are looked into. DINO's full
# checkpoints hold a student and a teacher; DeepCut reads the student.
_WRAPPERS = ("student", "teacher", "state_dict", "model")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # Read through the bit pattern: NumPy has no bfloat16 of its own, and jax's comes with it.
    import jax.numpy as jnp
    from safetensors import deserialize

    dtypes = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }
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
        check_archive(path, archive)
        return {
            name.removesuffix(".npy"): _read_npy(path, name, archive.read(name))
            for name in archive.namelist()
        }


def _read_npy(path: Path, name: str, content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise WeightsError(
            f"{path} holds '{printable(name, 80)}' in a format that is not read here."
        )
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    try:
        shape, fortran_order, dtype = read_header(stream)
    except Exception:  # it parses Python literals, which fail in many ways
        # Not NumPy's own words: they advise to trust the file.
        raise WeightsError(
            f"{path} holds '{printable(name, 80)}' with a header that is not one of an array; "
            "fetch or write it again."
        ) from None
    if dtype.hasobject:
        raise WeightsError(
            f"{path} holds '{printable(name, 80)}' as pickled Python objects, which may run code; "
            "save arrays of numbers instead."
        )
    if dtype.kind not in "fiub":
        raise WeightsError(
            f"{path} holds '{printable(name, 80)}' as {printable(str(dtype), 80)}, which is no "
            "number; save arrays of float32 instead."
        )
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
            check_archive(path, archive)
    # Full checkpoints of DINO carry their command line, a harmless argparse.Namespace.
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint = _unwrap(loaded, path)
    tensors = {
        str(name): tensor for name, tensor in checkpoint.items() if isinstance(tensor, torch.Tensor)
    }
    # A tensor may repeat one number without storing it again.
    check_expansion(path, sum(4 * tensor.numel() for tensor in tensors.values()))
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _read_onnx(path: Path) -> dict[str, np.ndarray]:
    from unseg_jax.backbones import focus

    return focus.tensors_from_onnx(path)


def _read_wheel(path: Path) -> dict[str, np.ndarray]:
    from unseg_jax.backbones import focus

    return focus.tensors_from_wheel(path)


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".onnx": _read_onnx,
    ".whl": _read_wheel,
}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a weights file, by the names that they have in the file.

    Args:
        path: of a .safetensors, .npz, .pth, .pt, .bin, .onnx or .whl file.

    Returns:
        Arrays of the shapes and dtypes stored; bfloat16 is `jax.numpy.bfloat16`.

    Raises:
        WeightsError: no such file, an unknown kind, or one that cannot be read.
        ImportError: the kind needs a package that is not installed.
    """
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    if not is_file:
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
    """SHA-256 of tensors: of names, dtypes, shapes and values, in the order of the names.

    Unlike that of a file, it does not depend on the format or its version.

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
    """Writes tensors whole or not at all.

    Args:
        tensors: name to array.
        path: of the file; missing folders are made.
        metadata: text that is kept with the tensors.

    Raises:
        WriteError: the operating system refused.
    """
    from safetensors.numpy import save

    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    content = save(contiguous, metadata=dict(metadata or {}))
    with atomic(path) as partial:
        partial.write_bytes(content)
