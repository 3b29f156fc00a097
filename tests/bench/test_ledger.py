"""Each image and method gets one record, whatever comes in."""

import json
import threading

import pytest

from unseg_jax.bench.folder import RunFolder, read_records
from unseg_jax.bench.run.runner import Ledger
from unseg_jax.data import Item
from unseg_jax.errors import BenchError

pytestmark = pytest.mark.quick

A, B, C = ITEMS = [Item(id, f"{id}.png") for id in "abc"]


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path, {"seed": 0}) as folder:
        yield folder


def record(id, method, error=None):
    return {"id": id, "method": method, "error": error}


def make(folder, items=ITEMS, **options):
    return Ledger(folder, {item.id: frozenset({"one", "two"}) for item in items}, **options)


def test_a_record_is_written_once_and_a_failure_when_it_has_failed_twice(folder):
    finished = []
    ledger = make(folder, advance=finished.append)
    failed = [record("b", method, "broken.") for method in ("one", "two")]
    ledger.settle([record("a", "one"), record("a", "two", "broken."), *failed], [A, B])
    ledger.settle([record("a", "one"), record("c", "one")], [A, C])
    assert sum(finished) == 0
    assert ledger.missing(A) == ledger.missing(C) == {"two"}
    assert ledger.next_attempt() == [A, B]
    ledger.settle([record("a", "two"), *failed], [A, B])
    assert (ledger.failures, ledger.missing(A), sum(finished)) == ({}, frozenset(), 2)
    keys = ("id", "method", "error", "attempts")
    assert [tuple(line[key] for key in keys) for line in read_records(folder.path)] == [
        ("a", "one", None, 1),
        ("c", "one", None, 1),
        ("a", "two", None, 2),
        ("b", "one", "broken.", 2),
        ("b", "two", "broken.", 2),
    ]


def test_fail_fast_names_the_image(folder):
    with pytest.raises(BenchError, match=r"b failed: broken\. Leave --fail-fast out"):
        make(folder, fail_fast=True).settle([record("b", "one", "broken.")], ITEMS)


def test_threads_do_not_mix_their_lines(folder):
    items = [Item(f"{index:03d}", "x") for index in range(200)]
    ledger = make(folder, items)

    def work(mine):
        for item in mine:
            ledger.settle([record(item.id, "one"), record(item.id, "two")], [item])

    # Every item is given to two threads.
    parts = (items[::2], items[1::2], items[:100], items[100:])
    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = map(json.loads, (folder.path / "per_image.jsonl").read_text().splitlines())
    keys = [(line["id"], line["method"]) for line in lines]
    assert len(set(keys)) == len(keys) == 400
