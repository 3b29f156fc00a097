"""What this process may use: the devices of JAX, and the cores of the machine."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from unseg_jax.errors import PlatformError

logger = logging.getLogger("unseg_jax")


def core_count() -> int:
    """Cores that this process may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


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


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)


def _is_here(platform: str) -> bool:
    import jax

    try:
        return bool(jax.local_devices(backend=platform))
    except (RuntimeError, AssertionError):
        return False
