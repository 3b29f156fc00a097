"""One process at a time writes a run's folder."""

import contextlib
import os
import stat
from pathlib import Path

from filelock import FileLock, Timeout

from unseg_jax.bench.ownership import foreign_error
from unseg_jax.errors import BenchError, WriteError

LOCK = ".unseg_jax.lock"


class RunLock:
    """Holds a run's folder until `release`, or until the process ends."""

    def __init__(self, folder: Path):
        """Makes the folder if missing, and takes it.

        Raises:
            BenchError: another process has it, or a foreign file has the lock's name.
            WriteError: the folder cannot be written.
        """
        path = folder / LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                state = os.lstat(path)
                # The lock is an empty file; anything else of this name is not touched.
                if not stat.S_ISREG(state.st_mode) or state.st_size:
                    raise foreign_error(path)
            self._lock: FileLock | None = FileLock(path, timeout=0, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise BenchError(
                f"another process is writing to {folder}: wait for it, or choose another --out."
            ) from None
        except NotImplementedError:  # a file system without locks
            self._lock = None
        except OSError as error:
            raise WriteError(path, error) from error

    def release(self) -> None:
        """Lets go of the folder; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        self.release()
