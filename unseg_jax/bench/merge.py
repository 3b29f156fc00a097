"""Joining the shards of a run, made by `--shard I/N`, into one."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.config import check_same
from unseg_jax.bench.records import (
    CONFIG,
    RECORDS,
    SESSIONS,
    find_shards,
    read_config,
    read_records,
    read_sessions,
    record_lines,
)
from unseg_jax.bench.remote import Remote, local_copy
from unseg_jax.bench.report import write_summary
from unseg_jax.bench.summary import summarise
from unseg_jax.errors import BenchError, WriteError
from unseg_jax.files import atomic, write_json, write_text


def merge(path: Path, *, partial: bool = False) -> dict[str, Any]:
    """Makes the run in a folder from the shards in it; as often as wanted.

    Args:
        path: holds `shard-I-of-N/`.
        partial: also if shards are missing or unfinished.

    Returns:
        The content of `summary.json`.

    Raises:
        BenchError: no shards, different configs, or some are missing or unfinished.
        WriteError: the folder cannot be written.
    """
    shards = find_shards(path)
    if not shards:
        raise BenchError(f"{path} holds no shards: make them by --shard I/N and this --out.")
    configs = [read_config(shard) for shard in shards]
    count = configs[0]["shard"][1]
    for shard, config in zip(shards[1:], configs[1:], strict=True):
        check_same({**configs[0], "shard": None}, {**config, "shard": None}, str(shard))
        if config["shard"][1] != count:
            raise BenchError(
                f"{path} holds shards of {count} and of {config['shard'][1]}: remove those of one "
                f"kind."
            )
    if not partial:
        _check_complete(path, shards, configs, count)
    write_json(path / CONFIG, {**configs[0], "shard": [0, 1]})
    try:
        with atomic(path / RECORDS) as file, open(file, "w", encoding="utf-8") as out:
            out.writelines(record_lines(_records(shards)))
    except OSError as error:
        raise error if isinstance(error, WriteError) else WriteError(path, error) from error
    sessions = [read_sessions(shard) for shard in shards]
    last = [session[-1] for session in sessions if session]
    write_text(path / SESSIONS, "".join(record_lines([_join(last)] if last else [])))
    for kind in ("masks", "thumbnails"):
        # Those of an earlier merge may be of shards that were run again since.
        shutil.rmtree(path / kind, ignore_errors=True)
        for shard in shards:
            if (shard / kind).is_dir():
                shutil.copytree(shard / kind, path / kind, copy_function=_link, dirs_exist_ok=True)
    return write_summary(path)


def _records(shards: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from read_records(shard)


def _check_complete(path, shards, configs, count) -> None:
    present = {config["shard"][0] for config in configs}
    missing = [str(index) for index in range(count) if index not in present]
    if missing:
        raise BenchError(
            f"{path} lacks the shards {', '.join(missing)} of {count}: run them, or give --partial."
        )
    for shard, config in zip(shards, configs, strict=True):
        if not summarise(read_records(shard), config)["complete"]:
            raise BenchError(f"{shard} is not finished: --resume it, or give --partial.")


def _join(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One session that stands for those of all shards, which ran beside one another."""
    timings = [session["timing"] for session in sessions]
    # Times are those of the slowest shard.
    total: dict[str, float] = {
        name: max(timing[name] or 0 for timing in timings) for name in timings[0]
    }
    total["images"] = sum(timing["images"] for timing in timings)
    wall = max(total["wall_seconds"], 1e-9)
    total["images_per_second"] = round(total["images"] / wall, 3)
    busy = sum(timing["device_seconds"] for timing in timings)
    whole = sum(timing["wall_seconds"] for timing in timings)
    total["device_busy"] = round(busy / max(whole, 1e-9), 4)
    names = {name for session in sessions for name in session["compile_seconds"]}
    devices = sorted({session["device"] for session in sessions})
    return {
        **sessions[-1],
        "timing": total,
        "compile_seconds": {
            name: max(session["compile_seconds"].get(name, 0.0) for session in sessions)
            for name in sorted(names)
        },
        "device": "; ".join(devices),
        "shards": len(sessions),
    }


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them, else a copy."""
    if os.path.exists(target):
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def merge_remote(url: str, *, partial: bool = False) -> dict[str, Any]:
    """`unseg_jax.bench.merge.merge` of the shards at a URL.

    Raises:
        BenchError: as `merge` does, or the place cannot be opened or refuses.
    """
    with local_copy(url) as folder:
        whole = Remote(url, folder)
        shards = whole.shards()
        for shard in shards:
            shard.pull()
        summary = merge(folder, partial=partial)
        whole.clear()  # an earlier merge, all of which is made again from the shards
        for shard in shards:
            whole.copy_masks(shard)
        whole.push(last=True)
    return summary
