"""The run itself: threads decode ahead of the device, score and write behind it.

The main thread does nothing but hand batches to the device, so that what the device waits for
can be measured: `timing.device_busy` is the share of the wall time in which it worked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import platform
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from unseg_jax.bench.engine import Engine
from unseg_jax.bench.errors import BenchError
from unseg_jax.bench.finishing import Finisher
from unseg_jax.bench.ledger import ATTEMPTS, Ledger
from unseg_jax.bench.preparing import Prepared, Preparer, stack_pixels
from unseg_jax.bench.records import SUMMARY, RunFolder, read_records, read_sessions, shard_folder
from unseg_jax.bench.remote import is_remote, run_remote
from unseg_jax.bench.scoring import failure_record
from unseg_jax.bench.settings import Settings, make_config
from unseg_jax.bench.summary import summarise
from unseg_jax.data import Dataset, ImageError, Item, Writer, batches, open_dataset
from unseg_jax.files import WriteError, write_bytes, write_json

# Scoring threads, and batches that may wait for them: enough never to hold the device up.
_FINISHERS = 2
_BEHIND = 4


class Interrupted(BenchError):
    """The user stopped the run; the message says how to go on."""


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
        engine, protocol = self.engine, self.settings.resolve_protocol()
        rule, draft = self.dataset.rule, self.settings.draft
        return Preparer(engine.sizes, protocol, rule, engine.reads_images, draft)

    @property
    def thumbnails(self) -> frozenset[str]:
        """Ids of the images that get thumbnails."""
        return frozenset(item.id for item in self.dataset.items[: self.settings.thumbnails])

    @property
    def finisher(self) -> Finisher:
        """What turns results into records."""
        return Finisher(
            self.engine.segmenters,
            self.settings.resolve_protocol(),
            self.dataset.rule,
            self.settings.every,
            self.settings.save_masks,
            lambda path, content: write_bytes(self.folder.path / path, content),
        )


def run(settings: Settings, *, quiet: bool = False) -> dict[str, Any]:
    """Runs a benchmark, or goes on with one, and writes its folder.

    Args:
        settings: what to do.
        quiet: show no progress bar.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: unknown names or values (also `DatasetError`, `WeightsError`).
        BenchError: the run cannot start or go on; `Interrupted` after Ctrl-C.
        WriteError: the disk is full, or the folder cannot be written.
    """
    settings.resolve_protocol()
    settings.resolve_methods()
    if is_remote(settings.out):
        return run_remote(settings, quiet=quiet)
    dataset = open_dataset(
        settings.data,
        image_key=settings.image_key,
        mask_key=settings.mask_key,
        foreground=settings.foreground_values,
        limit=settings.limit,
        split=settings.split,
    )
    shard = settings.shard or (jax.process_index(), jax.process_count())
    path = shard_folder(Path(settings.out), shard)
    engine = Engine.from_settings(settings)
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
    with RunFolder(
        path,
        config,
        resume=settings.resume,
        overwrite=settings.overwrite,
        retry_failed=settings.retry_failed,
    ) as folder:
        names = frozenset(engine.segmenters)
        items = dataset.items[shard[0] :: shard[1]]
        missing = {item.id: names - folder.finished.get(item.id, frozenset()) for item in items}
        pending = tuple(item for item in items if missing[item.id])
        job = Job(settings, dataset, engine, folder, pending, missing)
        if pending:
            _work(job, done=len(items) - len(pending), quiet=quiet)
    return write_summary(path)


def write_summary(path: Path) -> dict[str, Any]:
    """Makes `summary.json` and, where reports can be made, `report.html` from a run's records.

    Raises:
        BenchError: no run there.
        WriteError: they cannot be written.
    """
    from unseg_jax.bench.records import read_config

    summary = summarise(read_records(path), read_config(path), read_sessions(path))
    write_json(path / SUMMARY, summary)
    if importlib.util.find_spec("unseg_jax.bench.report") is not None:
        report = importlib.import_module("unseg_jax.bench.report")
        try:
            report.write_report(path)
        except WriteError:
            raise
        except Exception as error:  # the scores are safe, and the report can be made again
            warnings.warn(
                f"report.html was not written ({type(error).__name__}: {error}): make it again by "
                f"python -m unseg_jax.bench report {path}",
                stacklevel=2,
            )
    return summary


def _work(job: Job, *, done: int, quiet: bool) -> None:
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
                lambda name: bar.set_description(f"fitting {name}"),
            )
            if job.settings.cluster is not None:
                from unseg_jax.bench.cluster import work_on_cluster

                work_on_cluster(job, ledger, timing)
            else:
                _work_here(job, ledger, timing, bar)
        except KeyboardInterrupt:
            bar.close()
            timing.images = ledger.count_finished() - done
            with undisturbed(), contextlib.suppress(OSError):
                _end_session(job, timing)
                write_summary(job.folder.path)
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


def _work_here(job: Job, ledger: Ledger, timing: Timing, bar: Any) -> None:
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
            wanted = [ledger.missing(item) for item in batch]
            ledger.settle(finisher(batch, prepared, results, wanted), batch)

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
                results = engine.run(stack_pixels(prepared))
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


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of the operating system in a writing thread, as one sentence each."""
    try:
        yield
    except WriteError as error:
        raise BenchError(
            f"{error} What is done is kept: give the same command with --resume."
        ) from error


def failure_reason(error: Exception | None) -> str:
    """A failure in words; errors that no image can be blamed for are raised."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, (OSError, MemoryError)):
        return f"{type(error).__name__}: {error}"
    assert error is not None
    raise error


def _end_session(job: Job, timing: Timing) -> None:
    job.folder.add_session(
        {
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "timing": timing.as_json(),
            "compile_seconds": job.engine.compile_seconds,
            "versions": versions(),
            "device": describe_device(job.engine.devices),
        }
    )


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    names = ("unseg_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe_device(devices: Sequence[Any]) -> str:
    """Kind and number of devices; of a CPU its name and cores."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        from unseg_jax.data import default_workers

        kind = f"{_cpu_name()}, {default_workers()} cores"
    return kind if len(devices) == 1 else f"{len(devices)} × {kind}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10), 1)
