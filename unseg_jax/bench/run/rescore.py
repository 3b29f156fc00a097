"""Scoring the masks of a finished run again under another protocol, without a device."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unseg_jax.bench.report.html_report import write_summary
from unseg_jax.bench.run.items import ITEM_ERRORS, check_out, failure_reason, load_truth, open_data
from unseg_jax.bench.run_folder import (
    CONFIG,
    FILES,
    RECORDS,
    SESSIONS,
    file_stem,
    identity,
    json_bytes,
    open_store,
    read_config,
    read_records,
    read_sessions,
)
from unseg_jax.bench.score.image_records import failure_record, rounded, score_mask
from unseg_jax.bench.score.protocols import Protocol, resolve_protocol
from unseg_jax.data import Dataset, Item, default_workers
from unseg_jax.errors import BenchError
from unseg_jax.runs.journal import seal_lines
from unseg_jax.runs.locking import RunLock
from unseg_jax.runs.stamps import stamp_source


def rescore(source: Path, out: Path, protocol: str, data: str | None = None) -> dict[str, Any]:
    """Makes a run's folder with the scores that another protocol gives to the same masks.

    Args:
        source: the folder of a run that was made with `--save-masks`.
        out: where to; without a run in it.
        protocol: name of one that crops as the run's own did.
        data: where the data lie now; None is where the run found them.

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
    target = resolve_protocol(protocol)
    if target.crop != own.crop:
        raise BenchError(
            f"{source} was made under the protocol '{own.name}', and '{target.name}' crops images "
            "otherwise before they are segmented: run the benchmark with it."
        )
    if (out / CONFIG).exists():
        raise BenchError(f"{out} holds a run already: choose another folder.")
    data = data or str(config["data"])
    dataset = open_data({**config, "data": data})
    check_out(out, data, dataset.items)
    open_store(out).check_free(FILES)
    items = {item.id: item for item in dataset.items}
    records = list(_rescored(source, dataset, items, target, config.get("metrics", ())))
    config |= {"protocol": dataclasses.asdict(target), "every": 0, "data": data}
    run = identity(config)
    lines = seal_lines({**record, "run": run} for record in records)
    with RunLock(out), open_store(out) as store:
        store.write({CONFIG: json_bytes(config)})
        store.rewrite_journal(RECORDS, lines)
        store.rewrite_journal(SESSIONS, seal_lines(read_sessions(source)))
        return write_summary(out, store)


def _rescored(
    source: Path, dataset: Dataset, items: dict[str, Item], protocol: Protocol, extra: Sequence[str]
) -> Iterator[dict[str, Any]]:
    def rescore_one(record: dict[str, Any]) -> dict[str, Any]:
        item = items.get(record["id"])
        if item is None:
            raise BenchError(f"{record['id']} of {source} is not among the data any more.")
        record = {name: value for name, value in record.items() if name != "iou_by_epoch"}
        if record["error"] is not None or item.mask is None:
            return record
        path = source / "masks" / record["method"] / f"{file_stem(record['id'])}.png"
        try:
            mask = np.asarray(Image.open(path)) > 127
        except (OSError, ValueError, SyntaxError):
            raise BenchError(
                f"the mask {path} is missing: run the benchmark with --save-masks."
            ) from None
        stamp = stamp_source(item.mask)
        try:
            truth, _ = load_truth(item, dataset.rule, (mask.shape[0], mask.shape[1]))
        except ITEM_ERRORS as error:
            return failure_record(item, record["method"], failure_reason(error))
        scores = score_mask(mask, record["box"], truth, protocol, extra)
        scores = {name: rounded(value) for name, value in scores.items()}
        return record | scores | {"mask_stamp": stamp}

    with ThreadPoolExecutor(default_workers()) as pool:
        yield from pool.map(rescore_one, read_records(source))
