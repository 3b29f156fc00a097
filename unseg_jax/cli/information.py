"""`unseg-jax info`: what is installed, what is cached, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from unseg_jax.devices import resolve_dtype, usable_devices, versions
from unseg_jax.errors import PlatformError

DISTRIBUTION = "unseg_jax"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "scipy", "scikit-image")
"""Packages whose versions decide what is computed."""
DEVELOPERS = frozenset({"docs", "notebooks", "reference", "test", "tpu-check"})
"""Extras that no command of `unseg-jax` needs."""
NVIDIA_PATHS = ("/proc/driver/nvidia", "/dev/nvidia0")
GPU_WITHOUT_CUDA = 'GPU present, jax without CUDA: pip install "unseg_jax[cuda]"'


def collect() -> dict[str, Any]:
    """Plain values that say what this installation is and has.

    Returns:
        `versions`: package → version, or None where it is missing; `devices`: one dict per device
        of jax, and the `dtype` of backbones by default, or `device_error`; `weights`: one dict per
        backbone on this machine, with `bytes` and whether its hash is known (`verified`); `cache`:
        the folder, and the number and bytes of compiled programs; `extras`: extra → packages that
        are missing, or None where it cannot be known; `advice`: sentences.
    """
    facts: dict[str, Any] = {"versions": _versions(), "system": platform.platform()}
    facts |= _devices()
    facts["weights"] = _weights()
    facts["cache"] = _cache()
    facts["extras"] = missing_extras()
    facts["advice"] = []
    on_gpu = any(device["platform"] not in ("cpu", "tpu") for device in facts["devices"])
    if has_nvidia_gpu() and not on_gpu:
        facts["advice"].append(GPU_WITHOUT_CUDA)
    return facts


def has_nvidia_gpu(paths: Iterable[str] = NVIDIA_PATHS) -> bool:
    """Whether the driver of an NVIDIA GPU shows on this machine, with or without jax for it."""
    return shutil.which("nvidia-smi") is not None or any(map(os.path.exists, paths))


def _versions() -> dict[str, str | None]:
    from unseg_jax import __version__

    found = {"unseg_jax": __version__, **versions(PACKAGES)}
    return {name: found.get(name) for name in ("unseg_jax", "python", *PACKAGES)}


def _devices() -> dict[str, Any]:
    # jax warns of a GPU that it cannot use; the advice says the same, with what to do.
    logger = logging.getLogger("jax._src.xla_bridge")
    before, logger.disabled = logger.disabled, True
    try:
        devices = [
            {"platform": device.platform, "kind": device.device_kind, "id": device.id}
            for device in usable_devices()
        ]
    except PlatformError as error:
        return {"devices": [], "device_error": str(error)}
    finally:
        logger.disabled = before
    return {"devices": devices, "dtype": resolve_dtype()}


def _weights() -> list[dict[str, Any]]:
    from unseg_jax.backbones import list_weights

    return [
        {
            "name": entry["name"],
            "path": entry["path"],
            "bytes": os.path.getsize(entry["path"]),
            "verified": entry["sha256"] is not None,
        }
        for entry in list_weights()
        if entry["cached"]
    ]


def _cache() -> dict[str, Any]:
    import jax

    from unseg_jax.cache import cache_folder, compiled_folder

    chosen = jax.config.jax_compilation_cache_dir
    folder = Path(chosen) if chosen else compiled_folder()
    sizes = [path.stat().st_size for path in folder.rglob("*-cache") if path.is_file()]
    return {
        "folder": str(cache_folder()),
        "compiled_folder": str(folder),
        "compiled_programs": len(sizes),
        "compiled_bytes": sum(sizes),
    }


def missing_extras(name: str = DISTRIBUTION) -> dict[str, list[str]] | None:
    """Which packages each extra still lacks.

    Args:
        name: of an installed distribution.

    Returns:
        Extra → names of packages that are missing or too old, sorted; None where the metadata are
        not installed, as in a bare copy of the source.
    """
    try:
        extras = importlib.metadata.metadata(name).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return {
        extra: sorted(set(_missing(name, extra)))
        for extra in sorted(extras)
        if extra not in DEVELOPERS
    }


def _missing(name: str, extra: str, seen: Set[tuple[str, str]] = frozenset()) -> Iterator[str]:
    """Packages that `name[extra]` needs and that are not here, extras of extras included."""
    from packaging.requirements import Requirement

    if (name, extra) in seen:
        return
    seen = seen | {(name, extra)}
    for line in importlib.metadata.requires(name) or []:
        needed = Requirement(line)
        marker = needed.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # needed by all
        if not marker.evaluate({"extra": extra}):
            continue
        version = versions([needed.name]).get(needed.name)
        if version is None or not needed.specifier.contains(version, prereleases=True):
            yield needed.name
            continue
        for inner in needed.extras:
            yield from _missing(needed.name, inner, seen)


def describe(facts: dict[str, Any]) -> str:
    """What `collect` found, as text for a terminal."""
    lines = [f"{name} {version or 'missing'}" for name, version in facts["versions"].items()]
    sections = {"versions": [", ".join(lines), facts["system"]]}
    sections["devices"] = [
        f"{device['platform']}:{device['id']} {device['kind']}" for device in facts["devices"]
    ] or [f"none: {facts.get('device_error')}"]
    if "dtype" in facts:
        sections["devices"].append(f"backbones run in {facts['dtype']} by default")
    sections["weights"] = [
        f"{entry['name']} {_megabytes(entry['bytes'])}, "
        + ("hash known" if entry["verified"] else "hash unknown, not verified")
        for entry in facts["weights"]
    ] or ["none yet: unseg-jax weights get auto"]
    cache = facts["cache"]
    sections["cache"] = [
        cache["folder"],
        f"{cache['compiled_programs']} compiled programs, {_megabytes(cache['compiled_bytes'])}",
    ]
    extras = facts["extras"]
    if extras is None:
        sections["extras"] = ["unknown, as unseg_jax runs from source that is not installed"]
    else:
        sections["extras"] = [_extra(name, missing) for name, missing in extras.items()]
    if facts["advice"]:
        sections["advice"] = facts["advice"]
    width = max(map(len, sections)) + 2
    return "\n".join(
        f"{title if number == 0 else '':<{width}}{line}"
        for title, found in sections.items()
        for number, line in enumerate(found)
    )


def _extra(name: str, missing: list[str]) -> str:
    if not missing:
        return f"{name}: installed"
    return f'{name}: lacks {", ".join(missing)}; pip install "unseg_jax[{name}]"'


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
