"""How scores are measured: `honest`, or with the ground truth's help as papers did.

The public evaluation code of several papers uses the truth twice before it scores: **flip**
takes the better of mask and inverted mask, **crop** shows the method only the true bounding box
and a margin. Each is worth tens of points, so a score without its protocol means nothing.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from unseg_jax.errors import nearest
from unseg_jax.postprocess import bounding_box

Family = Literal["honest", "published"]
Box = tuple[int, int, int, int]

CROP_MARGIN = 20
"""Pixels around the true box that UnSegMedGAT's evaluation keeps."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way of measuring.

    Attributes:
        name: what the user asked for.
        family: the word that every number carries: "honest" means that no ground truth is seen
            before scoring, "published" that it is, or that failed images are left out.
        flip: whether the better of mask and inverted mask is scored.
        crop: pixels kept around the true box, cropped before segmentation; None is no crop.
        count_failures: whether a failed image counts as 0; otherwise it is left out.
    """

    name: str
    family: Family
    flip: bool = False
    crop: int | None = None
    count_failures: bool = True

    @property
    def description(self) -> str:
        """In words, for tables."""
        if self.family == "honest":
            return "full image, no ground truth before scoring, failed images count as 0"
        helps = [f"crop to the true box + {self.crop} px"] if self.crop is not None else []
        helps += ["better of mask and inverted mask"] if self.flip else []
        return ", ".join([*(helps or ["full image"]), "failed images left out"])

    @property
    def label(self) -> str:
        """Short, for a table's column: "honest", "published (crop + flip)"."""
        if self.family == "honest":
            return "honest"
        parts = [
            word for word, used in (("crop", self.crop is not None), ("flip", self.flip)) if used
        ]
        return f"published ({' + '.join(parts) or 'full image'})"


def _published(name: str, flip: bool, crop: int | None = None) -> Protocol:
    return Protocol(name, "published", flip, crop, count_failures=False)


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("honest", "honest"),
            _published("published", flip=True),
            _published("deepcut", flip=False),
            _published("unseggnet", flip=True),
            _published("unsegarmanet", flip=True),
            _published("unsegmedgat", flip=True, crop=CROP_MARGIN),
        )
    }
)
"""The two families, and what each paper's public code does."""


def resolve_protocol(name: str, crop: bool | None = None) -> Protocol:
    """The protocol of that name.

    Args:
        name: of `PROTOCOLS`.
        crop: crop to the true box as well, or not; None leaves it as the protocol has it.

    Raises:
        ValueError: an unknown name, or a crop asked of `honest`.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol '{name}'; {nearest(name, PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if crop is None or crop == (protocol.crop is not None):
        return protocol
    if protocol.family == "honest":
        raise ValueError(
            "a crop to the true box is not honest: leave --crop out, or use --protocol published."
        )
    return dataclasses.replace(protocol, crop=CROP_MARGIN if crop else None)


def crop_box(truth: np.ndarray, margin: int) -> Box:
    """The true bounding box and a margin, within the image; the whole image if it is empty.

    Args:
        truth: (H, W) bool.
        margin: pixels on each side.

    Returns:
        (left, top, right, bottom), right and bottom exclusive.
    """
    height, width = truth.shape
    box = bounding_box(truth)
    if box is None:
        return 0, 0, width, height
    left, top, right, bottom = box
    return (
        max(left - margin, 0),
        max(top - margin, 0),
        min(right + margin, width),
        min(bottom + margin, height),
    )
