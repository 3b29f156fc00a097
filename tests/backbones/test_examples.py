"""The examples in the docstrings of this room run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

import unseg_jax.backbones

MODULES = [
    "unseg_jax.backbones",
    *(
        f"unseg_jax.backbones.{module.name}"
        for module in pkgutil.iter_modules(unseg_jax.backbones.__path__)
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 5
