"""Every exception of the library, and the hint that ends an error about an unknown name.

Messages are one sentence: what is wrong, with which file or value, and what to do.
"""

import difflib
import errno
import os
from collections.abc import Iterable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Codes of errors after which nothing more can be written."""


class InputError(ValueError):
    """Paths that hold no images, or that clash with the outputs; the message says what to do."""


_REMEDIES = {
    errno.ENOSPC: "no space is left on the disk; free some, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some, or write elsewhere",
    errno.EACCES: "permission is denied; choose another place, or change its permissions",
    errno.EPERM: "permission is denied; choose another place, or change its permissions",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "part of the path is a file; choose another place",
    errno.EISDIR: "a folder of that name is there; choose another name",
    errno.EEXIST: "a file stands where a folder is to be; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


class WriteError(OSError):
    """A file that could not be written; the message names it and says what to do.

    `errno` is that of the operating system: `errno.ENOSPC` is a full disk.
    """

    def __init__(self, path: str | os.PathLike, cause: OSError):
        reason = _REMEDIES.get(cause.errno or 0, cause.strerror or str(cause))
        super().__init__(cause.errno, f"cannot write {os.fspath(path)}: {reason}.")

    def __str__(self) -> str:
        return str(self.strerror)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that an unknown one is nearest to, if any is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    match = closest(name, known)
    return f"did you mean '{match}'?" if match else "known are: " + ", ".join(sorted(known))


def printable(text: str, length: int | None = None) -> str:
    r"""Text that any terminal and any file takes: control characters and broken UTF-8 escaped, and
    cut at `length` characters.

    >>> printable("caf\xe9 \x1b[31m\udcff")
    'café \\x1b[31m\\udcff'
    """
    escaped = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
    return escaped if length is None or len(escaped) <= length else escaped[: length - 1] + "…"


def why(error: BaseException, length: int = 200) -> str:
    """Why something failed, to be quoted within a sentence: the first line of an error, without
    its full stop; the words of the operating system for an OSError.

    >>> why(ValueError("no such thing.\\nTry another."))
    'no such thing'
    """
    text = getattr(error, "strerror", None) or str(error)
    lines = (line.strip() for line in text.splitlines())
    return printable(next(filter(None, lines), type(error).__name__).rstrip("."), length)


def readable(id: str) -> str:
    """An id as text: bytes of a file name that are not UTF-8 are written as \\xNN.

    >>> readable("caf\\udce9")
    'caf\\\\xe9'
    """
    try:
        id.encode()
    except UnicodeEncodeError:
        return id.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return id


class WeightsError(ValueError):
    """Weights that cannot be had, read, or fitted to a backbone."""


class PlatformError(ValueError):
    """A platform of JAX that is not here; the message says how to run without it."""


class ImageError(ValueError):
    """An image or mask that cannot be used; the message names it and the remedy."""


class DatasetError(ValueError):
    """A data set that cannot be read as it lies; the message says what to change."""


class BenchError(Exception):
    """A run that cannot start or go on; the message says why and what to do."""


class FolderError(BenchError, InputError):
    """A folder that another process writes, or that holds a file which is in the way."""


def foreign_error(path: object) -> FolderError:
    """The error for a file that is in the way and not the run's own."""
    return FolderError(
        f"{path} was not written by this run, or was changed since, and is kept: move it away, "
        f"or choose another out=."
    )


class Interrupted(BenchError):
    """The user stopped the run; the message says how to go on."""
