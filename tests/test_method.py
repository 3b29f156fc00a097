"""Fields of methods: what is refused, and in which words."""

import dataclasses

import numpy as np
import pytest

from unseg_jax.method import _RULES, Method, override
from unseg_jax.registry import METHODS, resolve

pytestmark = pytest.mark.quick


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
