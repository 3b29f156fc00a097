"""Ids of images as file names, and as text that every terminal and file can hold."""

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
