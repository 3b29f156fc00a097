"""What images are called in a folder of results, which earlier runs may have filled."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unseg_jax.data.folders import ImageFile, safe_name
from unseg_jax.errors import readable
from unseg_jax.runs.result_store import Done


def below_common(paths: Sequence[str]) -> list[str]:
    """Absolute paths of images as paths below the folder that they have in common, with "/".

    >>> below_common(["/photos/monday/1.png", "/photos/tuesday/1.png"])
    ['monday/1.png', 'tuesday/1.png']
    """
    common = _common(paths)
    return [
        readable((Path(path) if common is None else Path(path).relative_to(common)).as_posix())
        for path in paths
    ]


def names_in(
    images: Sequence[ImageFile], there: Mapping[str, Done], *, recursive: bool = False
) -> tuple[ImageFile, ...]:
    """The images, each with a name that no other image in the folder has.

    One that is there keeps its name. A new one whose name is taken is told apart from the owner by
    its suffix, else by its folder, else by a number, as `find_images` does within a run.

    Args:
        images: from `find_images`.
        there: what the folder holds, by name.
        recursive: mirror the folders below the common one.
    """
    named = _mirrored(images) if recursive else images
    owners = {(done.source, done.page): name for name, done in there.items()}
    taken = {name.casefold(): done.source for name, done in there.items()}
    result = []
    for image in named:
        source = os.path.abspath(image.path)
        name = owners.get((source, image.page))
        if name is None:
            options = _options(image.name, Path(source), taken.get(image.name.casefold(), ""))
            name = next(option for option in options if option.casefold() not in taken)
            taken[name.casefold()] = source
        result.append(dataclasses.replace(image, name=name))
    return tuple(result)


def _options(name: str, source: Path, owner: str) -> Iterator[str]:
    folders, _, stem = name.rpartition("/")
    suffix = source.suffix[1:] or "file"
    folder = source.parent.name or "root"
    stems = [stem]
    if owner and Path(owner).suffix != source.suffix:
        stems.append(f"{stem}_{suffix}")
    stems += [f"{folder}_{stem}", f"{folder}_{stem}_{suffix}"]
    numbered = (f"{stem}_{number}" for number in itertools.count(2))
    for option in map(safe_name, itertools.chain(stems, numbered)):
        yield f"{folders}/{option}" if folders else option


def _mirrored(images: Sequence[ImageFile]) -> list[ImageFile]:
    """The images named by their paths below the common folder; as they are without one."""
    paths = [os.path.abspath(image.path) for image in images]
    common = _common(paths)
    if common is None:
        return list(images)
    below = [Path(path).relative_to(common) for path in paths]
    stems = [path.with_suffix("").as_posix().casefold() for path in below]
    count = collections.Counter(stems)
    named = []
    for image, path, stem in zip(images, below, stems, strict=True):
        name = safe_name(path.stem) if count[stem] == 1 else image.name
        parts = [safe_name(part) for part in path.parent.parts]
        named.append(dataclasses.replace(image, name="/".join([*parts, name])))
    return named


def _common(paths: Sequence[str]) -> Path | None:
    try:
        return Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
    except ValueError:  # several drives, or no paths
        return None
