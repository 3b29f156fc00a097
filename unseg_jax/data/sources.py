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

from unseg_jax.data.dataset import LAYOUTS, Dataset, Item, Layout, Part
from unseg_jax.data.folders import IMAGE_SUFFIXES, list_images, page_name, safe_name
from unseg_jax.data.opening import Page, page_numbers
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
            `NAME:DIR` for a data set of `unseg_jax.data.LAYOUTS`;
            `tfds:NAME[/CONFIG][:VERSION][:SPLIT]` for a TensorFlow Datasets one (extra `tfds`).
        image_key, mask_key: names of the features of a TFDS data set; "a/b" for nested ones.
        foreground: mask values that are foreground, instead of the data set's own rule, or
            "nonzero"; see `unseg_jax.data.MaskRule`.
        void: mask values that are left out of every score.
        limit: take at most this many, the first ones.
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
        dataset = _open_layout(name, Path(rest).expanduser(), split, strict)
    else:
        dataset = _only(_open_path(text), split)
    if not dataset.items:
        raise DatasetError(f"{text} holds no images: check the path.")
    rule = dataset.rule
    if foreground is not None:
        rule = MaskRule(values=foreground if isinstance(foreground, str) else tuple(foreground))
    if void is not None:
        rule = dataclasses.replace(rule, void=tuple(void))
    return dataclasses.replace(dataset, items=dataset.items[:limit], rule=rule)


def folder_pairs(folder: str | Path) -> Dataset:
    """`DIR/images/*` with `DIR/masks/*`, paired strictly by stem; or a folder of images alone.

    Raises:
        DatasetError: no such folder, no images, two files of one stem, or images without masks
            where there is a folder `masks`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder: check the path.")
    inner, masks_in = folder / "images", folder / "masks"
    place = inner if inner.is_dir() else folder
    images, left_out = _by_stem(place)
    if not images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{place} holds no images: put files with a suffix of {suffixes} there.")
    masks: dict[str, Path] = {}
    if place is folder or not masks_in.is_dir():
        notes = [f"{folder} has no masks: its images are segmented and not scored.", *left_out]
    else:
        masks, masks_left_out = _by_stem(masks_in)
        _check_pairs(masks_in, images, masks)
        notes = [*left_out, *masks_left_out]
        if spare := len(masks.keys() - images.keys()):
            notes.append(f"{spare} masks in {masks_in} have no image.")
    items = (Item(safe_name(stem), path, masks.get(stem)) for stem, path in images.items())
    return Dataset(folder.resolve().name, _by_page(items), notes=tuple(notes))


def masks_by_stem(folder: Path, images: Iterable[Path | Page]) -> dict[Path | Page, Path]:
    """The masks in a folder, by those of the images that have their stem; not all need one.

    Raises:
        DatasetError: no masks, a mask without an image, or images of one stem.
    """
    masks, _ = _by_stem(folder)
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
    items = []
    for line, row in rows:
        image, mask = row.get("image"), row.get("mask") or None
        if not isinstance(image, str) or not image or not isinstance(mask, str | None):
            raise DatasetError(f"line {line} of {path} names no image: give every line a path.")
        image, mask = (name and path.parent / Path(name).expanduser() for name in (image, mask))
        items.append(Item(str(row.get("id") or ""), image, mask, row.get("split") or None))
    ids = _unique_ids([item.image for item in items])
    named = (
        dataclasses.replace(item, id=safe_name(item.id) or made)
        for made, item in zip(ids, items, strict=True)
    )
    return Dataset(path.stem, _unique(path, _by_page(named)))


def _open_layout(name: str, folder: Path, split: str | None, strict: bool) -> Dataset:
    """A data set of `LAYOUTS` from the folder it was unpacked to."""
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
    items = tuple(item for item in dataset.items if split in (None, item.split))
    if split is not None and not items:
        known = ", ".join(sorted({item.split for item in dataset.items if item.split})) or "none"
        raise DatasetError(f"{dataset.name} has no split '{split}': it has {known}.")
    return dataclasses.replace(dataset, items=items)


def _by_page(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items, those of several pages as one for each page."""
    expanded = []
    for item in items:
        pages = page_numbers(item.image)
        masks = pages if item.mask is None else page_numbers(item.mask)
        if len(pages) != len(masks):
            raise DatasetError(
                f"{item.image} has {len(pages) or 1} pages and its mask {item.mask} has "
                f"{len(masks) or 1}: masks pair with images page by page."
            )
        for number, other in zip(pages, masks, strict=True):
            mask = None if item.mask is None else Page(item.mask, other)
            name, image = page_name(item.id, number), Page(item.image, number)
            expanded.append(Item(name, image, mask, item.split, number))
        expanded += [] if pages else [item]
    return tuple(expanded)


def _by_stem(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The image files of a folder by stem, in the order of their stems; and what is left out."""
    paths: dict[str, Path] = {}
    listing = list_images(folder)
    for path in listing.files:
        other = paths.setdefault(path.stem, path)
        if other is not path:
            raise DatasetError(
                f"{folder} holds both {other.name} and {path.name}: files pair by stem, so keep "
                "one of them."
            )
    return dict(sorted(paths.items())), listing.left_out


def _check_pairs(folder: Path, images: dict[str, Path], masks: dict[str, Path]) -> None:
    missing = [path.name for stem, path in images.items() if stem not in masks]
    if not missing:
        return
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    endings = ("_segmentation", "_Segmentation", "-GTM", "_mask")
    ending = next((end for end in endings if any(stem.endswith(end) for stem in masks)), None)
    hint = "add masks of the same stem, or take these images away"
    if ending is not None:
        hint = f"rename the masks, which end in {ending}, to their images' stems"
    raise DatasetError(
        f"{len(missing)} of {len(images)} images have no mask in {folder} ({shown}): {hint}."
    )


def _layout_items(layout: Layout, folder: Path) -> tuple[tuple[Item, ...], list[str]]:
    """The items of the first way that is there, and what its folders hold beside them."""
    ways = (*layout.ways, (Part("images", "masks"),))
    for way in ways:
        items: list[Item] = []
        left_out: list[str] = []
        roots = [(folder / part.images, folder / part.masks, part) for part in way]
        present = [root for root in roots if root[0].is_dir() and root[1].is_dir()]
        for images_in, masks_in, part in present:
            images, masks = (list_images(root, recursive=True) for root in (images_in, masks_in))
            left_out += [*images.left_out, *masks.left_out]
            items += _part_items(part, images_in, masks_in, sorted(images.files), masks.files)
        if present:
            return _unique(folder, _by_page(items)), left_out
    folders = "; or ".join(
        ", ".join(f"{part.images} with {part.masks}" for part in way) for way in ways
    )
    raise DatasetError(
        f"{folder} does not look like {layout.title}, which has the folders {folders}: it is "
        f"published at {layout.home}."
    )


def _part_items(
    part: Part, images_in: Path, masks_in: Path, images: Sequence[Path], masks: Sequence[Path]
) -> list[Item]:
    """Pairs by the path below the part's folders, its stem with the part's suffix."""
    keys = [path.relative_to(images_in).with_suffix("") for path in images]
    by_path = {path.relative_to(masks_in).with_suffix(""): path for path in masks}
    # Masks may also carry their image's bare stem, as in copies that people hand on.
    paired = [by_path.get(key.with_name(key.name + part.suffix), by_path.get(key)) for key in keys]
    _check_pairs(
        masks_in,
        {str(key): path for key, path in zip(keys, images, strict=True)},
        {str(key): path for key, path in zip(keys, paired, strict=True) if path is not None},
    )
    named = zip(_unique_ids(images), images, paired, strict=True)
    return [Item(id, image, mask, part.split) for id, image, mask in named]


def _with_splits(items: tuple[Item, ...], folder: Path, name: str) -> tuple[Item, ...]:
    """The items with the splits of CUB's two files, of which each line begins with a number."""
    split_file = next((path for path in sorted(folder.rglob(name)) if path.is_file()), None)
    names = split_file and split_file.with_name("images.txt")
    if split_file is None or names is None or not names.is_file():
        return items
    flags, images = (
        dict(
            line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()
        )
        for path in (split_file, names)
    )
    by_stem = {
        Path(image).stem: "train" if flags.get(number, "").strip() == "1" else "test"
        for number, image in images.items()
    }
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


def _unique(where: Path, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items themselves; raises DatasetError if two of them have one id."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DatasetError(
                f"{where} names '{item.id}' twice: keep one, or give each its own id."
            )
        seen.add(item.id)
    return items
