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
    problem = next(_config_problems(config), None)
    if problem is not None:
        raise BenchError(
            f"{path / CONFIG} is no run's config ({problem} is missing or of another kind): "
            f"put the original file back."
        )
    return config


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Keys whose values are not what they must be."""

    def is_count(value: Any) -> bool:
        return type(value) is int and value >= 0

    def is_text(value: Any) -> bool:
        return isinstance(value, str)

    def is_protocol(value: Any) -> bool:
        fields = {field.name for field in dataclasses.fields(Protocol)}
        return (
            isinstance(value, dict)
            and value.keys() == fields
            and value["family"] in ("honest", "published")
            and is_text(value["name"])
            and (value["crop"] is None or is_count(value["crop"]))
        )

    def is_methods(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(method, dict) and is_count(method.get("epochs")) for method in value.values()
        )

    def is_shard(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(map(is_count, value))
            and value[0] < value[1]
        )

    def is_notes(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_text, value))

    checks: dict[str, Callable[[Any], bool]] = {
        "data": is_text,
        "dataset": is_text,
        "notes": is_notes,
        "images": is_count,
        "protocol": is_protocol,
        "methods": is_methods,
        "backbone": is_text,
        "seed": is_count,
        "every": is_count,
        "shard": is_shard,
    }
    for key, check in checks.items():
        if not check(config.get(key)):
            yield key


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
_SIGNED = ("ari", "s_measure", "e_measure", "f_measure", "f_everything", "nmi")
_UNIT = ("iou", "dice", "pixel_accuracy", "mae", "corloc")
_NUMBERS = ("seconds", "shared_seconds", "confidence")


def _record_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, in a few words."""
    for name in ("id", "method"):
        if not isinstance(record.get(name), str):
            return f"{name} is no text"
    if not isinstance(record.get("error"), str | None):
        return "error is no text"
    for names, low in ((_UNIT, 0.0), (_SIGNED, -1.0)):
        for name in names:
            value = record.get(name)
            if value is not None and not _within(value, low, 1.0):
                return f"{name} is {value!r}"
    for name in _NUMBERS:
        value = record.get(name)
        if value is not None and not _within(value, -math.inf, math.inf):
            return f"{name} is {value!r}"
    curve = record.get("iou_by_epoch", [])
    if not isinstance(curve, list) or not all(_within(value, 0.0, 1.0) for value in curve):
        return "iou_by_epoch is no list of scores"
    box = record.get("box")
    is_box = isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box)
    if box is not None and not is_box:
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
