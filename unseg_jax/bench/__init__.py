"""Whole data sets, all methods, nothing lost: `python -m unseg_jax.bench`."""

from unseg_jax.bench.report.html_report import write_summary
from unseg_jax.bench.report.summary import format_table, summarise
from unseg_jax.bench.run.settings import Settings
from unseg_jax.bench.scale import run
from unseg_jax.bench.score.protocols import PROTOCOLS, Protocol, crop_box, resolve_protocol
from unseg_jax.errors import BenchError, Interrupted

__all__ = [
    "PROTOCOLS",
    "BenchError",
    "Interrupted",
    "Protocol",
    "Settings",
    "crop_box",
    "format_table",
    "resolve_protocol",
    "run",
    "summarise",
    "write_summary",
]
