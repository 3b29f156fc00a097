"""Each image and method gets one record, whatever comes in."""

import json
import threading

import pytest

from unseg_jax.bench.folder import RunFolder, read_records
from unseg_jax.bench.run.runner import Ledger
from unseg_jax.data import Item
from unseg_jax.errors import BenchError

pytestmark = pytest.mark.quick

BOTH = frozenset({"one", "two"})
ITEMS = [Item(id, f"{id}.png") for id in "abc"]


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path, {"seed": 0}) as folder:
        yield folder


def good(id, method):
    return {"id": id, "method": method, "error": None}


def bad(id, method):
    return {"id": id, "method": method, "error": "broken."}


def written(folder):
    return [
        (line["id"], line["method"], line["error"], line["attempts"])
        for line in read_records(folder.path)
    ]


def make(folder, **options):
    return Ledger(folder, {item.id: BOTH for item in ITEMS}, **options)


def test_what_comes_twice_is_written_once(folder):
    ledger = make(folder)
    ledger.settle([good("a", "one"), good("a", "two")], ITEMS[:1])
    ledger.settle([good("a", "one"), good("b", "one")], ITEMS[:2])
    assert [line[:2] for line in written(folder)] == [("a", "one"), ("a", "two"), ("b", "one")]
    assert ledger.missing(ITEMS[0]) == frozenset()
    assert ledger.missing(ITEMS[1]) == {"two"}


def test_a_failure_is_written_when_it_has_failed_twice(folder):
    finished = []
    ledger = make(folder, advance=finished.append)
    ledger.settle([good("a", "one"), bad("a", "two"), bad("b", "one"), bad("b", "two")], ITEMS[:2])
    assert sum(finished) == 0
    assert [item.id for item in ledger.next_attempt()] == ["a", "b"]
    ledger.settle([good("a", "two"), bad("b", "one"), bad("b", "two")], ITEMS[:2])
    assert ledger.failures == {}
    assert sum(finished) == 2
    assert written(folder) == [
        ("a", "one", None, 1),
        ("a", "two", None, 2),
        ("b", "one", "broken.", 2),
        ("b", "two", "broken.", 2),
    ]


def test_fail_fast_names_the_image(folder):
    with pytest.raises(BenchError, match=r"b failed: broken\. Leave --fail-fast out"):
        make(folder, fail_fast=True).settle([bad("b", "one")], ITEMS)


def test_threads_do_not_mix_their_lines(folder):
    items = [Item(f"{index:03d}", "x") for index in range(200)]
    ledger = Ledger(folder, {item.id: BOTH for item in items})

    def work(mine):
        for item in mine:
            ledger.settle([good(item.id, "one"), good(item.id, "two")], [item])

    # Every item is given to two threads.
    parts = [items[::2], items[1::2], items[:100], items[100:]]
    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (folder.path / "per_image.jsonl").read_text().splitlines()
    keys = {(json.loads(line)["id"], json.loads(line)["method"]) for line in lines}
    assert len(keys) == len(lines) == 400
