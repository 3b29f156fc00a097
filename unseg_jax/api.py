"""The entry points for users: `Segmenter` for many calls, `segment` for one."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unseg_jax.backbones import Backbone
from unseg_jax.batching import Batching
from unseg_jax.collective.choosing import MAX_FITTED, choose, load
from unseg_jax.data.decoding import as_iterable
from unseg_jax.data.reading_options import Reading
from unseg_jax.errors import ImageError
from unseg_jax.method import Method
from unseg_jax.segmentation import Segmentation
from unseg_jax.segmenter import BatchSegmenter, load_for

if TYPE_CHECKING:
    from unseg_jax.data.decoding import Source

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Segmenter(BatchSegmenter):
    """Segments images by a method: call it with one image or many.

    A method that learns from a set, such as `collective`, is fitted on the images of each call.

    Attributes:
        asked: the method as it was given.
        overrides: options as they were given.
    """

    asked: str | Method = "auto"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __init__(
        self,
        method: str | Method = "auto",
        *,
        backbone: str | Path | Backbone = "auto",
        batch_size: int = 8,
        seed: int = 0,
        dtype: str = "auto",
        batching: Batching | None = None,
        value_range: tuple[float, float] | Literal["set"] | None = None,
        workers: int | None = None,
        **overrides: Any,
    ):
        """
        Args:
            method: "auto", a name of `list_methods()`, or a `Method`. "auto" applies the
                model that ships with the library, or fits `collective` on the images of a call if
                they are eight or more with a black frame in common; it says which. With overrides
                other than `resize`, `stride`, `tile` and `scales`, "auto" is `deepcut` with these.
            backbone: name, path to weights, or a loaded `Backbone`; "auto" takes the method's own,
                which is DINO ViT-S/8 where it can be fetched, else its stand-in.
            batch_size: images given to each device at a time, at least 1.
            seed: random seed.
            dtype: "auto", "float32" or "bfloat16", of the backbone; losses are always float32.
            batching: how a batch is taken, see `unseg_jax.cluster`.
            value_range: (low, high), the values of deep images that become black and white, or
                "set" for the range of the images of a call; None stretches each by itself.
            workers: threads that decode images; None is one per core.
            **overrides: fields of `Method`; for methods that are fitted on a set also `steps`,
                `passes` and `max_images` of `unseg_jax.fit`.

        Raises:
            ValueError: an unknown method, backbone or field, or a value out of range.

        Example:
            >>> segmenter = Segmenter("vit-kmeans", backbone=backbone, image_size=32)
            >>> [found.mask.shape for found in segmenter([photograph, photograph[:40]])]
            [(48, 64), (40, 64)]
        """
        choice, reading = choose(method, overrides=overrides), Reading(value_range, workers=workers)
        settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "batching": batching}
        if choice.fits:
            explicit = choice.explicit
            resolved, loaded = load_for(choice.method, backbone, dtype=dtype, explicit=explicit)
            made = BatchSegmenter(resolved, loaded, **settings)
        else:
            made = load(choice, backbone=backbone, dtype=dtype, **settings)
        super().__init__(
            made.method,
            made.backbone,
            reading=reading,
            work=made.work,
            fitted=made.fitted,
            **settings,
        )
        object.__setattr__(self, "asked", method)
        object.__setattr__(self, "overrides", overrides)

    def stream(
        self, images: Source | Iterable[Source], *, full_pixels: bool = False
    ) -> Iterator[Segmentation | ImageError]:
        """See `BatchSegmenter.stream`. Where a model is fitted the images are listed first, by
        "auto" the first 512 of them."""
        if not (self.asked == "auto" or self.method.learns_from_set or self.reading.whole_set):
            yield from super().stream(images, full_pixels=full_pixels)
            return
        waiting = iter(as_iterable(images))
        sources = list(itertools.islice(waiting, MAX_FITTED if self.asked == "auto" else None))
        choice = choose(self.asked, sources, self.overrides)
        if choice.why:
            _log.info("%s", choice.why)
        segmenter: BatchSegmenter = self.but(reading=self.reading.measured(sources))
        if choice.fits:
            segmenter = load(
                choice,
                sources,
                segmenter.reading,
                backbone=self.backbone or "auto",
                batch_size=self.batch_size,
                seed=self.seed,
                batching=self.batching,
            )
        everything = itertools.chain(sources, waiting)
        yield from segmenter.stream(everything, full_pixels=full_pixels)


def segment(
    images: Source | Iterable[Source],
    method: str | Method = "auto",
    **options: Any,
) -> list[Segmentation]:
    """Segments one image or many in one call.

    Args:
        images: one or an iterable of paths, PIL images, or arrays (H, W, 3) or (H, W).
        method: see `Segmenter`. Methods that learn from a whole set (`collective`,
            `unsegmedgat-c`) are fitted on the images first: see `unseg_jax.fit`.
        **options: of `Segmenter`.

    Returns:
        One `Segmentation` per image, in order.

    Raises:
        ImageError: the first image that cannot be read or segmented.
        ValueError: see `Segmenter`.

    Example:
        >>> found = segment(photograph, "vit-kmeans", backbone=backbone, image_size=32)[0]
        >>> found.mask.shape, found.mask.dtype, len(found.objects)
        ((48, 64), dtype('bool'), 1)
    """
    return Segmenter(method, **options)(images)
