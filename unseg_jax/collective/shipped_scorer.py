"""The scorer of the model that ships, which gives a second opinion on what a fit finds."""

from __future__ import annotations

from pathlib import Path

from unseg_jax.backbones import Backbone
from unseg_jax.collective.model_file import build_model, read_model
from unseg_jax.collective.set_scorer import Scorer
from unseg_jax.method import Method
from unseg_jax.registry import METHODS

SHIPPED_MODEL = Path(__file__).with_name("shipped.safetensors")
"""The file of the model that ships."""

_OF_FEATURES = ("facet", "log_bin")


def is_of_shipped(method: Method, backbone: Backbone) -> bool:
    """Whether a method takes the features from a backbone that the model was fitted on."""
    of_shipped = METHODS["collective"]
    same = all(getattr(method, name) == getattr(of_shipped, name) for name in _OF_FEATURES)
    same = same and method.blocks[0] == of_shipped.block  # others follow, and are not read
    return same and backbone.name == of_shipped.backbone


def second_scorer(method: Method, backbone: Backbone) -> Scorer | None:
    """The scorer that ships, if it reads the features of a method; None if it does not.

    Raises:
        ValueError: the shipped file is damaged.
    """
    if not is_of_shipped(method, backbone):
        return None
    return build_model(SHIPPED_MODEL, read_model(SHIPPED_MODEL), backbone)[0]
