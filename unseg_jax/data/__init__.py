"""Images and masks from disk to arrays, ahead of the device; results to disk, behind it."""

from unseg_jax.data.dataset import Dataset, Item
from unseg_jax.data.images import (
    MaskRule,
    Page,
    Picture,
    Source,
    Truth,
    describe,
    fit_mask,
    load_image,
    load_mask,
    measure_range,
    read_image,
    read_mask,
    resize_image,
)
from unseg_jax.data.layouts import LAYOUTS
from unseg_jax.data.loader import Outcome, batches, default_workers
from unseg_jax.data.sources import folder_pairs, list_file, open_dataset
from unseg_jax.data.writer import Writer
from unseg_jax.errors import DatasetError, ImageError

__all__ = [
    "LAYOUTS",
    "Dataset",
    "DatasetError",
    "ImageError",
    "Item",
    "MaskRule",
    "Outcome",
    "Page",
    "Picture",
    "Source",
    "Truth",
    "Writer",
    "batches",
    "default_workers",
    "describe",
    "fit_mask",
    "folder_pairs",
    "list_file",
    "load_image",
    "load_mask",
    "measure_range",
    "open_dataset",
    "read_image",
    "read_mask",
    "resize_image",
]
