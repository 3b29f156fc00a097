"""Ids of images as file names."""

import hashlib
import unicodedata

_LONGEST = 120
_FORBIDDEN = frozenset('<>:"/\\|?*')


def file_stem(id: str) -> str:
    """A file name, without suffix, that no other id has: the id itself wherever that is safe.

    Ids that are long, hidden, or hold characters that some file system refuses keep what can be
    kept of them, with a part of their SHA-256 at the end.

    >>> file_stem("bird-003")
    'bird-003'
    >>> file_stem("../a")
    '_a~61b4c98bfb92'
    """
    safe = "".join("_" if _is_unsafe(character) else character for character in id)
    safe = safe.lstrip(".").rstrip(". ")
    if safe == id and id and len(id.encode()) <= _LONGEST:
        return id
    short = safe.encode()[: _LONGEST - 16].decode(errors="ignore")
    digest = hashlib.sha256(id.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{short}~{digest}"


def _is_unsafe(character: str) -> bool:
    return character in _FORBIDDEN or unicodedata.category(character) in ("Cc", "Cs")
