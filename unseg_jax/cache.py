"""The cache folder: where it lies, checking what is in it, and JAX's compiled programs."""

import contextlib
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from unseg_jax.errors import WeightsError, why

logger = logging.getLogger("unseg_jax")

CACHE_VARIABLE = "UNSEG_JAX_CACHE"
"""Environment variable that names the cache folder."""


def cache_folder() -> Path:
    """Folder of converted weights and compiled programs: $UNSEG_JAX_CACHE, else the platform's."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else platformdirs.user_cache_path("unseg_jax")


def compiled_folder() -> Path:
    """Folder of compiled programs, unless the user chose another with JAX's own settings."""
    return cache_folder() / "compiled"


def check_sha256(path: Path, expected: str) -> None:
    """Compares a file with its known SHA-256.

    Raises:
        WeightsError: they differ.
    """
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise WeightsError(
            f"{path} has the SHA-256 {actual}, but {expected} is expected; it is damaged or was "
            "replaced, so delete it and fetch it again."
        )


def unwritable(folder: Path) -> str | None:
    """Why nothing can be kept in a folder, which is made; None if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return why(error).lower()


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the cache folder, so that a second run starts at once.

    A cache that the user chose, or forbade, with JAX's own settings is left as it is. What JAX
    warns of for every program of a cache that fails is said once, or not at all.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    chosen = jax.config.jax_compilation_cache_dir
    folder = Path(chosen or compiled_folder())
    if "://" not in str(chosen) and (problem := unwritable(folder)):
        variable = "JAX_COMPILATION_CACHE_DIR" if chosen else CACHE_VARIABLE
        logger.info(
            f"compiled programs cannot be kept in {folder} ({problem}); set {variable} to a folder "
            "that can be written to."
        )
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if chosen:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a shape of images has several, which together take a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_max_size", 1_000_000_000)


class _Clock:
    """Adds up spans of time that may lie within one another."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        total, end = 0.0, float("-inf")
        for first, last in sorted(self.spans):
            total += max(0.0, last - max(first, end))
            end = max(end, last)
        return total


@contextlib.contextmanager
def compile_clock() -> Iterator[_Clock]:
    """Measures what JAX takes to trace and compile within the block, seen from the wall."""
    from jax import monitoring

    clock = _Clock()

    def listen(event: str, *span: Any, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            clock.spans.append((float(span[0]), float(span[1])))

    monitoring.register_event_time_span_listener(listen)
    try:
        yield clock
    finally:
        monitoring.unregister_event_time_span_listener(listen)
