"""What distinguishes one published system from another: `Method`.

A method is data. Everything downstream (graph, head, loop, postprocessing) reads its fields;
nothing asks for its name. A new method is a new `Method(...)`, in `unseg_jax.registry`.

A field is said once, in its annotation: its type, what it may hold beyond that, and the words
that the command line and the documentation explain it with.
"""

import dataclasses
import numbers
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from unseg_jax.custom import GraphLayer, LossFunction, has_name, is_hashable, name_of
from unseg_jax.errors import closest, nearest, printable

Group = Literal["recommended", "published", "grid", "regions", "baselines", "custom"]
Algorithm = Literal["gnn", "kmeans", "deep-spectral", "tokencut", "spectral-ncut"]
Resize = Literal["stretch", "keep"]
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


class Rule(NamedTuple):
    """What a field may hold: a test of values, the words for what fails it, and named choices."""

    test: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def _are_positive(values: Any, length: int | None = None) -> bool:
    """Whether it is a tuple (of that length) of positive whole numbers."""
    if not isinstance(values, tuple) or not values or length not in (None, len(values)):
        return False
    return all(_is_whole(value) and value > 0 for value in values)


def _choice(choices: tuple[str, ...], own: Callable[[Any], bool] | None = None, words: str = ""):
    def test(value):
        if isinstance(value, str):
            return value in choices
        return own is not None and own(value) and is_hashable(value)

    return Rule(test, f"is not one of {', '.join(choices)}{words}", choices)


_ABOVE_0 = Rule(lambda value: _is_number(value) and value > 0, "must be a number above 0")
_FROM_0 = Rule(lambda value: _is_number(value) and value >= 0, "must be a number of at least 0")
_RATE = Rule(lambda value: _is_number(value) and 0 <= value < 1, "must lie in [0, 1)")
_COUNT = Rule(lambda value: _is_whole(value) and value >= 0, "must be a whole number of at least 0")
_FROM_1 = Rule(
    lambda value: _is_whole(value) and value >= 1, "must be a whole number of at least 1"
)
# Fields that go with images seen at one size alone.
_ONE_SIZE = ("tile", "stride", "log_bin", "epochs", "collective_epochs")
_SCALES = Rule(lambda value: _is_whole(value) and value in (1, 2), "must be 1 or 2")
_SIZE = Rule(
    lambda value: _are_positive((value,)) or _are_positive(value, 2),
    "must be a side in pixels or a pair (height, width)",
)
_BLOCKS = Rule(
    lambda value: (
        value != () and all(map(_is_whole, value if isinstance(value, tuple) else [value]))
    ),
    "must be a whole number, or a tuple of them",
)
_BRANCHES = Rule(
    lambda value: isinstance(value, tuple) and value != () and all(map(_are_positive, value)),
    "must name at least one positive width per branch, such as ((64, 64), (128,))",
)
_LAYER = _choice(
    get_args(Layer),
    lambda value: isinstance(value, GraphLayer) and not isinstance(value, type),
    ", nor a hashable object with the methods init, prepare and apply",
)
_LOSS = _choice(
    get_args(Loss), callable, ", nor a hashable function (assignments, adjacency, mask=mask)"
)
_PAIRS = Rule(lambda value: _are_overrides(value), "must be pairs of a field and a value of it")
_OF_TYPE = {
    bool: Rule(lambda value: isinstance(value, bool), "must be True or False"),
    int: Rule(_is_whole, "must be a whole number"),
    str: Rule(lambda value: isinstance(value, str), "must be a string"),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """Everything that distinguishes one system from another; hashable, so that it can be static
    under `jax.jit`.

    Example:
        >>> mine = Method("mine", affinity="cosine", tau=0.3, loss="modularity", epochs=50)
        >>> mine.size
        (224, 224)

        A loss of your own may build on another:

        >>> def even(assignments, adjacency, *, mask):
        ...     sizes = assignments.sum(0) / mask.sum()
        ...     return us.losses.ncut(assignments, adjacency, mask=mask) + jnp.sum(sizes**2)
        >>> found = us.cluster(np.eye(6, dtype=np.float32), method=Method("even", loss=even))
        >>> found.losses.shape
        (10,)

    Raises:
        ValueError: a value that its field cannot hold, or fields that contradict one another.
    """

    name: Annotated[str, "The registry name, or any name for a method of your own."]
    source: Annotated[str, "The paper or report that the method comes from."] = ""
    algorithm: Annotated[
        Algorithm,
        'How nodes are assigned to clusters: "gnn" optimises a graph neural network per image on '
        "`loss`; the others are the baselines of `unseg_jax.clustering.baselines`.",
    ] = "gnn"
    nodes: Annotated[
        Nodes, "What a node is: ViT patches, SLIC superpixels, or pixels of a reduced image."
    ] = "patches"
    backbone: Annotated[str, 'A name of `list_backbones()`, "auto", or a path to weights.'] = "auto"
    facet: Annotated[
        Facet | None, "Which ViT activations are the features (default: the backbone's own)."
    ] = None
    block: Annotated[
        int | tuple[int, ...],
        _BLOCKS,
        "The ViT block of the facet, counted from 0, or from the end if negative. Of several the "
        "facets are concatenated.",
    ] = -1
    log_bin: Annotated[bool, "Whether features are log-binned descriptors (17 times as wide)."] = (
        False
    )
    image_size: Annotated[
        int | tuple[int, int],
        _SIZE,
        "Size in pixels that images are resized to: one side, or height and width.",
    ] = 224
    resize: Annotated[
        Resize,
        'How an image is resized: "stretch" ignores its aspect ratio, "keep" keeps it, with about '
        "as many patches.",
    ] = "stretch"
    scales: Annotated[
        int,
        _SCALES,
        "At how many sizes the backbone sees an image: 2 is also at twice `image_size`, for small "
        "objects, which takes about ten times as long. Only for methods that find the foreground "
        "in a set.",
    ] = 1
    tile: Annotated[
        int,
        _COUNT,
        "Cut large images into tiles of this side in pixels, to find small objects; 0 never does "
        '(by default "auto" does where it found little). Each tile is resized to `image_size`. '
        "Only for methods that find the foreground in a set.",
    ] = 0
    stride: Annotated[
        int | None, _FROM_1, "Pixels between patches (default: the backbone's patch size)."
    ] = None
    affinity: Annotated[
        Affinity,
        "How W is computed from the features, see `unseg_jax.clustering.graphs.affinity`.",
    ] = "ncut"
    tau: Annotated[
        float, _FROM_0, 'Threshold of the affinity: a product for "ncut", else a cosine.'
    ] = 0.0
    alpha: Annotated[
        float,
        _ABOVE_0,
        'The affinity "cc" subtracts max(FFᵀ)/alpha; "colour" divides squared distances by it.',
    ] = 3.0
    neighbours: Annotated[
        int, _COUNT, "Keep each node's this many strongest edges (made symmetric); 0 keeps all."
    ] = 0
    spatial_decay: Annotated[
        float,
        _FROM_0,
        "Standard deviation, in patches, of a Gaussian decay of the affinity with the distance on "
        "the grid; 0 is none.",
    ] = 0.0
    layer: Annotated[
        Layer | GraphLayer,
        _LAYER,
        "Kind of graph layer. Or an object of your own with the methods `init`, `prepare` and "
        "`apply` of `unseg_jax.custom.GraphLayer`.",
    ] = "gcn"
    branches: Annotated[
        tuple[tuple[int, ...], ...],
        _BRANCHES,
        "Widths of the graph layers of each parallel branch. The outputs of all but the first "
        "branch are projected to the first one's width and summed.",
    ] = ((64,),)
    normalise: Annotated[
        bool,
        'Whether "gcn" normalises the positive affinities by their degrees and adds self-loops '
        "where there are none.",
    ] = True
    heads: Annotated[int, _FROM_1, 'Attention heads of "gat", concatenated.'] = 1
    edge_features: Annotated[
        bool,
        'Whether "gat" sees the edge weights as features. The published code of UnSegMedGAT hands '
        "them over in a place where they are ignored.",
    ] = True
    stacks: Annotated[int, _FROM_1, 'Parallel stacks of "arma", averaged.'] = 1
    arma_layers: Annotated[int, _FROM_1, 'Layers of each stack of "arma".'] = 1
    arma_shared: Annotated[bool, 'Whether all layers of an "arma" stack have one weight.'] = False
    activation: Annotated[
        Activation,
        "After the graph part. Also between and inside graph layers and in the multilayer "
        "perceptron, unless the next two say otherwise.",
    ] = "elu"
    inner_activation: Annotated[Activation | None, "Between and inside graph layers."] = None
    mlp_activation: Annotated[Activation | None, "In the multilayer perceptron."] = None
    mlp_width: Annotated[int, _FROM_1, "Width of the hidden linear layer."] = 32
    dropout: Annotated[
        float,
        _RATE,
        "Dropout rate after the hidden linear layer and the branch projections. As an override, of "
        "all dropout.",
    ] = 0.25
    layer_dropout: Annotated[
        float,
        _RATE,
        'Rate inside the graph part: features between layers, attention of "gat", root term of '
        '"arma".',
    ] = 0.0
    loss: Annotated[
        Loss | LossFunction,
        _LOSS,
        "The graph loss. Or a function of your own, loss(assignments, adjacency, mask=mask) → () "
        "float32, as `unseg_jax.custom.LossFunction` says; JAX traces it once, and two that are "
        "equal in text are two programs.",
    ] = "ncut"
    collapse: Annotated[Collapse, "What the modularity's collapse term sums S over."] = "nodes"
    num_clusters: Annotated[
        int, _FROM_1, 'Number of clusters K; with the loss "cc" the most that may be found.'
    ] = 2
    epochs: Annotated[int, _COUNT, "Optimisation steps per image."] = 10
    learning_rate: Annotated[float, _FROM_0, "Learning rate of AdamW."] = 1e-3
    weight_decay: Annotated[float, _FROM_0, "Weight decay of AdamW."] = 0.01
    collective_epochs: Annotated[
        int, _COUNT, "T0, shared passes over the data set before the per-image epochs."
    ] = 0
    collective_steps: Annotated[int, _FROM_1, "Steps per image in each shared pass."] = 5
    parts: Annotated[
        int, _COUNT, "Split the object into this many parts in a second stage; 0 skips it."
    ] = 0
    parts_epochs: Annotated[int, _COUNT, "Optimisation steps of that stage."] = 100
    background_parts: Annotated[
        int, _COUNT, "With parts: split the background into this many as well."
    ] = 0
    background_epochs: Annotated[int, _COUNT, "Optimisation steps of that split."] = 10
    foreground: Annotated[
        Foreground,
        'Rule that tells the object from the background. "set" decides for a whole set; "own" is '
        "for algorithms that label the background 0 themselves.",
    ] = "corner"
    largest_component: Annotated[
        bool, "Whether the mask is only the largest 4-connected component."
    ] = False
    refine: Annotated[
        Refine,
        "How the edges of the mask are refined: by the bilateral solver, or by a guided filter (on "
        'the soft map, in "collective").',
    ] = "none"
    sigma_spatial: Annotated[float, _ABOVE_0, "Bandwidth of the bilateral grid in pixels."] = 24.0
    sigma_luma: Annotated[float, _ABOVE_0, "Its bandwidth in grey levels of Y."] = 4.0
    sigma_chroma: Annotated[float, _ABOVE_0, "Its bandwidth in levels of U and V."] = 4.0
    quirks: Annotated[
        Quirks, 'Follow the paper, or with "code" the published code bit for bit.'
    ] = "paper"
    code_overrides: Annotated[
        tuple[tuple[str, Any], ...],
        _PAIRS,
        "The fields in which the published code differs from the paper, as pairs.",
    ] = ()
    group: Annotated[Group, "Where lists of methods show it."] = dataclasses.field(
        default="custom", compare=False
    )

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            value = _plain(getattr(self, name))
            object.__setattr__(self, name, value)
            field.check(value)
        _check_together(self)

    def __repr__(self) -> str:
        """The fields that differ from the defaults; functions by their names, not addresses."""
        shown = [repr(self.name)]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if field.compare and value != field.default:
                shown.append(f"{field.name}={_shown(value)}")
        return f"Method({', '.join(shown)})"

    @property
    def own_parts(self) -> dict[str, Any]:
        """The loss and the layer, by field, where they are the user's own and not named ones."""
        parts = {"loss": self.loss, "layer": self.layer}
        return {field: part for field, part in parts.items() if not isinstance(part, str)}

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks of the facet, where there is one too."""
        return self.block if isinstance(self.block, tuple) else (self.block,)

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
            self.resize,
            self.stride,
            self.scales,
        )

    @property
    def takes_scales(self) -> bool:
        """Whether it can see images at two sizes, see `scales`."""
        return self.foreground == "set" and not any(getattr(self, name) for name in _ONE_SIZE)

    @property
    def feature_parts(self) -> int:
        """How many times as wide the features that are kept of an image are as those of one block:
        at twice the size, four patches lie in one."""
        return len(self.blocks) * (1 + 4 * (self.scales - 1))

    @property
    def fit(self) -> Resize:
        """The earlier name of `resize`, kept for one release."""
        return self.resize

    @property
    def learns_from_set(self) -> bool:
        """Whether a model is fitted on a whole set of images before any one is segmented."""
        return self.foreground == "set" or self.collective_epochs > 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that images are resized to."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


class Field(NamedTuple):
    """A field of `Method`, as its annotation says it.

    Attributes:
        name: of the field.
        kinds: its types, None left out; literals are strings.
        optional: whether it may be None.
        rule: what it may hold.
        words: one sentence, perhaps more.
    """

    name: str
    kinds: tuple[Any, ...]
    optional: bool
    rule: Rule
    words: str

    def holds(self, value: Any) -> bool:
        """Whether the field can hold the value."""
        return self.rule.test(value) or (self.optional and value is None)

    def check(self, value: Any) -> None:
        """Raises ValueError if the field cannot hold the value."""
        if self.holds(value):
            return
        match = closest(value, self.rule.choices) if isinstance(value, str) else None
        hint = f": did you mean '{match}'?" if match else "."
        raise ValueError(f"{self.name}={printable(_shown(value)[:200])} {self.rule.words}{hint}")


def _field(name: str, hint: Any) -> Field:
    kind, *said = get_args(hint)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    rule = said[0] if len(said) == 2 else _OF_TYPE.get(kinds[0]) or _choice(get_args(kinds[0]))
    plain = tuple(
        str if get_origin(one) is Literal else one for one in kinds if one is not NoneType
    )
    return Field(name, plain, NoneType in kinds, rule, said[-1])


FIELDS: Mapping[str, Field] = MappingProxyType(
    {name: _field(name, hint) for name, hint in get_type_hints(Method, include_extras=True).items()}
)
"""Every field of `Method` by its name."""

OVERRIDES = tuple(
    name for name in FIELDS if name not in ("name", "source", "code_overrides", "group")
)
"""The fields that can be overridden."""

Method.__doc__ = f"{Method.__doc__}\n    Attributes:\n" + "".join(
    f"        {field.name}: {field.words}\n" for field in FIELDS.values()
)


def _are_overrides(pairs: Any) -> bool:
    return isinstance(pairs, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and pair[0] in OVERRIDES
        and FIELDS[pair[0]].holds(pair[1])
        for pair in pairs
    )


def _check_together(method: Method) -> None:
    """Raises ValueError for fields that contradict one another."""
    cuts = method.loss in ("ncut", "modularity")
    if method.algorithm == "gnn" and method.affinity == "cc" and cuts:
        raise ValueError(
            f"affinity='cc' has negative entries, which loss='{method.loss}' cannot weigh: take "
            "loss='cc', or another affinity."
        )
    if method.algorithm == "tokencut" and method.num_clusters != 2:
        raise ValueError(
            f"tokencut divides an image in two, not in num_clusters={method.num_clusters}: "
            "use deep-spectral or vit-kmeans for more."
        )
    if method.tile and method.foreground != "set":
        raise ValueError(
            f"tile={method.tile} cuts images into tiles that only a model of a whole set can join: "
            f"take 'collective', or leave tile out, since '{method.name}' segments single images."
        )
    if method.scales > 1:
        if method.foreground != "set":
            raise ValueError(
                f"scales={method.scales} is for models of a whole set: take 'collective', or leave "
                f"scales out, since '{method.name}' segments single images."
            )
        for name in _ONE_SIZE:
            if value := getattr(method, name):
                what = f"scales={method.scales} does not go with {name}={value}"
                raise ValueError(f"{what}: leave one of them out.")
    if method.background_parts and not method.parts:
        raise ValueError(
            f"background_parts={method.background_parts} needs parts: give parts as well."
        )
    if method.nodes != "patches":
        if method.parts or method.foreground == "attention":
            what = f"parts={method.parts}" if method.parts else "foreground='attention'"
            raise ValueError(f"{what} needs nodes='patches', not nodes='{method.nodes}'.")
        return
    if method.affinity == "colour":
        raise ValueError(
            "affinity='colour' compares regions or pixels, not patches: take nodes='superpixels' "
            "or 'pixels', or another affinity."
        )
    height, width = method.size
    stride = method.stride or 1
    if stride > min(height, width):
        raise ValueError(
            f"stride={stride} is larger than image_size={method.image_size}: take a smaller stride "
            "or larger images."
        )
    check_clusters(method, (height // stride) * (width // stride))


def check_clusters(method: Method, nodes: int) -> None:
    """Raises ValueError if there are more clusters than nodes, and the number is not found."""
    for name in ("num_clusters", "parts", "background_parts"):
        if (clusters := getattr(method, name)) > nodes and method.loss != "cc":
            raise ValueError(
                f"{name}={clusters} is more than the {nodes} nodes of an image: take fewer, or "
                "a larger image_size or a smaller stride."
            )


def current_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not None, those with an earlier name under their current one.

    Example:
        >>> current_names({"fit": "keep", "tau": None})
        {'resize': 'keep'}
    """
    earlier = {"fit": "resize"}
    named = {earlier.get(name, name): value for name, value in fields.items()}
    return {name: value for name, value in named.items() if value is not None}


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
    overrides = current_names(overrides)
    for name in overrides:
        if name not in OVERRIDES:
            raise ValueError(f"Method has no field '{name}'; {nearest(name, OVERRIDES)}")
    if "dropout" in overrides:
        overrides.setdefault("layer_dropout", overrides["dropout"])
    if overrides.get("quirks") == "code" and method.quirks != "code":
        overrides = {**dict(method.code_overrides), **overrides}
    return dataclasses.replace(method, **overrides)


def plain_fields(method: Method) -> dict[str, Any]:
    """Its fields by name, as `dataclasses.asdict`, with a custom loss and layer by name.

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
    own = callable(value) or isinstance(value, GraphLayer)
    return name_of(value) if own else repr(value)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, and lists as tuples, which can be hashed."""
    if type(value) in (list, tuple):
        return tuple(_plain(item) for item in value)
    item = getattr(value, "item", None)
    return item() if item is not None and isinstance(value, numbers.Number) else value
