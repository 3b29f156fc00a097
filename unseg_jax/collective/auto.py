"""The default: a set of images is fitted, images that come alone get the ready model.

A large image in which little was found is seen again in tiles; see `CloserSegmenter`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unseg_jax.backbones import Backbone
from unseg_jax.collective.fitting import fit
from unseg_jax.collective.ready import load_ready
from unseg_jax.collective.tiling import CloserSegmenter
from unseg_jax.data.images import as_iterable
from unseg_jax.errors import ImageError
from unseg_jax.method import Fit
from unseg_jax.registry import resolve
from unseg_jax.segmentation import Segmentation

if TYPE_CHECKING:
    from unseg_jax.data.images import Source

_log = logging.getLogger(__name__)

SET_SIZE = 8
"""Images from which on a set is fitted."""
MAX_FITTED = 512
"""Images of a set that are fitted at most; of a longer one the first so many are kept in a list."""


def explain_choice(count: int, tile: int = 0) -> str:
    """One line: what `auto` chose for so many images, or for tiles of them, and why."""
    if tile:
        return f"auto: 'collective' is fitted on tiles of {tile} pixels, and joins them."
    if count >= SET_SIZE:
        return (
            f"auto: {count} images are enough to fit 'collective' on them, which scores best on "
            "sets; choose method='deepcut' for each by itself."
        )
    return (
        f"auto: fewer than {SET_SIZE} images get the model that ships with unseg-jax; fit your own "
        "with unseg-jax fit on images of the same kind."
    )


class AutoSegmenter(CloserSegmenter):
    """Fits a model on the images of each call, or applies the ready one where they are few."""

    def __init__(
        self,
        *,
        backbone: str | Path | Backbone = "auto",
        batch_size: int = 8,
        seed: int = 0,
        dtype: str = "float32",
        fit: Fit | None = None,
        tile: int | None = None,
    ):
        """
        Args:
            backbone: "auto" takes the one that `collective` was measured with.
            batch_size: images given to the device at a time, at least 1.
            seed: random seed of the fit.
            dtype: "float32" or "bfloat16", of the backbone.
            fit: how images are brought to the method's size, see `Method`; None as `collective`.
            tile: side in pixels of the tiles that images are cut into, which are fitted however
                few the images are; 0 sees them whole; None does too, and in tiles where little
                was found in a large one.

        Raises:
            WeightsError: the backbone or the ready model cannot be loaded.
        """
        model = load_ready(backbone=backbone, batch_size=batch_size, seed=seed, dtype=dtype)
        super().__init__(
            resolve(model.method, fit=fit, tile=tile),
            model.backbone,
            evidence=model.evidence,
            params=model.head,
            foreground=[],
            batch_size=batch_size,
            seed=seed,
            unlike=model.unlike,
        )
        self.closer = tile is None

    def stream(
        self, images: Source | Iterable[Source], *, full_pixels: bool = False
    ) -> Iterator[Segmentation | ImageError]:
        """See `BatchSegmenter.stream`; the first images are listed to decide, and to be fitted."""
        waiting = iter(as_iterable(images))
        sources = list(itertools.islice(waiting, MAX_FITTED))
        tile = self.method.tile
        _log.info("%s", explain_choice(len(sources), tile))
        everything = itertools.chain(sources, waiting)
        if len(sources) < SET_SIZE and not tile:
            yield from super().stream(everything, full_pixels=full_pixels)
            return
        model = fit(
            sources,
            key=self.key,
            backbone=self.backbone or "auto",
            batch_size=self.batch_size,
            steps=0,
            fit=self.method.fit,
            tile=tile,
            value_range=self.value_range,
            workers=self.workers,
        )
        segmenter = model.segmenter(closer=self.closer)
        segmenter.value_range, segmenter.workers = self.value_range, self.workers
        yield from segmenter.stream(everything, full_pixels=full_pixels)
