"""Which files of a folder a run wrote itself, so that nothing else is ever replaced or removed.

`manifest.jsonl` lists every file by its name in the folder, size, time and SHA-256. A file is the
run's own if it is listed and was not changed since; everything else is foreign, and
so is what is reached through a link. Lines are written before the files that they name appear,
so a killed run owns all that it left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unseg_jax.errors import WriteError
from unseg_jax.runs.journal import Journal, seal
from unseg_jax.runs.ownership import Entries, Stamp, foreign_error, is_own, parse_manifest

MANIFEST = "manifest.jsonl"


class Manifest:
    """The files that a run owns in its folder, and the only way to add, replace or remove one.

    Names are relative to the folder, with "/" between their parts.

    Attributes:
        folder: of the run.
        token: what names of half-written files begin with; "" before the first file.
    """

    def __init__(self, folder: Path):
        """Reads the manifest in a folder, if one is there.

        Raises:
            BenchError: something else has its name.
        """
        self.folder = folder
        self.token = ""
        self._entries: Entries = {}
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._journal: Journal | None = None
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return
        if not _is_plain(path):
            raise foreign_error(path)
        with open(path, "rb") as file:
            self.token, self._entries = parse_manifest(file)
        if not self.token:
            raise foreign_error(path)

    def close(self) -> None:
        """Closes the manifest's file."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def names(self, *tops: str) -> list[str]:
        """Names that were ever written, below some top folders or all, sorted."""
        chosen = set(tops)
        return sorted(
            name for name in self._entries if not tops or name.partition("/")[0] in chosen
        )

    def owns(self, name: str) -> bool:
        """Whether a file is there that the run wrote and that was not changed since."""
        path = self.folder / name
        if self._blocked_parent(name) is not None or name not in self._entries:
            return False
        try:
            state = os.lstat(path)
        except OSError:
            return False
        if not stat.S_ISREG(state.st_mode):
            return False
        stamps = self._entries[name] or ()
        if any(
            (stamp.size, stamp.mtime_ns) == (state.st_size, state.st_mtime_ns) for stamp in stamps
        ):
            return True
        # A copied folder has new times, and journals grow.
        return is_own(self._entries, name, path.read_bytes())

    def check_free(self, names: Iterable[str]) -> None:
        """Checks that each name is unused, or a file that the run may replace.

        Raises:
            BenchError: the first name that is not.
        """
        for name in names:
            blocked = self._blocked_parent(name)
            if blocked is not None:
                raise foreign_error(blocked)
            if not os.path.lexists(self.folder / name) or self.owns(name):
                continue
            self._reload()  # another command, such as `report`, may have written it
            if not self.owns(name):
                raise foreign_error(self.folder / name)

    def check_folders(self, names: Iterable[str]) -> None:
        """Checks that all files in some top folders are the run's own.

        Raises:
            BenchError: the first file, link or other thing that is not.
        """
        for top in names:
            folder = self.folder / top
            if not os.path.lexists(folder):
                continue
            if folder.is_symlink() or not folder.is_dir():
                raise foreign_error(folder)
            for place, folders, files in os.walk(folder):
                folders.sort()
                links = [name for name in folders if os.path.islink(os.path.join(place, name))]
                for name in sorted([*files, *links]):
                    path = Path(place, name)
                    if not self.owns(path.relative_to(self.folder).as_posix()):
                        raise foreign_error(path)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files whole or not at all, and waits until they are on the disk.

        Raises:
            BenchError: a file that is not the run's own is in the way.
            WriteError: the operating system refused.
        """
        self.check_free(files)
        self._begin()
        staged: list[tuple[Path, Path]] = []
        target = self.folder
        try:
            entries = []
            for name, content in files.items():
                target = self.folder / name
                part = self._part(name)
                staged.append((part, target))
                with open(part, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                mtime_ns = os.stat(part).st_mtime_ns
                digest = hashlib.sha256(content).hexdigest()
                entries.append((name, Stamp(len(content), mtime_ns, digest)))
            self._add(entries)
            for part, target in staged:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
            _sync_folders({target.parent for _, target in staged}, self.folder)
        except OSError as error:
            if isinstance(error, WriteError):
                raise
            raise WriteError(target, error) from error
        finally:
            for part, _ in staged:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    def link(self, sources: Mapping[str, Path]) -> None:
        """Adds files of another folder as hard links, or as copies where there are none.

        Args:
            sources: name here → the file; all names must be unused.

        Raises:
            BenchError: a name is used.
            WriteError: the operating system refused.
        """
        self._begin()
        entries = []
        for name, source in sources.items():
            if self._blocked_parent(name) is not None or os.path.lexists(self.folder / name):
                raise foreign_error(self.folder / name)
            content = source.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            entries.append((name, Stamp(len(content), os.stat(source).st_mtime_ns, digest)))
        self._add(entries)
        for name, source in sources.items():
            target = self.folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, target)
            except OSError:
                self.write({name: source.read_bytes()})
        _sync_folders({(self.folder / name).parent for name in sources}, self.folder)

    def open_journal(self, name: str) -> Journal:
        """Opens a file of JSON lines that grows.

        Raises:
            BenchError: a file that is not the run's own has its name.
            WriteError: the operating system refused.
        """
        self.check_free([name])
        self._begin()
        if name not in self._entries:
            self._add([(name, None)])
        return Journal(self.folder / name)

    def rewrite_journal(self, name: str, lines: Iterable[str]) -> None:
        """Replaces a journal's lines, in one step.

        Raises:
            BenchError: a file that is not the run's own has its name.
            WriteError: the operating system refused.
        """
        self.check_free([name])
        self._begin()
        if name not in self._entries:
            self._add([(name, None)])
        part = self._part(name)
        try:
            with open(part, "x", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.folder / name)
            _sync_folders({self.folder}, self.folder)
        except OSError as error:
            if isinstance(error, WriteError):
                raise
            raise WriteError(self.folder / name, error) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def remove(self, names: Iterable[str]) -> None:
        """Removes those of the files that the run owns, and folders that are empty then.

        Raises:
            WriteError: the operating system refused.
        """
        for name in names:
            if not self.owns(name):
                continue
            path = self.folder / name
            try:
                path.unlink()
            except OSError as error:
                raise WriteError(path, error) from error
            with contextlib.suppress(OSError):  # the first one that still holds something
                for parent in PurePosixPath(name).parents:
                    if parent.name:
                        (self.folder / parent).rmdir()

    def sweep(self) -> None:
        """Removes what a killed process of this run left half written; call as the sole writer."""
        for name in _listdir(self.folder):
            path = self.folder / name
            own = bool(self.token) and name.startswith(f".{self.token}-") and ".part" in name
            if _is_plain(path) and (own or _is_abandoned_header(path)):
                with contextlib.suppress(OSError):
                    path.unlink()

    def reset(self) -> None:
        """Begins an empty manifest, when everything in it has been removed.

        Raises:
            WriteError: the operating system refused.
        """
        self.close()
        if not self.token:
            return
        part, token = self._part(MANIFEST), _new_token()
        try:
            with open(part, "x", encoding="utf-8") as file:
                file.write(seal({"token": token}))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.folder / MANIFEST)
        except OSError as error:
            raise WriteError(self.folder / MANIFEST, error) from error
        self.token, self._entries = token, {}

    # ------------------------------------------------------------ inner works

    def _begin(self) -> None:
        """Creates the manifest before the first file."""
        with self._lock:
            if self.token:
                return
            token, target = _new_token(), self.folder / MANIFEST
            part = self.folder / f".{token}.manifest.part"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(part, "x", encoding="utf-8") as file:
                    file.write(seal({"token": token}))
                    file.flush()
                    os.fsync(file.fileno())
                if os.path.lexists(target):
                    raise foreign_error(target)
                os.replace(part, target)
            except OSError as error:
                raise WriteError(target, error) from error
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            self.token = token

    def _reload(self) -> None:
        if self.token:
            with self._lock, open(self.folder / MANIFEST, "rb") as file:
                self._entries = parse_manifest(file)[1]

    def _add(self, entries: Iterable[tuple[str, Stamp | None]]) -> None:
        """Lists files, on the disk and in memory."""
        entries = list(entries)
        with self._lock:
            if self._journal is None:
                self._journal = Journal(self.folder / MANIFEST)
            lines: list[dict[str, Any]] = [
                {"name": name, "journal": True}
                if stamp is None
                else {"name": name, **dataclasses.asdict(stamp)}
                for name, stamp in entries
            ]
            self._journal.append(lines)
            for name, stamp in entries:
                if stamp is None:
                    self._entries[name] = None
                else:
                    stamps = self._entries.setdefault(name, set())
                    assert stamps is not None, name
                    stamps.add(stamp)

    def _part(self, name: str) -> Path:
        """A name of this run for a file that is being written; the suffix stays."""
        suffix = PurePosixPath(name).suffix
        number = f"{os.getpid():x}-{next(self._numbers):x}-{uuid.uuid4().hex[:8]}"
        return self.folder / f".{self.token}-{number}.part{suffix}"

    def _blocked_parent(self, name: str) -> Path | None:
        """The first part of a name's way that is there and no real folder."""
        parents = [parent for parent in PurePosixPath(name).parents if parent.name]
        for parent in reversed(parents):
            path = self.folder / parent
            try:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    return path
            except FileNotFoundError:
                return None
            except OSError:
                return path
        return None


def _new_token() -> str:
    return uuid.uuid4().hex[:16]


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_abandoned_header(path: Path) -> bool:
    """Whether a file is the first line of a manifest that a killed process did not put in place."""
    token, dot, rest = path.name[1:].partition(".")
    if not (path.name.startswith(".") and dot and rest == "manifest.part"):
        return False
    try:
        return path.read_text(encoding="utf-8") == seal({"token": token})
    except (OSError, ValueError):
        return False


def _listdir(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from sorted(os.listdir(folder))


def _sync_folders(folders: Iterable[Path], root: Path) -> None:
    """Waits until the names in folders are on the disk, and the folders' own names."""
    chain = {root}
    for folder in folders:
        while folder != root:
            chain.add(folder)
            folder = folder.parent
    for folder in chain:
        # Windows opens no folders, and some file systems sync none.
        with contextlib.suppress(OSError):
            file = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
