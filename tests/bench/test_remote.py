"""Runs whose folder is at a URL: copied out in parts, and gone on with from there."""

import functools
import json
import shutil

import pytest

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.folder import open_store
from unseg_jax.bench.scale import merge, report
from unseg_jax.bench.scale.remote import Remote
from unseg_jax.runs.journal import seal

fsspec = pytest.importorskip("fsspec", reason="the extra 'cluster' is not installed")


def lines(*ids):
    return "".join(map(seal, ({"id": id, "method": "deepcut", "error": None} for id in ids)))


def ids(out):
    return [json.loads(line)["id"] for line in (out / "per_image.jsonl").read_text().splitlines()]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pictures(page):
    return page.count('id="picture-')


@pytest.fixture(scope="module")
def given(settings):
    return functools.partial(settings, limit=4)


def lose_half(out):
    """As if the machine had been lost with half of the records."""
    part = out / "per_image.jsonl.parts" / "000000.jsonl"
    kept = part.read_text().splitlines(keepends=True)[:1]
    shutil.rmtree(part.parent)
    part.parent.mkdir()
    part.write_text("".join(kept))
    (out / "per_image.jsonl").unlink()


@pytest.fixture(scope="module")
def made(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "run"
    for index in range(2):
        run(given(f"file://{out}", shard=(index, 2), save_masks=True), quiet=True)
    return out


@pytest.fixture
def there(made, tmp_path):
    """A run at a URL in two shards, of images 0 and 2 and of 1 and 3."""
    return shutil.copytree(made, tmp_path / "there")


def test_records_go_out_in_parts_and_come_back(tmp_path):
    url = f"file://{tmp_path}/there"
    (tmp_path / "here").mkdir()
    records = tmp_path / "here" / "per_image.jsonl"
    remote = Remote(url, tmp_path / "here")
    remote.pull()
    with open_store(tmp_path / "here") as store:
        store.open_journal("per_image.jsonl").close()
        store.write({"config.json": b"{}"})
    records.write_text(lines("a", "b") + '{"id": "to')
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
    assert not list((tmp_path / "there").iterdir())


def test_a_run_is_written_and_resumed_at_a_url(given):
    url = "memory://bench/run"
    summary = run(given(url), quiet=True)
    system = fsspec.filesystem("memory")
    assert json.loads(system.cat_file("/bench/run/summary.json")) == summary
    assert system.cat_file("/bench/run/per_image.jsonl").count(b"\n") == 4
    assert system.exists("/bench/run/thumbnails/image/000.jpg")
    with pytest.raises(BenchError, match=r"^memory://bench/run holds a run already"):
        run(given(url), quiet=True)
    with pytest.raises(BenchError, match=r"^the run in memory://bench/run has another config"):
        run(given(url, seed=1, resume=True), quiet=True)
    # Half of the records are lost with the machine.
    part = system.cat_file("/bench/run/per_image.jsonl.parts/000000.jsonl")
    half = b"".join(part.splitlines(keepends=True)[:2])
    system.pipe_file("/bench/run/per_image.jsonl.parts/000000.jsonl", half)
    again = run(given(url, resume=True), quiet=True)
    assert again["methods"]["deepcut"]["miou"] == summary["methods"]["deepcut"]["miou"]
    assert system.cat_file("/bench/run/per_image.jsonl").count(b"\n") == 4
    # The report shows the pictures of both sessions.
    assert pictures(system.cat_file("/bench/run/report.html").decode()) == 4


def test_overwriting_a_shard_leaves_its_siblings(there, given):
    (there / "shard-0-of-2" / "per_image.jsonl").write_text("")
    before = contents(there / "shard-1-of-2")
    run(given(f"file://{there}", shard=(0, 2), overwrite=True), quiet=True)
    assert contents(there / "shard-1-of-2") == before
    assert sorted(ids(there / "shard-0-of-2")) == ["000", "002"]
    assert not (there / "shard-0-of-2" / "masks").exists()


def test_overwriting_a_run_leaves_what_is_not_its_own(there, given):
    run(given(f"file://{there}", seed=1), quiet=True)
    (there / "notes.txt").write_text("mine")
    before = contents(there / "shard-1-of-2")
    run(given(f"file://{there}", overwrite=True), quiet=True)
    assert contents(there / "shard-1-of-2") == before
    assert (there / "notes.txt").read_text() == "mine"
    assert sorted(ids(there)) == ["000", "001", "002", "003"]


def test_shards_do_not_write_each_others_folders(there, monkeypatch, given):
    lose_half(there / "shard-1-of-2")
    url, pull, pulled = f"file://{there}", Remote.pull, []

    def pull_and_let_the_sibling_finish(self):
        pull(self)
        monkeypatch.setattr(Remote, "pull", pull)
        settings = given(url, shard=(1, 2), save_masks=True, resume=True)
        run(settings, quiet=True)
        pulled.extend(path.name for path in self.folder.parent.glob("*-of-*"))

    monkeypatch.setattr(Remote, "pull", pull_and_let_the_sibling_finish)
    settings = given(url, shard=(0, 2), save_masks=True, resume=True)
    run(settings, quiet=True)
    assert ids(there / "shard-1-of-2") == ["001", "003"]
    assert pulled == ["shard-0-of-2"]


def test_shards_are_merged_and_reported_at_a_url(there, data, given):
    url = f"file://{there}"
    lose_half(there / "shard-1-of-2")
    with pytest.raises(BenchError, match=f"{url}/shard-1-of-2 is not finished"):
        merge(url)
    assert not (there / "per_image.jsonl").exists()
    run(given(url, shard=(1, 2), save_masks=True, resume=True), quiet=True)
    for _ in range(2):  # as often as wanted
        merge(url)
        assert ids(there) == ["000", "002", "001", "003"]
        assert json.loads((there / "summary.json").read_text())["complete"]
        assert pictures((there / "report.html").read_text()) == 4
        masks = contents(there / "masks")
        assert [path.stem for path in masks] == ["000", "001", "002", "003"]
        for shard, id in enumerate(("000", "001")):
            own = there / f"shard-{shard}-of-2" / "masks" / "deepcut" / f"{id}.png"
            assert masks[there / "masks" / "deepcut" / f"{id}.png"] == own.read_bytes()

    def written():
        return {path: data for path, data in contents(there).items() if path.stem != "unseg_jax"}

    before = written()
    for name in ("summary.json", "report.html"):
        (there / name).unlink()
    report(url)
    assert written() == before

    # The merged run can be gone on with: its records are there in parts as well.
    run(given(url, save_masks=True, resume=True), quiet=True)
    assert ids(there) == ["000", "002", "001", "003"]


@pytest.mark.parametrize("command", [merge, report])
def test_a_url_without_a_run_is_named(command):
    with pytest.raises(BenchError, match=r"^memory://bench/none"):
        command("memory://bench/none")


def test_records_that_are_there_whole_only_are_read(tmp_path):
    """As in a run that was copied there by hand."""
    with open_store(tmp_path / "there") as store:
        store.rewrite_journal("per_image.jsonl", [lines("a", "b")])
    (tmp_path / "here").mkdir()
    remote = Remote(f"file://{tmp_path}/there", tmp_path / "here")
    remote.pull()
    assert ids(tmp_path / "here") == ["a", "b"]
    remote.push()
    part = tmp_path / "there" / "per_image.jsonl.parts" / "000000.jsonl"
    assert part.read_text() == lines("a", "b")
    # Once lines are taken out, all are sent anew.
    with open_store(tmp_path / "here") as store:
        store.rewrite_journal("per_image.jsonl", [lines("b")])
    remote.push()
    assert part.read_text() == lines("b")
    assert ids(tmp_path / "there") == ["b"]


def test_unknown_places_are_one_sentence(given):
    with pytest.raises(BenchError, match=r"nowhere://x cannot be opened.*or choose a folder"):
        run(given("nowhere://x"), quiet=True)
