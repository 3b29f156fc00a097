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


def _row(system: str, method: str | None, protocol: str, source: str, **percent: float):
    """Scores of one system by one source; `percent` names data sets with _ for -."""
    return tuple(
        PublishedScore(
            system, method, name.replace("_", "-"), round(value / 100, 4), protocol, source
        )
        for name, value in percent.items()
    )


def _course(system: str, method: str, isic: float, emds: float):
    return _row(system, method, CITED, _COURSE, isic2016=100 * isic, emds_6=100 * emds)


PUBLISHED: tuple[PublishedScore, ...] = (
    *_row("DeepCut", "deepcut", FULL, _DEEPCUT, ecssd=74.6, duts_te=59.5, cub=78.2),
    *_row("MinCutPool", "mincutpool", CITED, _TABULATED, kvasir_seg=73.50, cvc_clinicdb=62.10),
    *_row("MinCutPool", "mincutpool", CROP_FLIP, _UNSEGMEDGAT, isic2018=72.31, cvc_colondb=56.09),
    *_row(
        "Deep Spectral Methods",
        "deep-spectral",
        FULL,
        _SPECTRAL,
        ecssd=73.3,
        duts_te=51.4,
        cub=76.9,
    ),
    *_row(
        "Deep Spectral Methods",
        "deep-spectral",
        CITED,
        _TABULATED,
        kvasir_seg=58.80,
        cvc_clinicdb=60.48,
    ),
    *_row(
        "Deep Spectral Methods",
        "deep-spectral",
        CROP_FLIP,
        _UNSEGMEDGAT,
        isic2018=72.20,
        cvc_colondb=47.46,
    ),
    *_row(
        "ViT-KMeans",
        "vit-kmeans",
        CITED,
        _TABULATED,
        ecssd=65.76,
        duts_te=42.78,
        cub=51.86,
        kvasir_seg=66.10,
        cvc_clinicdb=62.80,
    ),
    *_row("ViT-KMeans", "vit-kmeans", CROP_FLIP, _UNSEGMEDGAT, isic2018=68.60, cvc_colondb=51.84),
    *_row(
        "UnSegGNet",
        "unseggnet",
        FLIP,
        _UNSEGGNET,
        ecssd=75.57,
        duts_te=61.04,
        cub=78.41,
        kvasir_seg=74.0,
        cvc_clinicdb=64.0,
    ),
    *_row("UnSegGNet", "unseggnet", CROP_FLIP, _UNSEGMEDGAT, isic2018=73.94, cvc_colondb=55.67),
    *_row(
        "UnSeGArmaNet",
        "unsegarmanet",
        FLIP,
        _SUPPLEMENT,
        ecssd=77.83,
        duts_te=60.3,
        cub=81.23,
        kvasir_seg=77.70,
        isic2018=78.72,
        cvc_clinicdb=63.65,
    ),
    *_row(
        "UnSeGArmaNet", "unsegarmanet", CROP_FLIP, _UNSEGMEDGAT, isic2018=73.16, cvc_colondb=59.35
    ),
    *_row("UnSegMedGAT", "unsegmedgat-isic", CROP_FLIP, _UNSEGMEDGAT, isic2018=73.75),
    *_row("UnSegMedGAT", "unsegmedgat", CROP_FLIP, _UNSEGMEDGAT, cvc_colondb=57.21),
    *_row(
        "UnSegMedGATc",
        "unsegmedgat-c",
        CROP_FLIP,
        _UNSEGMEDGAT,
        isic2018=74.76,
        cvc_colondb=65.1,
    ),
    *_row(
        "MedSAM (supervised, prompted with the true box)",
        None,
        CROP_FLIP,
        _UNSEGMEDGAT,
        isic2018=61.36,
        cvc_colondb=70.29,
    ),
    *_row("TokenCut, ViT-S/16", "tokencut", FULL, _TOKENCUT, ecssd=71.2, duts_te=57.6),
    *_row("TokenCut, ViT-S/16, bilateral", None, FULL, _TOKENCUT, ecssd=77.2, duts_te=62.4),
    *_course("NCut, GCN", "ncut-gcn", 0.622, 0.642),
    *_course("NCut, GAT", "ncut-gat", 0.388, 0.519),
    *_course("NCut, ARMA", "ncut-arma", 0.623, 0.649),
    *_course("CC, GCN", "cc-gcn", 0.434, 0.543),
    *_course("CC, GAT", "cc-gat", 0.158, 0.157),
    *_course("DMoN, GCN", "dmon-gcn", 0.363, 0.269),
    *_course("DMoN, GAT", "dmon-gat", 0.378, 0.273),
    *_course("DMoN, ARMA", "dmon-arma", 0.500, 0.453),
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
