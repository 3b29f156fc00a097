"""Writing behind the device: whole files or none, a bounded pool, a full disk said plainly."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """The disk, or the user's share of it, is full; the message names the file and the remedy."""


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file so that it appears whole or not at all, even if the process is killed.

    Args:
        path: where to; its folder is made if missing.
        content: bytes, or text that is written as UTF-8.

    Raises:
        DiskFullError: no space is left.
        OSError: the path cannot be written.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise plain_error(error, path) from error


def plain_error(error: OSError, path: str | os.PathLike) -> OSError:
    """The error of a failed write as one sentence with a remedy; `DiskFullError` for no space."""
    if isinstance(error, DiskFullError):
        return error
    if error.errno in _FULL:
        return DiskFullError(
            f"the disk is full: {path} could not be written; free some space and run again."
        )
    reason = error.strerror or str(error)
    return type(error)(f"{path} could not be written ({reason}): choose a folder you may write to.")


def save_image(path: str | os.PathLike, pixels: np.ndarray, **options: Any) -> None:
    """Saves an image in the format that the path's suffix names, atomically.

    Args:
        path: such as `mask.png` or `thumbnail.webp`.
        pixels: uint8 (H, W, 3) or (H, W), uint16 (H, W), or bool (H, W), which becomes 0 and 255.
        options: passed on to Pillow, such as quality=80.

    Raises:
        DiskFullError: no space is left.
        OSError: the path cannot be written.
    """
    pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
    buffer = BytesIO()
    format = Image.registered_extensions()[Path(path).suffix.lower()]
    Image.fromarray(pixels).save(buffer, format, **options)
    write_atomically(path, buffer.getvalue())


class Writer:
    """A pool that does work behind the caller's back, but not without its knowledge.

    Use it as a context manager: leaving it waits for all work. At most `ahead` jobs wait, so
    memory stays flat; `submit` then blocks until one is done. The first error of a job is
    raised by the next `submit` or on leaving; jobs that still wait are dropped then.

    ```python
    with Writer() as writer:
        for name, mask in masks:
            writer.submit(save_image, f"{name}.png", mask)
    ```
    """

    def __init__(self, workers: int = 2, ahead: int = 64):
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="writer")
        self._room = threading.BoundedSemaphore(ahead)
        self._error: BaseException | None = None

    def submit(self, function: Callable, *args: Any, **kwargs: Any) -> Future:
        """Has `function(*args, **kwargs)` called by the pool.

        Raises:
            BaseException: the first error of an earlier job; `DiskFullError` for no space.
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
        if self._error is None:
            return
        if isinstance(self._error, OSError) and self._error.errno in _FULL:
            raise plain_error(self._error, self._error.filename or "a file") from self._error
        raise self._error
