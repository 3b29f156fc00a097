"""What a run over image files holds: `Record` of what was found, `Entry` for one image, `Run`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.data.folders import ImageFile
from unseg_jax.export.kinds import Kinds, describe, encode
from unseg_jax.export.measures import measure
from unseg_jax.export.rle import decode_rle, encode_rle
from unseg_jax.postprocess import Object
from unseg_jax.postprocess.objects import SEVERAL, SMALL, typical_length

UNSURE = 0.5
"""Confidence below which an image is to be checked."""
FULL = 0.9
"""Share of the image from which on a mask is to be checked."""
# Objects of an image from which on it shows several, and what is small for it.
_DIAMETER = 2 / np.sqrt(np.pi)  # of a disc whose area is 1


@dataclasses.dataclass(frozen=True)
class Record:
    """What was found in one image, small enough to be kept of every image of a run.

    Attributes:
        name: what its files are called, before their suffixes.
        file: the path of the image, with "/"; in files of a whole folder of results, below the
            folder that all its images have in common.
        size: (H, W) in pixels.
        coverage: share of the image that the mask covers, 0 to 1.
        confidence: of the image, 0 to 1.
        labels: labels above 0 that are in use.
        objects: plain dicts with box, area, score, label, and `counts`, the run lengths of the
            mask cropped to the box; what `measures` adds where a table is written; and where kinds
            are told, `features`, and in the end `kind` and `kind_name`.
        losses: of the optimisation; () for baselines.
        notes: what was done to the image while it was read, a sentence each.
        specks: how many pieces were too small to be objects, and were left out.
        pixel_size: width and height of a pixel in micrometres, where known.
        within: how features vary within objects, where kinds are told; see `kinds.describe`.
    """

    name: str
    file: str
    size: tuple[int, int]
    coverage: float
    confidence: float
    labels: int
    objects: tuple[dict[str, Any], ...]
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    specks: int = 0
    pixel_size: tuple[float, float] | None = None
    within: str = ""

    @property
    def check(self) -> str:
        """Why the image is to be checked; "" if it is not."""
        if not self.objects:
            return "no object"
        if self.coverage > FULL:
            return "nearly all of the image"
        return "unsure" if self.confidence < UNSURE else ""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Record:
        """A record from what `as_plain` gave, through JSON as well."""
        height, width = values["size"]
        losses = tuple(math.nan if loss is None else loss for loss in values["losses"])
        lists = {name: tuple(values[name]) for name in ("objects", "notes")}
        if values.get("pixel_size"):
            lists["pixel_size"] = tuple(values["pixel_size"])
        return cls(**{**values, **lists, "size": (height, width), "losses": losses})

    def as_plain(self) -> dict[str, Any]:
        """The record as JSON takes it; it has no word for a loss that is not finite."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        values = {**dataclasses.asdict(self), "losses": losses}
        if not self.within:
            del values["within"]
        return values

    def restored(self) -> list[Object]:
        """The objects with their masks."""
        return [
            Object(
                decode_rle({"size": _shape(item["box"]), "counts": item["counts"]}),
                tuple(item["box"]),
                item["area"],
                item["score"],
                item["label"],
            )
            for item in self.objects
        ]


def _shape(box: Any) -> tuple[int, int]:
    left, top, right, bottom = box
    return bottom - top, right - left


def record_of(found: Any, name: str = "", file: str = "", *, measured: bool = False) -> Record:
    """The record of a `Segmentation`.

    Args:
        found: the segmentation.
        name: of its files; "" takes the stem of its id.
        file: path of the image to write down; "" takes the name within its id.
        measured: whether the objects are measured as well; see `unseg_jax.export.measures`.
    """
    path, within = Path(found.id or "image"), ""
    described: list[dict[str, str]] = [{} for _ in found.objects]
    if found.patch_features is not None:
        means, spread = describe(found.objects, found.patch_features, found.size)
        described, within = [{"features": encode(mean)} for mean in means], encode(spread)
    objects = tuple(
        {
            "box": list(item.box),
            "area": item.area,
            "score": round(item.score, 6),
            "label": item.label,
            "counts": encode_rle(item.mask)["counts"],
            **(measure(item, found.pixels, found.size, found.pixel_size) if measured else {}),
            **features,
        }
        for item, features in zip(found.objects, described, strict=True)
    )
    return Record(
        name or path.stem,
        file or path.name,
        found.size,
        round(found.coverage, 6),
        round(found.confidence, 6),
        int(np.count_nonzero(np.bincount(found.small_labels.ravel())[1:])),
        objects,
        tuple(round(float(loss), 6) for loss in found.losses),
        tuple(found.notes),
        found.specks,
        found.pixel_size,
        within,
    )


def kinds_of(records: Sequence[Record]) -> dict[int, str]:
    """Number → name of the kinds that objects of some records are of, in order; a last one for the
    objects that have none. Empty where none has one."""
    items = [item for record in records for item in record.objects]
    kinds = dict(
        sorted({item["kind"]: item["kind_name"] for item in items if "kind" in item}.items())
    )
    if kinds and any("kind" not in item for item in items):
        kinds[max(kinds) + 1] = "no kind"
    return kinds


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of a run, as the report shows it.

    Attributes:
        image: the file.
        record: what was found; None if it failed.
        error: one sentence; "" if all went well.
        pictures: kind ("photograph", "overlay") → JPEG, of the images that the report shows.
        files: names of its files below the folder.
        reused: whether an earlier run had done the image already.
    """

    image: ImageFile
    record: Record | None = None
    error: str = ""
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    reused: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """What `segment_files` did.

    Attributes:
        entries: one an image, in order.
        seconds: from the first image to the last file, without compilation.
        compile_seconds: what tracing and compiling took, or reading compiled programs back.
        left_out: what the search for images did not take, a sentence each.
        replaced: images whose earlier results were replaced.
        removed: images whose results were removed.
        kinds: of the objects of the folder, where they were asked for and there are any.
    """

    entries: tuple[Entry, ...]
    seconds: float
    compile_seconds: float
    left_out: tuple[str, ...] = ()
    replaced: int = 0
    removed: int = 0
    kinds: Kinds | None = None

    @property
    def done(self) -> list[Entry]:
        """The images that went well."""
        return [entry for entry in self.entries if not entry.error]

    @property
    def failed(self) -> list[Entry]:
        """The images that did not."""
        return [entry for entry in self.entries if entry.error]

    @property
    def specks(self) -> str:
        """How many pieces were too small to be objects, and how to keep them; "" if none were."""
        counts = [entry.record.specks for entry in self.done if entry.record is not None]
        total, images = sum(counts), sum(count > 0 for count in counts)
        if not total:
            return ""
        return f"{total} in {images} of {len(counts)} images; min_area=0 keeps them"

    @property
    def small_length(self) -> int:
        """About how long objects are, in pixels, where most images show several small ones; else 0.

        It is in 2 of 18 data sets, of nuclei and of crops; in the others half of what is found lies
        in pieces longer than a third of the image.
        """
        images = [entry.record for entry in self.done if entry.record and entry.record.objects]
        if not images:
            return 0
        areas = [np.array([item["area"] for item in one.objects]) for one in images]
        shares = [
            typical_length(one) / max(image.size) for one, image in zip(areas, images, strict=True)
        ]
        if np.median(shares) >= SMALL or np.median([len(one) for one in areas]) < SEVERAL:
            return 0
        middle = float(np.median([np.median(np.sqrt(one)) for one in areas]))
        return max(1, round(_DIAMETER * middle))

    @property
    def images_per_second(self) -> float:
        """Images done a second: decoding, device, refinement and writing, not compilation."""
        fresh = sum(not entry.reused for entry in self.done)
        return fresh / self.seconds if self.seconds else 0.0
