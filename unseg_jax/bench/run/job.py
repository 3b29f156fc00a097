"""A run that is set up: what there is to do, what is done, where and how its time was spent."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.folder import RunFolder
from unseg_jax.bench.run.engine import Engine
from unseg_jax.bench.run.items import Finisher, Preparer
from unseg_jax.bench.run.settings import Settings
from unseg_jax.data import Dataset, Item
from unseg_jax.errors import BenchError


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
        reading = self.settings.reading
        return Preparer(engine.framings, protocol, rule, engine.reads_images, draft, reading)

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
            self.settings.record_every,
            self.settings.save_masks,
        )


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10), 1)


ATTEMPTS = 2
"""How often an image is tried before its failure is recorded."""


class Ledger:
    """Keeps each image and method to one record; its methods may be called by any thread.

    Attributes:
        failures: items that failed in this attempt and are tried again.
        attempt: 1, then 2.
    """

    def __init__(
        self,
        folder: RunFolder,
        missing: Mapping[str, frozenset[str]],
        *,
        fail_fast: bool = False,
        advance: Callable[[int], Any] = lambda count: None,
    ):
        """
        Args:
            folder: that records are appended to.
            missing: image id → methods that it has no record of.
            fail_fast: raise at the first failure.
            advance: called with the number of images that have just been finished.
        """
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
        """Begins another attempt; returns the items to try again."""
        items = list(self.failures.values())
        self.failures = {}
        self.attempt += 1
        return items

    def settle(
        self,
        records: Iterable[Mapping[str, Any]],
        items: Sequence[Item],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Appends the records of a batch, each image and method once.

        A failure is not recorded before the last attempt.

        Args:
            records: of the batch; what has a record already is left out.
            items: of the batch.
            files: pictures that belong to the records: name in the run's folder → content.

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
        if self.attempt < ATTEMPTS:
            self.failures[id] = items[id]
            return False
        return True


def describe_device(devices: Sequence[Any]) -> str:
    """Kind and number of devices; of a CPU its name and cores."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        from unseg_jax.data import default_workers

        kind = f"{_cpu_name()}, {default_workers()} cores"
    return kind if len(devices) == 1 else f"{len(devices)} × {kind}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
