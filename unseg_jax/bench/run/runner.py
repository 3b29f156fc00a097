"""The run itself: threads decode ahead of the device, score and write behind it.

The main thread does nothing but hand batches to the device, so that what the device waits for
can be measured: `timing.device_busy` is the share of the wall time in which it worked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.report.html_report import write_summary
from unseg_jax.bench.run.engine import Engine
from unseg_jax.bench.run.items import (
    Finisher,
    Prepared,
    Preparer,
    check_out,
    collect_pixels,
    failure_reason,
    open_data,
    plain_errors,
)
from unseg_jax.bench.run.settings import Settings, make_config
from unseg_jax.bench.run_folder import RunFolder, shard_folder
from unseg_jax.bench.score.image_records import failure_record
from unseg_jax.data import Dataset, Item, Writer, batches, default_workers
from unseg_jax.devices import versions
from unseg_jax.errors import BenchError, Interrupted
from unseg_jax.runs.stamps import is_item_unchanged

_log = logging.getLogger(__name__)

# Scoring threads, and batches that may wait for them: enough never to hold the device up.
_FINISHERS = 2
_BEHIND = 4
# What the numbers depend on.
_PACKAGES = ("unseg_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
# How often an image is tried before its failure is recorded.
_ATTEMPTS = 2


@dataclasses.dataclass
class Timing:
    """Where the wall time of a session went, in seconds."""

    wall: float = 0.0
    device: float = 0.0
    waiting: float = 0.0
    images: int = 0

    def as_json(self) -> dict[str, Any]:
        """With the shares that are printed."""
        wall = max(self.wall, 1e-9)
        return {
            "wall_seconds": round(self.wall, 3),
            "device_seconds": round(self.device, 3),
            "device_busy": round(self.device / wall, 4),
            "overhead_seconds": round(self.wall - self.device, 3),
            "waiting_for_images_seconds": round(self.waiting, 3),
            "images": self.images,
            "images_per_second": round(self.images / wall, 3),
            "peak_memory_mb": _peak_memory(),
        }


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that is set up: what there is to do, and with what."""

    settings: Settings
    dataset: Dataset
    engine: Engine
    folder: RunFolder
    items: tuple[Item, ...]
    missing: dict[str, frozenset[str]]

    @property
    def preparer(self) -> Preparer:
        """What turns items into pixels."""
        engine = self.engine
        return Preparer(engine.input_sizes, engine.reads_images, self.settings, self.dataset.rule)

    @property
    def thumbnails(self) -> frozenset[str]:
        """Ids of the images that get thumbnails."""
        return frozenset(item.id for item in self.dataset.items[: self.settings.thumbnails])


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10), 1)


class Ledger:
    """Keeps each image and method to one record; its methods may be called by any thread."""

    def __init__(
        self,
        folder: RunFolder,
        missing: Mapping[str, frozenset[str]],
        *,
        fail_fast: bool = False,
        advance: Callable[[int], Any] = lambda count: None,
    ):
        """With what images lack; `advance` takes the number of images just finished."""
        self.folder = folder
        self.failures: dict[str, Item] = {}
        self.attempt = 1
        self._missing = dict(missing)
        self._fail_fast = fail_fast
        self._advance = advance
        self._lock = threading.Lock()

    def missing(self, item: Item) -> frozenset[str]:
        """Methods that an image has no record of."""
        return self._missing[item.id]

    def count_finished(self) -> int:
        """Images that have all their records."""
        return sum(not names for names in self._missing.values())

    def next_attempt(self) -> list[Item]:
        """The items to try again, if they may be; what fails from here on counts as another."""
        items, self.failures = list(self.failures.values()), {}
        self.attempt += 1
        return items

    def settle(
        self,
        records: Iterable[Mapping[str, Any]],
        items: Sequence[Item],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Appends the records of a batch that are not there yet, and the pictures that belong to
        them. A failure is not recorded before the last attempt.

        Raises:
            BenchError: an image failed, and failures stop the run.
            WriteError: the records or pictures cannot be written.
        """
        by_id = {item.id: item for item in items}
        with self._lock:
            kept = [record for record in records if self._counts(record, by_id)]
            left = dict.fromkeys(by_id, frozenset[str]())
            for id in left:
                settled = {record["method"] for record in kept if record["id"] == id}
                left[id] = self._missing[id] - settled
            kept = [{**record, "attempts": self.attempt} for record in kept]
            self.folder.append(kept, files)
            before = sum(bool(self._missing[id]) for id in by_id)
            self._missing |= left
            self._advance(before - sum(bool(names) for names in left.values()))

    def _counts(self, record: Mapping[str, Any], items: Mapping[str, Item]) -> bool:
        id, error = record["id"], record["error"]
        if record["method"] not in self._missing[id]:
            return False
        if error is None:
            return True
        if self._fail_fast:
            raise BenchError(f"{id} failed: {error} Leave --fail-fast out to go on without it.")
        if self.attempt < _ATTEMPTS:
            self.failures[id] = items[id]
            return False
        return True


def _describe(devices: Sequence[Any]) -> str:
    """Kind and number of devices; of a CPU its name and cores."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{_cpu_name()}, {default_workers()} cores"
    return kind if len(devices) == 1 else f"{len(devices)} × {kind}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


Pass = Callable[[Sequence[Item]], None]
Work = Callable[[Job, Ledger, Timing, Any], contextlib.AbstractContextManager[Pass]]
"""Sets up what works through items, with a progress bar for what comes before the first."""


def run_in_folder(
    settings: Settings, place: Path, work: Work, *, quiet: bool = False
) -> dict[str, Any]:
    """`unseg_jax.bench.run` in a folder here; `work` does the items, here or elsewhere."""
    dataset = open_data(vars(settings))
    reading = settings.reading.measured([item.image for item in dataset.items])
    settings = dataclasses.replace(settings, value_range=reading.value_range)
    index, count = settings.share
    path = shard_folder(place.expanduser(), (index, count))
    check_out(path, settings.data, dataset.items)
    engine = Engine(settings)
    config = make_config(
        settings,
        engine.methods.values(),
        (item.id for item in dataset.items),
        dataset=dataset.name,
        notes=dataset.notes,
        backbone=engine.backbone.name if engine.backbone else "",
        weights=engine.weights_digest(),
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
        items = dataset.items[index::count]
        missing = {item.id: names - folder.finished.get(item.id, frozenset()) for item in items}
        pending = tuple(item for item in items if missing[item.id])
        job = Job(settings, dataset, engine, folder, pending, missing)
        if pending:
            _work(job, work, done=len(items) - len(pending), quiet=quiet)
        return write_summary(path, folder.store)


def _work(job: Job, work: Work, *, done: int, quiet: bool) -> None:
    """Does all pending items, failed ones twice, and leaves a line on how it went."""
    from tqdm import tqdm

    total, timing = done + len(job.items), Timing()
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
            with work(job, ledger, timing, bar) as go_through:
                items: Sequence[Item] = job.items
                while items:
                    start = time.perf_counter()
                    try:
                        go_through(items)
                    finally:
                        timing.wall += time.perf_counter() - start
                    items = ledger.next_attempt()
        except KeyboardInterrupt:
            bar.close()
            timing.images = ledger.count_finished() - done
            with _undisturbed(), contextlib.suppress(OSError):
                _end_session(job, timing)
                write_summary(job.folder.path, job.folder.store)
            raise Interrupted(
                f"stopped after {ledger.count_finished()} of {total} images, which are "
                f"kept: give the same command with --resume to go on."
            ) from None
    timing.images = ledger.count_finished() - done
    _end_session(job, timing)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
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


@contextlib.contextmanager
def work_here(job: Job, ledger: Ledger, timing: Timing, bar: Any) -> Iterator[Pass]:
    """Does items on the devices of this machine."""
    job.engine.shrink(len(job.items))
    job.engine.compile(lambda name: bar.set_description(f"compiling {name}"))
    bar.set_description("")
    bar.unpause()
    yield lambda items: _pass(job, items, ledger, timing)


def _pass(job: Job, items: Sequence[Item], ledger: Ledger, timing: Timing) -> None:
    engine, thumbnails = job.engine, job.thumbnails
    preparer = dataclasses.replace(job.preparer, kept=engine.kept)
    finisher = Finisher(engine.segmenters, job.settings, job.dataset.rule)

    def prepare(item: Item) -> Prepared:
        return preparer(item, item.id in thumbnails)

    def finish(batch, prepared, results) -> None:
        with plain_errors():
            missing = [ledger.missing(item) for item in batch]
            records, files = finisher(batch, prepared, results, missing)
            ledger.settle(records, batch, files)

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
                features = [one.features for one in prepared]
                results = engine.run(collect_pixels(prepared), features)
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
            "device": _describe(job.engine.devices),
            "changed": len(job.folder.changed),
        }
    )
