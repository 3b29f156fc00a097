"""Unsupervised image segmentation in pure JAX: images in, masks out, thousands at a time."""

from unseg_jax import losses, metrics
from unseg_jax.backbones import Backbone, list_backbones, load_backbone
from unseg_jax.clustering import Clustering, cluster
from unseg_jax.collective import CollectiveModel, fit, load_model
from unseg_jax.data.images import ImageError
from unseg_jax.graphs import Graph
from unseg_jax.methods import Method, list_methods
from unseg_jax.pytorch import params_from_pytorch
from unseg_jax.segmenter import Segmentation, Segmenter, make_segment_fn, segment

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
