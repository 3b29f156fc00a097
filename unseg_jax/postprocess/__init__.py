"""From cluster labels on the patch grid to masks, boxes and edges at the size of the image."""

from unseg_jax.postprocess.bilateral import refine, refine_labels, refine_segmentation
from unseg_jax.postprocess.components import (
    bounding_box,
    component_boxes,
    fill_holes,
    largest_component,
    object_box,
    scale_box,
    upsample_labels,
)
from unseg_jax.postprocess.objects import Object, find_objects
from unseg_jax.postprocess.vote import foreground_labels

__all__ = [
    "Object",
    "bounding_box",
    "component_boxes",
    "fill_holes",
    "find_objects",
    "foreground_labels",
    "largest_component",
    "object_box",
    "refine",
    "refine_labels",
    "refine_segmentation",
    "scale_box",
    "upsample_labels",
]
