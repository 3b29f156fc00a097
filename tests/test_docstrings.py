"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = [
    "clustering.graphs",
    "clustering.layers",
    "clustering.loop",
    "clustering.losses",
    "methods",
    "metrics.overlap",
    "metrics.partitions",
    "metrics.saliency",
    "parallel",
    "segmenter",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"unseg_jax.{name}"))
    assert attempted > 0
    assert failed == 0
