"""The run itself: threads decode ahead of the device, score and write behind it.

The main thread does nothing but hand batches to the device, so that what the device waits for
can be measured: `timing.device_busy` is the share of the wall time in which it worked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from unseg_jax.bench.folder import RunFolder, shard_folder
from unseg_jax.bench.report.page import write_summary
from unseg_jax.bench.run.engine import Engine
from unseg_jax.bench.run.items import (
    Prepared,
    check_out,
    collect_pixels,
    failure_reason,
    open_data,
    plain_errors,
)
from unseg_jax.bench.run.job import ATTEMPTS, Job, Ledger, Timing, describe_device
from unseg_jax.bench.run.settings import Settings, make_config
from unseg_jax.bench.score.scoring import failure_record
from unseg_jax.data import Item, Writer, batches
from unseg_jax.devices import versions
from unseg_jax.errors import Interrupted
from unseg_jax.runs.stamps import is_item_unchanged

_log = logging.getLogger(__name__)

# Scoring threads, and batches that may wait for them: enough never to hold the device up.
_FINISHERS = 2
_BEHIND = 4
# What the numbers depend on.
_PACKAGES = ("unseg_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")


Work = Callable[[Job, Ledger, Timing, Any], None]
"""Does all items of a run, with a progress bar for what comes before the first."""


def run_in_folder(settings: Settings, work: Work, *, quiet: bool = False) -> dict[str, Any]:
    """Runs a benchmark, or goes on with one, and writes its folder on this machine.

    Args:
        settings: what to do.
        work: `work_here`, or what does the items elsewhere.
        quiet: show no progress bar.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: unknown names or values (also `DatasetError`, `WeightsError`).
        BenchError: the run cannot start or go on; `Interrupted` after Ctrl-C.
        WriteError: the disk is full, or the folder cannot be written.
    """
    dataset = open_data(vars(settings))
    reading = settings.reading.measured([item.image for item in dataset.items])
    settings = dataclasses.replace(settings, value_range=reading.value_range)
    shard = settings.shard or (jax.process_index(), jax.process_count())
    path = shard_folder(Path(settings.out).expanduser(), shard)
    check_out(path, settings.data, dataset.items)
    engine = Engine(settings)
    config = make_config(
        settings,
        engine.methods.values(),
        (item.id for item in dataset.items),
        dataset=dataset.name,
        notes=dataset.notes,
        backbone=engine.backbone_name,
        weights=engine.weights_digest(),
        shard=shard,
    )
    by_id = {item.id: item for item in dataset.items}

    def is_unchanged(record: Mapping[str, Any]) -> bool:
        item = by_id.get(record["id"])
        return item is not None and is_item_unchanged(item, record, strict=settings.strict)

    with RunFolder(
        path,
        config,
        resume=settings.resume,
        overwrite=settings.overwrite,
        retry_failed=settings.retry_failed,
        is_unchanged=is_unchanged,
    ) as folder:
        if folder.changed:
            _log.warning(
                "%d images or masks have changed since they were scored, such as %s: they are "
                "done again.",
                len(folder.changed),
                folder.changed[0],
            )
        names = frozenset(engine.segmenters)
        items = dataset.items[shard[0] :: shard[1]]
        missing = {item.id: names - folder.finished.get(item.id, frozenset()) for item in items}
        pending = tuple(item for item in items if missing[item.id])
        job = Job(settings, dataset, engine, folder, pending, missing)
        if pending:
            _work(job, work, done=len(items) - len(pending), quiet=quiet)
        return write_summary(path, folder.store)


def _work(job: Job, work: Work, *, done: int, quiet: bool) -> None:
    """Does all pending items, failed ones twice, and leaves a line on how it went."""
    from tqdm import tqdm

    total = done + len(job.items)
    timing = Timing()
    with tqdm(total=total, initial=done, unit="image", disable=quiet, smoothing=0.1) as bar:
        fail_fast = job.settings.fail_fast
        ledger = Ledger(job.folder, job.missing, fail_fast=fail_fast, advance=bar.update)
        try:
            job.engine.fit(
                [item.image for item in job.dataset.items],
                job.folder.path / "models",
                lambda name, content: job.folder.write({f"models/{name}": content}),
                lambda name: bar.set_description(f"fitting {name}"),
                job.settings.reading,
            )
            work(job, ledger, timing, bar)
        except KeyboardInterrupt:
            bar.close()
            timing.images = ledger.count_finished() - done
            with undisturbed(), contextlib.suppress(OSError):
                _end_session(job, timing)
                write_summary(job.folder.path, job.folder.store)
            raise Interrupted(
                f"stopped after {ledger.count_finished()} of {total} images, which are "
                f"kept: give the same command with --resume to go on."
            ) from None
    timing.images = ledger.count_finished() - done
    _end_session(job, timing)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps an impatient second Ctrl-C from breaking off what the first one began."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def work_here(job: Job, ledger: Ledger, timing: Timing, bar: Any) -> None:
    """Does all items on the devices of this machine."""
    job.engine.shrink(len(job.items))
    job.engine.compile(lambda name: bar.set_description(f"compiling {name}"))
    bar.set_description("")
    bar.unpause()
    items: Sequence[Item] = job.items
    while items:
        start = time.perf_counter()
        try:
            _pass(job, items, ledger, timing)
        finally:
            timing.wall += time.perf_counter() - start
        items = ledger.next_attempt() if ledger.attempt < ATTEMPTS else ()


def _pass(job: Job, items: Sequence[Item], ledger: Ledger, timing: Timing) -> None:
    """Works through items once."""
    preparer, finisher, engine = job.preparer, job.finisher, job.engine
    thumbnails = job.thumbnails

    def prepare(item: Item) -> Prepared:
        return preparer(item, item.id in thumbnails)

    def finish(batch, prepared, results) -> None:
        with plain_errors():
            missing = [ledger.missing(item) for item in batch]
            finished = finisher(batch, prepared, results, missing)
            ledger.settle(finished.records, batch, finished.files)

    def give_up(outcomes) -> None:
        with plain_errors():
            records = [
                failure_record(outcome.item, name, failure_reason(outcome.error))
                for outcome in outcomes
                for name in sorted(ledger.missing(outcome.item))
            ]
            ledger.settle(records, [outcome.item for outcome in outcomes])

    loaded = batches(items, prepare, engine.batch_size, workers=job.settings.workers)
    with contextlib.closing(loaded), Writer(_FINISHERS, _BEHIND) as writer:
        for batch in _timed(loaded, timing):
            bad = [outcome for outcome in batch if outcome.value is None]
            good = [outcome for outcome in batch if outcome.value is not None]
            if bad:
                writer.submit(give_up, bad)
            if good:
                prepared = [outcome.value for outcome in good]
                begin = time.perf_counter()
                results = engine.run(collect_pixels(prepared))
                timing.device += time.perf_counter() - begin
                writer.submit(finish, [outcome.item for outcome in good], prepared, results)


def _timed(batches: Iterator, timing: Timing) -> Iterator:
    """The batches, with the time spent waiting for them taken."""
    while True:
        begin = time.perf_counter()
        batch = next(batches, None)
        timing.waiting += time.perf_counter() - begin
        if batch is None:
            return
        yield batch


def _end_session(job: Job, timing: Timing) -> None:
    job.folder.add_session(
        {
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "timing": timing.as_json(),
            "compile_seconds": job.engine.compile_seconds,
            "versions": versions(_PACKAGES),
            "device": describe_device(job.engine.devices),
            "changed": len(job.folder.changed),
        }
    )
