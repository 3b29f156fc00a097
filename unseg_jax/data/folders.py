"""Image files in folders: which files count, and the name that each gets in a run."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from unseg_jax.errors import InputError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
"""Suffixes, in lower case, of the files in a folder that count as images."""

OUTPUT_SUFFIXES = ("_mask.png", "_labels.png", "_overlay.png")
"""Ends of the names of the files that are written for an image."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image to be segmented.

    Attributes:
        path: of the file.
        name: unique in a run; outputs are called `<name>_mask.png` and so on.
    """

    path: Path
    name: str


def find_images(
    paths: Iterable[str | os.PathLike],
    *,
    recursive: bool = False,
    out: str | os.PathLike | None = None,
) -> list[ImageFile]:
    """Expands folders and gives each image a name of its own.

    Args:
        paths: files, whatever their suffix, and folders, of which the files with a suffix of an
            image are taken, sorted. What is not there is kept, and fails on its own later.
        recursive: whether folders within folders are searched as well; hidden ones are not.
        out: where outputs will go; a folder of that path is not searched.

    Returns:
        Each file once, in the order of `paths`. Names are stems; files that share a stem are told
        apart by their suffix, else by their folder, else by a number.

    Raises:
        InputError: a folder without images, or an image that an output would overwrite.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = _in_folder(path, recursive, out) if path.is_dir() else [path]
        for file in found:
            files.setdefault(file.resolve(), file)
    images = [ImageFile(path, name) for path, name in _name(list(files.values()))]
    if out is not None:
        targets = {
            Path(out, image.name + suffix).resolve()
            for image in images
            for suffix in OUTPUT_SUFFIXES
        }
        for file, path in files.items():
            if file in targets:
                raise InputError(
                    f"{path} would be overwritten by an output of that name: "
                    "choose another folder with --out."
                )
    return images


def _in_folder(folder: Path, recursive: bool, out: str | os.PathLike | None) -> list[Path]:
    skipped = None if out is None else Path(out).resolve()
    found, inner = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == skipped:
            continue
        if path.is_dir():
            inner.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(path)
    if recursive:
        for path in inner:
            with contextlib.suppress(InputError):
                found.extend(_in_folder(path, True, out))
    if not found:
        remedy = "put images there, or name another folder"
        if inner and not recursive:
            remedy = f"name a folder within it, such as {inner[0]}, or use --recursive"
        raise InputError(f"the folder {folder} holds no images: {remedy}.")
    return found


def _name(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Names compared without case, as some file systems do."""
    stems = [path.stem.casefold() for path in paths]
    shared = {stem for stem, count in collections.Counter(stems).items() if count > 1}
    taken = set(stems) - shared
    for path, stem in zip(paths, stems, strict=True):
        name = path.stem
        if stem in shared:
            suffix = path.suffix[1:] or "file"
            folder = path.resolve().parent.name or "root"
            options = [f"{path.stem}_{suffix}", f"{folder}_{path.stem}"]
            options.append(f"{folder}_{path.stem}_{suffix}")
            numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
            choices = itertools.chain(options, numbered)
            name = next(choice for choice in choices if choice.casefold() not in taken)
            taken.add(name.casefold())
        yield path, name


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Image files, sorted, without hidden ones (such as macOS's `._name.jpg`)."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
