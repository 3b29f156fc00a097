"""What distinguishes one published system from another: `Method`, and their registry.

A method is data. Everything downstream (graph, head, loop, postprocessing) reads its fields;
nothing asks for its name. A new method is a new `Method(...)`.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from unseg_jax.errors import nearest
from unseg_jax.plugs import GraphLayer, LossFunction, has_name, is_hashable, name_of

Algorithm = Literal["gnn", "kmeans", "deep-spectral", "tokencut", "spectral-ncut"]
Fit = Literal["stretch", "keep"]
Nodes = Literal["patches", "superpixels", "pixels"]
Facet = Literal["key", "query", "value", "token", "attn"]
Affinity = Literal["ncut", "cc", "dmon", "cosine", "colour"]
Layer = Literal["gcn", "gat", "arma"]
Activation = Literal["relu", "elu", "selu", "silu", "gelu"]
Loss = Literal["ncut", "cc", "modularity"]
Refine = Literal["none", "bilateral", "guided"]
Foreground = Literal["corner", "border", "centre", "attention", "set", "auto", "own"]
Quirks = Literal["paper", "code"]
Collapse = Literal["nodes", "clusters"]


@dataclasses.dataclass(frozen=True)
class Method:
    """Everything that distinguishes one system from another; hashable, so that it can be static
    under `jax.jit`.

    Example:
        >>> mine = Method("mine", affinity="cosine", tau=0.3, loss="modularity", epochs=50)
        >>> mine.size
        (224, 224)

        A loss of one's own may build on another:

        >>> def even(assignments, adjacency, *, mask):
        ...     sizes = assignments.sum(0) / mask.sum()
        ...     return us.losses.ncut(assignments, adjacency, mask=mask) + jnp.sum(sizes**2)
        >>> found = us.cluster(np.eye(6, dtype=np.float32), method=Method("even", loss=even))
        >>> found.losses.shape
        (10,)

    Attributes:
        name: the registry name, or any name for a method of your own.
        source: the paper or report that the method comes from.
        algorithm: how nodes are assigned to clusters: "gnn" optimises a graph neural network
            per image on `loss`; the others are the baselines of `unseg_jax.clustering.baselines`.
        nodes: what a node is: ViT patches, SLIC superpixels, or pixels of a reduced image.
        backbone: a name of `list_backbones()`, "auto", or a path to weights.
        facet: which ViT activations are the features; None is the backbone's own default.
        block: the ViT block that the facet is taken from, counted from 0; negative from the end.
        log_bin: whether features are log-binned descriptors (17 times as wide).
        image_size: side in pixels, or (height, width), that images are resized to.
        fit: how an image is brought to that size: "stretch" whatever its shape, or "keep", which
            keeps its aspect ratio with about as many patches (`unseg_jax.data.framing`).
        tile: side in pixels of the tiles that a large image is cut into, each seen at
            `image_size`; 0 sees the image whole. Of "collective" alone.
        stride: pixels between patches; None is the backbone's patch size.
        affinity: how W is computed from the features (see `unseg_jax.clustering.graphs.affinity`).
        tau: threshold of the affinity; raw units for "ncut", cosine for "dmon" and "cosine".
        alpha: "cc" subtracts max(FFᵀ)/alpha.
        neighbours: keep each node's this many strongest edges (made symmetric); 0 keeps all.
        spatial_decay: standard deviation, in patches, of a Gaussian decay of the affinity with
            the distance on the grid; 0 is none.
        layer: kind of graph layer: "gcn", "gat", "arma", or an object of your own with the
            methods `init`, `prepare` and `apply` of `unseg_jax.plugs.GraphLayer`.
        branches: widths of the graph layers of each parallel branch. The outputs of all but
            the first branch are projected to the first one's width and summed.
        normalise: whether "gcn" normalises the positive affinities by their degrees and adds
            self-loops where there are none.
        heads: attention heads of "gat", concatenated.
        edge_features: whether "gat" sees the edge weights as 1-d edge features. (The published
            code of UnSegMedGAT hands them over in a place where they are ignored.)
        stacks, arma_layers: shape of "arma".
        arma_shared: whether all layers of an "arma" stack have one weight.
        activation: after the graph part; also between and inside graph layers and in the
            multilayer perceptron, unless the next two say otherwise.
        inner_activation, mlp_activation: see `activation`.
        mlp_width: width of the hidden linear layer.
        dropout: rate after the hidden linear layer and the branch projections.
        layer_dropout: rate inside the graph part (features between layers and attention of
            "gat", root term of "arma", features between layers of "gcn").
        loss: the graph loss: "ncut", "cc", "modularity", or a function of your own,
            loss(assignments, adjacency, mask=mask) → () float32, as
            `unseg_jax.plugs.LossFunction` says and as those of `unseg_jax.losses` are. It is
            traced by JAX, once for each function: two that are equal in text are two programs.
        collapse: what the modularity's collapse term sums S over.
        num_clusters: K, or the most clusters that may be found for "cc".
        epochs: optimisation steps per image.
        learning_rate, weight_decay: of AdamW.
        collective_epochs: T0, shared passes over the data set before the per-image epochs.
        collective_steps: steps per image in each shared pass.
        parts: clusters that the foreground is cut into in a second stage; 0 is one stage.
        parts_epochs: optimisation steps of that stage.
        background_parts, background_epochs: the same for the background.
        foreground: which rule decides what is foreground (`unseg_jax.postprocess.vote`); "own"
            where the algorithm decides that itself and labels the background 0.
        largest_component: whether the mask is only the largest 4-connected component.
        refine: edge refinement of the mask: by the bilateral solver, or by a guided filter (which
            "collective" gives its soft maps to).
        sigma_spatial, sigma_luma, sigma_chroma: bandwidths of the bilateral grid, in pixels
            and in grey levels of YUV.
        quirks: "paper", or "code" to follow the published code bit for bit.
        code_overrides: the fields in which the published code differs from the paper, as pairs.
    """

    name: str
    source: str = ""
    algorithm: Algorithm = "gnn"
    nodes: Nodes = "patches"
    backbone: str = "auto"
    facet: Facet | None = None
    block: int = -1
    log_bin: bool = False
    image_size: int | tuple[int, int] = 224
    fit: Fit = "stretch"
    tile: int = 0
    stride: int | None = None
    affinity: Affinity = "ncut"
    tau: float = 0.0
    alpha: float = 3.0
    neighbours: int = 0
    spatial_decay: float = 0.0
    layer: Layer | GraphLayer = "gcn"
    branches: tuple[tuple[int, ...], ...] = ((64,),)
    normalise: bool = True
    heads: int = 1
    edge_features: bool = True
    stacks: int = 1
    arma_layers: int = 1
    arma_shared: bool = False
    activation: Activation = "elu"
    inner_activation: Activation | None = None
    mlp_activation: Activation | None = None
    mlp_width: int = 32
    dropout: float = 0.25
    layer_dropout: float = 0.0
    loss: Loss | LossFunction = "ncut"
    collapse: Collapse = "nodes"
    num_clusters: int = 2
    epochs: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    collective_epochs: int = 0
    collective_steps: int = 5
    parts: int = 0
    parts_epochs: int = 100
    background_parts: int = 0
    background_epochs: int = 10
    foreground: Foreground = "corner"
    largest_component: bool = False
    refine: Refine = "none"
    sigma_spatial: float = 24.0
    sigma_luma: float = 4.0
    sigma_chroma: float = 4.0
    quirks: Quirks = "paper"
    code_overrides: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        """The fields that differ from the defaults; functions by their names, not addresses."""
        shown = [repr(self.name)]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                shown.append(f"{field.name}={_shown(value)}")
        return f"Method({', '.join(shown)})"

    @property
    def own_parts(self) -> dict[str, Any]:
        """The loss and the layer, by field, where they are the user's own and not named ones."""
        parts = {"loss": self.loss, "layer": self.layer}
        return {field: part for field, part in parts.items() if not isinstance(part, str)}

    @property
    def feature_key(self) -> tuple:
        """Methods with equal keys can share one pass of the backbone."""
        return (
            self.nodes,
            self.backbone,
            self.facet,
            self.block,
            self.log_bin,
            self.size,
            self.fit,
            self.stride,
        )

    @property
    def learns_from_set(self) -> bool:
        """Whether a model is fitted on a whole set of images before any one is segmented."""
        return self.foreground == "set" or self.collective_epochs > 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that images are resized to."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


class _Rule(NamedTuple):
    """What a field may hold: a test of values, and the words that say what failed it."""

    test: Callable[[Any], bool]
    words: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _are_positive(values: Any, length: int | None = None) -> bool:
    """Whether it is a tuple (of that length) of positive whole numbers."""
    if not isinstance(values, tuple) or not values or length not in (None, len(values)):
        return False
    return all(_is_whole(value) and value > 0 for value in values)


def _choice(kind: Any, *, optional: bool = False) -> _Rule:
    choices = get_args(kind)
    return _Rule(
        lambda value: value in choices or (optional and value is None),
        f"is not one of {', '.join(choices)}",
    )


def _choice_or_own(kind: Any, is_own: Callable[[Any], bool], words: str) -> _Rule:
    choices = get_args(kind)

    def test(value):
        return value in choices if isinstance(value, str) else is_own(value) and is_hashable(value)

    return _Rule(test, f"is not one of {', '.join(choices)}, nor {words}")


def _is_layer(value: Any) -> bool:
    return isinstance(value, GraphLayer) and not isinstance(value, type)


def _at_least(least: int) -> _Rule:
    words = f"must be a whole number of at least {least}"
    return _Rule(lambda value: _is_whole(value) and value >= least, words)


_TEXT = _Rule(lambda value: isinstance(value, str), "must be a text")
_SWITCH = _Rule(lambda value: isinstance(value, bool), "must be True or False")
_ABOVE_0 = _Rule(lambda value: _is_number(value) and value > 0, "must be a number above 0")
_FROM_0 = _Rule(lambda value: _is_number(value) and value >= 0, "must be a number of at least 0")
_RATE = _Rule(lambda value: _is_number(value) and 0 <= value < 1, "must lie in [0, 1)")

# Field → what it may hold. All fields that can be overridden are here.
_RULES: dict[str, _Rule] = {
    "algorithm": _choice(Algorithm),
    "nodes": _choice(Nodes),
    "backbone": _TEXT,
    "facet": _choice(Facet, optional=True),
    "block": _Rule(_is_whole, "must be a whole number"),
    "log_bin": _SWITCH,
    "image_size": _Rule(
        lambda value: _are_positive((value,)) or _are_positive(value, 2),
        "must be a side in pixels or a pair (height, width)",
    ),
    "fit": _choice(Fit),
    "tile": _at_least(0),
    "stride": _at_least(1),
    "affinity": _choice(Affinity),
    "tau": _FROM_0,
    "alpha": _ABOVE_0,
    "neighbours": _at_least(0),
    "spatial_decay": _FROM_0,
    "layer": _choice_or_own(
        Layer, _is_layer, "a hashable object with the methods init, prepare and apply"
    ),
    "branches": _Rule(
        lambda value: isinstance(value, tuple) and value != () and all(map(_are_positive, value)),
        "must name at least one positive width per branch, such as ((64, 64), (128,))",
    ),
    "normalise": _SWITCH,
    "heads": _at_least(1),
    "edge_features": _SWITCH,
    "stacks": _at_least(1),
    "arma_layers": _at_least(1),
    "arma_shared": _SWITCH,
    "activation": _choice(Activation),
    "inner_activation": _choice(Activation, optional=True),
    "mlp_activation": _choice(Activation, optional=True),
    "mlp_width": _at_least(1),
    "dropout": _RATE,
    "layer_dropout": _RATE,
    "loss": _choice_or_own(
        Loss, callable, "a hashable function (assignments, adjacency, mask=mask)"
    ),
    "collapse": _choice(Collapse),
    "num_clusters": _at_least(1),
    "epochs": _at_least(0),
    "learning_rate": _FROM_0,
    "weight_decay": _FROM_0,
    "collective_epochs": _at_least(0),
    "collective_steps": _at_least(1),
    "parts": _at_least(0),
    "parts_epochs": _at_least(0),
    "background_parts": _at_least(0),
    "background_epochs": _at_least(0),
    "foreground": _choice(Foreground),
    "largest_component": _SWITCH,
    "refine": _choice(Refine),
    "sigma_spatial": _ABOVE_0,
    "sigma_luma": _ABOVE_0,
    "sigma_chroma": _ABOVE_0,
    "quirks": _choice(Quirks),
}
_CC_ARMA = (
    "ARMA's propagation divides by the square roots of degrees, which the negative affinities of "
    "correlation clustering leave undefined; take 'cc-gcn' or 'cc-gat', or, to propagate over the "
    "positive affinities alone, 'cc-gcn' with layer='arma'."
)


def override(method: Method, **overrides: Any) -> Method:
    """Returns the method with fields replaced.

    `quirks="code"` also takes over the fields in which the published code differs from the
    paper, unless they are overridden too. `dropout` sets every rate, unless `layer_dropout` is
    given as well. Overrides that are None leave their field as it is.

    Example:
        >>> override(METHODS["deepcut"], epochs=20).epochs
        20
        >>> override(METHODS["unsegmedgat"], quirks="code").tau
        0.5

    Raises:
        ValueError: an unknown field (the nearest name is suggested) or a value out of range.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    for name in overrides:
        if name not in _RULES:
            raise ValueError(f"Method has no field '{name}'; {nearest(name, _RULES)}")
    if "dropout" in overrides:
        overrides.setdefault("layer_dropout", overrides["dropout"])
    if overrides.get("quirks") == "code" and method.quirks != "code":
        overrides = {**dict(method.code_overrides), **overrides}
    overrides = {name: _plain(value) for name, value in overrides.items()}
    # A `Method` is not tested where it is made. These two are read by more than one branch: an
    # unknown name would run as another loss or layer.
    for name, value in {"layer": method.layer, "loss": method.loss, **overrides}.items():
        if not _RULES[name].test(value):
            raise ValueError(f"{name}={_shown(value)} {_RULES[name].words}.")
    return dataclasses.replace(method, **overrides)


def plain_fields(method: Method) -> dict[str, Any]:
    """Its fields by name, as `dataclasses.asdict`, with a loss and layer of one's own by name.

    Example:
        >>> plain_fields(Method("mine", loss=us.losses.ncut))["loss"]
        'unseg_jax.clustering.losses.ncut'

    Raises:
        ValueError: a lambda, a function in a function, or an object with values without a name.
    """
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    for field, part in method.own_parts.items():
        if not has_name(part):
            raise ValueError(
                f"{field}={name_of(part)} has no name to know it by again: write it with def or as "
                "a frozen dataclass, at the top of a module."
            )
        fields[field] = name_of(part)
    return fields


def check_writable(method: Method) -> None:
    """Raises ValueError if a file with a model cannot say what its method is."""
    for field, part in method.own_parts.items():
        raise ValueError(
            f"{field}='{name_of(part)}' is your own, and a file with a model holds names of this "
            f"library's alone: keep the model in memory, or fit it with a named {field}."
        )


def _shown(value: Any) -> str:
    return name_of(value) if callable(value) or isinstance(value, GraphLayer) else repr(value)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, and lists as tuples, which can be hashed."""
    if type(value) in (list, tuple):
        return tuple(_plain(item) for item in value)
    item = getattr(value, "item", None)
    return item() if item is not None and isinstance(value, numbers.Number) else value


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


_DEEPCUT = "Aflalo et al., DeepCut, ICCV 2023"
_UNSEGGNET = "Reddy et al., UnSegGNet, arXiv:2405.06057"
_UNSEGARMANET = "Reddy et al., UnSeGArmaNet, arXiv:2410.06114"
_UNSEGMEDGAT = "Adityaja et al., UnSegMedGAT, 2024"
_COURSE = "Fellah et al., course project on UnSegGNet, UnSeGArmaNet and DeepCut"
_PIXELS = "Charles and Sisouphanthong, DeepCut on superpixels (course project)"

_MEDGAT = Method(
    "unsegmedgat",
    _UNSEGMEDGAT,
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
        image_size=280,
        inner_activation="relu",
        largest_component=True,
        code_overrides=(("largest_component", False),),
    ),
    Method(
        "deepcut-cc",
        _DEEPCUT,
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
        backbone="dinov2_vits14_focus",  # with which its scores were measured
        image_size=392,
        fit="keep",
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
    Method(
        "slic-ncut",
        _PIXELS,
        nodes="superpixels",
        image_size=256,
        affinity="colour",
        alpha=255.0,
        branches=((1024,),),
        mlp_width=512,
        num_clusters=5,
        epochs=500,
    ),
    Method(
        "pixel-ncut",
        _PIXELS,
        nodes="pixels",
        image_size=256,
        affinity="colour",
        alpha=255.0,
        branches=((1024,),),
        mlp_width=512,
        num_clusters=5,
        epochs=500,
    ),
    Method("vit-kmeans", "k-means on ViT features", algorithm="kmeans"),
    Method(
        "deep-spectral",
        "Melas-Kyriazi et al., Deep Spectral Methods, CVPR 2022",
        algorithm="deep-spectral",
        foreground="border",
        # The published code normalises the features first.
        code_overrides=(("affinity", "cosine"),),
    ),
    Method(
        "tokencut",
        "Wang et al., TokenCut, CVPR 2022",
        algorithm="tokencut",
        tau=0.2,
        foreground="own",
        largest_component=True,
    ),
    Method(
        "spectral-ncut",
        "Shi and Malik, Normalized cuts and image segmentation, PAMI 2000",
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

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "recommended": ("collective",),
        "published": tuple(
            method.name
            for method in _ALL
            if method.algorithm == "gnn"
            and method.source not in (_COURSE, _PIXELS)
            and method.name != "collective"
        ),
        "grid": tuple(method.name for method in _ALL if method.source in (_COURSE, _PIXELS)),
        "baselines": tuple(method.name for method in _ALL if method.algorithm != "gnn"),
    }
)
"""How methods are listed: group → names. The grid is every loss with every layer, and graphs of
superpixels and pixels."""
