"""Feeding the device and clearing up behind it: bounded pools whose errors are not lost.

Pillow lets go of Python's lock while it decodes and resizes, so threads are enough.
"""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from unseg_jax.devices import core_count
from unseg_jax.errors import DISK_FULL, WriteError

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
    waiting: collections.deque[Future] = collections.deque()
    largest = -1

    def outcome(item: Any) -> tuple[Outcome, int]:
        try:
            value = prepare(item)
            return Outcome(item, value), nbytes(value)
        except Exception as error:
            return Outcome(item, error=error), 0

    def fits(known: list[int]) -> bool:
        """Whether a further item may be held beside a batch of these sizes; what is under way
        counts as the largest so far."""
        nonlocal largest
        sizes = [future.result()[1] for future in waiting if future.done()]
        largest = max([largest, *known, *sizes])
        if largest < 0:
            return False  # until the first is prepared, one batch is enough
        under_way = len(waiting) - len(sizes) + 1
        return sum(known) + sum(sizes) + under_way * largest <= max_bytes

    def refill(known: list[int]) -> None:
        # What the batch under way lacks is begun whatever its size.
        while len(waiting) < ahead * batch_size and (
            len(waiting) < batch_size - len(known) or fits(known)
        ):
            item = list(itertools.islice(items, 1))
            if not item:
                return
            waiting.append(pool.submit(outcome, *item))

    try:
        refill([])
        while waiting:
            batch: list[Outcome] = []
            known: list[int] = []
            while waiting and len(batch) < batch_size:
                found, size = waiting.popleft().result()
                batch.append(found)
                known.append(size)
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


class Writer:
    """A pool that does work behind the caller's back, but not without its knowledge.

    Use it as a context manager: leaving it waits for all work. At most `ahead` jobs wait, so
    memory stays flat; `submit` then blocks until one is done. The first error of a job is
    raised by the next `submit` or on leaving; jobs that still wait are dropped then.

    ```python
    with Writer() as writer:
        for name, mask in masks:
            writer.submit(write_png, f"{name}.png", mask)
    ```
    """

    def __init__(self, workers: int = 2, ahead: int = 64):
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="writer")
        self._room = threading.BoundedSemaphore(ahead)
        self._error: BaseException | None = None

    def submit(self, function: Callable, *args: Any, **kwargs: Any) -> Future:
        """Has the pool call it; raises the first error of an earlier job."""
        self._raise()
        while not self._room.acquire(timeout=0.1):  # a time-out lets Ctrl-C through
            self._raise()
        try:
            future = self._pool.submit(function, *args, **kwargs)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        """Waits for all jobs; raises the first error of one."""
        self._pool.shutdown(wait=True, cancel_futures=self._error is not None)
        self._raise()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self.close()
        else:  # what is already under way is finished; the caller's own error goes on
            self._pool.shutdown(wait=True)

    def _done(self, future: Future) -> None:
        self._room.release()
        if not future.cancelled() and self._error is None:
            self._error = future.exception()

    def _raise(self) -> None:
        error = self._error
        if (
            isinstance(error, OSError)
            and error.errno in DISK_FULL
            and type(error) is not WriteError
        ):
            raise WriteError(error.filename or "a file", error) from error
        if error is not None:
            raise error
