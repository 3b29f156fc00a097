"""Append-only files of JSON lines, each with a checksum, that survive a kill at any moment.

A process that is killed leaves at most one torn line at the end: readers leave it out, and the
next writer cuts it off. A line that was changed afterwards no longer matches its checksum.
"""

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unseg_jax.errors import BenchError, WriteError, why

_FIELD = ', "crc": "'
# What the lines of records, of sessions and of the journal of a store begin with.
_KEYS = ("id", "ended", "begin", "image", "file", "removed", "settings")
_HEADS = tuple(f'{{"{key}": '.encode() for key in _KEYS)
_TAIL = len(_FIELD) + 8 + len('"}')


def seal(value: Mapping[str, Any]) -> str:
    """A JSON object as a line whose last field is the CRC-32 of the others.

    >>> seal({"id": "a"})
    '{"id": "a", "crc": "af678071"}\\n'
    """
    body = json.dumps(value, allow_nan=False)
    return f'{body[:-1]}{_FIELD}{zlib.crc32(body.encode()):08x}"}}\n'


def unseal(line: str) -> dict[str, Any]:
    """The object in a line, without its checksum.

    Raises:
        ValueError: no such line, or it was changed.
    """
    line = line.rstrip("\n")
    body, tail = line[:-_TAIL] + "}", line[-_TAIL:]
    if tail != f'{_FIELD}{zlib.crc32(body.encode()):08x}"}}':
        raise ValueError("its checksum does not match")
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def seal_lines(values: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Objects as sealed lines."""
    return map(seal, values)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a journal, in the order of writing; none if there is no such file.

    Raises:
        BenchError: a line is damaged, or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield unseal(line.decode())
                except ValueError as error:
                    raise damaged(path, number, error) from None
    except FileNotFoundError:
        return
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({why(error)}): check its permissions.") from None


def damaged(path: Path, number: int, reason: object) -> BenchError:
    """The error for a line that cannot be used."""
    return BenchError(
        f"line {number} of {path} is damaged ({reason}): remove that line, and resume the run."
    )


def is_journal(content: Iterable[bytes]) -> bool:
    """Whether all lines were written here; the last one may be torn.

    Args:
        content: the lines of a file, each with its line break.
    """
    for line in content:
        if not line.endswith(b"\n"):
            return _is_torn(line)
        try:
            unseal(line.decode())
        except ValueError:
            return False
    return True


def _is_torn(line: bytes) -> bool:
    """Whether a line without an end is what a killed process leaves of one of ours."""
    if not any(head.startswith(line) or line.startswith(head) for head in _HEADS):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    with contextlib.suppress(ValueError):
        return bool(unseal(line.decode()))
    return False


class Journal:
    """A journal that is open for appending; its methods may be called by any thread."""

    def __init__(self, path: Path, *, sync: bool = True):
        """Opens or creates the file, and cuts a torn last line off.

        Args:
            path: of the file.
            sync: wait until lines are on the disk, so that they outlive the machine as well.

        Raises:
            WriteError: it cannot be written.
        """
        self.path, self._sync = path, sync
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._file = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
            self._size = _mend(self._file)
        except OSError as error:
            raise WriteError(path, error) from error

    def append(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines.

        Raises:
            WriteError: the operating system refused; none of the lines is kept.
        """
        lines = "".join(seal_lines(values)).encode()
        with self._lock:
            try:
                write_all(self._file, lines)
                if self._sync:
                    os.fsync(self._file)
            except OSError as error:
                # Half a line would be fixed on resuming; without it, readers see none either.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise WriteError(self.path, error) from error
            self._size += len(lines)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _mend(file: int) -> int:
    """Cuts a torn last line off, and returns the size then."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        os.lseek(file, start, os.SEEK_SET)
        newline = os.read(file, end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
    return end


def write_all(file: int, data: bytes) -> None:
    """Writes all of the bytes to a file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
