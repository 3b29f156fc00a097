"""What papers report, as data, with the protocol it was measured by and where it stands.

None of these numbers is comparable with one of another protocol: see `PROTOCOLS`.
"""

import dataclasses
import re

_DEEPCUT = "Aflalo et al., DeepCut, ICCV 2023"
_SPECTRAL = "Melas-Kyriazi et al., Deep Spectral Methods, CVPR 2022"
_TOKENCUT = "Wang et al., TokenCut, CVPR 2022"
_UNSEGGNET = "Reddy et al., UnSegGNet, arXiv:2405.06057"
_TABULATED = "tables of the UnSegGNet and UnSeGArmaNet papers"
_SUPPLEMENT = "Reddy et al., UnSeGArmaNet, arXiv:2410.06114, supplementary tables"
_UNSEGMEDGAT = "Adityaja et al., UnSegMedGAT, table I"
_COURSE = "Fellah et al., course project on UnSegGNet, UnSeGArmaNet and DeepCut"

FULL = "full image"
FLIP = "better of mask and inverted mask"
CROP_FLIP = "crop to the true box + 20 px, better of mask and inverted mask"
CITED = "as the citing paper measured"


@dataclasses.dataclass(frozen=True)
class PublishedScore:
    """One number of one paper.

    Attributes:
        system: its name there.
        method: the same system by its name here, or None if it is not built.
        dataset: the data set's name in `unseg_jax.data.LAYOUTS`.
        miou: mean IoU, 0..1.
        protocol: how the public evaluation code measured, as far as it is known.
        source: where the number stands.
    """

    system: str
    method: str | None
    dataset: str
    miou: float
    protocol: str
    source: str


# System there, system here, protocol, source, and the mean IoU in percent on each data set.
_ROWS: tuple[tuple[str, str | None, str, str, str], ...] = (
    ("DeepCut", "deepcut", FULL, _DEEPCUT, "ecssd 74.6 duts-te 59.5 cub 78.2"),
    ("MinCutPool", "mincutpool", CITED, _TABULATED, "kvasir-seg 73.5 cvc-clinicdb 62.1"),
    ("MinCutPool", "mincutpool", CROP_FLIP, _UNSEGMEDGAT, "isic2018 72.31 cvc-colondb 56.09"),
    ("Deep Spectral Methods", "deep-spectral", FULL, _SPECTRAL, "ecssd 73.3 duts-te 51.4 cub 76.9"),
    (
        "Deep Spectral Methods",
        "deep-spectral",
        CITED,
        _TABULATED,
        "kvasir-seg 58.8 cvc-clinicdb 60.48",
    ),
    (
        "Deep Spectral Methods",
        "deep-spectral",
        CROP_FLIP,
        _UNSEGMEDGAT,
        "isic2018 72.2 cvc-colondb 47.46",
    ),
    (
        "ViT-KMeans",
        "vit-kmeans",
        CITED,
        _TABULATED,
        "ecssd 65.76 duts-te 42.78 cub 51.86 kvasir-seg 66.1 cvc-clinicdb 62.8",
    ),
    ("ViT-KMeans", "vit-kmeans", CROP_FLIP, _UNSEGMEDGAT, "isic2018 68.6 cvc-colondb 51.84"),
    (
        "UnSegGNet",
        "unseggnet",
        FLIP,
        _UNSEGGNET,
        "ecssd 75.57 duts-te 61.04 cub 78.41 kvasir-seg 74 cvc-clinicdb 64",
    ),
    ("UnSegGNet", "unseggnet", CROP_FLIP, _UNSEGMEDGAT, "isic2018 73.94 cvc-colondb 55.67"),
    (
        "UnSeGArmaNet",
        "unsegarmanet",
        FLIP,
        _SUPPLEMENT,
        "ecssd 77.83 duts-te 60.3 cub 81.23 kvasir-seg 77.7 isic2018 78.72 cvc-clinicdb 63.65",
    ),
    ("UnSeGArmaNet", "unsegarmanet", CROP_FLIP, _UNSEGMEDGAT, "isic2018 73.16 cvc-colondb 59.35"),
    ("UnSegMedGAT", "unsegmedgat-isic", CROP_FLIP, _UNSEGMEDGAT, "isic2018 73.75"),
    ("UnSegMedGAT", "unsegmedgat", CROP_FLIP, _UNSEGMEDGAT, "cvc-colondb 57.21"),
    ("UnSegMedGATc", "unsegmedgat-c", CROP_FLIP, _UNSEGMEDGAT, "isic2018 74.76 cvc-colondb 65.1"),
    (
        "MedSAM (supervised, prompted with the true box)",
        None,
        CROP_FLIP,
        _UNSEGMEDGAT,
        "isic2018 61.36 cvc-colondb 70.29",
    ),
    ("TokenCut, ViT-S/16", "tokencut", FULL, _TOKENCUT, "ecssd 71.2 duts-te 57.6"),
    ("TokenCut, ViT-S/16, bilateral", None, FULL, _TOKENCUT, "ecssd 77.2 duts-te 62.4"),
    ("NCut, GCN", "ncut-gcn", CITED, _COURSE, "isic2016 62.2 emds-6 64.2"),
    ("NCut, GAT", "ncut-gat", CITED, _COURSE, "isic2016 38.8 emds-6 51.9"),
    ("NCut, ARMA", "ncut-arma", CITED, _COURSE, "isic2016 62.3 emds-6 64.9"),
    ("CC, GCN", "cc-gcn", CITED, _COURSE, "isic2016 43.4 emds-6 54.3"),
    ("CC, GAT", "cc-gat", CITED, _COURSE, "isic2016 15.8 emds-6 15.7"),
    ("DMoN, GCN", "dmon-gcn", CITED, _COURSE, "isic2016 36.3 emds-6 26.9"),
    ("DMoN, GAT", "dmon-gat", CITED, _COURSE, "isic2016 37.8 emds-6 27.3"),
    ("DMoN, ARMA", "dmon-arma", CITED, _COURSE, "isic2016 50 emds-6 45.3"),
)
PUBLISHED = tuple(
    PublishedScore(system, method, name, round(float(percent) / 100, 4), protocol, source)
    for system, method, protocol, source, scores in _ROWS
    for name, percent in zip(scores.split()[::2], scores.split()[1::2], strict=True)
)
"""Every number, a system and data set at a time."""

_OTHER_NAMES = {
    "dutste": "duts-te",
    "duts": "duts-te",
    "caltechbirds2011": "cub",
    "cub2002011": "cub",
    "kvasir": "kvasir-seg",
    "clinicdb": "cvc-clinicdb",
    "colondb": "cvc-colondb",
    "isic2018task1": "isic2018",
    "emds6": "emds-6",
}


def published_scores(dataset: str) -> tuple[PublishedScore, ...]:
    """The published scores on a data set, best first.

    Args:
        dataset: its name as `unseg_jax.data.Dataset` has it; case and punctuation do not matter.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    name = plain(_OTHER_NAMES.get(plain(dataset), dataset))
    scores = (score for score in PUBLISHED if plain(score.dataset) == name)
    return tuple(sorted(scores, key=lambda score: -score.miou))
