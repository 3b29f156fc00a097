"""Images and masks from disk to arrays, ahead of the device; results to disk, behind it."""

from unseg_jax.data.dataset import LAYOUTS, Dataset, Item
from unseg_jax.data.decoding import Picture, load_image, measure_range, read_image, resize_image
from unseg_jax.data.loader import Outcome, Writer, batches, default_workers
from unseg_jax.data.masks import fit_mask, load_mask, read_mask
from unseg_jax.data.opening import Page, Source, describe
from unseg_jax.data.sources import folder_pairs, list_file, open_dataset
from unseg_jax.data.truths import MaskRule, Truth
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
