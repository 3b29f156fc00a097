"""What a finished run over image files holds: `Entry` for one image, `Run` for all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from unseg_jax.data.folders import ImageFile

if TYPE_CHECKING:
    from unseg_jax.segmenter import Segmentation


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of a finished run, as the report shows it.

    Attributes:
        image: the file.
        segmentation: what was found, without its arrays of the image's size; None if it failed.
        error: one sentence; "" if all went well.
        size: (height, width) of the image.
        coverage: share of the image that the mask covers, 0 to 1.
        parts: labels above 0 that are in use.
        thumbnails: kind → WebP bytes, of the images that the report shows.
        annotations: COCO-style data set of this image alone, or None.
    """

    image: ImageFile
    segmentation: Segmentation | None = None
    error: str = ""
    size: tuple[int, int] = (0, 0)
    coverage: float = 0.0
    parts: int = 0
    thumbnails: dict[str, bytes] = dataclasses.field(default_factory=dict)
    annotations: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What `segment_files` did.

    Attributes:
        entries: one an image, in order.
        seconds: from the first image to the last file, without compilation.
        compile_seconds: what tracing and compiling took, or reading compiled programs back.
    """

    entries: tuple[Entry, ...]
    seconds: float
    compile_seconds: float

    @property
    def done(self) -> list[Entry]:
        """The images that went well."""
        return [entry for entry in self.entries if not entry.error]

    @property
    def failed(self) -> list[Entry]:
        """The images that did not."""
        return [entry for entry in self.entries if entry.error]

    @property
    def images_per_second(self) -> float:
        """Images done a second: decoding, device, refinement and writing, not compilation."""
        return len(self.done) / self.seconds if self.seconds else 0.0
