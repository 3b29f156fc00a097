"""The machine and the versions that a run used."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    names = ("unseg_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    installed = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def describe_device(devices: Sequence[Any]) -> str:
    """Kind and number of devices; of a CPU its name and cores."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        from unseg_jax.data import default_workers

        kind = f"{_cpu_name()}, {default_workers()} cores"
    return kind if len(devices) == 1 else f"{len(devices)} × {kind}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
