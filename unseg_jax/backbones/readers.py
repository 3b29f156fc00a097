"""Files of weights: where ours are kept, how each kind is read, how one is written."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.errors import WeightsError

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
    return {
        name: np.frombuffer(entry["data"], dtypes[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in deserialize(path.read_bytes())
    }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _unwrap(checkpoint: Any, path: Path) -> Mapping[str, Any]:
    while isinstance(checkpoint, Mapping):
        inner = next((w for w in _WRAPPERS if isinstance(checkpoint.get(w), Mapping)), None)
        if inner is None:
            return checkpoint
        checkpoint = checkpoint[inner]
    raise WeightsError(f"{path} holds no state dict; give a checkpoint of tensors by name")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"reading {path} needs PyTorch; pip install 'unseg_jax[reference]', or convert the "
            "file to .safetensors where PyTorch is installed: unseg-jax weights convert"
        ) from None
    # Full checkpoints of DINO carry their command line, a harmless argparse.Namespace.
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint = _unwrap(loaded, path)
    return {
        name: tensor.detach().float().numpy()
        for name, tensor in checkpoint.items()
        if isinstance(tensor, torch.Tensor)
    }


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name: .safetensors, .npz, .pth/.pt/.bin, .onnx or .whl.

    Raises:
        WeightsError: no such file, a kind that is not known, or one that cannot be read.
        ImportError: the kind needs a package that is not installed.
    """
    from unseg_jax.backbones import focus

    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".pth": _read_torch,
        ".pt": _read_torch,
        ".bin": _read_torch,
        ".onnx": focus.tensors_from_onnx,
        ".whl": focus.tensors_from_wheel,
    }
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; check its path")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise WeightsError(f"{path} is of an unknown kind; known are {', '.join(readers)}")
    try:
        return reader(path)
    except (WeightsError, ImportError):
        raise
    except Exception as error:  # every format fails in its own way on a damaged file
        detail = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path} cannot be read ({detail}); fetch or write it again") from error


def write_safetensors(
    tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors so that no half file is ever at `path`.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask gives; safetensors makes it private
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=dict(metadata or {}))
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
