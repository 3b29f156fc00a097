"""What a manifest says about a file, and whether a file is the one that it means."""

import dataclasses
import hashlib
from collections.abc import Iterable

from unseg_jax.errors import FolderError
from unseg_jax.runs.journal import is_journal, unseal


@dataclasses.dataclass(frozen=True)
class Stamp:
    """A file as it was written.

    Attributes:
        size: in bytes.
        mtime_ns: time of its last change, in nanoseconds since 1970.
        sha256: of its content, in hexadecimal digits.
    """

    size: int
    mtime_ns: int
    sha256: str


Entries = dict[str, "set[Stamp] | None"]
"""Name → the stamps that a file of this name had; None for a journal, whose lines are checked."""


def parse_manifest(lines: Iterable[bytes]) -> tuple[str, Entries]:
    """The token and the entries of a manifest.

    Lines that cannot be read are left out: what they named is then not owned, which is safe.

    Returns:
        The token, "" if the lines are of no manifest, and the entries by name.
    """
    token, entries = "", {}
    for line in lines:
        try:
            value = unseal(line.decode())
            if not token:
                token = str(value["token"])
            elif value.get("journal"):
                entries[value["name"]] = None
            else:
                stamp = Stamp(value["size"], value["mtime_ns"], value["sha256"])
                entries.setdefault(value["name"], set()).add(stamp)
        except (ValueError, KeyError, AttributeError):
            if not token:
                return "", {}
    return token, entries


def is_own(entries: Entries, name: str, content: bytes) -> bool:
    """Whether a file has the content that its entry in a manifest says.

    Args:
        entries: see `parse_manifest`.
        name: of the file in the run's folder.
        content: of the file that is there by that name.
    """
    if name not in entries:
        return False
    stamps = entries[name]
    if stamps is None:
        return is_journal(content.splitlines(keepends=True))
    if all(stamp.size != len(content) for stamp in stamps):
        return False
    digest = hashlib.sha256(content).hexdigest()
    return any(stamp.sha256 == digest for stamp in stamps)


def foreign_error(path: object) -> FolderError:
    """The error for a file that is in the way and not the run's own."""
    return FolderError(
        f"{path} was not written by this run, or was changed since, and is kept: move it away, "
        f"or choose another out=."
    )
