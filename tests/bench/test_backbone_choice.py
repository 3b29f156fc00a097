"""Which one backbone a run of several methods takes."""

import dataclasses

import pytest

from unseg_jax.bench.run import engine
from unseg_jax.registry import METHODS


@pytest.fixture
def chosen(monkeypatch):
    """The name that a run would load."""
    monkeypatch.setattr(engine, "load_backbone", lambda name, dtype: name)
    return lambda *methods: engine._load(methods, "auto", "float32")


def test_auto_follows_a_method_that_names_its_backbone(chosen):
    deepcut, collective = METHODS["deepcut"], METHODS["collective"]
    assert chosen(deepcut) == "auto"
    assert chosen(deepcut, METHODS["tokencut"]) == "auto"
    assert chosen(deepcut, collective) == "dinov2_vits14_focus"


def test_two_names_are_refused(chosen):
    other = dataclasses.replace(METHODS["deepcut"], backbone="dino_vitb8")
    with pytest.raises(ValueError, match="the methods have different backbones"):
        chosen(other, METHODS["collective"])
