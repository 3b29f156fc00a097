"""What a fit read of its images, kept so that applying the model decodes and encodes none again."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from unseg_jax.data.decoding import Source

MEMORY = 512 * 2**20
"""Bytes that are kept in memory; what exceeds them goes to a memory-mapped temporary file."""
DISK = 8 * 2**30
"""Bytes of that file; images beyond are read again."""


class Decoded(NamedTuple):
    """An image on its way to the device.

    Attributes:
        pixels: (h, w, 3) uint8 to keep.
        prepared: for the device: (h, w, 3) uint8 pixels of the method's size, or (h, w, D) float16
            features of its patches.
        size: (H, W) of the image itself.
        notes: of its reading.
    """

    pixels: np.ndarray
    prepared: np.ndarray
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


class DecodedCache:
    """Decoded images with their features, by source, `Method.feature_key` and the number of the
    view of an example, 0 for the image as it is. Threads may share one."""

    def __init__(self, memory: int | None = None, disk: int | None = None):
        self._left = MEMORY if memory is None else memory
        self._disk = DISK if disk is None else disk
        self._file, self._end = None, 0
        self._lock = threading.Lock()
        self._kept: dict[Hashable, tuple[Source, Decoded]] = {}

    def put(self, source: Source, image: Decoded, of: Hashable, view: int = 0) -> None:
        """Keeps an image, unless there is no room for it."""
        with self._lock:
            kept = image._replace(pixels=self._hold(image.pixels))
            kept = kept._replace(prepared=self._hold(image.prepared))
            if kept.pixels is not None and kept.prepared is not None:
                # The source is held as well, so that no other gets its identity.
                self._kept[_identity(source), of, view] = source, kept

    def get(self, source: Source, of: Hashable, view: int = 0) -> Decoded | None:
        """An image that was put, as arrays in memory; None if it was not, or is a file that has
        changed since."""
        with self._lock:
            _, kept = self._kept.get((_identity(source), of, view), (None, None))
        if kept is None:
            return None
        return kept._replace(pixels=_loaded(kept.pixels), prepared=_loaded(kept.prepared))

    def _hold(self, array: np.ndarray):
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return array
        if self._end + array.nbytes > self._disk:
            return None
        try:
            if self._file is None:
                # It has no name where the system allows that, so nothing is left of it at the end.
                self._file = tempfile.TemporaryFile(prefix="unseg_jax-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            os.truncate(self._file.fileno(), self._end + array.nbytes)
            mapped = np.memmap(self._file, array.dtype, "r+", self._end, array.shape)
            mapped[...] = array
        except OSError:  # a full disk
            self._disk = 0
            return None
        self._end += array.nbytes
        return mapped


def _loaded(array: np.ndarray) -> np.ndarray:
    return np.array(array) if isinstance(array, np.memmap) else array


def _identity(source: Source) -> Hashable:
    if isinstance(source, str | os.PathLike):
        try:
            state = os.stat(source)
        except OSError:
            return os.fspath(source), None
        page = getattr(source, "number", None)
        return os.path.abspath(source), page, state.st_size, state.st_mtime_ns
    return id(source)
