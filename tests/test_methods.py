"""Fields of methods: what is refused, and in which words."""

import dataclasses

import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.methods import _RULES, METHODS, Method, override, resolve


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tau", "abc", "tau='abc' must be a number"),
        ("tau", float("nan"), "must be a number"),
        ("learning_rate", "abc", "must be a number of at least 0"),
        ("learning_rate", -1.0, "must be a number of at least 0"),
        ("weight_decay", float("inf"), "must be a number of at least 0"),
        ("dropout", "abc", r"must lie in \[0, 1\)"),
        ("dropout", 1.0, r"must lie in \[0, 1\)"),
        ("block", "abc", "must be a whole number"),
        ("stride", 7.0, "stride=7.0 must be a whole number of at least 1"),
        ("stride", 0, "of at least 1"),
        ("heads", 0, "of at least 1"),
        ("mlp_width", -3, "of at least 1"),
        ("epochs", -1, "of at least 0"),
        ("epochs", True, "must be a whole number"),
        ("num_clusters", 0, "of at least 1"),
        ("alpha", 0, "alpha=0 must be a number above 0"),
        ("sigma_luma", 0.0, "must be a number above 0"),
        ("branches", 64, "at least one positive width per branch"),
        ("branches", ((64, 0),), "at least one positive width per branch"),
        ("image_size", 1.5, "a side in pixels or a pair"),
        ("image_size", (224, 224, 3), "a side in pixels or a pair"),
        ("arma_shared", 1, "must be True or False"),
        ("layer", "gnc", "is not one of gcn, gat, arma"),
        ("lerning_rate", 1.0, "did you mean 'learning_rate'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, value, said):
    with pytest.raises(ValueError, match=said):
        resolve("deepcut", **{field: value})


def test_every_field_has_its_rule():
    fixed = {"name", "source", "code_overrides"}
    assert _RULES.keys() == {field.name for field in dataclasses.fields(Method)} - fixed


def test_numbers_of_numpy_and_lists_are_taken():
    method = resolve(
        "deepcut", epochs=np.int64(3), tau=np.float32(0.5), branches=[[8, 8]], image_size=[64, 32]
    )
    assert (method.epochs, method.branches, method.image_size) == (3, ((8, 8),), (64, 32))
    assert type(method.epochs) is int
    assert hash(method) == hash(dataclasses.replace(method))


def test_every_method_may_be_overridden_by_its_own_fields():
    fixed = ("name", "source", "code_overrides")
    for method in METHODS.values():
        fields = {k: v for k, v in vars(method).items() if k not in fixed}
        assert override(method, **fields) == method


def test_cc_arma_says_why_it_cannot_be():
    with pytest.raises(ValueError, match="square roots of degrees"):
        resolve("cc-arma")


def test_cc_gcn_normalises_unless_it_follows_the_report():
    """Two groups, with affinities in the hundreds: unnormalised sums saturate the softmax."""
    method = resolve("cc-gcn")
    assert method.normalise
    assert not resolve("cc-gcn", quirks="code").normalise
    groups = np.repeat(np.eye(2, 16), 10, axis=0)
    noise = np.random.default_rng(0).normal(size=(20, 16))
    features = (20 * groups + 2 * noise).astype(np.float32)
    labels = np.asarray(us.cluster(features, method=method).labels)
    np.testing.assert_array_equal(labels == labels[0], groups[:, 0] == 1)
    unnormalised = us.cluster(features, method="cc-gcn", quirks="code")
    assert len(np.unique(unnormalised.labels)) == 1


def test_every_method_is_in_one_group():
    from unseg_jax.methods import GROUPS, METHODS

    assert sorted(name for names in GROUPS.values() for name in names) == sorted(METHODS)
