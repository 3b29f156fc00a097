"""Which methods there are: `METHODS`, their groups, and how one is found by its name."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from unseg_jax.errors import nearest
from unseg_jax.method import Group, Layer, Loss, Method, override

_CC_ARMA = (
    "ARMA's propagation divides by the square roots of degrees, which the negative affinities of "
    "correlation clustering leave undefined; take 'cc-gcn' or 'cc-gat', or, to propagate over the "
    "positive affinities alone, 'cc-gcn' with layer='arma'."
)


def resolve(method: str | Method, **overrides: Any) -> Method:
    """The method of that name (or the given one) with overrides applied.

    Raises:
        ValueError: an unknown name, field or value.
    """
    if isinstance(method, str):
        if method == "cc-arma":
            raise ValueError(f"there is no method 'cc-arma': {_CC_ARMA}")
        if method not in METHODS:
            raise ValueError(f"unknown method '{method}'; {nearest(method, METHODS)}")
        method = METHODS[method]
    return override(method, **overrides)


def list_methods() -> list[str]:
    """Names that `Segmenter`, `segment`, `cluster` and the command line accept.

    Example:
        >>> list_methods()[:3]
        ['deepcut', 'deepcut-cc', 'unseggnet']
    """
    return list(METHODS)


ELSEWHERE = {
    "page": "pass unseg_jax.data.Page(path, number) as an image",
    "key": "pass seed=",
    "batching": "the command line takes what suits the platform",
    "on_image": "call unseg_jax.fit, which reports the images it reads",
}
"""Options of other entry points, and what to do instead."""


def refuse_sets(method: Method) -> None:
    """Raises ValueError for a method that is fitted on a set, where there is none."""
    if method.foreground == "set":
        raise ValueError(
            f"'{method.name}' finds the foreground in a whole set: fit it first with "
            f"unseg_jax.fit(images, method='{method.name}'), or call unseg_jax.segment."
        )


def refuse_options(asked: Iterable[str], reasons: Mapping[str, str]) -> None:
    """Raises ValueError for an option of another entry point, with the reason."""
    for name in asked:
        if name in reasons:
            raise ValueError(f"{name}= is no option here: {reasons[name]}.")


_DEEPCUT = "Aflalo et al., DeepCut, ICCV 2023"
_UNSEGGNET = "Reddy et al., UnSegGNet, arXiv:2405.06057"
_UNSEGARMANET = "Reddy et al., UnSeGArmaNet, arXiv:2410.06114"
_UNSEGMEDGAT = "Adityaja et al., UnSegMedGAT, 2024"
_COURSE = "Fellah et al., course project on UnSegGNet, UnSeGArmaNet and DeepCut"
_PIXELS = "Charles and Sisouphanthong, DeepCut on superpixels (course project)"

_MEDGAT = Method(
    "unsegmedgat",
    _UNSEGMEDGAT,
    group="published",
    stride=4,
    affinity="cosine",
    tau=0.3,
    layer="gat",
    branches=((64, 64), (128, 128)),
    activation="silu",
    dropout=0.2,
    layer_dropout=0.2,
    loss="modularity",
    epochs=60,
    sigma_spatial=11.0,
    sigma_luma=5.0,
    sigma_chroma=5.0,
    code_overrides=(
        ("tau", 0.5),
        ("epochs", 55),
        ("learning_rate", 1e-4),
        ("edge_features", False),
    ),
)


def _regions(name: str, nodes: Any) -> Method:
    """DeepCut on [R, G, B, y, x] of superpixels or pixels."""
    return Method(
        name,
        _PIXELS,
        group="regions",
        nodes=nodes,
        image_size=256,
        affinity="colour",
        alpha=255.0,
        branches=((1024,),),
        mlp_width=512,
        num_clusters=5,
        epochs=500,
    )


def _course(loss: Loss, layer: Layer) -> Method:
    """One cell of the course project's grid: one graph layer, SiLU, linear, ELU, linear.

    The report gives no widths, stacks or learning rate: DeepCut's widths and rate and the
    layers' usual defaults stand in.

    The report's GCN for correlation clustering propagates over unnormalised affinities. These sum
    to thousands in a row, and the head does not learn from them: honest mIoU on 40 images of four
    development sets is .18, .12, .02 and .01 (horses, ISIC-2018, Kvasir-SEG, CVC-ClinicDB). So
    by default the positive affinities are normalised, as they are for every other layer: .68, .36,
    .26 and .22. `quirks="code"` gives the report's form.
    """
    return Method(
        f"{'dmon' if loss == 'modularity' else loss}-{layer}",
        _COURSE,
        group="grid",
        affinity="dmon" if loss == "modularity" else loss,
        tau=0.7 if loss == "modularity" else 0.0,
        alpha=5.0,
        layer=layer,
        activation="silu",
        inner_activation="relu",
        mlp_activation="elu",
        dropout=0.0,
        loss=loss,
        epochs=100,
        code_overrides=(("normalise", False),) if (loss, layer) == ("cc", "gcn") else (),
    )


_ALL = (
    Method(
        "deepcut",
        _DEEPCUT,
        group="published",
        image_size=280,
        inner_activation="relu",
        largest_component=True,
        code_overrides=(("largest_component", False),),
    ),
    Method(
        "deepcut-cc",
        _DEEPCUT,
        group="published",
        image_size=280,
        affinity="cc",
        loss="cc",
        num_clusters=10,
        largest_component=True,
        code_overrides=(("largest_component", False),),
    ),
    Method(
        "unseggnet",
        _UNSEGGNET,
        group="published",
        stride=4,
        affinity="dmon",
        tau=0.5,
        branches=((64, 64),),
        activation="silu",
        loss="modularity",
        epochs=100,
        code_overrides=(("branches", ((64,),)), ("epochs", 20), ("collapse", "clusters")),
    ),
    Method(
        "unsegarmanet",
        _UNSEGARMANET,
        group="published",
        stride=4,
        affinity="dmon",
        tau=0.5,
        layer="arma",
        stacks=2,
        arma_layers=4,
        activation="silu",
        layer_dropout=0.4,
        loss="modularity",
        epochs=100,
        code_overrides=(("epochs", 20), ("collapse", "clusters")),
    ),
    _MEDGAT,
    dataclasses.replace(
        _MEDGAT,
        name="unsegmedgat-isic",
        branches=((32,), (64,), (128,)),
        epochs=300,
        code_overrides=(
            ("tau", 0.35),
            ("epochs", 55),
            ("learning_rate", 1e-4),
            ("edge_features", False),
        ),
    ),
    dataclasses.replace(_MEDGAT, name="unsegmedgat-c", collective_epochs=5, epochs=5),
    # Fitted on a set with `unseg_jax.fit`; a single image does not settle its foreground.
    Method(
        "collective",
        "this library: one head for a set of images",
        group="recommended",
        backbone="dinov2_vits14_focus",  # with which its scores were measured
        image_size=392,
        resize="keep",
        affinity="cosine",
        tau=0.2,
        dropout=0.0,
        epochs=0,
        foreground="set",
        refine="guided",
    ),
    Method(
        "mincutpool",
        "Bianchi et al., Spectral clustering with GNNs for graph pooling, ICML 2020",
        group="published",
        image_size=224,
        stride=4,
        epochs=100,
    ),
    *(
        _course(loss, layer)
        for loss in ("ncut", "cc", "modularity")
        for layer in ("gcn", "gat", "arma")
        if (loss, layer) != ("cc", "arma")
    ),
    _regions("slic-ncut", "superpixels"),
    _regions("pixel-ncut", "pixels"),
    Method("vit-kmeans", "k-means on ViT features", group="baselines", algorithm="kmeans"),
    Method(
        "deep-spectral",
        "Melas-Kyriazi et al., Deep Spectral Methods, CVPR 2022",
        group="baselines",
        algorithm="deep-spectral",
        foreground="border",
        # The published code normalises the features first.
        code_overrides=(("affinity", "cosine"),),
    ),
    Method(
        "tokencut",
        "Wang et al., TokenCut, CVPR 2022",
        group="baselines",
        algorithm="tokencut",
        tau=0.2,
        foreground="own",
        largest_component=True,
    ),
    Method(
        "spectral-ncut",
        "Shi and Malik, Normalized cuts and image segmentation, PAMI 2000",
        group="baselines",
        algorithm="spectral-ncut",
        nodes="superpixels",
        image_size=256,
        affinity="colour",
        alpha=255.0,
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""The registry: name → `Method`. There is no `cc-arma`: ARMA's propagation divides by the square
roots of the degrees, which the negative affinities of correlation clustering leave undefined."""

TITLES: Mapping[Group, str] = MappingProxyType(
    {
        "recommended": "recommended",
        "published": "published",
        "grid": "grid: every loss with every layer",
        "regions": "regions: graphs of superpixels and of pixels",
        "baselines": "baselines",
    }
)
"""The groups that methods are listed in, and what each is called."""

GROUPS: Mapping[Group, tuple[str, ...]] = MappingProxyType(
    {group: tuple(method.name for method in _ALL if method.group == group) for group in TITLES}
)
"""Group → names of its methods."""
