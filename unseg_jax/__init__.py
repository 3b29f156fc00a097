"""Unsupervised image segmentation in pure JAX: images in, masks out, thousands at a time."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Clustering",
    "CollectiveModel",
    "Graph",
    "ImageError",
    "Method",
    "Segmentation",
    "Segmenter",
    "cluster",
    "fit",
    "list_backbones",
    "list_methods",
    "load_backbone",
    "load_model",
    "losses",
    "make_segment_fn",
    "metrics",
    "params_from_pytorch",
    "segment",
]

if TYPE_CHECKING:
    from unseg_jax import losses, metrics
    from unseg_jax.backbones import Backbone, list_backbones, load_backbone
    from unseg_jax.clustering import Clustering, cluster
    from unseg_jax.collective import CollectiveModel, fit, load_model
    from unseg_jax.data.images import ImageError
    from unseg_jax.graphs import Graph
    from unseg_jax.methods import Method, list_methods
    from unseg_jax.pytorch import params_from_pytorch
    from unseg_jax.segmenter import Segmentation, Segmenter, make_segment_fn, segment

# Public name → the module that it is in. Modules are imported when a name of theirs is first
# used: flax and optax take as long to import as JAX itself, and not every program needs them.
_HOMES = {
    **dict.fromkeys(("Backbone", "list_backbones", "load_backbone"), "backbones"),
    **dict.fromkeys(("Clustering", "cluster"), "clustering"),
    **dict.fromkeys(("CollectiveModel", "fit", "load_model"), "collective"),
    **dict.fromkeys(("Segmentation", "Segmenter", "make_segment_fn", "segment"), "segmenter"),
    **dict.fromkeys(("Method", "list_methods"), "methods"),
    "ImageError": "data.images",
    "Graph": "graphs",
    "params_from_pytorch": "pytorch",
}


def __getattr__(name: str) -> Any:
    if name in ("losses", "metrics"):
        return importlib.import_module(f"unseg_jax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'unseg_jax' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"unseg_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
