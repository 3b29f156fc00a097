"""Scores of masks, boxes and partitions against the truth. NumPy, on the host."""

from unseg_jax.metrics.boundaries import boundary_iou, hd95, surface_dice, surface_distances
from unseg_jax.metrics.instances import (
    COCO_THRESHOLDS,
    average_precision,
    count_error,
    matched_miou,
    object_ious,
    panoptic_quality,
)
from unseg_jax.metrics.overlap import box_iou, corloc, dice, iou, pixel_accuracy
from unseg_jax.metrics.partitions import ari, nmi, nmi_and_ari
from unseg_jax.metrics.saliency import e_measure, f_curve, mae, max_f, s_measure
from unseg_jax.metrics.statistics import (
    PairedDifference,
    PairedTest,
    bootstrap_interval,
    paired_difference,
    paired_sign_flip_test,
    rank_correlation,
    risk_coverage,
)

__all__ = [
    "COCO_THRESHOLDS",
    "PairedDifference",
    "PairedTest",
    "ari",
    "average_precision",
    "bootstrap_interval",
    "boundary_iou",
    "box_iou",
    "corloc",
    "count_error",
    "dice",
    "e_measure",
    "f_curve",
    "hd95",
    "iou",
    "mae",
    "matched_miou",
    "max_f",
    "nmi",
    "nmi_and_ari",
    "object_ious",
    "paired_difference",
    "paired_sign_flip_test",
    "panoptic_quality",
    "pixel_accuracy",
    "rank_correlation",
    "risk_coverage",
    "s_measure",
    "surface_dice",
    "surface_distances",
]
