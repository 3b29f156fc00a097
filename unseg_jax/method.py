"""What distinguishes one published system from another: `Method`.

A method is data. Everything downstream (graph, head, loop, postprocessing) reads its fields;
nothing asks for its name. A new method is a new `Method(...)`, in `unseg_jax.registry`.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from unseg_jax.custom import GraphLayer, LossFunction, has_name, is_hashable, name_of
from unseg_jax.errors import nearest

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
            methods `init`, `prepare` and `apply` of `unseg_jax.custom.GraphLayer`.
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
            `unseg_jax.custom.LossFunction` says and as those of `unseg_jax.losses` are. It is
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


def override(method: Method, **overrides: Any) -> Method:
    """Returns the method with fields replaced.

    `quirks="code"` also takes over the fields in which the published code differs from the
    paper, unless they are overridden too. `dropout` sets every rate, unless `layer_dropout` is
    given as well. Overrides that are None leave their field as it is.

    Example:
        >>> from unseg_jax.registry import METHODS
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
