"""The earlier name of `unseg_jax.method` and `unseg_jax.registry`, kept for one release."""

from unseg_jax.method import Method, override, plain_fields
from unseg_jax.registry import GROUPS, METHODS, list_methods, resolve

__all__ = ["GROUPS", "METHODS", "Method", "list_methods", "override", "plain_fields", "resolve"]
