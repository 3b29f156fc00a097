"""Whether an image or mask is still the one that a record was made of."""

import hashlib
import os
import stat
from typing import Any

from unseg_jax.data import Item, Source


def stamp_source(source: Source | None) -> str | None:
    """Size, time and a hash of a file, as "SIZE-TIME-HASH"; None for what is no readable file.

    Args:
        source: of an image or mask. Take the stamp before decoding, so that a file that changes
            meanwhile counts as changed.
    """
    path = _path(source)
    if path is None:
        return None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would block
            return None
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except (OSError, ValueError):
        return None
    return f"{state.st_size}-{state.st_mtime_ns}-{digest}"


def is_unchanged(source: Source | None, stamp: Any, *, strict: bool = False) -> bool:
    """Whether a source still has the content that it was stamped with.

    One `stat` decides where size and time are the same, or the size is another. The content is
    read only if the time alone is another, as after a copy, or if `strict`.

    Args:
        source: of an image or mask.
        stamp: of `stamp_source`, when the record was made.
        strict: read the content in any case.
    """
    path = _path(source)
    if path is None or not isinstance(stamp, str):
        # Without a stamp nothing is known, but a file that appears or goes is a change.
        return stamp is None and (path is None or stamp_source(source) is None)
    size, _, rest = stamp.partition("-")
    time, _, digest = rest.partition("-")
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return False
    if str(state.st_size) != size:
        return False
    if str(state.st_mtime_ns) == time and not strict:
        return True
    return (stamp_source(source) or "").rpartition("-")[2] == digest


def is_item_unchanged(item: Item, record: Any, *, strict: bool = False) -> bool:
    """Whether image and mask are those that a record was made of; see `is_unchanged`."""
    return is_unchanged(item.image, record.get("image_stamp"), strict=strict) and is_unchanged(
        item.mask, record.get("mask_stamp"), strict=strict
    )


def _path(source: Source | None) -> str | os.PathLike | None:
    return source if isinstance(source, str | os.PathLike) else None
