"""Whole data sets, all methods, nothing lost: `python -m unseg_jax.bench`."""

from unseg_jax.bench.errors import BenchError
from unseg_jax.bench.protocols import PROTOCOLS, Protocol, resolve_protocol
from unseg_jax.bench.runner import Interrupted, run, write_summary
from unseg_jax.bench.settings import Settings
from unseg_jax.bench.summary import format_table, summarise

__all__ = [
    "PROTOCOLS",
    "BenchError",
    "Interrupted",
    "Protocol",
    "Settings",
    "format_table",
    "resolve_protocol",
    "run",
    "summarise",
    "write_summary",
]
