"""TensorFlow Datasets, read without TensorFlow: random access into ArrayRecord files."""

import contextlib
import dataclasses
import functools
import os
import re
from typing import Any

from unseg_jax.data.dataset import Dataset, Item
from unseg_jax.data.truths import DEFAULT_RULE, MaskRule
from unseg_jax.errors import DatasetError, nearest, why

_SPEC = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<version>\d+\.[\d*]+\.[\d*]+))?(?::(?P<split>.+))?"
)
_IMAGE, _MASK = "image", "segmentation_mask"
_KNOWN = {
    "caltech_birds2011": (
        MaskRule(threshold=199),
        "birds are mask values of at least 200, where most annotators agree",
    ),
    "oxford_iiit_pet": (
        MaskRule(values=(1, 3)),
        "pets are the trimap's values 1 (pet) and 3 (boundary, counted as foreground)",
    ),
}


@dataclasses.dataclass(frozen=True)
class Record:
    """One feature ("a/b" for nested ones) of one record, read when it is asked for; a `Source`.

    It names the data set as TFDS does instead of holding it, so it travels between processes.
    """

    builder: str
    data_dir: str | None
    split: str
    index: int
    key: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"tfds:{self.builder}:{self.split}[{self.index}]/{self.key}"

    def read(self) -> Any:
        """The encoded bytes of an image feature, or the array of another one."""
        value = _source(self.builder, self.data_dir, self.split)[self.index]
        for part in self.key.split("/"):
            value = value[part]
        return value


def open_tfds(
    spec: str,
    *,
    image_key: str | None = None,
    mask_key: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """A TFDS data set; see `unseg_jax.data.open_dataset`.

    It is looked for in the folder that TFDS_DATA_DIR names, else in TFDS's default one, and
    downloaded and prepared by TFDS if it is not there. Without a split, all are read.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DatasetError(f"'tfds:{spec}' must read tfds:NAME[/CONFIG][:VERSION][:SPLIT].")
    name, version = match["name"], match["version"]
    builder_name = f"{name}:{version}" if version else name
    data_dir = os.environ.get("TFDS_DATA_DIR")
    split = match["split"] or split
    builder = _builder(builder_name, data_dir)
    features = _flat(builder.info.features)
    rule, words = _KNOWN.get(name.split("/")[0], (DEFAULT_RULE, ""))
    image_key = image_key or _IMAGE
    mask_key = mask_key or (_MASK if _MASK in features else None)
    for key in filter(None, (image_key, mask_key)):
        if key not in features:
            known = ", ".join(sorted(features))
            raise DatasetError(f"tfds:{spec} has no feature '{key}': name one of {known}.")
    items: list[Item] = []
    for part in [split] if split else sorted(builder.info.splits):
        try:
            size = builder.info.splits[part].num_examples
        except Exception:  # TFDS parses splits such as train[:10%] and complains in many ways
            known = ", ".join(builder.info.splits)
            raise DatasetError(f"tfds:{spec} has no split '{part}': it has {known}.") from None
        label = re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-")
        for index in range(size if limit is None else min(size, limit - len(items))):
            where = builder_name, data_dir, part, index
            mask = Record(*where, mask_key) if mask_key else None
            items.append(Item(f"{label}-{index:06d}", Record(*where, image_key), mask, part))
    if items:
        _try_reading(items[0].image)
    notes = [f"{name}: {words}."] if words else []
    if mask_key is None:
        notes.append(f"tfds:{name} has no mask feature: its images are segmented and not scored.")
    return Dataset(name.replace("/", "-"), tuple(items), rule, tuple(notes))


def _tfds():
    try:
        import array_record  # noqa: F401  (TFDS itself only says that a file format is missing)
        import tensorflow_datasets
    except ImportError as error:
        raise DatasetError(
            f"reading tfds: data sets needs the extra 'tfds' ({error}): "
            'pip install "unseg_jax[tfds]".'
        ) from None
    return tensorflow_datasets


@functools.lru_cache(maxsize=8)
def _builder(name: str, data_dir: str | None) -> Any:
    """The builder of a data set: from its files if they are there, else by preparing it."""
    tfds = _tfds()
    options = {"data_dir": data_dir}
    try:
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            from_files = tfds.core.read_only_builder.builder_from_files  # type: ignore[attr-defined]
            return from_files(name, **options)
        builder = tfds.builder(name, try_gcs=False, file_format="array_record", **options)
        builder.download_and_prepare()
        return builder
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = nearest(name.split("/")[0].split(":")[0], known)
        hint = hint if hint.startswith("did") else "name one that TFDS lists"
        place = data_dir or "the default folder of TFDS"
        raise DatasetError(
            f"TFDS knows no data set '{name}' and {place} holds none; {hint}"
        ) from None
    except Exception as error:  # a builder's own code, a download: anything can be raised
        raise DatasetError(
            f"TFDS cannot open or prepare '{name}' ({why(error)}): prepare it on a machine "
            f"with network as array_record files, and set TFDS_DATA_DIR to their folder."
        ) from error


def _try_reading(record: Record) -> None:
    """Fails now, once, where every record would."""
    try:
        record.read()
    except NotImplementedError:
        raise DatasetError(
            f"tfds:{record.builder} lies on disk in a format without random access: prepare it "
            f"again with file_format='array_record'."
        ) from None
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{record.name} cannot be read ({why(error)}): prepare the data set again."
        ) from error


def _flat(features: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf features by their path."""
    flat = {}
    for key, feature in features.items():
        if hasattr(feature, "items"):
            flat |= _flat(feature, f"{prefix}{key}/")
        else:
            flat[prefix + key] = feature
    return flat


@functools.lru_cache(maxsize=8)
def _source(name: str, data_dir: str | None, split: str) -> Any:
    """Random access to the records of a split, with their images still encoded."""
    tfds = _tfds()
    builder = _builder(name, data_dir)
    skip: dict[str, Any] = {}
    for key, feature in _flat(builder.info.features).items():
        if isinstance(feature, tfds.features.Image):
            *parents, leaf = key.split("/")
            level = skip
            for parent in parents:
                level = level.setdefault(parent, {})
            level[leaf] = tfds.decode.SkipDecoding()
    return builder.as_data_source(split=split, decoders=skip or None)
