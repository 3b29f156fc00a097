"""What is done, what failed, and what is tried again; the only writer of records."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unseg_jax.bench.records import RunFolder
from unseg_jax.data import Item
from unseg_jax.errors import BenchError

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
