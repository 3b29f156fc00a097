"""From a method's result on one image to its record, and what a run's true masks say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unseg_jax import metrics
from unseg_jax.bench.score.protocols import Protocol
from unseg_jax.data import Item, Truth
from unseg_jax.data.truths import NONZERO, Value
from unseg_jax.method import Method
from unseg_jax.postprocess import Object, largest_component, object_box, upsample_labels
from unseg_jax.runs.stamps import stamp_source
from unseg_jax.segmenter import Segmentation

SCORES = (
    "iou",
    "dice",
    "pixel_accuracy",
    "f_measure",
    "mae",
    "e_measure",
    "s_measure",
    "corloc",
    "nmi",
    "ari",
)
"""Names of an image's scores, as in `per_image.jsonl`."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "boundary": ("boundary_iou", "hd95", "nsd"),
    "objects": ("ap", "ap50", "pq", "count_error"),
    "classes": ("class_miou",),
}
"""Names of further scores of an image, by what `--metrics` calls them."""

WORST: Mapping[str, float] = {
    name: float(name in ("mae", "hd95", "count_error"))
    for name in (*SCORES, *(name for names in METRICS.values() for name in names))
}
"""What a failed image counts as under `honest`: 0, or 1 where less is better."""


def score_names(metrics: Sequence[str]) -> list[str]:
    """`SCORES` and the further ones of some `METRICS`."""
    return [*SCORES, *(name for metric in metrics for name in METRICS[metric])]


F_EVERYTHING = "f_everything"
"""Name of the F-measure that a mask of all pixels would have, in `per_image.jsonl`. A data set's
maxF is the larger mean of this and of "f_measure": the two thresholds that a bool mask has."""


def orient(mask: np.ndarray, truth: Truth, flip: bool) -> tuple[np.ndarray, bool]:
    """The mask (H, W) bool that is scored, and whether it is the inverted one, which `flip` takes
    if its IoU is better."""
    if flip and _iou(~mask, truth) > _iou(mask, truth):
        return ~mask, True
    return mask, False


def _iou(mask: np.ndarray, truth: Truth) -> float:
    return metrics.iou(truth.known(mask), truth.known(truth.mask))


def score(
    segmentation: Segmentation,
    truth: Truth,
    protocol: Protocol,
    extra: Sequence[str] = (),
    objects: Sequence[Object] = (),
) -> dict[str, Any]:
    """All of `SCORES` and those of the `extra` metrics, and whether the mask was inverted for them.

    Void pixels are left out. NMI and ARI compare the predicted parts with the two regions of the
    truth. What compares parts or objects knows no inverted mask.
    """
    # Numbers are counted several times faster than bools.
    regions = truth.mask.view(np.uint8)
    nmi, ari = metrics.nmi_and_ari(segmentation.labels, regions, truth.valid)
    scores = score_mask(segmentation.mask, segmentation.box, truth, protocol, extra)
    scores |= {"nmi": nmi, "ari": ari}
    if "objects" in extra:
        scores |= _score_objects(objects, truth)
    if "classes" in extra:
        classes = regions if truth.labels is None else truth.labels
        found = metrics.matched_miou(segmentation.labels, classes, truth.valid)
        scores["class_miou"] = found
    return scores


def _score_objects(objects: Sequence[Object], truth: Truth) -> dict[str, float]:
    """Scores of objects against the true ones: the numbers that the mask stores, or if it has but
    one, its connected pieces."""
    from scipy.ndimage import label

    true = truth.labels
    if true is None or true.max(initial=0) < 2:
        true = np.asarray(label(truth.mask)[0])  # type: ignore[index]
    found = np.zeros(truth.shape, np.int32)
    for number, item in enumerate(objects, 1):
        left, top, right, bottom = item.box
        found[top:bottom, left:right][item.mask] = number
    if truth.valid is not None:
        found[~truth.valid] = 0
    sure = np.array([item.score for item in objects])[np.unique(found[found > 0]) - 1]
    ious = metrics.object_ious(found, true)
    return {
        "ap": metrics.average_precision([ious], [sure]),
        "ap50": metrics.average_precision([ious], [sure], (0.5,)),
        "pq": metrics.panoptic_quality(found, true),
        "count_error": metrics.count_error(*ious.shape),
    }


def score_mask(
    mask: np.ndarray,
    box: Sequence[int] | None,
    truth: Truth,
    protocol: Protocol,
    extra: Sequence[str] = (),
) -> dict[str, Any]:
    """The scores that need the mask (H, W) bool and the box of its object alone, and whether it was
    inverted for them."""
    mask, flipped = orient(mask, truth, protocol.flip)
    true_box = object_box(truth.mask)
    if truth.valid is not None:
        mask = mask & truth.valid
        box = None  # the object's may reach into what is void
    box = object_box(mask) if flipped or box is None else tuple(box)
    shaped = {"s_measure": metrics.s_measure(mask, truth.mask, valid=truth.valid)}
    if "boundary" in extra:
        shaped["boundary_iou"] = metrics.boundary_iou(mask, truth.mask)
        # Of images of several sizes the mean of pixels says little.
        shaped["hd95"] = metrics.hd95(mask, truth.mask) / float(np.hypot(*mask.shape))
        shaped["nsd"] = metrics.surface_dice(mask, truth.mask)
    # From here on pixels have no place: what is void is cut out.
    mask, region = truth.known(mask), truth.known(truth.mask)
    f_curve = metrics.f_curve(mask, region)
    nothing = not (mask.any() or region.any())
    return {
        "iou": metrics.iou(mask, region),
        "dice": metrics.dice(mask, region),
        "pixel_accuracy": metrics.pixel_accuracy(mask, region),
        "f_measure": 1.0 if nothing else float(f_curve[0]),
        F_EVERYTHING: float(f_curve[-1]),
        "mae": metrics.mae(mask, region),
        "e_measure": metrics.e_measure(mask, region),
        **shaped,
        "corloc": metrics.corloc(box, [] if true_box is None else [true_box]),
        "flipped": flipped,
    }


def iou_by_epoch(
    history: np.ndarray, truth: Truth, method: Method, protocol: Protocol
) -> list[float]:
    """IoU at each recorded epoch, before any edge refinement, of voted labels (records, h, w)."""
    values = []
    for labels in history:
        foreground = labels > 0
        if method.largest_component:
            foreground = largest_component(foreground)
        mask = upsample_labels(foreground, truth.shape)
        values.append(round(_iou(orient(mask, truth, protocol.flip)[0], truth), 6))
    return values


_LOSSES = 24
"""Losses that a record holds at most: enough for a curve, and little beside the rest of it."""


def loss_epochs(epochs: int) -> list[int]:
    """The epochs whose loss a record holds: the first, the last, and an even choice between."""
    return np.unique(np.linspace(0, epochs - 1, min(epochs, _LOSSES)).round().astype(int)).tolist()


def make_record(
    segmentation: Segmentation, truth: Truth | None, protocol: Protocol, extra: Sequence[str] = ()
) -> dict[str, Any]:
    """The record of an image that was segmented; scores are null without a truth.

    Protocols score every pixel that a method finds, specks as well; objects are without them.
    """
    objects, losses = segmentation.objects if "objects" in extra else (), segmentation.losses
    segmentation = dataclasses.replace(segmentation, min_area=0.0)
    scores = dict.fromkeys((*score_names(extra), F_EVERYTHING, "flipped"))
    if truth is not None:
        scores |= score(segmentation, truth, protocol, extra, objects)
    return {
        "id": segmentation.id,
        "method": segmentation.method,
        **{name: rounded(value) for name, value in scores.items()},
        "box": segmentation.box,
        "num_clusters": segmentation.num_clusters,
        "loss": rounded(segmentation.loss),
        "loss_by_epoch": [rounded(float(losses[e])) for e in loss_epochs(len(losses))],
        "confidence": rounded(segmentation.confidence),
        "size": list(segmentation.mask.shape),
        "error": None,
    }


def failure_record(item: Item, method: str, error: str) -> dict[str, Any]:
    """The record of an image that failed; `scored` says whether it would have had scores."""
    return {
        "id": item.id,
        "method": method,
        **dict.fromkeys(SCORES),
        "scored": item.mask is not None,
        "error": error,
        "image_stamp": stamp_source(item.image),
        "mask_stamp": stamp_source(item.mask),
    }


def rounded(value: Any) -> Any:
    """Floats to 6 places, which is finer than a pixel of any image; NaN becomes null."""
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if np.isfinite(value) else None
    return value


_EDGE = 1e-9
_FEW = 16


def truth_fields(truth: Truth) -> dict[str, Any]:
    """What a record keeps of its truth, under the key "truth": shares and the values that occur."""
    return {
        "share": round(truth.share, 6),
        "void_share": round(truth.void_share, 6),
        # Masks that number their objects may hold thousands of values.
        "foreground": list(truth.foreground[:64]),
        "void": list(truth.void[:64]),
    }


def are_truth_fields(value: Any) -> bool:
    """Whether a record's "truth" is what `truth_fields` makes, or missing."""
    if value is None:
        return True
    return (
        isinstance(value, Mapping)
        and all(isinstance(value.get(name), int | float) for name in ("share", "void_share"))
        and all(_are_values(value.get(name)) for name in ("foreground", "void"))
    )


def _are_values(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int | float | str) for v in values)


class TruthTally:
    """Counts over a run's records, one image once."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self.images = self.empty = self.full = self.with_void = 0
        self.foreground: set[Value] = set()
        self.void: set[Value] = set()
        self._noted: dict[str, str] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a record; those without a truth are passed over."""
        if record.get("notes"):
            self._noted.setdefault(record["id"], " ".join(record["notes"]))
        truth = record.get("truth")
        if not isinstance(truth, Mapping) or record["id"] in self._ids:
            return
        self._ids.add(record["id"])
        self.images += 1
        self.empty += truth["share"] <= _EDGE
        self.full += truth["share"] >= 1 - _EDGE
        self.with_void += truth["void_share"] > 0
        self.foreground |= set(truth["foreground"])
        self.void |= set(truth["void"])

    def as_json(self, values: Sequence[Value] | str | None) -> dict[str, Any]:
        """For `summary.json`, under the key "truths"; `values` are those of `--foreground`."""
        return {
            "images": self.images,
            "empty": self.empty,
            "full": self.full,
            "with_void": self.with_void,
            "notes": self.notes(),
            "error": self.error(values),
        }

    def notes(self) -> list[str]:
        """What a reader of the scores should know, a sentence each."""
        notes = []
        if self._noted:
            id, said = next(iter(self._noted.items()))
            notes.append(
                f"{len(self._noted)} images were changed while they were read, as {id}: {said}"
            )
        for count, word in ((self.empty, "empty"), (self.full, "full")):
            if count:
                notes.append(f"{count} of {self.images} true masks are {word}.")
        if self.with_void:
            values = ", ".join(sorted(map(str, self.void)))
            notes.append(
                f"{self.with_void} of {self.images} true masks have void pixels ({values}), "
                f"which are left out of every score."
            )
        both = sorted(map(str, self.foreground & self.void))
        if both:
            notes.append(
                f"the value {', '.join(both)} is void in some true masks and the object in "
                f"others: say which it is with --foreground and --void."
            )
        return notes

    def error(self, values: Sequence[Value] | str | None) -> str | None:
        """Says that values of `--foreground` occur in no mask; None if they do."""
        missing = self.missing(values)
        # Of a range such as 1-255 not all values need to occur, but one must.
        if not missing or (len(missing) < len(values or ()) and len(values or ()) > _FEW):
            return None
        named = ",".join(map(str, missing[:_FEW]))
        return (
            f"--foreground {named} occurs in none of the {self.images} true masks: "
            f"check the values that the masks store, and leave it out."
        )

    def missing(self, values: Sequence[Value] | str | None) -> list[Value]:
        """Those of the values of `--foreground` that occur in no mask; none without any mask."""
        if values is None or values == NONZERO or not self.images:
            return []
        return [value for value in values if value not in self.foreground]
