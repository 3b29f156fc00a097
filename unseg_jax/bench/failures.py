"""Which errors cost one image its records, and which stop the run."""

import contextlib
import errno
from collections.abc import Iterator

from unseg_jax.errors import BenchError, WriteError

ITEM_ERRORS = (OSError, MemoryError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What reading or scoring a damaged file may raise: `ImageError` is a ValueError."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def failure_reason(error: Exception | None) -> str:
    """A failure in words; errors that no image can be blamed for are raised.

    Raises:
        Exception: the error itself, if it is of another kind, or says that the disk is full.
    """
    assert error is not None
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or isinstance(error, WriteError) or not isinstance(error, ITEM_ERRORS):
        raise error
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of the operating system in a writing thread, as one sentence each."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, WriteError):
            error = WriteError(error.filename or "a file", error)
        raise BenchError(
            f"{error} What is done is kept: give the same command with --resume."
        ) from error
