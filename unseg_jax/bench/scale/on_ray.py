"""A run on a cluster: Ray Data decodes in tasks and segments in a pool of actors.

The driver alone writes: results of the workers come back to it, so that a worker may be killed at
any moment. Ray then does its batch again elsewhere, and the ledger keeps each image to one record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.run.engine import Engine
from unseg_jax.bench.run.items import (
    Finisher,
    Preparer,
    collect_pixels,
    failure_reason,
    plain_errors,
)
from unseg_jax.bench.run.runner import Job, Ledger, Pass, Timing
from unseg_jax.bench.run.settings import Settings
from unseg_jax.bench.score.image_records import failure_record
from unseg_jax.data import Item, MaskRule
from unseg_jax.errors import BenchError, why

# Logical CPUs of a local cluster beyond its actors': decoding tasks starve without.
_SPARE_CPUS = 4
# More blocks than this cost Ray more than they spread the work.
_BLOCKS = 2000


@contextlib.contextmanager
def work_on_cluster(job: Job, ledger: Ledger, timing: Timing, _: Any = None) -> Iterator[Pass]:
    """Does items on the Ray cluster that the settings name; `timing.device` is per actor.

    Raises:
        BenchError: Ray is missing or cannot be reached, or a worker reports an error.
    """
    ray = _import_ray()
    with _connected(ray, job.settings):
        try:
            yield lambda items: _pass(ray, job, items, ledger, timing)
        except ray.exceptions.RayError as error:  # type: ignore[attr-defined]
            raise BenchError(_say(error)) from error


def _import_ray():
    # Ray reports its use to its makers unless told not to, before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BenchError(
            f"--cluster needs the extra 'cluster' ({error}): pip install \"unseg_jax[cluster]\"."
        ) from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, settings: Settings) -> Iterator[None]:
    options: dict[str, Any] = {"address": settings.cluster}
    if settings.cluster == "local":
        options["num_cpus"] = settings.actors + max(_SPARE_CPUS, os.cpu_count() or 1)
        options["include_dashboard"] = False
    try:
        _knock(settings.cluster)
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        # Ray puts a handler of its own in, which ends the process with nothing written.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    except Exception as error:  # a refused connection comes in several types
        raise BenchError(
            f"the Ray cluster at {settings.cluster} cannot be reached ({why(error)}): check that "
            f"it runs, or use --cluster local."
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises OSError if nothing answers at HOST:PORT; Ray itself waits for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _pass(ray: Any, job: Job, items: Sequence[Item], ledger: Ledger, timing: Timing) -> None:
    settings, engine, thumbnails = job.settings, job.engine, job.thumbnails
    # Models are fitted by the driver, once.
    paths = (job.folder.path / "models").glob("*.safetensors")
    models = {path.name: path.read_bytes() for path in paths}
    rows = [{"item": pickle.dumps(item), "thumbnail": item.id in thumbnails} for item in items]
    blocks = min(_BLOCKS, -(-len(rows) // engine.batch_size))
    actors = max(1, min(settings.actors, blocks))
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    answers = (
        ray.data.from_items(rows, override_num_blocks=blocks)
        .map(_Prepare(job.preparer))
        .map_batches(
            SegmentActor,
            fn_constructor_args=(settings, engine.weights_digest(), job.dataset.rule, models),
            batch_size=engine.batch_size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=1 if has_gpu else None,
        )
    )
    by_id = {item.id: item for item in items}
    for row in answers.iter_rows():
        answer = pickle.loads(row["answer"])
        with plain_errors():
            batch = [by_id[id] for id in answer["ids"]]
            ledger.settle(answer["records"], batch, answer["files"])
        timing.device += answer["seconds"] / actors
        for name, seconds in answer["compile_seconds"].items():
            engine.compile_seconds[name] = max(seconds, engine.compile_seconds[name])


class _Prepare:
    """The task that decodes one image; a failure travels on as its reason."""

    def __init__(self, preparer: Preparer):
        self.preparer = preparer

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        item = pickle.loads(row["item"])
        try:
            value: Any = self.preparer(item, bool(row["thumbnail"]))
        except Exception as error:
            value = failure_reason(error)
        return {"item": row["item"], "prepared": pickle.dumps(value)}


class SegmentActor:
    """One worker with a backbone of its own: prepared images in, records out."""

    def __init__(
        self, settings: Settings, digest: str, rule: MaskRule, models: Mapping[str, bytes]
    ):
        """Takes the digest of the driver's weights, and the models that it fitted, by file name."""
        self.engine = Engine(settings)
        if self.engine.weights_digest() != digest:
            raise BenchError(
                f"the weights of '{settings.backbone}' on {socket.gethostname()} differ from the "
                f"driver's: give all machines the same file."
            )
        with tempfile.TemporaryDirectory() as folder:
            for name, content in models.items():
                (Path(folder) / name).write_bytes(content)
            self.engine.fit([], Path(folder), lambda *_: None, reading=settings.reading)
        self.engine.compile()
        self.finisher = Finisher(self.engine.segmenters, settings, rule)
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One row: the records, pictures and timing of a batch."""
        items = [pickle.loads(item) for item in batch["item"]]
        prepared = [pickle.loads(value) for value in batch["prepared"]]
        names = frozenset(self.engine.segmenters)
        records = [
            failure_record(item, name, value)
            for item, value in zip(items, prepared, strict=True)
            if isinstance(value, str)
            for name in sorted(names)
        ]
        good = [pair for pair in zip(items, prepared, strict=True) if not isinstance(pair[1], str)]
        files, seconds = {}, 0.0
        if good:
            chosen, values = zip(*good, strict=True)
            begin = time.perf_counter()
            results = self.engine.run(collect_pixels(values))
            seconds = time.perf_counter() - begin
            found, files = self.finisher(chosen, values, results, [names] * len(good))
            records += found
        for record in records:
            record["worker"] = self.worker
        answer = {
            "ids": [item.id for item in items],
            # Through JSON, as the records go to the disk: NumPy's types end here.
            "records": json.loads(json.dumps(records)),
            "files": files,
            "seconds": seconds,
            "compile_seconds": self.engine.compile_seconds,
        }
        return {"answer": [pickle.dumps(answer)]}


def _say(error: BaseException) -> str:
    """The worker's own words, if it was one of our errors."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if isinstance(inner, BenchError):
            return str(inner)
        cause = cause.__cause__
    lines = str(error).strip().splitlines()
    return f"the cluster stopped ({lines[-1] if lines else type(error).__name__}): see Ray's log."
