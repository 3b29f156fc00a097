"""Runs, merges and reports, in a folder of this machine or at a URL, here or on a cluster."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from unseg_jax.bench.folder import shard_folder
from unseg_jax.bench.report.page import write_summary
from unseg_jax.bench.run.items import check_out, open_data
from unseg_jax.bench.run.runner import run_in_folder, work_here
from unseg_jax.bench.run.settings import Settings
from unseg_jax.bench.scale.on_ray import work_on_cluster
from unseg_jax.bench.scale.remote import Remote, is_remote, local_copy
from unseg_jax.bench.scale.shards import merge_folder


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
    if not is_remote(settings.out):
        return run_in_folder(settings, work, quiet=quiet)
    shard = settings.shard or (jax.process_index(), jax.process_count())
    with local_copy(settings.out) as folder:
        remote = Remote(settings.out, folder, shard_folder(Path(), shard).name)
        if remote.local_path is not None:
            check_out(remote.local_path, settings.data, open_data(vars(settings)).items)
        with remote.locked():
            if settings.overwrite:
                remote.clear()
            else:
                remote.pull()
            with remote.pushing():
                here = dataclasses.replace(settings, out=str(folder))
                return run_in_folder(here, work, quiet=quiet)


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
    if not is_remote(str(path)):
        return merge_folder(Path(path), partial=partial)
    with local_copy(str(path)) as folder:
        whole = Remote(str(path), folder)
        with whole.locked():
            whole.check_folders()
            whole.pull(masks=True)
            for shard in whole.shards():
                shard.pull(masks=True)
            summary = merge_folder(folder, partial=partial)
            whole.replace()
    return summary


def report(path: str | Path) -> dict[str, Any]:
    """`unseg_jax.bench.write_summary` of the run in a folder, or at a URL.

    Raises:
        BenchError: no run there, or the place cannot be opened or refuses.
        WriteError: the files cannot be written.
    """
    if not is_remote(str(path)):
        return write_summary(Path(path))
    with local_copy(str(path)) as folder:
        remote = Remote(str(path), folder)
        with remote.locked():
            remote.pull()
            summary = write_summary(folder)
            remote.push()
    return summary
