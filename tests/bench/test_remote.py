"""Runs whose folder is at a URL: copied out in parts, and gone on with from there."""

import json

import pytest

from unseg_jax.bench import BenchError, Settings, run
from unseg_jax.bench.remote import Remote

fsspec = pytest.importorskip("fsspec", reason="the extra 'cluster' is not installed")


def lines(*ids):
    return "".join(json.dumps({"id": id}) + "\n" for id in ids)


def test_records_go_out_in_parts_and_come_back(tmp_path):
    url = f"file://{tmp_path}/there"
    (tmp_path / "here").mkdir()
    records = tmp_path / "here" / "per_image.jsonl"
    remote = Remote(url, tmp_path / "here")
    remote.pull()
    records.write_text(lines("a", "b") + '{"id": "to')
    (tmp_path / "here" / "config.json").write_text("{}")
    remote.push()
    records.write_text(lines("a", "b", "c"))
    remote.push()
    remote.push()
    parts = sorted((tmp_path / "there" / "per_image.jsonl.parts").iterdir())
    assert [part.read_text() for part in parts] == [lines("a", "b"), lines("c")]
    (tmp_path / "elsewhere").mkdir()
    other = Remote(url, tmp_path / "elsewhere")
    other.pull()
    assert (tmp_path / "elsewhere" / "per_image.jsonl").read_text() == lines("a", "b", "c")
    assert (tmp_path / "elsewhere" / "config.json").read_text() == "{}"
    with open(tmp_path / "elsewhere" / "per_image.jsonl", "a") as file:
        file.write(lines("d"))
    other.push(last=True)
    assert (tmp_path / "there" / "per_image.jsonl").read_text() == lines("a", "b", "c", "d")
    assert len(list((tmp_path / "there" / "per_image.jsonl.parts").iterdir())) == 3
    other.clear()
    assert not (tmp_path / "there").exists()


def test_a_run_is_written_and_resumed_at_a_url(data, weights):
    given = {
        "data": str(data),
        "out": "memory://bench/run",
        "backbone": str(weights),
        "batch_size": 2,
        "overrides": {"image_size": 48, "epochs": 4},
        "limit": 4,
    }
    summary = run(Settings(**given), quiet=True)
    system = fsspec.filesystem("memory")
    assert json.loads(system.cat_file("/bench/run/summary.json")) == summary
    assert system.cat_file("/bench/run/per_image.jsonl").count(b"\n") == 4
    assert system.exists("/bench/run/thumbnails/image/000.jpg")
    with pytest.raises(BenchError, match="holds a run already"):
        run(Settings(**given), quiet=True)
    # Half of the records are lost with the machine.
    part = system.cat_file("/bench/run/per_image.jsonl.parts/000000.jsonl")
    half = b"".join(part.splitlines(keepends=True)[:2])
    system.pipe_file("/bench/run/per_image.jsonl.parts/000000.jsonl", half)
    again = run(Settings(**given, resume=True), quiet=True)
    assert again["methods"]["deepcut"]["miou"] == summary["methods"]["deepcut"]["miou"]
    assert system.cat_file("/bench/run/per_image.jsonl").count(b"\n") == 4


def test_unknown_places_are_one_sentence(data, weights):
    with pytest.raises(BenchError, match=r"nowhere://x cannot be opened.*or choose a folder"):
        run(Settings(str(data), "nowhere://x", backbone=str(weights)), quiet=True)
