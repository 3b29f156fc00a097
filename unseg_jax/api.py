"""One call from images to masks: `segment`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from unseg_jax.clustering.loop import key_from_seed
from unseg_jax.data.images import as_iterable
from unseg_jax.methods import Method, resolve
from unseg_jax.segmenter import Segmentation, Segmenter

if TYPE_CHECKING:
    from unseg_jax.data.images import Source


def segment(
    images: Source | Iterable[Source],
    method: str | Method = "deepcut",
    **options: Any,
) -> list[Segmentation]:
    """Segments one image or many in one call; the options are those of `Segmenter`.

    Methods that learn from a whole set (`collective`, `unsegmedgat-c`) are fitted on the images
    given first: see `unseg_jax.fit`.
    """
    resolved = resolve(method)
    if resolved.learns_from_set:
        from unseg_jax.collective.fitting import fit

        sources = list(as_iterable(images))
        seed = options.pop("seed", 0)
        model = fit(sources, method=resolved, key=key_from_seed(seed), **options)
        return model.segment(sources)
    return Segmenter(resolved, **options)(images)
