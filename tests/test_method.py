"""Fields of methods: what is refused, and in which words."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseg_jax import layers, losses
from unseg_jax.method import FIELDS, OVERRIDES, Method, override, plain_fields
from unseg_jax.registry import METHODS, resolve

pytestmark = pytest.mark.quick


@dataclasses.dataclass
class Weighted:
    """Cannot be hashed."""

    weight: float

    def __call__(self, assignments, adjacency, *, mask):
        return self.weight * losses.ncut(assignments, adjacency, mask=mask)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tau", "abc", "tau='abc' must be a number"),
        ("learning_rate", -1.0, "must be a number of at least 0"),
        ("dropout", 1.0, r"must lie in \[0, 1\)"),
        ("block", "abc", "must be a whole number"),
        ("block", (), "or a tuple of them"),
        ("block", (0, 1.0), "or a tuple of them"),
        ("stride", 7.0, "stride=7.0 must be a whole number of at least 1"),
        ("epochs", -1, "of at least 0"),
        ("alpha", 0, "alpha=0 must be a number above 0"),
        ("branches", ((64, 0),), "at least one positive width per branch"),
        ("image_size", (224, 224, 3), "a side in pixels or a pair"),
        ("arma_shared", 1, "must be True or False"),
        ("layer", "gnc", "is not one of gcn, gat, arma.*: did you mean 'gcn'"),
        ("layer", layers.GCN, "GCN is not one of gcn, gat, arma, nor a hashable object with the"),
        ("layer", losses.ncut, "ncut is not one of gcn, gat, arma, nor a hashable object with"),
        ("loss", "nctu", "loss='nctu' is not one of ncut, cc, modularity, nor a hashable function"),
        ("loss", 3, "loss=3 is not one of"),
        ("loss", [losses.ncut], "loss=.* is not one of"),
        ("loss", Weighted(1.0), r"Weighted\(weight=1.0\) is not one of .* hashable"),
        ("affinity", "cosin", "affinity='cosin' is not one of ncut, .*: did you mean 'cosine'"),
        ("collapse", "node", "did you mean 'nodes'"),
        ("quirks", "papier", "did you mean 'paper'"),
        ("foreground", "centr", "did you mean 'centre'"),
        ("alpha", 10**400, "must be a number above 0"),
        ("lerning_rate", 1.0, "did you mean 'learning_rate'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, value, said):
    makers = [functools.partial(resolve, "deepcut")]
    if field in FIELDS:
        makers += [functools.partial(Method, "m")]
        makers += [functools.partial(dataclasses.replace, METHODS["deepcut"])]
    for make in makers:
        with pytest.raises(ValueError, match=said) as caught:
            make(**{field: value})
        assert str(caught.value)[-1] in ".?"


# What fields may hold, written anew: fields, values that these take, and others.
NUMBERS, SMALL = st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 9)
WRONG = st.sampled_from(
    [float("nan"), float("inf"), "az", "", [], ["a"], {}, {"a": None}, {1}, object()]
)
NEITHER = WRONG | NUMBERS | st.booleans()
BELOW_0 = WRONG | st.floats(-9, -1e-3) | st.booleans()
ACTIVATIONS = st.sampled_from(["relu", "elu", "selu", "silu", "gelu"])
KINDS = (
    (
        "log_bin normalise edge_features arma_shared largest_component",
        *(st.booleans(), WRONG | NUMBERS | st.integers()),
    ),
    ("backbone name source", st.text(min_size=1), NUMBERS | st.booleans()),
    (
        "neighbours epochs collective_epochs parts parts_epochs background_epochs tile "
        "background_parts",
        *(st.integers(0, 9), NEITHER | st.integers(max_value=-1)),
    ),
    (
        "stride heads stacks arma_layers mlp_width num_clusters collective_steps image_size",
        *(SMALL, NEITHER | st.integers(max_value=0)),
    ),
    ("scales", st.sampled_from([1, 2]), NEITHER | st.integers(3) | st.integers(max_value=0)),
    ("block", st.integers(-9, 9) | st.tuples(st.integers(-9, 9), st.integers(-9, 9)), NEITHER),
    ("tau spatial_decay learning_rate weight_decay", st.floats(0, 9), BELOW_0),
    ("alpha sigma_spatial sigma_luma sigma_chroma", st.floats(0.5, 9), BELOW_0 | st.just(0.0)),
    ("dropout layer_dropout", st.floats(0, 0.9), BELOW_0 | st.floats(1, 9)),
    ("activation inner_activation mlp_activation", ACTIVATIONS, NEITHER),
    (
        "algorithm nodes facet resize affinity layer loss collapse foreground refine quirks group",
        *(st.nothing(), NEITHER),
    ),
    (
        "branches code_overrides",
        st.just(((3, 2), (1,))),
        WRONG.filter(bool) | NUMBERS | st.sampled_from([((0,),), (("tau", -1.0),)]),
    ),
)
assert sorted(" ".join(names for names, _, _ in KINDS).split()) == sorted(FIELDS)


def field_and(which):
    return st.one_of(st.tuples(st.sampled_from(kind[0].split()), kind[which]) for kind in KINDS)


@settings(deadline=None, max_examples=400)
@given(field_and(2), st.sampled_from(list(METHODS)))
def test_every_field_refuses_bad_values_in_one_sentence_that_names_it(field_and_value, name):
    field, value = field_and_value
    makers = [dataclasses.replace]
    if field in OVERRIDES:
        makers.append(resolve)
    for make in makers:
        with pytest.raises(ValueError, match=f"^{field}=") as caught:
            make(METHODS[name], **{field: value})
        assert "\n" not in str(caught.value)


# These say something with others, or have one value in some methods.
TOGETHER = ("num_clusters", "stride", "image_size", "scales", "tile", "parts", "background_parts")


@settings(deadline=None, max_examples=100)
@given(
    field_and(1).filter(lambda drawn: drawn[0] in OVERRIDES and drawn[0] not in TOGETHER),
    st.sampled_from(list(METHODS)),
)
def test_every_method_takes_good_values(field_and_value, name):
    field, value = field_and_value
    method = resolve(name, **{field: value})
    assert getattr(method, field) == value
    assert Method(**plain_fields(method)) == method


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("unseggnet", {"stride": 300}, "stride=300 is larger than image_size=224"),
        ("deepcut", {"image_size": (32, 64), "stride": 40}, r"larger than image_size=\(32, 64\)"),
        ("unseggnet", {"image_size": 8, "num_clusters": 5}, "num_clusters=5 .* the 4 nodes"),
        ("unseggnet", {"image_size": 8, "parts": 9}, "parts=9 is more than the 4 nodes"),
        ("deepcut", {"tile": 512}, "tile=512 .* take 'collective'"),
        ("deepcut", {"affinity": "cc"}, "affinity='cc' has negative .* loss='ncut'"),
        ("cc-gat", {"loss": "modularity"}, "affinity='cc' has negative .* loss='modularity'"),
        ("deepcut", {"affinity": "colour"}, "affinity='colour' .* nodes='superpixels'"),
        ("slic-ncut", {"parts": 3}, "parts=3 needs nodes='patches'"),
        ("slic-ncut", {"foreground": "attention"}, "foreground='attention' needs nodes='patches'"),
        ("deepcut", {"background_parts": 2}, "background_parts=2 needs parts"),
        ("tokencut", {"num_clusters": 3}, "num_clusters=3: use deep-spectral"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(name, fields, said):
    for make in (resolve, lambda name, **fields: dataclasses.replace(METHODS[name], **fields)):
        with pytest.raises(ValueError, match=said):
            make(name, **fields)


def test_what_is_taken_as_an_override():
    """An earlier name of a field, numbers of NumPy, lists, and whatever a method holds."""
    method = resolve("deepcut", fit="keep")
    assert method == resolve("deepcut", resize="keep")
    assert method.fit == "keep"
    method = resolve(
        "deepcut", epochs=np.int64(3), tau=np.float32(0.5), branches=[[8, 8]], image_size=[64, 32]
    )
    assert (method.epochs, method.branches, method.image_size) == (3, ((8, 8),), (64, 32))
    assert type(method.epochs) is int
    assert hash(method) == hash(dataclasses.replace(method))
    # Correlation clustering finds how many clusters there are, and may be given more than nodes.
    assert resolve("deepcut-cc", image_size=16, stride=8).num_clusters == 10
    for method in METHODS.values():
        assert override(method, **{name: getattr(method, name) for name in OVERRIDES}) == method
