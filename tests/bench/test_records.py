"""Each image gets one record; the folder survives torn lines, second writers, other configs."""

import errno
import json
import os
import threading

import pytest

from unseg_jax.bench.run.runner import Ledger
from unseg_jax.bench.run_folder import RunFolder, read_records, shard_folder
from unseg_jax.data import Item
from unseg_jax.errors import BenchError, WriteError
from unseg_jax.runs.journal import seal

pytestmark = pytest.mark.quick

CONFIG = {"seed": 0, "methods": {"deepcut": {"epochs": 10}}, "batch_size": 8, "data": "here"}


def record(id, error=None, method="deepcut"):
    return {"id": id, "method": method, "iou": 0.5, "error": error}


def ids(path):
    return [entry["id"] for entry in read_records(path)]


@pytest.mark.parametrize("kept", [1, 20, 60, 89])
def test_a_torn_line_is_cut_off(tmp_path, kept):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append([record("a")])
    path = tmp_path / "per_image.jsonl"
    whole = path.read_bytes()
    torn = seal({**record("b"), "padding": "x" * 100}).encode()[:kept]
    path.write_bytes(whole + torn)
    assert ids(tmp_path) == ["a"]
    with RunFolder(tmp_path, CONFIG, resume=True) as folder:
        assert folder.finished == {"a": {"deepcut"}}
        folder.append([record("c")])
    assert ids(tmp_path) == ["a", "c"]


def test_a_run_is_neither_mixed_nor_lost(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append([record("a")])
    with pytest.raises(BenchError, match=r"holds a run already.*--resume"):
        RunFolder(tmp_path, CONFIG)
    other = {**CONFIG, "methods": {"deepcut": {"epochs": 20}}, "seed": 1}
    with pytest.raises(BenchError, match=r"methods\.deepcut.epochs is 10 there and 20 here; seed"):
        RunFolder(tmp_path, other, resume=True)
    # Where the data lie and how large batches are changes nothing that is found.
    with RunFolder(tmp_path, {**CONFIG, "data": "there", "batch_size": 2}, resume=True):
        pass
    assert ids(tmp_path) == ["a"]


def test_a_run_at_work_has_one_writer_and_is_not_overwritten(tmp_path):
    other = {**CONFIG, "seed": 1}
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.write({"masks/a.png": b"a mask"})
        for config, how in ((CONFIG, "resume"), (other, "overwrite")):
            with pytest.raises(BenchError, match="another process is writing"):
                RunFolder(tmp_path, config, **{how: True})
        folder.append([record("a")])
    assert ids(tmp_path) == ["a"]
    assert (tmp_path / "masks").exists()
    with RunFolder(tmp_path, other, overwrite=True) as folder:
        assert folder.finished == {}
        folder.append([record("b")])
    assert ids(tmp_path) == ["b"]
    assert not (tmp_path / "masks").exists()


def test_failures_can_be_forgotten(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append([record("a"), record("b", "broken"), record("c")])
    with RunFolder(tmp_path, CONFIG, resume=True, retry_failed=True) as folder:
        assert set(folder.finished) == {"a", "c"}
        folder.append([record("b")])
    assert ids(tmp_path) == ["a", "c", "b"]


def test_a_full_disk_keeps_what_was_written_and_a_damaged_line_is_named(tmp_path, monkeypatch):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append([record("a")])
        write = os.write

        def full(file, data):
            write(file, bytes(data)[:10])
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(WriteError, match=r"no space is left.*free some"):
            folder.append([record("b"), record("c")])
        monkeypatch.undo()
        folder.append([record("d")])
    assert ids(tmp_path) == ["a", "d"]
    with open(tmp_path / "per_image.jsonl", "a") as file:
        file.write("{nonsense}\n")
    with pytest.raises(BenchError, match=r"line 3 of .*per_image\.jsonl is damaged"):
        ids(tmp_path)


def test_shards_have_folders_of_their_own(tmp_path):
    assert shard_folder(tmp_path, (0, 1)) == tmp_path
    assert shard_folder(tmp_path, (3, 12)).name == "shard-03-of-12"


A, B, C = ITEMS = [Item(id, f"{id}.png") for id in "abc"]


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path, {"seed": 0}) as folder:
        yield folder


def make(folder, items=ITEMS, **options):
    return Ledger(folder, {item.id: frozenset({"one", "two"}) for item in items}, **options)


def test_a_record_is_written_once_and_a_failure_when_it_has_failed_twice(folder):
    finished = []
    ledger = make(folder, advance=finished.append)
    failed = [record("b", "broken.", method) for method in ("one", "two")]
    ledger.settle([record("a", method="one"), record("a", "broken.", "two"), *failed], [A, B])
    ledger.settle([record("a", method="one"), record("c", method="one")], [A, C])
    assert sum(finished) == 0
    assert ledger.missing(A) == ledger.missing(C) == {"two"}
    assert ledger.next_attempt() == [A, B]
    ledger.settle([record("a", method="two"), *failed], [A, B])
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
        make(folder, fail_fast=True).settle([record("b", "broken.", "one")], ITEMS)


def test_threads_do_not_mix_their_lines(folder):
    items = [Item(f"{index:03d}", "x") for index in range(200)]
    ledger = make(folder, items)

    def work(mine):
        for item in mine:
            ledger.settle([record(item.id, method="one"), record(item.id, method="two")], [item])

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
