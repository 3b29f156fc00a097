"""The earlier name of `unseg_jax.custom`, kept for one release."""

from unseg_jax.custom import GraphLayer, LossFunction

__all__ = ["GraphLayer", "LossFunction"]
