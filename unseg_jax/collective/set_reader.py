"""Features of the images of a set, for what is learned from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unseg_jax.batching import pad_batch, takes_images_apart
from unseg_jax.collective.example_views import VIEWS
from unseg_jax.collective.marks import Marked
from unseg_jax.collective.tiling import cut, tile_boxes
from unseg_jax.data.loader import batches
from unseg_jax.errors import ImageError
from unseg_jax.segmenter import BatchSegmenter
from unseg_jax.segmenter.decoded_cache import Decoded, DecodedCache
from unseg_jax.segmenter.streaming import decode

if TYPE_CHECKING:
    from jaxtyping import Float16

    from unseg_jax.collective.marks import Marks
    from unseg_jax.data.decoding import Source
    from unseg_jax.data.truths import Truth


class SetReader:
    """Features of the images, batch by batch, as often as asked; failures are kept aside."""

    def __init__(
        self,
        segmenter: BatchSegmenter,
        sources: Sequence[Source],
        on_image: Callable[[int, int], Any] | None = None,
        tiles: int = 1,
        whole: bool = False,
    ):
        """
        Args:
            segmenter: reads and prepares; images that it keeps are read once.
            sources: the images.
            on_image: see `fit`.
            tiles: of an image at most, where the method takes tiles.
            whole: keep pixels as well as features.
        """
        self.segmenter, self.sources, self.on_image = segmenter, sources, on_image
        self.tiles, self.whole = tiles, whole
        self.kept = segmenter.kept or DecodedCache()
        self.failed: list[str] = []
        self.read = 0

    def __call__(self, chosen: Sequence[int]) -> Iterator[Float16[np.ndarray, "b h w d"]]:
        """Features of the chosen images, a batch of one grid at a time; in order where all have
        one grid."""
        self.read = 0
        size = self.segmenter.batch_size
        held = 1 if self.segmenter.method.tile else size
        alike: dict[tuple[int, ...], list[tuple[int, Decoded]]] = {}
        loaded = batches(chosen, self._parts, held, workers=self.segmenter.reading.workers)
        with contextlib.closing(loaded):
            seen = 0
            for batch in loaded:
                seen += len(batch)
                if self.on_image is not None:
                    self.on_image(seen, len(chosen))
                for outcome in batch:
                    if isinstance(outcome.error, ImageError):
                        self.failed.append(str(outcome.error))
                    elif outcome.error is not None:
                        raise outcome.error
                    self.read += outcome.value is not None
                    for view in outcome.value or ():
                        part = alike.setdefault(view.prepared.shape, [])
                        part.append((outcome.item, view))
                        if len(part) == size:
                            yield self._features(part)
                            part.clear()
        for part in alike.values():
            if part:
                yield self._features(part)
        if not self.read:
            raise ImageError(self.failed[0])

    def marked(self, marks: Mapping[int, Marks]) -> list[Marked]:
        """Marked images, by their index, with views of those that have a mask."""
        return [
            Marked(next(self([at])), one, () if one.truth is None else self._seen(at, one.truth))
            for at, one in marks.items()
        ]

    def _seen(
        self, index: int, truth: Truth
    ) -> Iterator[tuple[Float16[np.ndarray, "1 h w d"], Truth]]:
        source, of = self.sources[index], self.segmenter.method.feature_key
        pixels = None
        for number, view in enumerate(VIEWS, 1):
            known = self.kept.get(source, of, number)
            if known is not None:
                features = known.prepared[None]
            else:
                pixels = self._pixels(source) if pixels is None else pixels
                prepared = self.segmenter.prepare(view.of_pixels(pixels))
                shown = Decoded(prepared[:0], prepared, prepared.shape[:2])
                features = self._features([(index, shown)], number)
            yield features, truth.each(view.turned)

    def _pixels(self, source: Source) -> np.ndarray:
        known = self.kept.get(source, self.segmenter.method.feature_key)
        if known is None or not known.pixels.size:
            known = decode(self.segmenter, source)
        return known.pixels

    def _features(
        self, part: list[tuple[int, Decoded]], number: int = 0
    ) -> Float16[np.ndarray, "b h w d"]:
        prepared = np.stack([view.prepared for _, view in part])
        if prepared.dtype == np.float16:
            return prepared
        if not takes_images_apart(self.segmenter.batching):
            # Padded to one size, so that the backbone is compiled once a shape.
            prepared = pad_batch(prepared, self.segmenter.batch_size)
        features = np.asarray(self.segmenter.kept_features(prepared))[: len(part)]
        if not self.segmenter.method.tile:
            for (index, view), one in zip(part, features, strict=True):
                pixels = view.pixels if self.whole else view.pixels[:0]
                view = view._replace(prepared=one, pixels=pixels)
                self.kept.put(self.sources[index], view, self.segmenter.method.feature_key, number)
        return features

    def _parts(self, index: int) -> list[Decoded]:
        """What of an image is fitted: the image, or some of its tiles drawn at random."""
        source, side = self.sources[index], self.segmenter.method.tile
        if not side:
            known = self.kept.get(source, self.segmenter.method.feature_key)
            return [known or decode(self.segmenter, source)]
        pixels = self.segmenter.reading.read(source).pixels
        boxes = tile_boxes(pixels.shape[0], pixels.shape[1], side)
        drawn = np.random.default_rng(index).permutation(len(boxes))[: self.tiles]
        tiles = (cut(pixels, boxes[at]) for at in np.sort(drawn))
        return [Decoded(tile, self.segmenter.prepare(tile), tile.shape[:2]) for tile in tiles]
