"""Unsupervised image segmentation in pure JAX: images in, masks out, thousands at a time."""

from unseg_jax import losses
from unseg_jax.clustering import Clustering, cluster
from unseg_jax.graphs import Graph
from unseg_jax.methods import Method, list_methods
from unseg_jax.pytorch import params_from_pytorch

__all__ = [
    "Clustering",
    "Graph",
    "Method",
    "cluster",
    "list_methods",
    "losses",
    "params_from_pytorch",
]
