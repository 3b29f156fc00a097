"""The model that ships with the library, which `auto` applies to most images.

It is `collective`, fitted once by `python -m benchmarks ready_model` on photographs that
scikit-image ships and that are free to use. No mask was seen, and it was tuned on no data set.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from unseg_jax.backbones import Backbone
from unseg_jax.cache import check_sha256
from unseg_jax.collective.model import CollectiveModel, load_model
from unseg_jax.collective.shipped_scorer import SHIPPED_MODEL

SHIPPED_SHA256 = "5c9e4a963e8637333d19d769f117fe1cbb1dd23a9049408b99b1915a5d96b38d"


def load_shipped(
    *,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    seed: int = 0,
    dtype: str = "auto",
) -> CollectiveModel:
    """The model that ships.

    Args:
        backbone: "auto" takes the one that the model was fitted with.
        batch_size: images on the device at a time.
        seed: random seed of per-image epochs; the model needs none.
        dtype: "auto", "float32" or "bfloat16", of the backbone.

    Raises:
        WeightsError: the shipped file is damaged, or the backbone cannot be loaded.
        ValueError: a backbone with features of another width.
    """
    check_sha256(SHIPPED_MODEL, SHIPPED_SHA256)
    model = load_model(
        SHIPPED_MODEL, backbone=None if backbone == "auto" else backbone, dtype=dtype
    )
    return dataclasses.replace(model, batch_size=batch_size, seed=seed, shipped=True)
