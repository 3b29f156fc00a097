"""Feeding the device: a bounded queue of decoded images ahead of it.

Pillow lets go of Python's lock while it decodes and resizes, so threads are enough.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from unseg_jax.data.writer import Writer

__all__ = ["Outcome", "Writer", "batches", "default_workers"]

ItemType = TypeVar("ItemType")
ValueType = TypeVar("ValueType")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[ItemType, ValueType]):
    """What became of an item: either a value, or the error that `prepare` raised.

    Attributes:
        item: the item itself.
        value: what `prepare(item)` gave; None if it failed.
        error: the exception, or None.
    """

    item: ItemType
    value: ValueType | None = None
    error: Exception | None = None


def default_workers() -> int:
    """Threads that decode: one a core that this process may use, from 2 to 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, min(16, cores or 2))


def batches(
    items: Iterable[ItemType],
    prepare: Callable[[ItemType], ValueType],
    batch_size: int,
    *,
    workers: int | None = None,
    ahead: int = 2,
) -> Generator[list[Outcome[ItemType, ValueType]], None, None]:
    """Prepares items in threads, ahead of the consumer, and yields them in order.

    At most `ahead + 1` batches are held at a time, whatever the number of items; `items` may be
    a generator. An item that fails takes its place in the batch as an `Outcome` with its error,
    and the others go on. Close the generator (`contextlib.closing`) to stop early: what has not
    begun is dropped.

    Args:
        items: what to prepare.
        prepare: called with an item, in a thread.
        batch_size: items a batch; the last batch may be smaller.
        workers: threads; `default_workers()` if None.
        ahead: batches that are prepared while the consumer works on one.

    Yields:
        Lists of at most `batch_size` outcomes, in the order of `items`.

    Raises:
        ValueError: batch_size, workers or ahead below 1.
    """
    workers = default_workers() if workers is None else workers
    for name, value in (("batch_size", batch_size), ("workers", workers), ("ahead", ahead)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    return _batches(iter(items), prepare, batch_size, workers, ahead)


def _batches(items, prepare, batch_size, workers, ahead) -> Generator[list[Outcome], None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    waiting: collections.deque[tuple[Any, Future]] = collections.deque()

    def refill() -> None:
        for item in itertools.islice(items, ahead * batch_size - len(waiting)):
            waiting.append((item, pool.submit(prepare, item)))

    try:
        refill()
        while waiting:
            batch = []
            while waiting and len(batch) < batch_size:
                batch.append(_outcome(*waiting.popleft()))
                refill()
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(item: Any, future: Future) -> Outcome:
    try:
        return Outcome(item, future.result())
    except Exception as error:
        return Outcome(item, error=error)
