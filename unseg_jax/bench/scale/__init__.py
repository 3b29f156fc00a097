"""Runs, merges and reports, in a folder of this machine or at a URL, here or on a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.report.html_report import write_summary
from unseg_jax.bench.run.runner import run_in_folder, work_here
from unseg_jax.bench.run.settings import Settings
from unseg_jax.bench.run_folder import (
    CONFIG,
    FILES,
    FOLDERS,
    RECORDS,
    SESSIONS,
    check_same,
    find_shards,
    identity,
    json_bytes,
    load_config,
    open_store,
    read_config,
    read_records,
    read_sessions,
    shard_folder,
)
from unseg_jax.bench.scale.on_ray import work_on_cluster
from unseg_jax.bench.scale.remote import local_folder, remote
from unseg_jax.errors import BenchError
from unseg_jax.runs.journal import read_lines, seal_lines
from unseg_jax.runs.locking import RunLock


def run(settings: Settings, *, quiet: bool = False) -> dict[str, Any]:
    """Runs a benchmark, or goes on with one, and writes its folder.

    Args:
        settings: what to do.
        quiet: show no progress bar.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: unknown names or values (also `DatasetError`, `WeightsError`).
        BenchError: the run cannot start or go on, or fsspec, Ray or a driver is missing;
            `Interrupted` after Ctrl-C.
        WriteError: the disk is full, or the folder cannot be written.
    """
    settings.check()
    work = work_here if settings.cluster is None else work_on_cluster
    folder = local_folder(settings.out)
    if folder is not None:
        return run_in_folder(settings, folder, work, quiet=quiet)
    with remote(settings.out, shard_folder(Path(), settings.share).name) as there:
        if settings.overwrite:
            there.clear()
        else:
            there.pull()
        with there.pushing():
            return run_in_folder(settings, there.root, work, quiet=quiet)


def merge(path: str | Path, *, partial: bool = False) -> dict[str, Any]:
    """Makes the run in a folder, or at a URL, from the shards in it; can be repeated.

    Args:
        path: holds `shard-I-of-N/`.
        partial: also if shards are missing or unfinished.

    Returns:
        The content of `summary.json`.

    Raises:
        BenchError: no shards, different configs, or some are missing or unfinished.
        WriteError: the folder cannot be written.
    """
    folder = local_folder(path)
    if folder is not None:
        return _merge(folder, partial)
    with remote(str(path)) as whole:
        whole.check_folders()
        for place in (whole, *whole.shards()):
            place.pull(masks=True)
        summary = _merge(whole.folder, partial)
        whole.replace()
    return summary


def report(path: str | Path) -> dict[str, Any]:
    """`unseg_jax.bench.write_summary` of the run in a folder, or at a URL.

    Raises:
        BenchError: no run there, or the place cannot be opened or refuses.
        WriteError: the files cannot be written.
    """
    folder = local_folder(path)
    if folder is not None:
        return write_summary(folder)
    with remote(str(path)) as there:
        there.pull()
        summary = write_summary(there.folder)
        there.push()
    return summary


def _merge(path: Path, partial: bool) -> dict[str, Any]:
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
        present = {config["shard"][0] for config in configs}
        missing = [str(index) for index in range(count) if index not in present]
        if missing:
            raise BenchError(
                f"{path} lacks the shards {', '.join(missing)} of {count}: run them, or give "
                "--partial."
            )
    _check_records(shards, configs, partial)  # before anything is changed
    merged = {**configs[0], "shard": [0, 1]}
    with RunLock(path), open_store(path) as store:
        # Another run than an earlier merge of the same shards is refused.
        store.check_free(FILES)
        if (path / CONFIG).exists():
            check_same(load_config(path), merged, str(path))
        # Masks and thumbnails of an earlier merge may be of shards that were run again since.
        store.check_folders(FOLDERS)
        store.sweep()
        store.remove(store.names(*FOLDERS))
        store.write({CONFIG: json_bytes(merged)})
        records = (record for shard in shards for record in read_lines(shard / RECORDS))
        store.rewrite_journal(RECORDS, seal_lines(records))
        sessions = [read_sessions(shard) for shard in shards]
        last = [session[-1] for session in sessions if session]
        store.rewrite_journal(SESSIONS, seal_lines([_join(last)] if last else []))
        for shard in shards:
            own = open_store(shard)
            store.link(own, filter(own.is_ours, own.names("masks", "thumbnails")))
        return write_summary(path, store)


def _check_records(
    shards: Sequence[Path], configs: Sequence[Mapping[str, Any]], partial: bool
) -> None:
    """Raises BenchError for records that cannot be read, for an image that two shards hold, and
    unless it is to be `partial` for a shard that is not finished."""
    owners: dict[str, Path] = {}
    for shard, config in zip(shards, configs, strict=True):
        done: dict[str, set[str]] = {name: set() for name in config["methods"]}
        for record in read_records(shard, identity(config)):
            owner = owners.setdefault(record["id"], shard)
            if owner != shard:
                raise BenchError(
                    f"{shard} and {owner} both hold records of {record['id']}: remove the one "
                    f"that does not belong to this run."
                )
            if record["method"] in done:
                done[record["method"]].add(record["id"])
        index, count = config["shard"]
        expected = len(range(index, config["images"], count))
        if not partial and any(len(ids) != expected for ids in done.values()):
            raise BenchError(f"{shard} is not finished: --resume it, or give --partial.")


def _join(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One session that stands for those of all shards, which ran beside one another."""
    timings = [session["timing"] for session in sessions]
    # Times are those of the slowest shard.
    total: dict[str, float] = {
        name: max(timing[name] or 0 for timing in timings) for name in timings[0]
    }
    total["images"] = sum(timing["images"] for timing in timings)
    total["images_per_second"] = round(total["images"] / max(total["wall_seconds"], 1e-9), 3)
    busy, whole = (
        sum(timing[name] for timing in timings) for name in ("device_seconds", "wall_seconds")
    )
    total["device_busy"] = round(busy / max(whole, 1e-9), 4)
    compiled: dict[str, float] = {}
    for session in sessions:
        for name, seconds in session["compile_seconds"].items():
            compiled[name] = max(seconds, compiled.get(name, 0.0))
    return {
        **sessions[-1],
        "timing": total,
        "compile_seconds": dict(sorted(compiled.items())),
        "device": "; ".join(sorted({session["device"] for session in sessions})),
        "shards": len(sessions),
    }
