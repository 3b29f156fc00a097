"""Margins spread over the patch graph: against the linear system in plain NumPy."""

import numpy as np
import pytest

from unseg_jax.collective.spreading import spread


def _features(count=40, width=6, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width)) + 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_they_minimise_what_the_paper_says():
    features, margins = _features(), np.random.default_rng(1).uniform(-2, 2, 40)
    centred = features.astype(float) - features.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    affinity = np.exp((centred @ centred.T - 1) / 0.1)
    np.fill_diagonal(affinity, 0)
    degrees = affinity.sum(1)
    smooth = affinity / np.sqrt(np.outer(degrees, degrees))
    expected = np.linalg.solve(4 * np.eye(40) - 3 * smooth, np.clip(margins, -1, 1))
    found = np.asarray(spread(margins.astype(np.float32), features))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - np.clip(margins, -1, 1)).max() > 0.3


def test_an_odd_patch_follows_those_that_look_like_it():
    features = np.repeat(np.eye(2, 5, dtype=np.float32), 10, axis=0)
    margins = np.repeat(np.float32([0.8, -0.8]), 10)
    margins[3], margins[15] = -0.3, 0.3
    found = np.asarray(spread(margins, features))
    assert (found[:10] > 0).all() and (found[10:] < 0).all()  # noqa: PT018


@pytest.mark.parametrize("features", [np.ones((9, 4)), np.zeros((9, 4))])
def test_patches_that_all_look_alike_stay_finite(features):
    found = np.asarray(spread(np.linspace(-1, 1, 9, dtype=np.float32), features.astype(np.float32)))
    assert np.isfinite(found).all()
