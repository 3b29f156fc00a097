"""The data set of a run, and whether its folder may be where `--out` says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from unseg_jax.data import Dataset, Item, open_dataset
from unseg_jax.data.truths import Value
from unseg_jax.errors import BenchError, readable


def open_data(
    data: str,
    *,
    image_key: str | None = None,
    mask_key: str | None = None,
    foreground: Sequence[Value] | str | None = None,
    void: Sequence[Value] | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> Dataset:
    """`unseg_jax.data.open_dataset`, with ids that any file and terminal can hold.

    Args:
        data: as after `--data`.
        image_key, mask_key, foreground, void, limit, split: see `open_dataset`.

    Raises:
        DatasetError: see `open_dataset`.
    """
    dataset = open_dataset(
        data,
        image_key=image_key,
        mask_key=mask_key,
        foreground=foreground,
        void=void,
        limit=limit,
        split=split,
    )
    items = tuple(dataclasses.replace(item, id=readable(item.id)) for item in dataset.items)
    return dataclasses.replace(
        dataset,
        name=readable(dataset.name),
        items=items,
        notes=tuple(map(readable, dataset.notes)),
    )


def check_out(out: Path, data: str, items: Iterable[Item]) -> None:
    """Checks that a run's folder and its data lie apart, links followed.

    Args:
        out: the run's folder; may be missing.
        data: as after `--data`.
        items: of the data set.

    Raises:
        BenchError: `out` is, contains or lies in a folder that holds data.
    """
    place = Path(os.path.realpath(out))
    for folder in sorted(data_folders(data, items)):
        if place == folder or place in folder.parents or folder in place.parents:
            raise BenchError(
                f"--out {out} is, contains, or lies in {folder}, which holds the data: choose a "
                f"folder outside of it."
            )


def data_folders(data: str, items: Iterable[Item]) -> set[Path]:
    """The real folders that hold an image or mask, and the one that `--data` names."""
    parents: set[str] = set()
    for item in items:
        for source in (item.image, item.mask):
            if isinstance(source, str | os.PathLike):
                path = os.fspath(source)
                parents.add(os.path.dirname(path) or ".")
                if os.path.islink(path):
                    parents.add(os.path.dirname(os.path.realpath(path)))
    named = [text for text in (data, data.partition(":")[2]) if text and os.path.isdir(text)]
    return {Path(os.path.realpath(folder)) for folder in (*parents, *named)}
