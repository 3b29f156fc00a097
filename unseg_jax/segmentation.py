"""What is found in one image: `Segmentation`, and what people do next with it.

Arrays are kept at a working size: the image's own up to 1,600 pixels on the longer side, smaller
for larger photographs. Masks, labels, boxes and objects are given at the image's own size,
enlarged by the nearest neighbour when they are first read. Specks, pieces below `min_area`, are in
none of them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unseg_jax.postprocess import Object, object_box, scale_box, upsample_labels
from unseg_jax.postprocess.components import source_indices
from unseg_jax.postprocess.objects import MIN_AREA, Pieces, find_pieces, objects_of

TWICE_NOTE = "several small things were found, so it was seen at twice the size as well."
"""What is said of an image that was seen at two sizes without being asked for it."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What was found in one image; made by `Segmentation.of`.

    `mask`, `labels`, `objects`, `box`, `coverage`, `small_mask`, `small_labels` and `specks` are
    properties, computed when they are first read.

    Attributes:
        mask: (H, W) bool at the image's own size, True on the object.
        labels: (H, W) int32, 0 = background, 1.. = clusters of the foreground by descending size;
            if the background was cut too, its further parts come after those of the foreground.
        objects: the separate objects, the largest first; see `find_objects`.
        size: (H, W), the image's own.
        box: (left, top, right, bottom) of the mask's largest 4-connected component, in pixels,
            right and bottom exclusive; None if the mask is empty.
        num_clusters: clusters that some patch belongs to.
        loss: the last of `losses`; NaN for baselines, which have none.
        confidence: in 0..1; 0 where the mask is empty or takes the whole image. Of `collective`,
            the estimated chance that the IoU with the truth is at least .5, or on tiles how far
            apart inside and outside are; of other methods how clear the cut is, the mean margin
            between the two likeliest clusters of a patch.
        patch_labels: (h, w) int32, as `labels` on the grid of patches (or pixels of the resized
            image, for superpixel methods), before edge refinement.
        losses: (epochs,) float32.
        method, backbone: names of what was used; backbone is "" where none is needed.
        id: the path, or the index in the call for images given as arrays.
        small_mask: (h, w) bool at the working size.
        small_labels: (h, w) at the working size, of the smallest unsigned type that holds them.
        specks: how many pieces below `min_area` were left out.
        raw_mask, raw_labels: as `small_mask` and `small_labels`, with the specks.
        notes: what a user should know, a sentence each: what was done to the image while it was
            read, and how it was looked at.
        pixels: (h, w, 3) uint8, the image at the working size or its own; None if not kept.
        evidence: (any, any) float16 in -1..1, how clearly each place belongs to the foreground
            (above 0) or the background; None where the method has no soft result.
        min_area: below which a piece is a speck: below 1 a share of the image, else pixels of it.
        split: whether pieces that touch are cut into objects; see `find_objects`.
            `dataclasses.replace(found, split="auto")` cuts those of a result.
        cut: (h, w) the number of the piece of each pixel before some pieces were taken out: what
            is left stays cut as it was, unless `split` is "never"; None where none was.
        pixel_size: width and height of a pixel in micrometres, where known.
        patch_features: (h, w, D) float16 on the grid of patches, or a finer one where the image was
            seen in tiles; None if not kept.
        look_closer: how a closer look may show more: in "tiles" where what was found is a small
            part of a large image; at two "scales" where it is several small things; else "".

    Example:
        >>> mask = np.zeros((6, 8), bool)
        >>> mask[1:3, 1:4] = mask[4:6, 6:8] = True
        >>> found = Segmentation.of(mask, mask, confidence=0.5)
        >>> found.coverage, found.box, [item.area for item in found.objects]
        (0.20833333333333334, (1, 1, 4, 3), [6, 4])
    """

    raw_mask: np.ndarray
    raw_labels: np.ndarray
    size: tuple[int, int]
    num_clusters: int
    loss: float
    confidence: float
    patch_labels: np.ndarray
    losses: np.ndarray
    method: str
    backbone: str
    id: str
    pixels: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    evidence: np.ndarray | None = None
    min_area: float = MIN_AREA
    split: str = "never"
    cut: np.ndarray | None = None
    pixel_size: tuple[float, float] | None = None
    patch_features: np.ndarray | None = None
    look_closer: Literal["", "tiles", "scales"] = ""

    @classmethod
    def of(
        cls,
        mask: np.ndarray,
        labels: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        confidence: float = 0.0,
        patch_labels: np.ndarray | None = None,
        losses: Any = (),
        evidence: np.ndarray | None = None,
        **fields: Any,
    ) -> Segmentation:
        """A segmentation from a mask and labels at the working size.

        Args:
            mask: (h, w) bool.
            labels: (h, w) integers, not negative.
            size: (H, W) of the image; None is (h, w).
            confidence: 0 to 1; set to 0 where the mask tells nothing apart.
            patch_labels: (h, w) integers on the grid; None takes `labels`.
            losses: (epochs,), from which `loss` is taken.
            evidence: (any, any) floats.
            **fields: the other fields of `Segmentation`; num_clusters, method, backbone and id
                are filled where missing.

        >>> import numpy as np
        >>> mask = np.array([[False, True, True]] * 2)
        >>> Segmentation.of(mask, mask.astype(int), confidence=0.5, id="a.png")
        Segmentation(a.png: 3x2 pixels, object 67 %, confidence 0.50)
        """
        mask, labels = np.asarray(mask), np.asarray(labels)
        losses = np.asarray(losses, np.float32)
        size = mask.shape if size is None else size
        smaller = (min(mask.shape[0], size[0]), min(mask.shape[1], size[1]))
        mask, labels = _fitted(mask, smaller), _fitted(labels, smaller)
        patch_labels = np.asarray(labels if patch_labels is None else patch_labels, np.int32)
        fields.setdefault("num_clusters", len(np.unique(patch_labels)))
        for name in ("method", "backbone", "id"):
            fields.setdefault(name, "")
        return cls(
            raw_mask=mask != 0,
            raw_labels=smallest(labels),
            size=(int(size[0]), int(size[1])),
            loss=float(losses[-1]) if losses.size else float("nan"),
            # Where nothing was told apart, soft assignments may be as sure as they like.
            confidence=float(confidence) if mask.any() and not mask.all() else 0.0,
            patch_labels=patch_labels,
            losses=losses,
            evidence=None if evidence is None else np.asarray(evidence, np.float16),
            **fields,
        )

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return self.enlarged(self.small_mask)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(H, W) int32."""
        return self.enlarged(self.small_labels).astype(np.int32)

    @functools.cached_property
    def objects(self) -> tuple[Object, ...]:
        """The objects of the mask of at least `min_area`, the largest first; see
        `unseg_jax.postprocess.find_objects`."""
        return objects_of(self._pieces, evidence=self.evidence, confidence=self.confidence)

    @functools.cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """(left, top, right, bottom) of the mask's largest 4-connected component."""
        return scale_box(object_box(self.small_mask), self.small_mask.shape, self.size)

    @functools.cached_property
    def small_mask(self) -> np.ndarray:
        """(h, w) bool."""
        return self._pieces.shown(kept=True) if self.specks else self.raw_mask

    @functools.cached_property
    def small_labels(self) -> np.ndarray:
        """(h, w)."""
        if not self.specks:
            return self.raw_labels
        return np.where(self._pieces.shown(kept=False), 0, self.raw_labels)

    @property
    def specks(self) -> int:
        """Pieces of the mask below `min_area`, which are left out of all else."""
        return self._pieces.specks

    def only_largest(self) -> Segmentation:
        """The same with the largest object alone in mask and labels."""
        pieces = self._pieces
        kept = pieces.kept & (np.arange(len(pieces.areas)) == np.argmax([*pieces.areas, 0]))
        mask = dataclasses.replace(pieces, kept=kept).shown(kept=True)
        labels = np.where(mask, self.raw_labels, self.raw_labels.dtype.type(0))
        return self._reduced(mask, labels)

    def without(self, objects: Sequence[Object]) -> Segmentation:
        """The same without some of its `objects`; specks stay specks."""
        gone = np.zeros(self.size, bool)
        for item in objects:
            left, top, right, bottom = item.box
            gone[top:bottom, left:right] |= item.mask
        rows, columns = (
            np.searchsorted(source_indices(*lengths), np.arange(lengths[0]))
            for lengths in zip(self.raw_mask.shape, self.size, strict=True)
        )
        kept = ~gone[np.ix_(rows, columns)]
        labels = np.where(kept, self.raw_labels, self.raw_labels.dtype.type(0))
        return self._reduced(self.raw_mask & kept, labels)

    @property
    def coverage(self) -> float:
        """Share of the image's pixels that the mask covers, 0 to 1."""
        pieces = self._pieces
        return int(pieces.areas[pieces.kept].sum()) / (self.size[0] * self.size[1])

    def enlarged(self, array: np.ndarray) -> np.ndarray:
        """(H, W): an array of the working size at the image's own, by the nearest neighbour."""
        return _fitted(array, self.size)

    def overlay(self, image: np.ndarray | None = None) -> np.ndarray:
        """The image with its background dimmed and every object outlined.

        Args:
            image: (h, w, 3) uint8 to draw on; None takes the pixels that were kept, at most 1,600
                on the longer side.

        Returns:
            (h, w, 3) uint8 of that image's size.

        Raises:
            ValueError: no image is given, and none was kept.
        """
        return self._overlay if image is None else self._drawn_on(image)

    def cutout(
        self, image: np.ndarray | None = None, *, soft: bool = True, item: Object | None = None
    ) -> np.ndarray:
        """The image, transparent outside of the mask.

        Args:
            image: see `overlay`.
            soft: soften the edge as the image's edge is, and take the background out of its
                colours; see `unseg_jax.postprocess.matting`. False gives the mask itself.
            item: one of `objects`, to be cut out alone.

        Returns:
            (h, w, 4) uint8, straight alpha.

        Raises:
            ValueError: see `overlay`.
        """
        pixels = self._picture(image)
        mask = _fitted(self.small_mask, pixels.shape[:2])
        if item is not None:
            left, top, right, bottom = item.box
            alone = np.zeros(self.size, bool)
            alone[top:bottom, left:right] = item.mask
            mask = _fitted(alone, pixels.shape[:2])
        if not soft:
            return np.dstack([pixels, mask.astype(np.uint8) * np.uint8(255)])
        from unseg_jax.postprocess.matting import cut_out

        return cut_out(pixels, mask)

    def shown(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """Labels to draw, of a given size (None: the working size): those of the parts within the
        mask if there are several, else the mask as label 1, or its objects where they are split."""
        parts = self.small_labels
        if self.split != "never" and parts.max(initial=0) <= 1:
            parts = smallest(np.where(self.small_mask, self._pieces.numbers, 0))
        # With two clusters the object is the mask, of which the labels may hold more pieces.
        labels = parts if parts.max(initial=0) > 1 else self.small_mask.astype(np.uint8)
        return labels if size is None else _fitted(labels, size)

    def save(
        self,
        folder: str | os.PathLike,
        formats: Sequence[str] = ("png",),
        *,
        pixel_size: float | str | None = None,
    ) -> list[Path]:
        """Writes the result into a folder, under the stem of its `id`.

        Args:
            folder: made if missing; files of the same names are replaced.
            formats: names of `unseg_jax.export.formats.FORMATS`, such as "png", "coco", "csv".
            pixel_size: side of a pixel in micrometres, or with a unit, such as "320nm"; tables
                then have physical units as well.

        Returns:
            The files written.

        Raises:
            ValueError: an unknown format, or a pixel size that is none.
            WriteError: the operating system refused.
        """
        from unseg_jax.data.pixel_size import parse_pixel_size
        from unseg_jax.export.formats import save

        found = self
        if pixel_size is not None:
            found = dataclasses.replace(self, pixel_size=parse_pixel_size(pixel_size))
        return save(found, Path(folder), formats)

    def to_coco(self) -> dict[str, Any]:
        """A COCO data set of this image alone, one annotation for each object."""
        from unseg_jax.export.formats import coco, record_of

        return coco.dataset([record_of(self)])

    def plot(self, axes: Any = None) -> Any:
        """Draws the overlay with matplotlib, on `axes` or on new ones, which it returns."""
        import matplotlib.pyplot as plt

        axes = plt.gca() if axes is None else axes
        axes.imshow(self.overlay())
        axes.set_title(f"{self.id} ({_count(self.objects)})")
        axes.set_axis_off()
        return axes

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Segmentation({self.id or 'image'}: {width}x{height} pixels, "
            f"object {100 * self.coverage:.0f} %, confidence {self.confidence:.2f})"
        )

    def _repr_png_(self) -> bytes | None:
        from unseg_jax.files import encode_png

        return None if self.pixels is None else encode_png(self.overlay())

    def _reduced(self, mask: np.ndarray, labels: np.ndarray) -> Segmentation:
        # A rule that looks at the whole image may cut what is left in another way.
        cut = None if self.split == "never" else self._pieces.numbers
        return dataclasses.replace(self, raw_mask=mask, raw_labels=labels, cut=cut)

    @functools.cached_property
    def _pieces(self) -> Pieces:
        options = {"size": self.size, "min_area": self.min_area}
        if self.cut is None or self.split == "never":
            options |= {"split": self.split, "pixels": self.pixels}
            return find_pieces(self.raw_mask, self.raw_labels, **options)  # type: ignore[arg-type]
        pieces = find_pieces(self.raw_mask, self.cut, **options)  # type: ignore[arg-type]
        labels = np.zeros(len(pieces.areas) + 1, np.int64)
        labels[pieces.numbers] = np.maximum(self.raw_labels, 1)
        return dataclasses.replace(pieces, labels=labels[1:])

    @functools.cached_property
    def _overlay(self) -> np.ndarray:
        return self._drawn_on(self._picture(None))

    def _drawn_on(self, pixels: np.ndarray) -> np.ndarray:
        from unseg_jax.export.drawing import overlay

        return overlay(pixels, self.shown(pixels.shape[:2]))

    def _picture(self, image: np.ndarray | None) -> np.ndarray:
        pixels = self.pixels if image is None else np.asarray(image)
        if pixels is None:
            raise ValueError(f"the pixels of {self.id or 'the image'} were not kept: pass image=.")
        return pixels


def _fitted(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if array.shape == tuple(size):
        return array
    return upsample_labels(array, (size[0], size[1]))


def smallest(labels: np.ndarray) -> np.ndarray:
    """Labels, not negative, as the smallest unsigned type that holds them."""
    labels = np.asarray(labels)
    return labels.astype(np.min_scalar_type(int(labels.max(initial=0))), copy=False)


def _count(objects: Sequence[Object]) -> str:
    return "1 object" if len(objects) == 1 else f"{len(objects)} objects"
