"""Whole data sets, all methods, nothing lost: `python -m unseg_jax.bench`."""

from unseg_jax.bench.protocols import PROTOCOLS, Protocol, resolve_protocol
from unseg_jax.bench.report import write_summary
from unseg_jax.bench.runner import run
from unseg_jax.bench.settings import Settings
from unseg_jax.bench.summary import format_table, summarise
from unseg_jax.errors import BenchError, Interrupted

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
