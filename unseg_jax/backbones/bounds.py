"""How much a weights file may hold, so that none can fill the memory.

Reading a file takes at most a few copies of `EXPANSION` times its size plus `ALLOWANCE`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from unseg_jax.errors import WeightsError

EXPANSION = 20
"""A file may hold at most this many times its own size."""
ALLOWANCE = 2**20
"""Bytes that any file may hold, however small it is."""

# Others need memory that the archive itself chooses.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def check_expansion(path: Path, size: int) -> None:
    """Refuses a file that claims to hold far more than it can.

    Args:
        path: of the file.
        size: bytes that its contents are said to take.

    Raises:
        WeightsError: more than `EXPANSION` times the file's size plus `ALLOWANCE`.
    """
    if size > EXPANSION * path.stat().st_size + ALLOWANCE:
        raise WeightsError(
            f"{path} claims to hold {size:,} bytes, more than {EXPANSION} times its own size; it "
            "is damaged or hostile, so use another file."
        )


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses a zip archive that unpacks to far more than its size, or in an unusual way.

    Raises:
        WeightsError: see `check_expansion`, and another compression than none and deflate.
    """
    members = archive.infolist()
    check_expansion(path, sum(member.file_size for member in members))
    for member in members:
        if member.compress_type not in _COMPRESSIONS:
            raise WeightsError(
                f"{path} is compressed in a way that is not read here; write it again without "
                "compression."
            )
