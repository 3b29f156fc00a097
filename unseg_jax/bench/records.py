"""A run's folder: what is written, when, and how it survives a kill at any moment.

```
DIR/config.json       what the run is; a run with another config may not go on with it
    per_image.jsonl   a line an image and method, appended a batch at a time and synced to disk
    sessions.jsonl    a line for every time the run was worked on: timing, versions, device
    summary.json      made from the above, so it can be made again at any time
    report.html       likewise
    masks/METHOD/ID.png                            with --save-masks
    thumbnails/{image/ID.jpg,truth/ID.png,METHOD/ID.png}   of the first images, for the report
    models/METHOD.safetensors                      of methods that learn from the whole set
    shard-I-of-N/     the same again, of one shard, until they are merged
```
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.config import check_same
from unseg_jax.errors import BenchError, WriteError
from unseg_jax.files import atomic, remove_partials, write_json

CONFIG, RECORDS, SESSIONS, SUMMARY = (
    "config.json",
    "per_image.jsonl",
    "sessions.jsonl",
    "summary.json",
)
_FOLDERS = ("masks", "thumbnails", "models")
OWN = (CONFIG, RECORDS, SESSIONS, SUMMARY, "report.html", *_FOLDERS)


def shard_folder(folder: Path, shard: tuple[int, int]) -> Path:
    """Where a shard is written: the run's folder itself if there is only one."""
    index, count = shard
    width = len(str(count - 1))
    return folder if count == 1 else folder / f"shard-{index:0{width}d}-of-{count}"


class RunFolder:
    """The folder of a run that is being worked on; a context manager that lets go of it.

    Attributes:
        path: the folder.
        finished: image id → names of the methods that have a record.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        retry_failed: bool = False,
    ):
        """Begins a run, or goes on with one.

        Args:
            path: made if missing.
            config: see `unseg_jax.bench.settings.make_config`.
            resume: go on with what is there, if anything is.
            overwrite: remove what is there.
            retry_failed: forget the failures that are there.

        Raises:
            BenchError: a run is there and may not be gone on with, or another process writes it.
            WriteError: the folder cannot be written.
        """
        self.path = path
        self._lock = threading.Lock()
        present = (path / CONFIG).exists() or (path / RECORDS).exists()
        if present and not (resume or overwrite):
            raise BenchError(
                f"{path} holds a run already: go on with it by --resume, replace it by "
                f"--overwrite, or choose another --out."
            )
        # Owned before anything is changed: another process may be at work here.
        self._file = _open_and_own(path / RECORDS)
        try:
            if overwrite:
                _remove(path)
                os.ftruncate(self._file, 0)
            if (path / CONFIG).exists():
                check_same(read_config(path), config, str(path))
            else:
                write_json(path / CONFIG, config)
        except BaseException:
            os.close(self._file)
            raise
        if retry_failed:
            try:
                _forget_failures(path)
            finally:
                os.close(self._file)
            self._file = _open_and_own(path / RECORDS)
        try:
            self._size = _mend(self._file)
            # A killed process could not take its half-written pictures with it; nobody else
            # writes here now, and folders of shards have owners of their own.
            remove_partials(path, recursive=False)
            for name in _FOLDERS:
                remove_partials(path / name)
            self.finished = self._read_finished()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records and waits until they are on the disk.

        Raises:
            WriteError: the operating system refused; none of the records is kept.
        """
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with self._lock:
            try:
                _write_all(self._file, lines.encode())
                os.fsync(self._file)
            except OSError as error:
                # Half a line would be mended on resuming; without it, readers see none either.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise WriteError(self.path / RECORDS, error) from error
            self._size += len(lines.encode())

    def add_session(self, session: Mapping[str, Any]) -> None:
        """Adds a line to `sessions.jsonl`. Raises `WriteError`."""
        path = self.path / SESSIONS
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(session, allow_nan=False) + "\n")
        except OSError as error:
            raise WriteError(path, error) from error

    def _read_finished(self) -> dict[str, frozenset[str]]:
        finished: dict[str, frozenset[str]] = {}
        shared: dict[frozenset[str], frozenset[str]] = {}
        for record in read_records(self.path):
            methods = finished.get(record["id"], frozenset()) | {record["method"]}
            # One set for all images with the same methods keeps 100,000 images small.
            finished[record["id"]] = shared.setdefault(methods, methods)
        return finished


def read_config(path: Path) -> dict[str, Any]:
    """The config of the run in a folder.

    Raises:
        BenchError: no run there, or one that cannot be read.
    """
    try:
        return json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path / CONFIG} cannot be read ({error}): name a run's folder."
        ) from None


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records in a run's folder, in the order of writing; a torn last line is left out."""
    return _read_lines(path / RECORDS)


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions in a run's folder, oldest first."""
    return list(_read_lines(path / SESSIONS))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise BenchError(
                    f"line {number} of {path} is damaged: remove that line, and --resume."
                ) from None


def _open_and_own(path: Path) -> int:
    """Opens a file to append to, and keeps other processes from doing so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        import fcntl
    except ImportError:  # not on Windows, where a second process is not noticed
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise BenchError(
            f"another process is writing to {path.parent}: wait for it, or choose another --out."
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


def _forget_failures(path: Path) -> None:
    with atomic(path / RECORDS) as partial, open(partial, "w", encoding="utf-8") as file:
        kept = (record for record in read_records(path) if record["error"] is None)
        file.writelines(record_lines(kept))


def _mend(file: int) -> int:
    """Cuts a torn last line off, and returns the size then."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
    return end


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _remove(path: Path) -> None:
    """Removes a run but for its records' file, which stays the one that is owned."""
    for name in OWN:
        target = path / name
        if name == RECORDS:
            continue
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def find_shards(path: Path) -> list[Path]:
    """The folders of the shards in a run's folder, in order."""
    return sorted(folder for folder in path.glob("shard-*-of-*") if (folder / CONFIG).exists())


def record_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Records as lines of JSON."""
    return (json.dumps(record, allow_nan=False) + "\n" for record in records)
