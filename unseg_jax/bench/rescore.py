"""Scoring the masks of a finished run again under another protocol, without a device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.bench.preparing import load_truth
from unseg_jax.bench.protocols import Protocol, resolve_protocol
from unseg_jax.bench.records import (
    CONFIG,
    RECORDS,
    SESSIONS,
    read_config,
    read_records,
    read_sessions,
    record_lines,
)
from unseg_jax.bench.report import write_summary
from unseg_jax.bench.scoring import rounded, score_mask
from unseg_jax.data import Dataset, Item, default_workers, open_dataset
from unseg_jax.errors import BenchError
from unseg_jax.files import write_json, write_text


def rescore(source: Path, out: Path, protocol: str) -> dict[str, Any]:
    """Makes a run's folder with the scores that another protocol gives to the same masks.

    Args:
        source: the folder of a run that was made with `--save-masks`.
        out: where to; without a run in it.
        protocol: name of one that crops as the run's own did.

    Returns:
        The content of `summary.json` in `out`.

    Raises:
        BenchError: no run in `source`, masks missing there, a run in `out`, or a protocol whose
            crop the masks were not made with.
        ValueError: an unknown protocol, or data that is no longer there.
        WriteError: `out` cannot be written.
    """
    config = read_config(source)
    own = Protocol(**config["protocol"])
    wanted = resolve_protocol(protocol)
    if wanted.crop != own.crop:
        raise BenchError(
            f"{source} was made under the protocol '{own.name}', and '{wanted.name}' crops images "
            "otherwise before they are segmented: run the benchmark with it."
        )
    if (out / CONFIG).exists():
        raise BenchError(f"{out} holds a run already: choose another folder.")
    dataset = open_dataset(
        config["data"],
        foreground=config["foreground_values"],
        void=config.get("void_values"),
        limit=config["limit"],
        split=config["split"],
    )
    items = {item.id: item for item in dataset.items}
    records = list(_rescored(source, dataset, items, wanted))
    changed = {"protocol": {**config["protocol"], **_fields(wanted)}, "every": 0}
    write_json(out / CONFIG, {**config, **changed})
    write_text(out / RECORDS, "".join(record_lines(records)))
    write_text(out / SESSIONS, "".join(record_lines(read_sessions(source))))
    return write_summary(out)


def _fields(protocol: Protocol) -> dict[str, Any]:
    return dict(vars(protocol))


def _rescored(
    source: Path, dataset: Dataset, items: dict[str, Item], protocol: Protocol
) -> Iterator[dict[str, Any]]:
    def one(record: dict[str, Any]) -> dict[str, Any]:
        item = items.get(record["id"])
        if item is None:
            raise BenchError(f"{record['id']} of {source} is not among the data any more.")
        record = {name: value for name, value in record.items() if name != "iou_by_epoch"}
        if record["error"] is not None or item.mask is None:
            return record
        path = source / "masks" / record["method"] / f"{record['id']}.png"
        try:
            mask = np.asarray(Image.open(path)) > 127
        except OSError:
            raise BenchError(
                f"the mask {path} is missing: run the benchmark with --save-masks."
            ) from None
        truth, _ = load_truth(item, dataset.rule, (mask.shape[0], mask.shape[1]))
        scores = score_mask(mask, record["box"], truth, protocol)
        return record | {name: rounded(value) for name, value in scores.items()}

    with ThreadPoolExecutor(default_workers()) as pool:
        yield from pool.map(one, read_records(source))
