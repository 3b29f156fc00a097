"""One process at a time writes a run's folder."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from unseg_jax.errors import FolderError, WriteError, foreign_error

LOCK = ".unseg_jax.lock"
# Where Python has no locks of files, filelock writes the number of the process and its machine.
_HOLDER = re.compile(rb"\d+\n[ -~\n]{,500}")


class RunLock:
    """Holds a run's folder until `release`, or until the process ends."""

    def __init__(self, folder: Path, on_wait: Callable[[], object] | None = None):
        """Makes the folder if missing, and takes it.

        Args:
            folder: of the run.
            on_wait: called once if another process has the folder, which is then waited for;
                None raises instead.

        Raises:
            FolderError: another process has it, or a foreign file has the lock's name.
            WriteError: the folder cannot be written.
        """
        path = folder / LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                state = os.lstat(path)
                # Anything else of this name is not touched.
                if not stat.S_ISREG(state.st_mode) or not _is_lock(path, state.st_size):
                    raise foreign_error(path)
            self._lock: FileLock | None = FileLock(path, timeout=0, thread_local=False)
            try:
                self._lock.acquire()
            except Timeout:
                if on_wait is None:
                    raise
                on_wait()
                self._lock.acquire(timeout=-1, poll_interval=0.2)
        except Timeout:
            raise FolderError(
                f"another process is writing to {folder}: wait for it, or choose another out=."
            ) from None
        except NotImplementedError:  # a file system without locks
            self._lock = None
        except OSError as error:
            raise WriteError(folder, error) from error

    def release(self) -> None:
        """Lets go of the folder; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        self.release()


def _is_lock(path: Path, size: int) -> bool:
    """Whether a file is empty, as locks are, or names a holder where the platform has no locks."""
    if not size:
        return True
    if not issubclass(FileLock, SoftFileLock) or size > 1000:
        return False
    return _HOLDER.fullmatch(path.read_bytes()) is not None
