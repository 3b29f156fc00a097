"""Working behind the device: a bounded pool whose errors are not lost."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from unseg_jax.errors import DISK_FULL, WriteError


class Writer:
    """A pool that does work behind the caller's back, but not without its knowledge.

    Use it as a context manager: leaving it waits for all work. At most `ahead` jobs wait, so
    memory stays flat; `submit` then blocks until one is done. The first error of a job is
    raised by the next `submit` or on leaving; jobs that still wait are dropped then.

    ```python
    with Writer() as writer:
        for name, mask in masks:
            writer.submit(write_png, f"{name}.png", mask)
    ```
    """

    def __init__(self, workers: int = 2, ahead: int = 64):
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="writer")
        self._room = threading.BoundedSemaphore(ahead)
        self._error: BaseException | None = None

    def submit(self, function: Callable, *args: Any, **kwargs: Any) -> Future:
        """Has `function(*args, **kwargs)` called by the pool.

        Raises:
            BaseException: the first error of an earlier job; `WriteError` for no space.
        """
        self._raise()
        while not self._room.acquire(timeout=0.1):  # a time-out lets Ctrl-C through
            self._raise()
        try:
            future = self._pool.submit(function, *args, **kwargs)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        """Waits for all jobs.

        Raises:
            BaseException: the first error of a job.
        """
        self._pool.shutdown(wait=True, cancel_futures=self._error is not None)
        self._raise()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self.close()
        else:  # what is already under way is finished; the caller's own error goes on
            self._pool.shutdown(wait=True, cancel_futures=False)

    def _done(self, future: Future) -> None:
        self._room.release()
        if not future.cancelled() and future.exception() is not None and self._error is None:
            self._error = future.exception()

    def _raise(self) -> None:
        error = self._error
        if error is None:
            return
        if (
            isinstance(error, OSError)
            and error.errno in DISK_FULL
            and type(error) is not WriteError
        ):
            raise WriteError(error.filename or "a file", error) from error
        raise error
