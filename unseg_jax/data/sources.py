"""Where images and masks come from: folders, list files, well-known layouts, TFDS.

`open_dataset` turns any of them into the same thing, a `Dataset` of `Item`s. Nothing is decoded
here; an item that cannot be read fails on its own, later.
"""

import codecs
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.data.dataset import Dataset, Item
from unseg_jax.data.decoding import Page, page_numbers
from unseg_jax.data.folders import IMAGE_SUFFIXES, Listing, list_images, page_name, safe_name
from unseg_jax.data.layouts import LAYOUTS, Layout, Part
from unseg_jax.data.truths import MaskRule, Value
from unseg_jax.errors import DatasetError, closest, nearest, printable


def open_dataset(
    spec: str | Path,
    *,
    image_key: str | None = None,
    mask_key: str | None = None,
    foreground: Sequence[Value] | str | None = None,
    void: Sequence[Value] | None = None,
    limit: int | None = None,
    split: str | None = None,
    strict: bool = False,
) -> Dataset:
    """Opens a data set.

    Args:
        spec: one of
            a folder with `images/` and `masks/`, paired strictly by stem;
            a folder of images alone, or a single image, which have no masks;
            a list file `.csv` or `.tsv` (columns image, and optionally mask, split, id, separated
            by comma, semicolon, tab or bar; UTF-8 or UTF-16) or `.jsonl` (the same keys, an object
            a line), paths relative to the file's folder;
            `NAME:DIR` for a data set of `unseg_jax.data.layouts.LAYOUTS`;
            `tfds:NAME[/CONFIG][:VERSION][:SPLIT]` for a TensorFlow Datasets one (extra `tfds`).
        image_key, mask_key: names of the features of a TFDS data set; "a/b" for nested ones.
        foreground: mask values that are foreground, instead of the data set's own rule, or
            "nonzero"; see `unseg_jax.data.MaskRule`.
        void: mask values that are left out of every score.
        limit: take only the first so many.
        split: take only this split.
        strict: whether another number of images than the data set is known to have is an error;
            otherwise it is a note.

    Raises:
        DatasetError: nothing there, masks missing, names that do not pair or are not unique, an
            unknown split or feature, or a missing extra.
    """
    text = str(spec)
    name, _, rest = text.partition(":")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit={limit} must be at least 1.")
    if name == "tfds" and rest:
        from unseg_jax.data.tfds import open_tfds

        dataset = open_tfds(rest, image_key=image_key, mask_key=mask_key, split=split, limit=limit)
    elif image_key or mask_key:
        raise DatasetError(
            "image_key and mask_key name features of a TFDS data set: leave them out."
        )
    elif name in LAYOUTS and rest:
        dataset = open_layout(name, Path(rest).expanduser(), split=split, strict=strict)
    else:
        dataset = _only(_open_path(text), split)
    if not dataset.items:
        raise DatasetError(f"{text} holds no images: check the path.")
    items = dataset.items if limit is None else dataset.items[:limit]
    rule = dataset.rule
    if foreground is not None:
        rule = MaskRule(values=foreground if isinstance(foreground, str) else tuple(foreground))
    if void is not None:
        rule = dataclasses.replace(rule, void=tuple(void))
    return dataclasses.replace(dataset, items=items, rule=rule)


def folder_pairs(folder: str | Path) -> Dataset:
    """`DIR/images/*` with `DIR/masks/*`, paired strictly by stem; or a folder of images alone.

    Raises:
        DatasetError: no such folder, no images, two files of one stem, or images without masks
            where there is a folder `masks`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder: check the path.")
    inner = folder / "images"
    place = inner if inner.is_dir() else folder
    listing = list_images(place)
    images = _by_stem(place, listing)
    if not images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{place} holds no images: put files with a suffix of {suffixes} there.")
    name = folder.resolve().name
    if not (inner.is_dir() and (folder / "masks").is_dir()):
        note = f"{folder} has no masks: its images are segmented and not scored."
        items = (Item(safe_name(stem), path) for stem, path in images.items())
        return Dataset(name, _by_page(items), notes=(note, *listing.left_out))
    mask_listing = list_images(folder / "masks")
    masks = _by_stem(folder / "masks", mask_listing)
    _check_pairs(folder / "masks", images, masks)
    items = (Item(safe_name(stem), path, masks[stem]) for stem, path in images.items())
    notes = [*listing.left_out, *mask_listing.left_out]
    if spare := len(masks.keys() - images.keys()):
        notes.append(f"{spare} masks in {folder / 'masks'} have no image.")
    return Dataset(name, _by_page(items), notes=tuple(notes))


def masks_by_stem(folder: Path, images: Iterable[Path | Page]) -> dict[Path | Page, Path]:
    """The masks in a folder, by those of the images that have their stem; not all need one.

    Raises:
        DatasetError: no masks, a mask without an image, or images of one stem.
    """
    masks = _by_stem(folder, list_images(folder))
    if not masks:
        raise DatasetError(f"{folder} holds no masks: put one there, named as its image is.")
    pairs: dict[str, Path | Page] = {}
    for image in images:
        stem = Path(image).stem
        if stem in masks and stem in pairs:
            raise DatasetError(
                f"{pairs[stem]} and {image} both pair with {masks[stem]}: rename one of them."
            )
        pairs[stem] = image
    for stem, path in masks.items():
        if stem not in pairs:
            hint = nearest(stem, pairs) if closest(stem, pairs) else "name it as its image is."
            raise DatasetError(f"the mask {path} has no image of the stem '{stem}': {hint}")
    return {pairs[stem]: path for stem, path in masks.items()}


def list_file(path: str | Path) -> Dataset:
    """Items named by a CSV or JSONL file; see `open_dataset`.

    Raises:
        DatasetError: a missing column, a line that cannot be read, or an id that is not unique.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = data.decode(_encoding(data))
    except OSError as error:
        raise DatasetError(f"list {path} cannot be read ({error}): check it.") from None
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"list {path} is not {error.encoding} ({error.reason} at byte {error.start}): save it "
            "as UTF-8."
        ) from None
    rows = _jsonl_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)
    entries = []
    for line, row in rows:
        image, mask = row.get("image"), row.get("mask") or None
        if not isinstance(image, str) or not image or not isinstance(mask, str | None):
            raise DatasetError(f"line {line} of {path} names no image: give every line a path.")
        image, mask = (name and path.parent / Path(name).expanduser() for name in (image, mask))
        entries.append((row.get("id"), image, mask, row))
    ids = _unique_ids([Path(image) for _, image, _, _ in entries])
    items = _by_page(
        Item(safe_name(str(named)) if named else made, image, mask, row.get("split") or None)
        for made, (named, image, mask, row) in zip(ids, entries, strict=True)
    )
    _check_unique(path, (item.id for item in items))
    return Dataset(path.stem, items)


def open_layout(
    name: str, folder: Path, *, split: str | None = None, strict: bool = False
) -> Dataset:
    """A data set of `LAYOUTS` from the folder it was unpacked to.

    Raises:
        DatasetError: as `open_dataset`.
    """
    layout = LAYOUTS[name]
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a folder: {layout.title} is published at {layout.home}."
        )
    items, left_out = _layout_items(layout, folder)
    if layout.split_file:
        items = _with_splits(items, folder, layout.split_file)
    dataset = _only(Dataset(name, items, layout.rule), split)
    expected = layout.counts.get(split or "", ())
    notes = [f"{name}: masks by {layout.rule}.", *left_out]
    if expected and len(dataset) not in expected:
        counts = " or ".join(map(str, expected))
        message = f"{folder} holds {len(dataset)} images of {layout.title}, not {counts}"
        if strict:
            raise DatasetError(f"{message}: complete it from {layout.home}.")
        notes.append(f"{message}; the whole is at {layout.home}.")
    return dataclasses.replace(dataset, notes=tuple(notes))


def _open_path(text: str) -> Dataset:
    path = Path(text).expanduser()
    if path.is_dir():
        return folder_pairs(path)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        return list_file(path)
    if path.is_file():
        items = _by_page([Item(safe_name(path.stem), path)])
        return Dataset(path.stem, items, notes=(f"{path} has no mask.",))
    name, colon, _ = text.partition(":")
    if colon and not Path(name).exists():
        hint = nearest(name, [*LAYOUTS, "tfds"])
        raise DatasetError(f"unknown kind of data set '{name}' in {text}; {hint}")
    raise DatasetError(f"{text} was not found: check the path.")


def _only(dataset: Dataset, split: str | None) -> Dataset:
    if split is None:
        return dataset
    items = tuple(item for item in dataset.items if item.split == split)
    if not items:
        known = sorted({item.split for item in dataset.items if item.split})
        has = "it has " + ", ".join(known) if known else "it has none"
        raise DatasetError(f"{dataset.name} has no split '{split}': {has}.")
    return dataclasses.replace(dataset, items=items)


def _by_page(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items, those of several pages as one for each page."""
    expanded = []
    for item in items:
        pages = page_numbers(item.image)
        masks = () if item.mask is None else page_numbers(item.mask)
        if item.mask is not None and len(pages) != len(masks):
            raise DatasetError(
                f"{item.image} has {len(pages) or 1} pages and its mask {item.mask} has "
                f"{len(masks) or 1}: masks pair with images page by page."
            )
        for index, number in enumerate(pages):
            page = dataclasses.replace(
                item,
                id=page_name(item.id, number),
                image=Page(item.image, number),
                mask=None if item.mask is None else Page(item.mask, masks[index]),
                page=number,
            )
            expanded.append(page)
        expanded += [] if pages else [item]
    return tuple(expanded)


def _by_stem(folder: Path, listing: Listing) -> dict[str, Path]:
    """Image files by stem, in the order of their stems."""
    paths: dict[str, Path] = {}
    for path in listing.files:
        if path.stem in paths:
            raise DatasetError(
                f"{folder} holds both {paths[path.stem].name} and {path.name}: files pair by "
                f"stem, so keep one of them."
            )
        paths[path.stem] = path
    return dict(sorted(paths.items()))


def _check_pairs(folder: Path, images: dict[str, Path], masks: dict[str, Path]) -> None:
    missing = [path.name for stem, path in images.items() if stem not in masks]
    if not missing:
        return
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    endings = ("_segmentation", "_Segmentation", "-GTM", "_mask")
    ending = next((e for e in endings if any(stem.endswith(e) for stem in masks)), None)
    hint = (
        f"rename the masks, which end in {ending}, to their images' stems"
        if ending
        else "add masks of the same stem, or take these images away"
    )
    raise DatasetError(
        f"{len(missing)} of {len(images)} images have no mask in {folder} ({shown}): {hint}."
    )


def _layout_items(layout: Layout, folder: Path) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    ways = (*layout.alternatives, (Part("images", "masks"),))
    for way in ways:
        present = [part for part in way if (folder / part.images).is_dir()]
        present = [part for part in present if (folder / part.masks).is_dir()]
        if present:
            parts = [_part_items(folder, part) for part in present]
            items = _by_page(item for items, _ in parts for item in items)
            _check_unique(folder, (item.id for item in items))
            return items, tuple(message for _, left_out in parts for message in left_out)
    folders = "; or ".join(
        ", ".join(f"{part.images} with {part.masks}" for part in way) for way in ways
    )
    raise DatasetError(
        f"{folder} does not look like {layout.title}, which has the folders {folders}: it is "
        f"published at {layout.home}."
    )


def _part_items(folder: Path, part: Part) -> tuple[list[Item], tuple[str, ...]]:
    """Pairs by the path below the part's folders, its stem with the part's suffix."""
    roots = folder / part.images, folder / part.masks
    listings = [list_images(root, recursive=True) for root in roots]
    images = sorted(listings[0].files)
    masks = {path.relative_to(roots[1]).with_suffix(""): path for path in listings[1].files}
    keys = [path.relative_to(roots[0]).with_suffix("") for path in images]
    # Masks may also carry their image's bare stem, as in copies that people hand on.
    paired = [masks.get(key.with_name(key.name + part.suffix)) or masks.get(key) for key in keys]
    _check_pairs(
        roots[1],
        {str(key): path for key, path in zip(keys, images, strict=True)},
        {str(key): path for key, path in zip(keys, paired, strict=True) if path is not None},
    )
    items = [
        Item(id, image, mask, part.split)
        for id, image, mask in zip(_unique_ids(images), images, paired, strict=True)
    ]
    return items, (*listings[0].left_out, *listings[1].left_out)


def _with_splits(items: Iterable[Item], folder: Path, name: str) -> tuple[Item, ...]:
    items = tuple(items)
    split_file = next((path for path in sorted(folder.rglob(name)) if path.is_file()), None)
    names = split_file and split_file.with_name("images.txt")
    if split_file is None or names is None or not names.is_file():
        return items
    flags = dict(
        line.split() for line in split_file.read_text("utf-8").splitlines() if line.strip()
    )
    by_stem = {}
    for line in names.read_text("utf-8").splitlines():
        if line.strip():
            number, image = line.split(maxsplit=1)
            by_stem[Path(image).stem] = "train" if flags.get(number) == "1" else "test"
    return tuple(
        dataclasses.replace(item, split=by_stem.get(Path(item.image).stem)) for item in items
    )


def _encoding(data: bytes) -> str:
    """Of a list file: a byte that is 0 among the first two is half of a letter in UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if data.startswith(b"\0"):
        return "utf-16-be"
    return "utf-16-le" if data[1:2] == b"\0" else "utf-8-sig"


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    for separator in ",;\t|":
        # The csv module itself tells ends of lines from newlines within quotes.
        lines = io.StringIO(text, newline="")
        reader = csv.DictReader(lines, skipinitialspace=True, delimiter=separator)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        if "image" in reader.fieldnames:
            return [(reader.line_num, row) for row in reader]
    first = printable(text.partition("\n")[0].strip()[:80])
    raise DatasetError(
        f"list {path} has no column 'image' in its first line, {first!r}: begin it with a line "
        "image,mask."
    )


def _jsonl_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    # Not splitlines, which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"line {number} of {path} is not JSON ({error}): fix it.") from None
        if not isinstance(row, dict):
            raise DatasetError(f"line {number} of {path} is not an object: write {{'image': ...}}.")
        rows.append((number, row))
    return rows


def _unique_ids(paths: Sequence[Path]) -> list[str]:
    """Stems, with as many parent folders in front as it takes to tell them all apart."""
    for depth in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        ids = ["__".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(ids)) == len(ids):
            return [safe_name(id) for id in ids]
    return [safe_name("__".join(path.parts)) for path in paths]


def _check_unique(where: Path, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise DatasetError(f"{where} names '{id}' twice: keep one, or give each its own id.")
        seen.add(id)
