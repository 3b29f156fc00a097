"""What this process may use: devices of JAX, cores of the machine, packages and their versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import platform
from collections.abc import Iterable
from typing import Any

from unseg_jax.errors import PlatformError

logger = logging.getLogger("unseg_jax")

DTYPE_VARIABLE = "UNSEG_JAX_DTYPE"
"""Environment variable: what dtype="auto" means."""
_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


def core_count() -> int:
    """Cores that this process may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def usable_devices() -> list[Any]:
    """The devices of JAX in this process, at least one.

    Where JAX_PLATFORMS names several platforms and the first is not here, that is logged once.

    Raises:
        PlatformError: the platform that JAX_PLATFORMS names is not here, or none starts.
    """
    import jax

    platforms: str = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where it has no CUDA
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise PlatformError(
            f"JAX_PLATFORMS={platforms} cannot be used ({reason or 'no such device is here'}): set "
            "JAX_PLATFORMS=cpu to run on the CPU, or install JAX for that platform."
        ) from error
    first, *others = platforms.split(",")
    if others and not _is_here(first):
        _say_once(f"JAX_PLATFORMS names {first}, which is not here: {devices[0].platform} is used.")
    return devices


def resolve_dtype(dtype: str = "auto") -> str:
    """The type that a backbone computes in: the given one, or for "auto" the faster of two.

    "auto" is bfloat16 where the processor multiplies in it: TPUs, NVIDIA GPUs from Ampere on, and
    CPUs with AMX or AVX512-BF16 under JAX 0.11 or newer (older ones gain nothing). Elsewhere it is
    float32. The environment variable UNSEG_JAX_DTYPE says otherwise for "auto".

    Raises:
        ValueError: neither "auto" nor "float32" nor "bfloat16", here or in the variable.
        PlatformError: see `usable_devices`.
    """
    where, given = "dtype", dtype
    if given == "auto" and (chosen := os.environ.get(DTYPE_VARIABLE, "")):
        where, given = DTYPE_VARIABLE, chosen
    if given not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"{where} is '{given}'; use 'auto', 'float32' or 'bfloat16'.")
    if given != "auto":
        return given
    return "bfloat16" if _multiplies_bfloat16(usable_devices()[0]) else "float32"


def _multiplies_bfloat16(device: Any) -> bool:
    import jax

    if device.platform == "cpu":
        return jax.__version_info__ >= (0, 11) and not _BFLOAT16_FLAGS.isdisjoint(cpu_flags())
    # AMD's and Intel's GPUs have no such number.
    capability = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return device.platform == "tpu" or (capability.isdigit() and int(capability) >= 8)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What Linux says the processor can do; nothing on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = [line for line in file if line.startswith("flags")]
    except OSError:
        return frozenset()
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)


def _is_here(name: str) -> bool:
    import jax

    try:
        return bool(jax.local_devices(backend=name))
    except (RuntimeError, AssertionError):
        return False
