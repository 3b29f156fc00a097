"""Writing files so that a killed run leaves none half written.

Everything is written beside its target under a name of its own and then moved over it, which
the operating system does in one step.
"""

import contextlib
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import isal_zlib

from unseg_jax.errors import WriteError

# Of PNG: the type of colours by axes and channels, and the filter that subtracts the row above.
_COLOUR_TYPES, _PALETTE_TYPE, _UP = {(2, 1): 0, (3, 3): 2, (3, 4): 6}, 3, 2
_LEVEL, _ROWS = 2, 1024  # level of ISA-L, and rows that are compressed at a time


@contextlib.contextmanager
def atomic(
    path: str | os.PathLike, partial: Path | None = None, *, sync: bool = False
) -> Iterator[Path]:
    """A path beside `path` to write to, moved to `path` when the block ends without error.

    Missing folders are made. On an error nothing of either file is left or changed.

    Args:
        path: of the file.
        partial: what to write to instead, on the same file system.
        sync: wait until the content is on the disk.

    Raises:
        WriteError: the operating system refused.
    """
    path = Path(path)
    # The suffix is kept: libraries choose the format by it.
    partial = partial or path.with_name(f".{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if sync:
            _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise WriteError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folders(folders: Iterable[Path], root: Path) -> None:
    """Waits until the names in folders below `root` are on the disk, and the folders' own."""
    chain = {root}
    for folder in folders:
        while folder != root:
            chain.add(folder)
            folder = folder.parent
    for folder in chain:
        # Windows opens no folders, and some file systems sync none.
        with contextlib.suppress(OSError):
            _sync(folder)


def _write(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    with atomic(path) as partial, open(partial, "wb") as file:
        write(file)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all. Raises `WriteError`."""
    _write(path, lambda file: file.write(data))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text whole or not at all. Raises `WriteError`."""
    # Names of files may hold bytes that are not UTF-8.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def encode_png(array: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A PNG file in memory; see `write_png`.

    Rows are stored as differences from the row above and compressed by ISA-L: an eighth of the
    time of Pillow's fastest level, for photographs that are a twentieth larger.
    """
    array = np.asarray(array)
    if palette is not None:
        if array.ndim != 2 or not array.size or array.min() < 0 or array.max() > 255:
            raise ValueError(
                "a PNG with a palette takes labels (H, W) in [0, 255]; "
                "colour the labels instead (colour_labels)."
            )
        array = array.astype(np.uint8)
    elif array.dtype == bool and array.ndim == 2:
        array = array.astype(np.uint8) * np.uint8(255)
    channels = array.shape[2] if array.ndim == 3 else 1
    if not array.size or array.dtype != np.uint8 or (array.ndim, channels) not in _COLOUR_TYPES:
        raise ValueError(
            f"cannot write an array of shape {array.shape} and type {array.dtype} as PNG; "
            "pass a bool mask (H, W), or uint8 (H, W), (H, W, 3) or (H, W, 4)."
        )
    height, width = array.shape[:2]
    colour_type = _COLOUR_TYPES[array.ndim, channels] if palette is None else _PALETTE_TYPE
    parts = [struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, colour_type, 0, 0, 0)]
    if palette is not None:
        parts.append(b"PLTE" + np.asarray(palette, np.uint8).tobytes())
    compressor = isal_zlib.compressobj(_LEVEL)
    rows = array.reshape(height, -1)
    above = np.zeros_like(rows[:1])
    for start in range(0, height, _ROWS):
        block = rows[start : start + _ROWS]
        lines = np.full((len(block), 1 + block.shape[1]), _UP, np.uint8)
        np.subtract(block, np.concatenate([above, block[:-1]]), out=lines[:, 1:])
        above = block[-1:]
        parts.append(b"IDAT" + compressor.compress(lines.data))
    parts += [b"IDAT" + compressor.flush(), b"IEND"]
    chunks = (
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", isal_zlib.crc32(part))
        for part in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_png(
    path: str | os.PathLike, array: np.ndarray, palette: np.ndarray | None = None
) -> None:
    """Writes a PNG whole or not at all.

    Args:
        path: where to; missing folders are made.
        array: (H, W) bool, written as 0 and 255; uint8 (H, W), (H, W, 3) or (H, W, 4); with a
            palette, (H, W) integers in [0, 255].
        palette: (n, 3) uint8 colours; the file then holds the labels and shows the colours.

    Raises:
        WriteError: the operating system refused.
        ValueError: an array that is none of these.
    """
    write_bytes(path, encode_png(array, palette))


def check_writable(out: str | os.PathLike) -> None:
    """Makes the folder and writes to it, so that a run fails at its start if at all.

    Raises:
        WriteError: it cannot be written to.
    """
    probe = Path(out, ".unseg_jax.probe")
    try:
        write_bytes(probe, b"")
        probe.unlink(missing_ok=True)
    except WriteError as error:
        if isinstance(error.__cause__, OSError):
            raise WriteError(out, error.__cause__) from error
        raise
