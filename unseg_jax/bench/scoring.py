"""From a method's result on one image to its record: every score, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unseg_jax import metrics
from unseg_jax.bench.protocols import Protocol
from unseg_jax.bench.stamps import stamp_source
from unseg_jax.data import Item
from unseg_jax.methods import Method
from unseg_jax.postprocess import largest_component, object_box, upsample_labels
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

WORST: Mapping[str, float] = {name: 1.0 if name == "mae" else 0.0 for name in SCORES}
"""What a failed image counts as under `honest`."""

F_EVERYTHING = "f_everything"
"""Name of the F-measure that a mask of all pixels would have, in `per_image.jsonl`. A data set's
maxF is the larger mean of this and of "f_measure": the two thresholds that a bool mask has."""


def orient(mask: np.ndarray, truth: np.ndarray, flip: bool) -> tuple[np.ndarray, bool]:
    """The mask that is scored, and whether it is the inverted one.

    Args:
        mask, truth: (H, W) bool.
        flip: take the better of mask and inverted mask, by IoU.
    """
    if flip and metrics.iou(~mask, truth) > metrics.iou(mask, truth):
        return ~mask, True
    return mask, False


def score(segmentation: Segmentation, truth: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """All of `SCORES`, and whether the mask was inverted for them.

    NMI and ARI compare the predicted parts with the two regions of the truth.

    Args:
        segmentation: at the truth's size.
        truth: (H, W) bool.
        protocol: whether to flip.
    """
    regions = truth.view(np.uint8)  # numbers, which are counted several times faster than bools
    return {
        **score_mask(segmentation.mask, segmentation.box, truth, protocol),
        "nmi": metrics.nmi(segmentation.labels, regions),
        "ari": metrics.ari(segmentation.labels, regions),
    }


def score_mask(
    mask: np.ndarray, box: Sequence[int] | None, truth: np.ndarray, protocol: Protocol
) -> dict[str, Any]:
    """Those of `SCORES` that need the mask alone, and whether it was inverted for them.

    Args:
        mask: (H, W) bool.
        box: of its object.
        truth: (H, W) bool.
        protocol: whether to flip.
    """
    mask, flipped = orient(mask, truth, protocol.flip)
    true_box = object_box(truth)
    box = object_box(mask) if flipped or box is None else tuple(box)
    f_curve = metrics.f_curve(mask, truth)
    nothing = not (mask.any() or truth.any())
    return {
        "iou": metrics.iou(mask, truth),
        "dice": metrics.dice(mask, truth),
        "pixel_accuracy": metrics.pixel_accuracy(mask, truth),
        "f_measure": 1.0 if nothing else float(f_curve[0]),
        F_EVERYTHING: float(f_curve[-1]),
        "mae": metrics.mae(mask, truth),
        "e_measure": metrics.e_measure(mask, truth),
        "s_measure": metrics.s_measure(mask, truth),
        "corloc": metrics.corloc(box, [] if true_box is None else [true_box]),
        "flipped": flipped,
    }


def iou_by_epoch(
    history: np.ndarray, truth: np.ndarray, method: Method, protocol: Protocol
) -> list[float]:
    """IoU at each recorded epoch, before any edge refinement.

    Args:
        history: (records, h, w) voted labels, 0 = background.
        truth: (H, W) bool.
        method: whether only the largest component counts.
        protocol: whether to flip.
    """
    values = []
    for labels in history:
        foreground = labels > 0
        if method.largest_component:
            foreground = largest_component(foreground)
        mask = upsample_labels(foreground, (truth.shape[0], truth.shape[1]))
        values.append(round(metrics.iou(orient(mask, truth, protocol.flip)[0], truth), 6))
    return values


def make_record(
    segmentation: Segmentation, truth: np.ndarray | None, protocol: Protocol
) -> dict[str, Any]:
    """The record of an image that was segmented; scores are null without a truth."""
    scores = (
        dict.fromkeys((*SCORES, F_EVERYTHING, "flipped"))
        if truth is None
        else score(segmentation, truth, protocol)
    )
    return {
        "id": segmentation.id,
        "method": segmentation.method,
        **{name: rounded(value) for name, value in scores.items()},
        "box": segmentation.box,
        "num_clusters": segmentation.num_clusters,
        "loss": rounded(segmentation.loss),
        "confidence": rounded(segmentation.confidence),
        "size": list(segmentation.mask.shape),
        "error": None,
    }


def failure_record(item: Item, method: str, error: str) -> dict[str, Any]:
    """The record of an image that failed; `scored` says whether it would have had scores."""
    scores = dict.fromkeys(SCORES)
    return {
        "id": item.id,
        "method": method,
        **scores,
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
