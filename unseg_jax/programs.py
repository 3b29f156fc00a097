"""Compiled programs kept from one process to the next, so that a new one neither traces nor lowers.

JAX's own cache saves the compiling alone: it is asked with the lowered program, and to get there
takes a second on a CPU. Here a program is found by what it is made from. Files lie in a folder of
JAX's cache, and are kept where that one is: `JAX_ENABLE_COMPILATION_CACHE=false` turns both off.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental.compilation_cache import compilation_cache

from unseg_jax.devices import core_count, cpu_flags
from unseg_jax.files import atomic

FOLDER = "unseg_jax"
"""Folder of the files in that of JAX's cache."""
_MOST_BYTES = 200_000_000
_ARRAYS = (jax.Array, np.ndarray)
_one_at_a_time = threading.RLock()
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
# Settings of JAX that a user may change between two calls: what is traced depends on these, and
# these want JAX's own way of calling.
_TRACED = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
_DEBUGGING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")


def kept_in() -> Path | None:
    """Where programs are kept; None where they are not: on accelerators and several devices, which
    JAX's cache serves, and without that cache."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder or not jax.config.jax_enable_compilation_cache:
        return None
    alone = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return Path(folder, FOLDER) if alone and hasattr(os, "getuid") else None


class Program:
    """A jitted function, whose compiled forms are kept in files.

    Threads may call one; each form is then compiled once.
    """

    def __init__(self, function: Any, made_from: Hashable | None):
        """
        Args:
            function: from `jax.jit`, of trees of arrays, and of static keyword arguments.
            made_from: whatever else decides what it computes, told apart by its `repr`; None if
                that cannot be told, so that nothing is kept.
        """
        self._function, self._made_from = function, made_from
        self._compiled: dict[Hashable, Any] = {}

    @property
    def compilations(self) -> int:
        """How many forms were compiled or loaded in this process."""
        return self._function._cache_size() + len(self._compiled)

    def __call__(self, *args: Any, **static: Any) -> Any:
        """As the function itself."""
        leaves, tree = jax.tree.flatten(args)
        plain = all(isinstance(leaf, _ARRAYS) and not isinstance(leaf, Tracer) for leaf in leaves)
        debugged = any(getattr(jax.config, name, False) for name in _DEBUGGING)
        if not plain or debugged or self._made_from is None:
            return self._function(*args, **static)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        settings = tuple(getattr(jax.config, name, None) for name in _TRACED)
        form = (tree, shapes, settings, *sorted(static.items()))
        if form not in self._compiled:
            with _one_at_a_time:
                folder = kept_in()
                if folder is not None and form not in self._compiled:
                    made_from = (self._made_from, str(tree), shapes, sorted(static.items()))
                    settings = [
                        (name, getattr(jax.config, name, None))
                        for name in sorted(jax.config.values)
                    ]
                    about = f"{made_from} {settings} {_surroundings()}"
                    name = hashlib.sha256(about.encode()).hexdigest()
                    path = folder / f"{name}-cache"
                    self._compiled[form], result = self._obtain(path, args, static)
                    return result
        # Not within the lock: images of a batch run at once.
        return self._compiled.get(form, functools.partial(self._function, **static))(*args)

    def _obtain(self, path: Path, args: tuple, static: dict[str, Any]) -> tuple[Any, Any]:
        """A compiled form, from its file or for it, and its result."""
        if path.exists():
            try:
                compiled = _read(path)
                return compiled, jax.block_until_ready(compiled(*args))
            except Exception:  # damaged, foreign, or of a processor that XLA refuses
                with contextlib.suppress(OSError):
                    path.unlink()
        lowered = self._function.lower(*args, **static)
        # What calls back, or a library that JAX registers as it lowers, cannot be loaded.
        alone = "custom_call" not in lowered.as_text()
        with _without_jax_cache() if alone else contextlib.nullcontext():
            compiled = lowered.compile()
        if alone:
            with contextlib.suppress(Exception):  # a full disk, or a program that is not written
                _write(path, compiled)
        return compiled, compiled(*args)


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """XLA writes no program whole that JAX's cache has read."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _read(path: Path) -> Any:
    """Raises an exception of any kind where the file is not as `_write` wrote it.

    What is unpickled can run code, and so can the programs of JAX's cache. So the file must be of
    this user alone; the sum only tells damage.
    """
    from jax.experimental.serialize_executable import deserialize_and_load

    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
        if state.st_uid != os.getuid() or state.st_mode & 0o022:
            raise PermissionError
        content = file.read()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise ValueError
    return deserialize_and_load(*pickle.loads(content[32:]))


def _write(path: Path, compiled: Any) -> None:
    from jax.experimental.serialize_executable import serialize

    content = pickle.dumps(serialize(compiled))
    with atomic(path) as partial:
        partial.touch(0o600)
        partial.write_bytes(hashlib.sha256(content).digest() + content)
    files = sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > _MOST_BYTES:
            file.unlink(missing_ok=True)


@functools.cache
def _surroundings() -> str:
    """All else that a program depends on: code, versions, variables, processor."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    variables = {name: text for name, text in os.environ.items() if name.startswith("XLA_")}
    versions = [importlib.metadata.version(name) for name in _PACKAGES]
    processor = (platform.machine(), core_count(), sorted(cpu_flags()) or platform.node())
    return repr((code.hexdigest(), variables, versions, processor))
