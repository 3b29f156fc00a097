"""Feeding the device: a bounded queue of decoded images ahead of it.

Pillow lets go of Python's lock while it decodes and resizes, so threads are enough.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from unseg_jax.data.writer import Writer
from unseg_jax.devices import core_count

__all__ = ["Outcome", "Writer", "batches", "default_workers"]

MAX_BYTES = 512 * 2**20
"""Bytes of decoded images that wait for the device, unless one batch alone is larger."""

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
    return max(2, min(16, core_count()))


def batches(
    items: Iterable[ItemType],
    prepare: Callable[[ItemType], ValueType],
    batch_size: int,
    *,
    workers: int | None = None,
    ahead: int = 2,
    max_bytes: int = MAX_BYTES,
) -> Generator[list[Outcome[ItemType, ValueType]], None, None]:
    """Prepares items in threads, ahead of the consumer, and yields them in order.

    At most `ahead + 1` batches are held at a time, however many items there are, and no further
    item is begun while those that are held, and those under way, would take more than `max_bytes`;
    one batch is always begun. `items` may be a generator. An item that fails takes its place in
    the batch as an `Outcome` with its error, and the others go on. Close the generator
    (`contextlib.closing`) to stop early: what has not begun is dropped.

    Args:
        items: what to prepare.
        prepare: called with an item, in a thread.
        batch_size: items a batch; the last batch may be smaller.
        workers: threads; `default_workers()` if None.
        ahead: batches that are prepared while the consumer works on one.
        max_bytes: of the arrays in prepared values; an item under way counts as the largest so
            far.

    Yields:
        Lists of at most `batch_size` outcomes, in the order of `items`.

    Raises:
        ValueError: batch_size, workers, ahead or max_bytes below 1.
    """
    workers = default_workers() if workers is None else workers
    limits = {"batch_size": batch_size, "workers": workers, "ahead": ahead, "max_bytes": max_bytes}
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    return _batches(iter(items), prepare, batch_size, workers, ahead, max_bytes)


def _batches(
    items, prepare, batch_size, workers, ahead, max_bytes
) -> Generator[list[Outcome], None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    waiting: collections.deque[tuple[Any, Future]] = collections.deque()
    largest = None

    def measured(item: Any) -> tuple[Any, int]:
        value = prepare(item)
        return value, nbytes(value)

    def fits(known: list[int]) -> bool:
        """Whether a further item may be held beside a batch of these sizes; what is under way
        counts as the largest so far."""
        nonlocal largest
        sizes = [_size(future) for _, future in waiting]
        largest = max((largest, *known, *sizes), key=lambda size: -1 if size is None else size)
        if largest is None:
            return False  # until the first is prepared, one batch is enough
        under_way = sizes.count(None) + 1
        held = sum(known) + sum(size for size in sizes if size is not None)
        return held + under_way * largest <= max_bytes

    def refill(known: list[int]) -> None:
        while len(waiting) < ahead * batch_size:
            # What the batch under way lacks is begun whatever its size.
            needed = len(waiting) < batch_size - len(known)
            if not (needed or fits(known)):
                return
            for item in itertools.islice(items, 1):
                waiting.append((item, pool.submit(measured, item)))
                break
            else:
                return

    try:
        refill([])
        while waiting:
            batch: list[Outcome] = []
            known: list[int] = []
            while waiting and len(batch) < batch_size:
                item, future = waiting.popleft()
                batch.append(_outcome(item, future))
                known.append(_size(future) or 0)
                refill(known)
            yield batch
            refill([])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def nbytes(value: Any) -> int:
    """Bytes of the arrays in a value: an array, or tuples, lists, dicts and dataclasses of them.

    >>> import numpy as np
    >>> nbytes(("name", {"pixels": np.zeros((4, 5, 3), np.uint8)}))
    60
    """
    if isinstance(value, list | tuple):
        return sum(map(nbytes, value))
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(nbytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return int(getattr(value, "nbytes", 0))


def _size(future: Future) -> int | None:
    """Bytes of what a thread has prepared; None while it is under way."""
    if not future.done() or future.cancelled():
        return None
    return 0 if future.exception() else future.result()[1]


def _outcome(item: Any, future: Future) -> Outcome:
    try:
        return Outcome(item, future.result()[0])
    except Exception as error:
        return Outcome(item, error=error)
