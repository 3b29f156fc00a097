"""Unsupervised image segmentation in pure JAX: images in, masks out, thousands at a time."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BatchSegmenter",
    "Clustering",
    "CollectiveModel",
    "Graph",
    "GraphLayer",
    "ImageError",
    "LossFunction",
    "Method",
    "Object",
    "Segmentation",
    "Segmenter",
    "cluster",
    "export_segment_fn",
    "fit",
    "from_callable",
    "graphs",
    "layers",
    "list_backbones",
    "list_methods",
    "load_backbone",
    "load_model",
    "losses",
    "make_segment_fn",
    "metrics",
    "params_from_pytorch",
    "read_results",
    "segment",
]

if TYPE_CHECKING:
    from unseg_jax import metrics
    from unseg_jax.api import Segmenter, segment
    from unseg_jax.backbones import Backbone, from_callable, list_backbones, load_backbone
    from unseg_jax.clustering import graphs, layers, losses
    from unseg_jax.clustering.graphs import Graph
    from unseg_jax.clustering.loop import Clustering, cluster
    from unseg_jax.collective.fitting import fit
    from unseg_jax.collective.model import CollectiveModel, load_model
    from unseg_jax.custom import GraphLayer, LossFunction
    from unseg_jax.errors import ImageError
    from unseg_jax.export.results import read_results
    from unseg_jax.interop.pytorch import params_from_pytorch
    from unseg_jax.method import Method
    from unseg_jax.postprocess import Object
    from unseg_jax.registry import list_methods
    from unseg_jax.segmentation import Segmentation
    from unseg_jax.segmenter import BatchSegmenter, make_segment_fn
    from unseg_jax.serving import export_segment_fn

# Public name → the module that holds it. A module is imported when one of its names is first used:
# JAX takes a second to import, and not every program needs it.
_HOMES = {
    **dict.fromkeys(("Segmenter", "segment"), "api"),
    **dict.fromkeys(("Backbone", "from_callable", "list_backbones", "load_backbone"), "backbones"),
    "Graph": "clustering.graphs",
    **dict.fromkeys(("Clustering", "cluster"), "clustering.loop"),
    "fit": "collective.fitting",
    **dict.fromkeys(("CollectiveModel", "load_model"), "collective.model"),
    **dict.fromkeys(("GraphLayer", "LossFunction"), "custom"),
    "ImageError": "errors",
    "export_segment_fn": "serving",
    "read_results": "export.results",
    "params_from_pytorch": "interop.pytorch",
    "Object": "postprocess",
    "Segmentation": "segmentation",
    "Method": "method",
    "list_methods": "registry",
    **dict.fromkeys(("BatchSegmenter", "make_segment_fn"), "segmenter"),
}
# Public modules, and where each lies.
_MODULES = {
    "graphs": "clustering.graphs",
    "layers": "clustering.layers",
    "losses": "clustering.losses",
    "metrics": "metrics",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(f"unseg_jax.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"unseg_jax.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'unseg_jax' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
