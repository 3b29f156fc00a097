"""What every source of images and masks gives, and how well-known data sets lie on disk."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from unseg_jax.data.opening import Source
from unseg_jax.data.truths import DEFAULT_RULE, LUMA_RULE, MaskRule


@dataclasses.dataclass(frozen=True)
class Item:
    """An image and, where there is one, its mask; neither is decoded yet.

    Attributes:
        id: unique in its data set, and fit for a file name.
        image: see `unseg_jax.data.Source`.
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


@dataclasses.dataclass(frozen=True)
class Part:
    """A folder of images and that of their masks, whose stems end in `suffix`; maybe one split."""

    images: str
    masks: str
    suffix: str = ""
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A data set by name.

    Attributes:
        title: its name in full.
        home: the page that it is published at.
        ways: in which it is handed out; of each way, all parts that exist are read, and the first
            way with any wins. `images` and `masks` side by side always work too.
        counts: numbers of images that count as complete, by split; "" is all of them.
        rule: which mask values are foreground.
        split_file: a file of lines "number flag" beside images.txt that says with 0 which
            images are the test split (CUB-200-2011).
    """

    title: str
    home: str
    ways: tuple[tuple[Part, ...], ...]
    counts: Mapping[str, tuple[int, ...]]
    rule: MaskRule = LUMA_RULE
    split_file: str | None = None


def _ways(*folders: tuple[str, str], suffix: str = "") -> tuple[tuple[Part, ...], ...]:
    """Each way of one folder of images and one of masks."""
    return tuple((Part(images, masks, suffix),) for images, masks in folders)


def _isic(images: str, masks: str, suffix: str, **splits: str) -> tuple[tuple[Part, ...], ...]:
    """The one way of ISIC: a pair of folders for each split."""
    names = {split: (images.format(word), masks.format(word)) for split, word in splits.items()}
    return (tuple(Part(*pair, suffix, split) for split, pair in names.items()),)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "ecssd": Layout(
            "ECSSD, extended complex scene saliency",
            "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
            _ways(("images", "ground_truth_mask")),
            {"": (1000,)},
        ),
        "duts-te": Layout(
            "DUTS, test set",
            "http://saliencydetection.net/duts/",
            _ways(
                ("DUTS-TE-Image", "DUTS-TE-Mask"),
                ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
            ),
            {"": (5019,)},
            MaskRule(values=(255,)),
        ),
        "cub": Layout(
            "Caltech-UCSD Birds 200-2011, with its archive of segmentations",
            "https://www.vision.caltech.edu/datasets/cub_200_2011/",
            _ways(
                ("CUB_200_2011/images", "segmentations"),
                ("CUB_200_2011/images", "CUB_200_2011/segmentations"),
                ("images", "segmentations"),
            ),
            {"": (11788,), "train": (5994,), "test": (5794,)},
            MaskRule(threshold=199),
            "train_test_split.txt",
        ),
        "isic2016": Layout(
            "ISIC 2016, part 1",
            "https://challenge.isic-archive.com/data/#2016",
            _isic(
                "ISBI2016_ISIC_Part1_{}_Data",
                "ISBI2016_ISIC_Part1_{}_GroundTruth",
                "_Segmentation",
                train="Training",
                test="Test",
            ),
            {"": (1279, 900, 379), "train": (900,), "test": (379,)},
        ),
        "isic2018": Layout(
            "ISIC 2018, task 1",
            "https://challenge.isic-archive.com/data/#2018",
            _isic(
                "ISIC2018_Task1-2_{}_Input",
                "ISIC2018_Task1_{}_GroundTruth",
                "_segmentation",
                train="Training",
                validation="Validation",
                test="Test",
            ),
            {"": (2594, 2694, 3694, 1000), "train": (2594,), "validation": (100,), "test": (1000,)},
        ),
        "kvasir-seg": Layout(
            "Kvasir-SEG, polyps",
            "https://datasets.simula.no/kvasir-seg/",
            _ways(("images", "masks"), ("Kvasir-SEG/images", "Kvasir-SEG/masks")),
            {"": (1000,)},
        ),
        "cvc-clinicdb": Layout(
            "CVC-ClinicDB, polyps",
            "https://polyp.grand-challenge.org/CVCClinicDB/",
            _ways(
                *(
                    (f"{folder}Original", f"{folder}Ground Truth")
                    for folder in ("", "CVC-ClinicDB/", "PNG/", "TIF/")
                )
            ),
            {"": (612,)},
        ),
        "cvc-colondb": Layout(
            "CVC-ColonDB, polyps",
            "http://vi.cvc.uab.es/colon-qa/cvccolondb/",
            _ways(("CVC-ColonDB/images", "CVC-ColonDB/masks"), ("Original", "Ground Truth")),
            {"": (380, 300)},
        ),
        "emds-6": Layout(
            "EMDS-6, environmental microorganisms",
            "https://figshare.com/articles/dataset/EMDS6/17125025/1",
            _ways(
                ("EMDS5-Original", "EMDS5-Ground Truth"),
                ("EMDS-6/EMDS5-Original", "EMDS-6/EMDS5-Ground Truth"),
                suffix="-GTM",
            ),
            {"": (840,)},
        ),
    }
)
"""Data sets that `open_dataset` reads by name, as in `ecssd:DIR`."""
