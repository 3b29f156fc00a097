"""A run's folder on an object store or any other place that fsspec reaches, as in `s3://…`.

The run works in a folder of this machine and is copied out every half minute and at its end.
Object stores cannot append, so records go out as numbered parts (`per_image.jsonl.parts/`) and,
at the end, also whole. Resuming, on this machine or another, begins with what was copied out.
Each job copies its own shard's folder alone: its siblings are writing theirs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unseg_jax.bench.run_folder import CONFIG, FILES, FOLDERS, RECORDS, open_store
from unseg_jax.errors import BenchError, FolderError, WriteError, foreign_error, why
from unseg_jax.runs.journal import is_journal
from unseg_jax.runs.result_store import JOURNAL, MANIFEST, ResultStore

_PARTS = f"{RECORDS}.parts"
_LOCK = ".unseg_jax.lock.json"
_SECONDS = 30.0
# A lock that was not renewed for so long belongs to a process that is gone.
_STALE_SECONDS = 4 * _SECONDS
# Pictures that are copied out at the same time.
_AT_ONCE = 128


def _open(url: str) -> tuple[Any, str]:
    """The file system and the path there that a URL names, as fsspec takes it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise BenchError(
            f'{url} cannot be opened ({reason}): pip install "unseg_jax[cluster]" and what '
            f"fsspec needs for such places, or choose a folder."
        ) from None


def local_folder(out: str | Path) -> Path | None:
    """The folder of this machine that a path or `file:` URL names; None for a place elsewhere."""
    if "://" not in str(out):
        return Path(out)
    system, root = _open(str(out))
    from fsspec.implementations.local import LocalFileSystem

    return Path(root) if isinstance(system, LocalFileSystem) else None


@contextlib.contextmanager
def remote(url: str, shard: str = "") -> Iterator[Remote]:
    """A run elsewhere, or one shard of it, locked while the block works in its copy here.

    Raises:
        BenchError: the place cannot be opened, refuses, or another process has the lock. Errors
            name the URL instead of the copy.
    """
    with tempfile.TemporaryDirectory(prefix="unseg-jax-") as folder:
        try:
            place = Remote(url, Path(folder), shard)
            with place.locked():
                yield place
        except BenchError as error:
            # A full disk is one of this machine.
            if folder not in str(error) or isinstance(error.__cause__, WriteError):
                raise
            raise type(error)(str(error).replace(folder, url.rstrip("/"))) from error


class Remote:
    """What a run, or one shard of it, owns in a folder of this machine, and its copy elsewhere."""

    def __init__(self, url: str, root: Path, shard: str = ""):
        """Of `root`, which is empty, a shard's part is the folder of its name."""
        from fsspec.implementations.dirfs import DirFileSystem

        system, path = _open(url)
        system.invalidate_cache()  # other machines write there too
        self.url, self.root, self.folder = url, root, root / shard
        self._name = f"{url.rstrip('/')}/{shard}".rstrip("/")
        self._system: Any = DirFileSystem(f"{path}/{shard}".rstrip("/"), system)
        # What is known to be the run's there, and what this process has put there itself.
        self._known: ResultStore | None = None
        self._mine: set[str] = set()
        self._folders: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}
        # Of the records: bytes that are there in parts, how many parts, and the file they are of.
        self._offset, self._count, self._inode = 0, 0, None
        self._lock = threading.Lock()
        self._token = uuid.uuid4().hex
        self._held = False

    def shards(self) -> list[Remote]:
        """Those of the run's shards that are there."""
        with self._plainly():
            configs = sorted(self._system.glob(f"shard-*-of-*/{CONFIG}"))
        return [Remote(self.url, self.root, name.partition("/")[0]) for name in configs]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing there while the block runs.

        The lock is a file that names its owner and is renewed with every `push`. Two processes
        that begin in the same moment see each other when they read it back.
        """
        with self._plainly():
            self._check_lock()
            self._renew()
            if self._read_lock().get("token") != self._token:
                self._held = False
                self._check_lock()
        try:
            yield
        finally:
            self._held = False
            with contextlib.suppress(Exception):  # it goes stale by itself
                if self._read_lock().get("token") == self._token:
                    self._system.rm_file(_LOCK)

    def _renew(self) -> None:
        lock = {"token": self._token, "host": socket.gethostname()}
        lock |= {"process": os.getpid(), "time": time.time()}
        self._pipe({_LOCK: json.dumps({"unseg_jax": lock}).encode()})
        self._held = True

    def _read_lock(self) -> dict[str, Any]:
        """The lock that is there; {} if there is none."""
        self._system.invalidate_cache()
        try:
            lock = json.loads(self._system.cat_file(_LOCK))["unseg_jax"]
            return {"token": lock["token"], "time": float(lock["time"]), **lock}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise foreign_error(f"{self._name}/{_LOCK}") from None

    def _check_lock(self) -> None:
        lock = self._read_lock()
        if not lock or lock["token"] == self._token:
            return
        age = time.time() - lock["time"]
        here = lock.get("host") == socket.gethostname()
        if age > _STALE_SECONDS or (here and not _is_alive(lock.get("process"))):
            return
        raise BenchError(
            f"another process, {lock.get('process')} on {lock.get('host')}, was writing to "
            f"{self._name} {max(age, 0):.0f} s ago: wait for it, or if it is gone, "
            f"{_STALE_SECONDS:.0f} s."
        )

    def check_folders(self) -> None:
        """Raises BenchError for the first picture or part there that is not the run's own."""
        with self._plainly():
            self._owned(*FOLDERS, _PARTS)

    def clear(self) -> None:
        """Removes the files there that the run wrote itself.

        Raises:
            BenchError: a file that the run did not write is in the way; nothing is removed then.
        """
        with self._plainly():
            names = self._owned(*FILES, MANIFEST, JOURNAL, *FOLDERS, _PARTS)
            # Records first, config and manifest last: what is left of a half-removed run is known.
            order = {CONFIG: 1, MANIFEST: 2, JOURNAL: 2}
            self._remove(sorted(names, key=lambda name: (order.get(name, 0), name)))
        self._known = None

    def replace(self) -> None:
        """Copies a new state of the folder out and removes what the old one had besides."""
        with self._plainly():
            old = (name for name in self._find(*FOLDERS) if not (self.folder / name).exists())
            self._remove(list(filter(self._is_own, old)))
        self.push(last=True)

    def pull(self, *, masks: bool = False) -> None:
        """Copies what a run needs to go on, perhaps its masks too, into the folder."""
        with self._plainly():
            self._read_manifest()
            known = set(self._known.names(*FOLDERS) if self._known else ())
            listed = self._find(*(top for top in FOLDERS if masks or top != "masks"))
            tops = [name for name in (*FILES, MANIFEST, JOURNAL) if name != RECORDS]
            names = [*self._find(*tops), *filter(known.__contains__, listed)]
            targets = [self.folder / name for name in names]
            for parent in {self.folder, *(target.parent for target in targets)}:
                parent.mkdir(parents=True, exist_ok=True)
            # All at once, because object stores take long over each of many small files.
            if names:
                self._system.get(names, list(map(str, targets)))
            # A run that was copied there by hand has its records whole only.
            parts = self._find(_PARTS)
            names = parts or self._find(RECORDS)
            if names:
                found = self._system.cat(names)  # all at the same time
                contents = [found[name] for name in names]
                with open(self.folder / RECORDS, "ab") as file:
                    file.writelines(contents)
                    self._inode = os.fstat(file.fileno()).st_ino
            if parts:
                self._count, self._offset = len(parts), sum(map(len, contents))
        # Records count as changed: a killed run has left them in parts only.
        self._sent = {name: stamp for name, stamp in self._changed() if name != RECORDS}

    def push(self, *, last: bool = False) -> None:
        """Copies out what has changed; records whole only the last time."""
        with self._lock, self._plainly():
            if self._held:
                self._renew()
            pictures = []
            for name, stamp in self._changed():
                path = self.folder / name
                if name.partition("/")[0] in FOLDERS:
                    pictures.append((name, stamp))
                    continue
                if name == RECORDS:
                    self._push_part(path)
                    if not last:
                        continue
                self._put({name: path.read_bytes()})
                self._sent[name] = stamp
            for start in range(0, len(pictures), _AT_ONCE):
                if start and self._held:
                    self._renew()  # a million pictures take longer than a lock is good for
                part = pictures[start : start + _AT_ONCE]
                self._put({name: (self.folder / name).read_bytes() for name, _ in part})
                self._sent.update(part)

    @contextlib.contextmanager
    def pushing(self) -> Iterator[None]:
        """Copies out now and then while the block runs, and at its end however it ends."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(_SECONDS):
                # A place that is away for a moment is asked again; the last push raises.
                with contextlib.suppress(BenchError, OSError):
                    self.push()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.push(last=True)

    def _push_part(self, path: Path) -> None:
        with open(path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if self._inode not in (None, inode):
                # All records go out again, because lines among them were taken out. They go out
                # whole first, for a run that is killed meanwhile.
                self._put({RECORDS: path.read_bytes()})
                self._remove(list(filter(self._is_own, self._find(_PARTS))))
                self._offset, self._count = 0, 0
            self._inode = inode
            file.seek(self._offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        if content:
            self._put({f"{_PARTS}/{self._count:06d}.jsonl": content})
            self._count += 1
            self._offset += len(content)

    def _read_manifest(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in self._find(MANIFEST, JOURNAL):
                Path(scratch, name).write_bytes(self._system.cat_file(name))
            try:
                self._known = open_store(Path(scratch))
            except FolderError as error:
                raise FolderError(str(error).replace(scratch, self._name)) from None

    def _is_own(self, name: str) -> bool:
        """Whether a file there was written by this run, and not changed since."""
        if name in self._mine:
            return True
        if name in (MANIFEST, JOURNAL):
            return self._known is not None  # else it would have been refused
        content = self._system.cat_file(name)
        if name.startswith(f"{_PARTS}/"):
            return is_journal(content.splitlines(keepends=True))
        return self._known is not None and self._known.wrote(name, content)

    def _owned(self, *names: str) -> list[str]:
        """The files there, as `_find` has them, all of which must be the run's own."""
        self._read_manifest()
        found = self._find(*names)
        for name in found:
            if not self._is_own(name):
                raise foreign_error(f"{self._name}/{name}")
        return found

    def _find(self, *names: str) -> list[str]:
        """The files there by these names or in folders of these names, in order."""
        return sorted(path for name in names for path in self._system.find(name))

    @functools.cached_property
    def _there(self) -> set[str]:
        """What was there when this process first wrote: one request for each file is too slow."""
        return set(self._find(*FILES, MANIFEST, JOURNAL, *FOLDERS, _PARTS))

    def _put(self, files: Mapping[str, bytes]) -> None:
        """Writes files there at the same time, unless one is in the way that is not the run's."""
        for name in files:
            if name not in self._mine and name in self._there and not self._is_own(name):
                raise foreign_error(f"{self._name}/{name}")
        self._mine.update(files)
        self._pipe(files)

    def _pipe(self, files: Mapping[str, bytes]) -> None:
        for parent in {name.rpartition("/")[0] for name in files} - self._folders:
            self._system.makedirs(parent, exist_ok=True)
            self._folders.add(parent)
        self._system.pipe(dict(files))

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self._system.rm_file(name)
            self._mine.discard(name)
            self._there.discard(name)

    def _changed(self) -> list[tuple[str, tuple[int, int]]]:
        changed = []
        # The manifest goes first: what it names is known to be the run's before it is there.
        for own in (MANIFEST, JOURNAL, *sorted(FILES), *FOLDERS):
            top = self.folder / own
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.is_file():
                    state, name = path.stat(), path.relative_to(self.folder).as_posix()
                    stamp = (state.st_size, state.st_mtime_ns)
                    if self._sent.get(name) != stamp:
                        changed.append((name, stamp))
        return changed

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except BenchError:
            raise
        except Exception as error:  # every kind of place has errors of its own
            raise BenchError(
                f"{self.url} refuses ({why(error)}): check the address and your rights to it."
            ) from error


def _is_alive(process: Any) -> bool:
    """Whether a process of this machine runs; true where that is unknown."""
    if not isinstance(process, int) or os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
