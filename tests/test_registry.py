"""The registry: groups, refused names, and what a listed method does."""

import numpy as np
import pytest

import unseg_jax as us
from unseg_jax import custom, method, methods, plugs, registry
from unseg_jax.registry import GROUPS, METHODS, resolve


def test_unknown_names_and_cc_arma_are_refused():
    with pytest.raises(ValueError, match="did you mean 'unseggnet'"):
        resolve("unsegnet")
    assert "cc-arma" not in METHODS
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


def test_every_method_is_in_one_group_and_earlier_modules_hold_the_same():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(METHODS)
    for old, homes in ((methods, (method, registry)), (plugs, (custom,))):
        for name in old.__all__:
            assert any(getattr(old, name) is getattr(home, name, None) for home in homes)
