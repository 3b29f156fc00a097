"""`Dataset` and its `Item`s: what every source of images and masks gives."""

import dataclasses

from unseg_jax.data.images import DEFAULT_RULE, MaskRule, Source


@dataclasses.dataclass(frozen=True)
class Item:
    """An image and, where there is one, its mask; neither is decoded yet.

    Attributes:
        id: unique in its data set, and fit for a file name.
        image: see `unseg_jax.data.images.Source`.
        mask: the same, or None: such an image is segmented and not scored.
        split: name of the split, or None.
        page: of a file with several pages, from 1; `image` and `mask` are `Page`s then.
    """

    id: str
    image: Source
    mask: Source | None = None
    split: str | None = None
    page: int | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Items with what is needed to read and to cite them.

    Attributes:
        name: what reports call it.
        items: in a fixed order (sorted by id, or as a list file has them).
        rule: which mask values are foreground.
        notes: what a reader of the scores should know, a sentence each.
    """

    name: str
    items: tuple[Item, ...]
    rule: MaskRule = DEFAULT_RULE
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def scored(self) -> int:
        """Number of items that have a mask."""
        return sum(item.mask is not None for item in self.items)
