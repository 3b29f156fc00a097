"""From records to `summary.json`: means, how sure they are, and who beats whom."""

import functools
import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from unseg_jax.bench.score.image_records import (
    F_EVERYTHING,
    WORST,
    TruthTally,
    loss_epochs,
    score_names,
)
from unseg_jax.bench.score.protocols import Protocol
from unseg_jax.metrics import bootstrap_interval, paired_sign_flip_test, rank_correlation

# With more methods than this, each is compared with the best one only.
_ALL_PAIRS = 10
# Recorded IoU this close to the last one counts as converged.
_TOLERANCE = 0.01


class _Column:
    """What is kept of a method's records: numbers alone, so that 100,000 images fit."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.position: dict[str, int] = {}
        self.scores = {name: array("d") for name in (*names, F_EVERYTHING)}
        self.seconds = array("d")
        self.shared_seconds = array("d")
        self.confidence = array("d")
        self.histories: dict[int, Sequence[float]] = {}
        self.losses: dict[int, Sequence[float]] = {}
        self.errors: dict[int, str] = {}
        self.unscored: set[int] = set()
        self.flipped: dict[int, bool] = {}
        self.resized: dict[int, bool] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        index = self.position.get(record["id"])
        if index is None:
            index = self.position[record["id"]] = len(self.seconds)
            numbers = (self.seconds, self.shared_seconds, self.confidence)
            for values in (*self.scores.values(), *numbers):
                values.append(np.nan)
        for name, values in self.scores.items():
            value = record.get(name)
            values[index] = np.nan if value is None else value
        self.seconds[index] = record.get("seconds") or 0.0
        self.shared_seconds[index] = record.get("shared_seconds") or 0.0
        confidence = record.get("confidence")
        self.confidence[index] = np.nan if confidence is None else confidence
        for store, name in ((self.histories, "iou_by_epoch"), (self.losses, "loss_by_epoch")):
            store.pop(index, None)
            if values := record.get(name):
                store[index] = array("d", [np.nan if v is None else v for v in values])
        for store, name in (
            (self.errors, "error"),
            (self.flipped, "flipped"),
            (self.resized, "mask_resized"),
        ):
            store.pop(index, None)
            if record.get(name):
                store[index] = record[name]
        self.unscored.discard(index)
        if not record.get("scored", True):
            self.unscored.add(index)

    @functools.cached_property
    def in_order(self) -> list[tuple[str, int]]:
        """Ids and positions, sorted; read once all records are in."""
        return sorted(self.position.items())

    @property
    def failures(self) -> set[int]:
        """Failed images that would have had scores."""
        return self.errors.keys() - self.unscored


def summarise(
    records: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    sessions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        records: of `per_image.jsonl`, in any order; of two with the same id and method the
            later one counts.
        config: of the run.
        sessions: of `sessions.jsonl`.

    Returns:
        A dict for JSON: `methods` (by name), `paired` (differences of IoU between two methods on
        the same images), `failures`, `complete`, `timing`, `config`, `versions`, `device`,
        `seed`, `backbone`.
    """
    protocol = Protocol(**config["protocol"])
    names = score_names(config.get("metrics") or ())
    columns = {name: _Column(names) for name in config["methods"]}
    tally = TruthTally()
    for record in records:
        tally.add(record)
        if record["method"] in columns:
            columns[record["method"]].add(record)
    last = sessions[-1] if sessions else {}
    compile_seconds: dict[str, float] = {}
    for session in sessions:
        compile_seconds |= session.get("compile_seconds", {})
    methods = {
        name: _summarise_method(
            column, protocol, config, config["methods"][name], compile_seconds.get(name, 0.0)
        )
        for name, column in columns.items()
    }
    index, count = config["shard"]
    expected = len(range(index, config["images"], count))
    return {
        "methods": methods,
        "paired": _paired(columns, protocol),
        "failures": [
            {"id": id, "method": name, "error": column.errors[position]}
            for name, column in columns.items()
            for id, position in column.in_order
            if position in column.errors
        ],
        "complete": all(len(column.position) == expected for column in columns.values()),
        "truths": tally.as_json(config.get("foreground_values")),
        "protocol": protocol.family,
        "timing": last.get("timing", {}),
        "config": dict(config),
        "versions": last.get("versions", {}),
        "device": last.get("device", ""),
        "seed": config["seed"],
        "backbone": config["backbone"],
    }


def _counted(column: _Column, name: str, protocol: Protocol) -> tuple[list[str], np.ndarray]:
    """Ids in order and their scores as the protocol counts them."""
    ids, values = [], []
    scores, failures = column.scores[name], column.failures
    for id, position in column.in_order:
        value = scores[position]
        if position in column.errors:
            # Without a truth there is nothing to score, and a failure is nobody's 0.
            if not (protocol.count_failures and position in failures):
                continue
            value = WORST.get(name, 0.0)
        if not np.isnan(value):
            ids.append(id)
            values.append(value)
    return ids, np.array(values)


def _summarise_method(column, protocol, config, method, compile_seconds) -> dict[str, Any]:
    _, ious = _counted(column, "iou", protocol)
    means = {name: _mean(_counted(column, name, protocol)[1]) for name in column.names}
    f_measures = (means["f_measure"], _mean(_counted(column, F_EVERYTHING, protocol)[1]))
    means["max_f"] = max((value for value in f_measures if value is not None), default=None)
    low, high = bootstrap_interval(ious, config["seed"])
    own, shared = _total(column.seconds), _total(column.shared_seconds)
    done = len(column.position) - len(column.errors)
    summary = {
        "miou": means.pop("iou"),
        **means,
        "median_iou": _number(float(np.median(ious))) if ious.size else None,
        "miou_interval": [_number(low), _number(high)],
        "confidence_correlation": rank_correlation(column.confidence, column.scores["iou"]),
        "protocol": protocol.family,
        "protocol_label": protocol.label,
        "images": len(column.position),
        "scored": int(ious.size),
        "failed": len(column.errors),
        "flipped": len(column.flipped),
        "masks_resized": len(column.resized),
        "images_per_second": round(done / (own + shared), 3) if own + shared > 0 else None,
        "device_seconds": round(own, 3),
        "feature_seconds": round(shared, 3),
        "compile_seconds": round(compile_seconds, 3),
    }
    if config["every"]:
        summary["by_epoch"] = _by_epoch(column, protocol, config["every"], method["epochs"], own)
    if losses := _losses(column.losses.values(), method["epochs"]):
        summary["loss_by_epoch"] = losses
    return summary


def _losses(rows: Iterable[Sequence[float]], epochs: int) -> dict[str, list] | None:
    """Mean and quartiles over images of the loss at the recorded epochs."""
    recorded = loss_epochs(epochs)
    rows = [row for row in rows if len(row) == len(recorded) and np.isfinite(row).all()]
    if not rows:
        return None
    low, high = np.quantile(rows, (0.25, 0.75), axis=0)
    curves = {"mean": np.mean(rows, 0), "low": low, "high": high}
    return {"epochs": recorded} | {name: list(map(_number, row)) for name, row in curves.items()}


def _by_epoch(column, protocol, every, epochs, own_seconds) -> dict[str, Any] | None:
    """Mean IoU at the recorded epochs, where it is best, and when it stops moving."""
    if not column.histories:
        return None
    rows = list(column.histories.values())
    length = min(len(row) for row in rows)
    total = np.sum([row[:length] for row in rows], 0)
    count = len(rows) + (len(column.failures) if protocol.count_failures else 0)
    curve = total / count
    # The last record is of the last epoch, even if that is no multiple of `every`.
    recorded = [min(every * index, epochs) for index in range(length)]
    settled = np.abs(curve - curve[-1]) <= _TOLERANCE
    moving = np.flatnonzero(~settled)
    converged = recorded[moving[-1] + 1] if moving.size else recorded[0]
    best = int(np.argmax(curve))
    per_image = own_seconds / max(len(rows), 1)
    return {
        "epochs": recorded,
        "miou": [round(float(value), 6) for value in curve],
        "best_epoch": recorded[best],
        "best_miou": round(float(curve[best]), 6),
        "converged_epoch": converged,
        "converged_seconds": round(per_image * converged / epochs, 6) if epochs else 0.0,
    }


def _paired(columns: Mapping[str, _Column], protocol: Protocol) -> list[dict[str, Any]]:
    scores = {}
    for name, column in columns.items():
        ids, values = _counted(column, "iou", protocol)
        if ids:
            scores[name] = dict(zip(ids, values, strict=True))
    pairs = list(itertools.combinations(scores, 2))
    if len(scores) > _ALL_PAIRS:
        best = max(scores, key=lambda name: np.mean(list(scores[name].values())))
        pairs = [(best, name) for name in scores if name != best]
    result = []
    for first, second in pairs:
        common = [id for id in scores[first] if id in scores[second]]
        if not common:
            continue
        difference = paired_sign_flip_test(
            np.array([scores[first][id] for id in common]),
            np.array([scores[second][id] for id in common]),
        )
        result.append(
            {
                "first": first,
                "second": second,
                "images": len(common),
                "mean": _number(difference.mean),
                "interval": [_number(difference.low), _number(difference.high)],
                "p_value": _number(difference.p_value),
                "wins": difference.wins,
                "ties": difference.ties,
                "losses": difference.losses,
            }
        )
    return result


def _mean(values: np.ndarray) -> float | None:
    return _number(values.mean()) if values.size else None


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _total(values: Sequence[float]) -> float:
    return float(np.nansum(values)) if len(values) else 0.0


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary's methods as a plain table, protocol named."""
    header = ("method", "protocol", "mIoU", "95 % interval", "Dice", "images", "failed", "images/s")
    rows = []
    for name, method in summary["methods"].items():
        low, high = method["miou_interval"]
        speed = method["images_per_second"]
        rows.append(
            (
                name,
                method["protocol_label"],
                _cell(method["miou"]),
                f"{_cell(low)}–{_cell(high)}" if low is not None else "–",
                _cell(method["dice"]),
                str(method["images"]),
                str(method["failed"]),
                f"{speed:.2f}" if speed else "–",
            )
        )
    align = ("left", "left", *["right"] * (len(header) - 2))
    table = tabulate(rows, header, tablefmt="plain", colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
