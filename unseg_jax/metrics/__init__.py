"""Scores of masks, boxes and partitions against the truth. NumPy, on the host."""

from unseg_jax.metrics.overlap import box_iou, corloc, dice, iou, pixel_accuracy
from unseg_jax.metrics.partitions import ari, nmi, nmi_and_ari
from unseg_jax.metrics.saliency import e_measure, f_curve, mae, max_f, s_measure
from unseg_jax.metrics.statistics import PairedDifference, bootstrap_interval, paired_difference

__all__ = [
    "PairedDifference",
    "ari",
    "bootstrap_interval",
    "box_iou",
    "corloc",
    "dice",
    "e_measure",
    "f_curve",
    "iou",
    "mae",
    "max_f",
    "nmi",
    "nmi_and_ari",
    "paired_difference",
    "pixel_accuracy",
    "s_measure",
]
