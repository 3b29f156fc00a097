"""The one search for image files: which files count, what is left out, how each is named.

It follows links, visits each folder once, has no limit of depth, and goes on where a folder
cannot be read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.data.opening import Page, page_numbers
from unseg_jax.errors import InputError, printable, why

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".tif", ".tiff", ".webp"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
"""Suffixes, in lower case, of the files in a folder that count as images."""

OUTPUT_SUFFIXES = ("_mask.png", "_labels.png", "_overlay.png")
"""Ends of the names of the files that are written for an image."""

_OUTPUT = re.compile(r"(?P<stem>.*)_(?:mask|labels|overlay)\.(?:png|jpg|webp)", re.DOTALL)
# One of these lies in a folder that outputs were written to.
_MANIFEST, _JOURNAL = "unseg_jax.json", "unseg_jax.journal"
_REPORTS = frozenset(("report.html", "manifest.json", "coco.json", _MANIFEST, _JOURNAL))
# Bytes of a name, so that what is added to it for an output stays below a file system's 255.
_LONGEST_NAME = 200
_LISTED = 5  # suffixes that a message lists


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image to be segmented.

    Attributes:
        path: of the file.
        name: unique in a run; outputs are called `<name>_mask.png` and so on.
        page: of a file with several pages, from 1; None for a file that is one image.
    """

    path: Path
    name: str
    page: int | None = None

    @property
    def source(self) -> Path | Page:
        """What `load_image` reads."""
        return self.path if self.page is None else Page(self.path, self.page)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a folder: its own sorted by name, then those of its folders.

    `left_out` has a sentence for what was not taken, `inner` the folders that were not searched.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    inner: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class FoundImages(Sequence[ImageFile]):
    """What `find_images` found, in order; `left_out` has a sentence for what was not taken."""

    images: tuple[ImageFile, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]


def list_images(
    folder: str | os.PathLike,
    *,
    recursive: bool = False,
    skip: str | os.PathLike | None = None,
) -> Listing:
    """The image files of a folder, by their suffix; but hidden ones and the folder `skip`.

    Links are followed, and each folder is searched once. What cannot be read, files of other
    suffixes, and outputs of an earlier run are left out and counted.

    Raises:
        InputError: the folder itself cannot be read.
    """
    root = Path(folder)
    files: list[Path] = []
    suffixes: collections.Counter[str] = collections.Counter()
    own, said, inner = 0, [], []
    visited = set() if skip is None else {_identity(skip)}
    waiting = [root]
    while waiting:
        current = waiting.pop()
        identity = _identity(current)
        if identity in visited and current is not root:
            continue
        visited.add(identity)
        try:
            with os.scandir(current) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            message = f"the folder {printable(str(current))} cannot be read ({why(error).lower()})"
            if current is root:
                raise InputError(f"{message}: check the path and its permissions.") from None
            said.append(f"{message} and was left out.")
            continue
        names = {entry.name for entry in entries}
        manifest = _manifest_of(current, names)
        folders = []
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith("."):
                continue
            # A link may lead back to itself: opening it says so.
            if os.path.isdir(path) if entry.is_symlink() else entry.is_dir():
                folders.append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                # A report is no image that someone may miss.
                if entry.name not in _REPORTS and json.dumps(entry.name) not in manifest:
                    suffixes[path.suffix or "no suffix"] += 1
            elif _is_output(entry.name, names, manifest):
                own += 1
            else:
                files.append(path)
        if recursive:
            waiting.extend(reversed(folders))
        else:
            inner = [path for path in folders if _identity(path) not in visited]
    return Listing(tuple(files), (*_left_out(root, suffixes, own), *said), tuple(inner))


def find_images(
    paths: Iterable[str | os.PathLike],
    *,
    recursive: bool = False,
    out: str | os.PathLike | None = None,
    page: int | None = None,
) -> FoundImages:
    """Expands folders and files of several pages, and gives each image a name of its own.

    Args:
        paths: files, whatever their suffix, and folders (see `list_images`). What is not there
            is kept, and fails on its own later.
        recursive: whether folders within folders are searched as well; hidden ones are not.
        out: where outputs will go; a folder of that path is not searched.
        page: take only this page of files with several, from 1; None takes all.

    Returns:
        Each image once, in the order of `paths`. Names are stems; files that share a stem are
        told apart by their suffix, else by their folder, else by a number; pages by `_p001`.

    Raises:
        InputError: a folder without images, or an image that an output would overwrite.
    """
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for path in map(Path, paths):
        listing = Listing((path,))
        if os.path.isdir(path):
            listing = list_images(path, recursive=recursive, skip=out)
            if not listing.files:
                raise InputError(_no_images(path, listing, recursive))
            left_out += listing.left_out
        for file in listing.files:
            files.setdefault(os.path.realpath(file), file)
    images = []
    for path, name in _name(list(files.values())):
        pages = page_numbers(path)
        if page is not None and pages:
            pages = (page,)
        images += [ImageFile(path, page_name(name, number), number) for number in pages]
        images += [] if pages else [ImageFile(path, name)]
    for image, suffix in itertools.product(images if out is not None else (), OUTPUT_SUFFIXES):
        path = files.get(os.path.realpath(Path(out or "", image.name + suffix)))
        if path is not None:
            raise InputError(
                f"{printable(str(path))} would be overwritten by an output of that name: "
                "choose another folder with out=."
            )
    return FoundImages(tuple(images), tuple(left_out))


def page_name(name: str, page: int) -> str:
    """The name of a page, so that names sort as pages do up to 999.

    >>> page_name("stack", 7)
    'stack_p007'
    """
    return f"{name}_p{page:03d}"


def safe_name(text: str) -> str:
    """A name that every file system takes: escaped with "%", and of more than 200 bytes hashed.

    >>> safe_name("caf\\udce9/1")
    'caf%udce9__1'
    """
    name = text.strip("/\\").replace("\\", "__").replace("/", "__")
    name = printable(name).replace("\\", "%")
    encoded = name.encode()
    if len(encoded) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: _LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"


def _identity(path: str | os.PathLike) -> tuple[Any, ...]:
    """What two paths of one folder have in common."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return (path,)
    return status.st_dev, status.st_ino


def _is_output(name: str, names: set[str], manifest: str) -> bool:
    """Whether an earlier run wrote a file: its manifest lists it, or beside it (`names`) are files
    of all kinds and the report."""
    match = _OUTPUT.fullmatch(name)
    if match is None or json.dumps(name) in manifest:
        return match is not None
    kinds = {f"{match['stem']}_mask.png", f"{match['stem']}_labels.png"}
    return kinds <= names and not names.isdisjoint(_REPORTS)


def _manifest_of(folder: Path, names: set[str]) -> str:
    """Its text, and that of the journal which a run that was killed has left."""
    text = ""
    for name in names.intersection((_MANIFEST, _JOURNAL)):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text += (folder / name).read_text("utf-8")
    return text


def _left_out(folder: Path, suffixes: collections.Counter[str], own: int) -> Iterator[str]:
    listed = [f"{count} {suffix}" for suffix, count in suffixes.most_common(_LISTED)]
    rest = suffixes.total() - sum(count for _, count in suffixes.most_common(_LISTED))
    listed += [f"{rest} others"] if rest else []
    reasons = {f"by suffix: {', '.join(listed)}": suffixes.total()}
    reasons["as outputs of an earlier run"] = own
    for reason, count in reasons.items():
        files = "1 file" if count == 1 else f"{count} files"
        if count:
            yield printable(f"{files} in {folder} left out {reason}.")


def _no_images(folder: Path, listing: Listing, recursive: bool) -> str:
    remedy = "put images there, or name another folder"
    if listing.inner and not recursive:
        inner = printable(str(listing.inner[0]))
        remedy = f"name a folder within it, such as {inner}, or use recursive=True"
    said = f" ({' '.join(listing.left_out).rstrip('.')})" if listing.left_out else ""
    return f"the folder {printable(str(folder))} holds no images{said}: {remedy}."


def _name(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Names compared without case, as some file systems do."""
    names = [safe_name(path.stem) for path in paths]
    stems = [name.casefold() for name in names]
    shared = {stem for stem, count in collections.Counter(stems).items() if count > 1}
    taken = set(stems) - shared
    for path, name, stem in zip(paths, names, stems, strict=True):
        if stem in shared:
            suffix = path.suffix[1:] or "file"
            folder = Path(os.path.realpath(path)).parent.name or "root"
            options = [f"{name}_{suffix}", f"{folder}_{name}", f"{folder}_{name}_{suffix}"]
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            choices = map(safe_name, itertools.chain(options, numbered))
            name = next(choice for choice in choices if choice.casefold() not in taken)
            taken.add(name.casefold())
        yield path, name
