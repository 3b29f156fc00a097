"""A run's folder on an object store or any other place that fsspec reaches, as in `s3://…`.

The run works in a folder of this machine and is copied out every half minute and at its end.
Object stores cannot append, so records go out as numbered parts (`per_image.jsonl.parts/`) and,
at the end, also whole. Resuming, on this machine or another, begins with what was copied out.
Each job copies its own shard's folder alone: its siblings are writing theirs.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unseg_jax.bench.folder import open_store
from unseg_jax.bench.records import CONFIG, FILES, FOLDERS, RECORDS
from unseg_jax.errors import BenchError, FolderError, WriteError, foreign_error, why
from unseg_jax.runs.journal import is_journal
from unseg_jax.runs.store import JOURNAL, MANIFEST, Store

_PARTS = f"{RECORDS}.parts"
_LOCK = ".unseg_jax.lock.json"
_SECONDS = 30.0
# A lock that was not renewed for so long belongs to a process that is gone.
_STALE_SECONDS = 4 * _SECONDS


def is_remote(out: str) -> bool:
    """Whether a run's folder is named by a URL."""
    return "://" in out


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A temporary folder, for which errors name the URL that it stands for."""
    with tempfile.TemporaryDirectory(prefix="unseg-jax-") as folder:
        try:
            yield Path(folder)
        except BenchError as error:
            # A full disk is one of this machine.
            if folder not in str(error) or isinstance(error.__cause__, WriteError):
                raise
            raise type(error)(str(error).replace(folder, url.rstrip("/"))) from error


class Remote:
    """What a run, or one shard of it, owns in a folder of this machine, and its copy elsewhere."""

    def __init__(self, url: str, folder: Path, shard: str = ""):
        """
        Args:
            url: of the run, as fsspec takes it.
            folder: for the run, empty.
            shard: name of the shard's folder in the run's; of a run in one piece "".

        Raises:
            BenchError: fsspec, or what it needs for this kind of URL, is missing.
        """
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.dirfs import DirFileSystem

            system, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise BenchError(
                f'{url} cannot be opened ({reason}): pip install "unseg_jax[cluster]" and what '
                f"fsspec needs for such places, or choose a folder."
            ) from None
        system.invalidate_cache()  # other machines write there too
        self.url, self.folder = url, folder / shard
        self._name = f"{url.rstrip('/')}/{shard}".rstrip("/")
        root = f"{root}/{shard}" if shard else root
        self._system: Any = DirFileSystem(root, system)
        kinds = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
        self.local_path = Path(root) if "file" in kinds else None
        # What is known to be the run's there, and what this process has put there itself.
        self._known: Store | None = None
        self._mine: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}
        # Of the records: bytes that are there in parts, how many parts, and the file they are of.
        self._offset, self._count, self._inode = 0, 0, None
        self._lock = threading.Lock()
        self._token = uuid.uuid4().hex
        self._held = False

    def shards(self) -> list[Remote]:
        """Those of the run's shards that are there."""
        with self._plainly():
            names = [name for name, is_folder in self._listed() if is_folder]
        return [
            Remote(self.url, self.folder, name)
            for name in sorted(fnmatch.filter(names, "shard-*-of-*"))
        ]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing there while the block runs.

        The lock is a file that names its owner and is renewed with every `push`. Two processes
        that begin in the same moment see each other when they read it back.

        Raises:
            BenchError: another process has the lock.
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
        lock = {
            "token": self._token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "time": time.time(),
        }
        self._pipe(_LOCK, json.dumps({"unseg_jax": lock}).encode())
        self._held = True

    def _read_lock(self) -> dict[str, Any]:
        """The lock that is there; {} if there is none."""
        self._system.invalidate_cache()
        if not self._system.exists(_LOCK):
            return {}
        try:
            lock = json.loads(self._system.cat_file(_LOCK))["unseg_jax"]
            return {"token": lock["token"], "time": float(lock["time"]), **lock}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise foreign_error(f"{self._name}/{_LOCK}") from None

    def _check_lock(self) -> None:
        self._check_links(_LOCK)
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
        """Checks that pictures and parts that are there are the run's own.

        Raises:
            BenchError: the first file that is not.
        """
        with self._plainly():
            self._read_manifest()
            for name in self._find(*FOLDERS, _PARTS):
                if not self._is_own(name):
                    raise foreign_error(f"{self._name}/{name}")

    def clear(self) -> None:
        """Removes the run that is there, that is the files that it wrote itself.

        Raises:
            BenchError: a file that the run did not write is in the way; nothing is removed then.
        """
        self.check_folders()
        with self._plainly():
            names = self._find(*FILES, MANIFEST, JOURNAL, *FOLDERS, _PARTS)
            for name in names:
                if not self._is_own(name):
                    raise foreign_error(f"{self._name}/{name}")
            # Records first, config and manifest last: what is left of a half-removed run is known.
            order = {CONFIG: 1, MANIFEST: 2, JOURNAL: 2}
            self._remove(sorted(names, key=lambda name: (order.get(name, 0), name)))
        self._known = None

    def replace(self) -> None:
        """Copies a new state of the folder out and removes what the old one had besides."""
        with self._plainly():
            for name in self._find(*FOLDERS):
                if not (self.folder / name).exists() and self._is_own(name):
                    self._remove([name])
        self.push(last=True)

    def pull(self, *, masks: bool = False) -> None:
        """Copies what a run needs to go on into the folder.

        Args:
            masks: its masks too.
        """
        with self._plainly():
            self._read_manifest()
            tops = [name for name in FILES if name != RECORDS]
            listed = self._find(*(top for top in FOLDERS if masks or top != "masks"))
            known = set(self._known.names(*FOLDERS) if self._known else ())
            names = [*self._find(*tops, MANIFEST, JOURNAL), *(n for n in listed if n in known)]
            targets = [self.folder / name for name in names]
            for parent in {target.parent for target in targets}:
                parent.mkdir(parents=True, exist_ok=True)
            # All at once, because object stores take long over each of many small files.
            if names:
                self._system.get(names, [str(target) for target in targets])
            # A run that was copied there by hand has its records whole only.
            parts = self._find(_PARTS)
            for path in parts or self._find(RECORDS):
                content = self._system.cat_file(path)
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(self.folder / RECORDS, "ab") as file:
                    file.write(content)
                if parts:
                    self._count += 1
                    self._offset += len(content)
            if (self.folder / RECORDS).exists():
                self._inode = (self.folder / RECORDS).stat().st_ino
        # Records count as changed: a killed run has left them in parts only.
        self._sent = {name: stamp for name, stamp in self._changed() if name != RECORDS}

    def push(self, *, last: bool = False) -> None:
        """Copies out what has changed; records whole only the last time."""
        with self._lock, self._plainly():
            if self._held:
                self._renew()
            for name, stamp in self._changed():
                path = self.folder / name
                if name == RECORDS:
                    self._push_part(path)
                    if not last:
                        continue
                self._put(name, path.read_bytes())
                self._sent[name] = stamp

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
                self._forget_parts(path)
            self._inode = inode
            file.seek(self._offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        if content:
            self._put(f"{_PARTS}/{self._count:06d}.jsonl", content)
            self._count += 1
            self._offset += len(content)

    def _forget_parts(self, path: Path) -> None:
        """Has all records sent again, because lines among them were taken out."""
        self._put(RECORDS, path.read_bytes())  # for a run that is killed before they are
        self._remove([name for name in self._find(_PARTS) if self._is_own(name)])
        self._offset, self._count = 0, 0

    def _read_manifest(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in (MANIFEST, JOURNAL):
                self._check_links(name)
                if self._system.exists(name):
                    content = self._system.cat_file(name)
                    Path(scratch, name).write_bytes(content)
            try:
                self._known = open_store(Path(scratch))
            except FolderError as error:
                raise FolderError(str(error).replace(scratch, self._name)) from None

    def _is_own(self, name: str) -> bool:
        """Whether a file there was written by this run, and not changed since."""
        self._check_links(name)
        if name in self._mine:
            return True
        if name in (MANIFEST, JOURNAL):
            return self._known is not None  # else it would have been refused
        content = self._system.cat_file(name)
        if name.startswith(f"{_PARTS}/"):
            return is_journal(content.splitlines(keepends=True))
        return self._known is not None and self._known.wrote(name, content)

    def _check_links(self, name: str) -> None:
        """Raises BenchError if a file of this name would be reached through a link."""
        if self.local_path is None:
            return
        for part in (PurePosixPath(name), *PurePosixPath(name).parents):
            if part.name and (self.local_path / part).is_symlink():
                raise foreign_error(self.local_path / part)

    def _listed(self, *names: str) -> list[tuple[str, bool]]:
        """What is there by these names, or by any: (name, whether it is a folder)."""
        if not self._system.exists(""):
            return []
        entries = self._system.ls("", detail=True)
        found = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in entries]
        return [entry for entry in found if not names or entry[0] in names]

    def _find(self, *names: str) -> list[str]:
        """The files there by these names or in folders of these names, in order."""
        paths = []
        for path, is_folder in self._listed(*names):
            self._check_links(path)
            paths += self._system.find(path) if is_folder else [path]
        return sorted(paths)

    def _put(self, name: str, content: bytes) -> None:
        """Writes a file there, unless one is in the way that is not the run's own."""
        self._check_links(name)
        if name not in self._mine:
            if self._system.exists(name) and not self._is_own(name):
                raise foreign_error(f"{self._name}/{name}")
            self._mine.add(name)
        self._pipe(name, content)

    def _pipe(self, name: str, content: bytes) -> None:
        self._system.makedirs(name.rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(name, content)

    def _remove(self, names: list[str]) -> None:
        """Removes files, and folders of a local file system that are empty then."""
        for name in names:
            self._system.rm_file(name)
            self._mine.discard(name)
        if self.local_path is None:
            return
        for parent in sorted(
            {p for name in names for p in PurePosixPath(name).parents}, reverse=True
        ):
            if parent.name:
                with contextlib.suppress(OSError):
                    (self.local_path / parent).rmdir()

    def _changed(self) -> list[tuple[str, tuple[int, int]]]:
        changed = []
        # The manifest goes first: what it names is known to be the run's before it is there.
        for own in (MANIFEST, JOURNAL, *sorted(FILES), *FOLDERS):
            top = self.folder / own
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if not path.is_file():
                    continue
                state = path.stat()
                name = path.relative_to(self.folder).as_posix()
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
