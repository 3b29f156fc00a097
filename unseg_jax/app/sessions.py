"""What each user of the page has dropped, in a temporary folder that goes with the session."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from unseg_jax.data.folders import safe_name
from unseg_jax.segmenter.decoded_cache import DecodedCache

# What some file system or other does not take in a name.
_REFUSED = re.compile(r'[<>:"|?*]')
_LONGEST_SUFFIX = 16
# Bytes of images and features that a session keeps for its next fit, in memory and on disk.
_MEMORY, _DISK = 64 * 2**20, 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much the page takes.

    Attributes:
        max_bytes: of one file.
        max_files: files in a session, and images (pages of files count) in a run.
        max_waiting: runs that wait for the device, in all sessions together.
        max_sessions: sessions at once; a session is a tab of a browser.
        idle_seconds: a session that its page has not asked for so long is deleted. An open page
            asks every half minute.
        max_runs: finished runs of a session whose results are kept; the oldest go first.
    """

    max_bytes: int = 50 * 10**6
    max_files: int = 100
    max_waiting: int = 8
    max_sessions: int = 32
    idle_seconds: float = 900.0
    max_runs: int = 10


class Refused(Exception):
    """A request that is not done.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was dropped: its number in the session, and where it lies."""

    number: int
    path: Path

    @property
    def name(self) -> str:
        """What messages and results call it."""
        return self.path.name


class Session:
    """The files and the runs of one user.

    Attributes:
        id: a secret; who knows it sees the pictures.
        folder: holds everything of the session.
        uploads: number → file.
        job: the last run, a `Job` of the worker; None before the first.
        runs: number → finished run, oldest first.
        seen: when the page last asked, in seconds of `time.monotonic`.
        closed: whether nothing may be written any more.
    """

    def __init__(self, folder: Path):
        self.id = secrets.token_urlsafe(16)
        self.folder = folder / self.id
        self.uploads: dict[int, Upload] = {}
        self.job: Any = None
        self.runs: dict[int, Any] = {}
        self.seen = time.monotonic()
        self.closed = False
        self._count = 0
        self._lock = threading.Lock()
        self._cache: tuple[Hashable, DecodedCache | None] = None, None
        self.files.mkdir(parents=True)

    @property
    def files(self) -> Path:
        """Folder of what was dropped."""
        return self.folder / "files"

    def check_room(self, max_files: int) -> None:
        """Refuses a further file where there are as many as may be.

        Raises:
            Refused: the session is full.
        """
        if len(self.uploads) >= max_files:
            raise Refused(
                413, f"{max_files} files are the most that this page takes: remove some first."
            )

    def add(self, name: str, content: Path, max_files: int) -> Upload:
        """Takes a file over under a name like the one it had; no other has the same.

        Args:
            name: what the user calls it; may be any text.
            content: the file, which is moved.
            max_files: in the session.

        Raises:
            Refused: the session is full.
        """
        with self._lock:
            self.check_room(max_files)
            self._count += 1
            # A kept run shows the photograph by its name, so no other may have it.
            paths = [image.path for job in self.runs.values() for image in job.images]
            paths += [upload.path for upload in self.uploads.values()]
            taken = {path.name.casefold() for path in paths}
            upload = Upload(self._count, self.files / _free_name(name, taken))
            content.rename(upload.path)
            self.uploads[upload.number] = upload
            return upload

    def remove(self, number: int) -> None:
        """Deletes a file; one that is not there is no error."""
        upload = self.uploads.pop(number, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)

    def keep(self, job: Any, max_runs: int) -> None:
        """Keeps the results of a finished run, and deletes the oldest beyond `max_runs`."""
        with self._lock:
            self.runs[job.number] = job
            while len(self.runs) > max_runs:
                oldest = self.runs.pop(min(self.runs))
                shutil.rmtree(oldest.out, ignore_errors=True)

    def cache_of(self, kind: Hashable) -> DecodedCache:
        """What fits of this kind have read of the images, so that the next one reads none again.
        That of another kind is let go."""
        known, cache = self._cache
        if cache is None or known != kind:
            cache = DecodedCache(_MEMORY, _DISK)
            self._cache = kind, cache
        return cache

    def run(self, number: int) -> Any:
        """The finished run of that number.

        Raises:
            Refused: there is none, or none any more.
        """
        if number not in self.runs:
            kept = ", ".join(map(str, self.runs))
            known = f"the runs kept are {kept}." if kept else "press Segment first."
            raise Refused(404, f"there are no results of run {number}: {known}")
        return self.runs[number]

    def delete(self) -> None:
        """Stops the run and deletes everything, now or when the run has let go of it."""
        self.closed = True
        if self.job is None or self.job.stop():
            self.erase()

    def erase(self) -> None:
        """Deletes the folder, and what was read."""
        self._cache = None, None
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_name(name: str, taken: set[str]) -> str:
    """A name for a file that every file system takes, unlike those that are taken."""
    name = _REFUSED.sub("_", re.split(r"[/\\]", name)[-1]).strip(". ")
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > _LONGEST_SUFFIX:
        stem, dot, suffix = name, "", ""
    stem, suffix = safe_name(stem) or "image", safe_name(dot + suffix)
    free, number = stem + suffix, 2
    while free.casefold() in taken:
        free, number = f"{stem} ({number}){suffix}", number + 1
    return free


class Sessions:
    """All sessions of a server, below one temporary folder."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="unseg_jax_serve_"))
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self) -> Session:
        """A new session.

        Raises:
            Refused: there are too many.
        """
        self.close_idle()
        with self._lock:
            if len(self._open) >= self.limits.max_sessions:
                raise Refused(
                    503,
                    f"{len(self._open)} pages are open, which is as many as there may be: close "
                    "one, or try again later.",
                )
            session = Session(self.folder)
            self._open[session.id] = session
        return session

    def all(self) -> list[Session]:
        """Those that are open."""
        return list(self._open.values())

    def get(self, id: str) -> Session:
        """The session of that id, seen now.

        Raises:
            Refused: there is none, or none any more.
        """
        session = self._open.get(id)
        if session is None:
            raise Refused(404, "this session has ended and its files are deleted: reload the page.")
        session.seen = time.monotonic()
        return session

    def close(self, id: str) -> None:
        """Ends a session and deletes its files; an unknown id is no error."""
        with self._lock:
            session = self._open.pop(id, None)
        if session is not None:
            session.delete()

    def close_idle(self) -> None:
        """Ends the sessions whose page is gone."""
        oldest = time.monotonic() - self.limits.idle_seconds
        for session in self.all():
            if session.seen < oldest:
                self.close(session.id)

    def close_all(self) -> None:
        """Ends all sessions and deletes the folder."""
        for session in self.all():
            self.close(session.id)
        shutil.rmtree(self.folder, ignore_errors=True)
