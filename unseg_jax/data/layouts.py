"""How well-known data sets lie on disk once unpacked, each with its own mask rule."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from unseg_jax.data.truths import LUMA_RULE, MaskRule


@dataclasses.dataclass(frozen=True)
class Part:
    """A folder of images and the folder of their masks, relative to the data set's.

    Attributes:
        images, masks: the folders, searched with their subfolders.
        suffix: what a mask's stem has beyond its image's.
        split: name of the split, if the folder is one.
    """

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
        alternatives: the ways it is handed out; of each way, all parts that exist are read,
            and the first way with any wins. `images` and `masks` side by side always work too.
        counts: numbers of images that count as complete, by split; "" is all of them.
        rule: which mask values are foreground.
        split_file: a file of lines "number flag" beside images.txt that says with 0 which
            images are the test split (CUB-200-2011).
    """

    title: str
    home: str
    alternatives: tuple[tuple[Part, ...], ...]
    counts: Mapping[str, tuple[int, ...]]
    rule: MaskRule = LUMA_RULE
    split_file: str | None = None


def _isic(prefix: str, inputs: dict[str, str], truths: dict[str, str], suffix: str):
    return tuple(
        Part(f"{prefix}{inputs[split]}", f"{prefix}{truths[split]}", suffix, split)
        for split in inputs
    )


_ISIC_2016 = _isic(
    "ISBI2016_ISIC_Part1_",
    {"train": "Training_Data", "test": "Test_Data"},
    {"train": "Training_GroundTruth", "test": "Test_GroundTruth"},
    "_Segmentation",
)
_ISIC_2018 = _isic(
    "",
    {
        "train": "ISIC2018_Task1-2_Training_Input",
        "validation": "ISIC2018_Task1-2_Validation_Input",
        "test": "ISIC2018_Task1-2_Test_Input",
    },
    {
        "train": "ISIC2018_Task1_Training_GroundTruth",
        "validation": "ISIC2018_Task1_Validation_GroundTruth",
        "test": "ISIC2018_Task1_Test_GroundTruth",
    },
    "_segmentation",
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "ecssd": Layout(
            "ECSSD, extended complex scene saliency",
            "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
            ((Part("images", "ground_truth_mask"),),),
            {"": (1000,)},
        ),
        "duts-te": Layout(
            "DUTS, test set",
            "http://saliencydetection.net/duts/",
            (
                (Part("DUTS-TE-Image", "DUTS-TE-Mask"),),
                (Part("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),),
            ),
            {"": (5019,)},
            MaskRule(values=(255,)),
        ),
        "cub": Layout(
            "Caltech-UCSD Birds 200-2011, with its archive of segmentations",
            "https://www.vision.caltech.edu/datasets/cub_200_2011/",
            (
                (Part("CUB_200_2011/images", "segmentations"),),
                (Part("CUB_200_2011/images", "CUB_200_2011/segmentations"),),
                (Part("images", "segmentations"),),
            ),
            {"": (11788,), "train": (5994,), "test": (5794,)},
            MaskRule(threshold=199),
            "train_test_split.txt",
        ),
        "isic2016": Layout(
            "ISIC 2016, part 1",
            "https://challenge.isic-archive.com/data/#2016",
            (_ISIC_2016,),
            {"": (1279, 900, 379), "train": (900,), "test": (379,)},
        ),
        "isic2018": Layout(
            "ISIC 2018, task 1",
            "https://challenge.isic-archive.com/data/#2018",
            (_ISIC_2018,),
            {
                "": (2594, 2694, 3694, 1000),
                "train": (2594,),
                "validation": (100,),
                "test": (1000,),
            },
        ),
        "kvasir-seg": Layout(
            "Kvasir-SEG, polyps",
            "https://datasets.simula.no/kvasir-seg/",
            ((Part("images", "masks"),), (Part("Kvasir-SEG/images", "Kvasir-SEG/masks"),)),
            {"": (1000,)},
        ),
        "cvc-clinicdb": Layout(
            "CVC-ClinicDB, polyps",
            "https://polyp.grand-challenge.org/CVCClinicDB/",
            (
                (Part("Original", "Ground Truth"),),
                (Part("CVC-ClinicDB/Original", "CVC-ClinicDB/Ground Truth"),),
                (Part("PNG/Original", "PNG/Ground Truth"),),
                (Part("TIF/Original", "TIF/Ground Truth"),),
            ),
            {"": (612,)},
        ),
        "cvc-colondb": Layout(
            "CVC-ColonDB, polyps",
            "http://vi.cvc.uab.es/colon-qa/cvccolondb/",
            (
                (Part("CVC-ColonDB/images", "CVC-ColonDB/masks"),),
                (Part("Original", "Ground Truth"),),
            ),
            {"": (380, 300)},
        ),
        "emds-6": Layout(
            "EMDS-6, environmental microorganisms",
            "https://figshare.com/articles/dataset/EMDS6/17125025/1",
            (
                (Part("EMDS5-Original", "EMDS5-Ground Truth", "-GTM"),),
                (Part("EMDS-6/EMDS5-Original", "EMDS-6/EMDS5-Ground Truth", "-GTM"),),
            ),
            {"": (840,)},
        ),
    }
)
"""Data sets that `open_dataset` reads by name, as in `ecssd:DIR`."""
