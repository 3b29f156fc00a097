"""What a run's folder holds, read back and checked: config, records, sessions."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unseg_jax.bench.score.protocols import Protocol
from unseg_jax.bench.score.scoring import are_truth_fields
from unseg_jax.errors import BenchError
from unseg_jax.runs.journal import damaged, read_lines

CONFIG, RECORDS, SESSIONS, SUMMARY, REPORT = (
    "config.json",
    "per_image.jsonl",
    "sessions.jsonl",
    "summary.json",
    "report.html",
)
FILES = (CONFIG, RECORDS, SESSIONS, SUMMARY, REPORT)
FOLDERS = ("masks", "thumbnails", "models")


def load_config(path: Path) -> dict[str, Any]:
    """The JSON object in a run's `config.json`, not checked any further.

    Raises:
        BenchError: no run there, or one that cannot be read.
    """
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(
            f"{path / CONFIG} cannot be read ({error}): name a run's folder."
        ) from None
    if not isinstance(config, dict):
        raise BenchError(f"{path / CONFIG} is no run's config: it must hold a JSON object.")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """The config of the run in a folder, with all that summaries and reports read of it.

    Raises:
        BenchError: no run there, or one that cannot be read.
    """
    config = load_config(path)
    for key, is_right in _CONFIG.items():
        if not is_right(config.get(key)):
            raise BenchError(
                f"{path / CONFIG} is no run's config ({key} is missing or of another kind): "
                f"put the original file back."
            )
    return config


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _is_protocol(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in dataclasses.fields(Protocol)}
        and value["family"] in ("honest", "published")
        and _is_string(value["name"])
        and (value["crop"] is None or _is_count(value["crop"]))
    )


def _is_method(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("epochs"))


# What summaries and reports read of a config, and what it must be.
_CONFIG: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("data", "dataset", "backbone"), _is_string),
    **dict.fromkeys(("images", "seed", "every"), _is_count),
    "notes": lambda value: _is_list(value, _is_string),
    "protocol": _is_protocol,
    "methods": lambda value: isinstance(value, dict) and all(map(_is_method, value.values())),
    "shard": lambda value: _is_list(value, _is_count) and len(value) == 2 and value[0] < value[1],
}


def read_records(path: Path, run: str | None = None) -> Iterator[dict[str, Any]]:
    """The records in a run's folder, in the order of writing; a torn last line is left out.

    Args:
        path: of the folder.
        run: identity of the config that all records must have been made with; None takes any.

    Raises:
        BenchError: a line is damaged, holds what no record can, or is of another run.
    """
    file = path / RECORDS
    for number, record in enumerate(read_lines(file), start=1):
        problem = _record_problem(record)
        if problem is not None:
            raise damaged(file, number, problem)
        if run is not None and record.get("run", run) != run:
            raise BenchError(
                f"line {number} of {file} was made with another config: remove that line, and "
                f"--resume, or choose another --out."
            )
        yield record


# Scores lie between 0 and 1 but for those that compare with chance or with a mean.
_RANGES = {
    **dict.fromkeys(("iou", "dice", "pixel_accuracy", "mae", "corloc"), (0.0, 1.0)),
    **dict.fromkeys(("ari", "s_measure", "e_measure", "f_measure", "f_everything"), (-1.0, 1.0)),
    **dict.fromkeys(("seconds", "shared_seconds", "confidence"), (-math.inf, math.inf)),
    "nmi": (-1.0, 1.0),
}


def _record_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, in a few words."""
    for name in ("id", "method", "error"):
        value = record.get(name)
        if not (_is_string(value) or (name == "error" and value is None)):
            return f"{name} is no string"
    for name, (low, high) in _RANGES.items():
        value = record.get(name)
        if value is not None and not _within(value, low, high):
            return f"{name} is {value!r}"
    if not _is_list(record.get("iou_by_epoch", []), lambda value: _within(value, 0.0, 1.0)):
        return "iou_by_epoch is no list of scores"
    box = record.get("box")
    if box is not None and not (_is_list(box, lambda side: type(side) is int) and len(box) == 4):
        return "box is no box"
    return None if are_truth_fields(record.get("truth")) else "truth is none"


def _within(value: Any, low: float, high: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions in a run's folder, oldest first.

    Raises:
        BenchError: a line is damaged, or is no session.
    """
    file = path / SESSIONS
    sessions = list(read_lines(file))
    for number, session in enumerate(sessions, start=1):
        tables = [session.get(name, {}) for name in ("timing", "compile_seconds", "versions")]
        if not all(isinstance(table, dict) for table in tables):
            raise damaged(file, number, "it is no session")
        timing, compile_seconds, _ = tables
        numbers = [*timing.values(), *compile_seconds.values()]
        if not all(value is None or _within(value, -math.inf, math.inf) for value in numbers):
            raise damaged(file, number, "its timing is no number")
    return sessions
