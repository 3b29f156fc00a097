"""Runs whose folder is at a URL: copied out in parts, and gone on with from there."""

import contextlib
import functools
import json
import time

import pytest

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.run_folder import FILES, FOLDERS, open_store
from unseg_jax.bench.scale import merge, report
from unseg_jax.bench.scale.remote import Remote
from unseg_jax.runs.journal import seal
from unseg_jax.runs.result_store import JOURNAL, MANIFEST

fsspec = pytest.importorskip("fsspec", reason="the extra 'cluster' is not installed")
PARTS = "per_image.jsonl.parts"


def lines(*ids):
    return "".join(map(seal, ({"id": id, "method": "vit-kmeans", "error": None} for id in ids)))


def ids(text):
    return [json.loads(line)["id"] for line in text.splitlines()]


class Place:
    """A folder in memory, as an object store is."""

    def __init__(self, name):
        self.url, self.root = f"memory://{name}", f"/{name}"
        self.system = fsspec.filesystem("memory")

    def read(self, name):
        return self.system.cat_file(f"{self.root}/{name}").decode()

    def write(self, name, text):
        self.system.pipe_file(f"{self.root}/{name}", text.encode())

    def contents(self, below=""):
        """What the files hold, by name, without those that know when they were written."""
        top = f"{self.root}/{below}".rstrip("/")
        paths = (path for path in self.system.find(top) if not path.endswith((MANIFEST, JOURNAL)))
        return {path.removeprefix(f"{top}/"): self.system.cat_file(path) for path in paths}

    def lose_half(self):
        """As if the machine had been lost with half of the records."""
        part = f"shard-1-of-2/{PARTS}/000000.jsonl"
        self.write(part, self.read(part).splitlines(keepends=True)[0])
        self.system.rm(f"{self.root}/shard-1-of-2/per_image.jsonl")


@pytest.fixture(scope="module")
def given(settings):
    return functools.partial(settings, limit=4)


@pytest.fixture(scope="module")
def made(given):
    for index in range(2):
        run(given("memory://made", shard=(index, 2), save_masks=True), quiet=True)


@pytest.fixture
def place():
    place = Place("there")
    yield place
    if place.system.exists(place.root):
        place.system.rm(place.root, recursive=True)


@pytest.fixture
def there(made, place):
    """A run at a URL in two shards, of images 0 and 2 and of 1 and 3."""
    place.system.copy("/made", place.root, recursive=True)
    return place


def test_records_go_out_in_parts_and_come_back(tmp_path, place):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    remote = Remote(place.url, here)
    remote.pull()
    with open_store(here) as store:
        store.open_journal("per_image.jsonl").close()
        store.write({"config.json": b"{}"})
    for text in (lines("a", "b") + '{"id": "to', lines("a", "b", "c"), lines("a", "b", "c")):
        (here / "per_image.jsonl").write_text(text)
        remote.push()
    parts = place.contents(PARTS)
    assert [part.decode() for part in parts.values()] == [lines("a", "b"), lines("c")]
    other = Remote(place.url, elsewhere)
    other.pull()
    assert (elsewhere / "per_image.jsonl").read_text() == lines("a", "b", "c")
    assert (elsewhere / "config.json").read_text() == "{}"
    with open(elsewhere / "per_image.jsonl", "a") as file:
        file.write(lines("d"))
    other.push(last=True)
    assert place.read("per_image.jsonl") == lines("a", "b", "c", "d")
    assert len(place.contents(PARTS)) == 3
    other.clear()
    assert not place.system.find(place.root)
    # So does a run that was copied there by hand, whose records are there whole only.
    with open_store(tmp_path / "run") as store:
        store.rewrite_journal("per_image.jsonl", [lines("a", "b")])
    place = Place("there/by-hand")
    place.system.put(str(tmp_path / "run"), place.root, recursive=True)
    here = tmp_path / "again"
    remote = Remote(place.url, here)
    remote.pull()
    assert ids((here / "per_image.jsonl").read_text()) == ["a", "b"]
    remote.push()
    assert place.read(f"{PARTS}/000000.jsonl") == lines("a", "b")
    # Once lines are taken out, all are sent again.
    with open_store(here) as store:
        store.rewrite_journal("per_image.jsonl", [lines("b")])
    remote.push()
    assert place.read(f"{PARTS}/000000.jsonl") == lines("b")
    assert ids(place.read("per_image.jsonl")) == ["b"]


def test_pictures_go_out_together(tmp_path, place, monkeypatch):
    names, calls = [f"masks/vit-kmeans/{number:03d}.png" for number in range(300)], []
    remote = Remote(place.url, tmp_path)
    with open_store(tmp_path) as store:
        store.write(dict.fromkeys(names, b"a mask"))
    pipe = remote._system.pipe
    monkeypatch.setattr(remote._system, "pipe", lambda files: calls.append([*files]) or pipe(files))
    with remote.locked():
        calls.clear()
        remote.push()
        lock, few = [".unseg_jax.lock.json"], [names[:128], names[128:256], names[256:]]
        # The lock is renewed in between.
        assert calls == [lock, [MANIFEST], [JOURNAL], few[0], lock, few[1], lock, few[2]]
    assert set(place.contents()) == set(names)


def test_a_run_is_written_and_resumed_at_a_url(given, place):
    summary = run(given(place.url), quiet=True)
    assert json.loads(place.read("summary.json")) == summary
    assert place.read("per_image.jsonl").count("\n") == 4
    assert "thumbnails/image/000.jpg" in place.contents()
    with pytest.raises(BenchError, match=r"^memory://there holds a run already"):
        run(given(place.url), quiet=True)
    with pytest.raises(BenchError, match=r"^the run in memory://there has another config"):
        run(given(place.url, seed=1, resume=True), quiet=True)
    part = f"{PARTS}/000000.jsonl"
    place.write(part, "".join(place.read(part).splitlines(keepends=True)[:2]))
    again = run(given(place.url, resume=True), quiet=True)
    assert again["methods"]["vit-kmeans"]["miou"] == summary["methods"]["vit-kmeans"]["miou"]
    assert place.read("per_image.jsonl").count("\n") == 4
    # The report shows the pictures of both sessions.
    assert place.read("report.html").count('id="picture-') == 4


def test_overwriting_leaves_the_siblings_and_what_is_not_its_own(there, given):
    there.write("shard-0-of-2/per_image.jsonl", "")
    there.write("notes.txt", "mine")
    before = there.contents("shard-1-of-2")
    run(given(there.url, shard=(0, 2), overwrite=True), quiet=True)
    assert sorted(ids(there.read("shard-0-of-2/per_image.jsonl"))) == ["000", "002"]
    assert not [name for name in there.contents("shard-0-of-2") if name.startswith("masks")]
    run(given(there.url, protocol="published"), quiet=True)
    run(given(there.url, overwrite=True), quiet=True)
    assert sorted(ids(there.read("per_image.jsonl"))) == ["000", "001", "002", "003"]
    assert there.contents("shard-1-of-2") == before
    assert there.read("notes.txt") == "mine"


def test_shards_do_not_write_each_others_folders(there, monkeypatch, given):
    there.lose_half()
    pull, pulled = Remote.pull, []

    def pull_and_let_the_sibling_finish(self):
        pull(self)
        monkeypatch.setattr(Remote, "pull", pull)
        run(given(there.url, shard=(1, 2), save_masks=True, resume=True), quiet=True)
        pulled.extend(path.name for path in self.root.glob("*-of-*"))

    monkeypatch.setattr(Remote, "pull", pull_and_let_the_sibling_finish)
    run(given(there.url, shard=(0, 2), save_masks=True, resume=True), quiet=True)
    assert ids(there.read("shard-1-of-2/per_image.jsonl")) == ["001", "003"]
    assert pulled == ["shard-0-of-2"]


def test_shards_are_merged_and_reported_at_a_url(there, given):
    there.lose_half()
    with pytest.raises(BenchError, match=f"{there.url}/shard-1-of-2 is not finished"):
        merge(there.url)
    assert "per_image.jsonl" not in there.contents()
    run(given(there.url, shard=(1, 2), save_masks=True, resume=True), quiet=True)
    for _ in range(2):  # as often as wanted
        merge(there.url)
        assert ids(there.read("per_image.jsonl")) == ["000", "002", "001", "003"]
        assert json.loads(there.read("summary.json"))["complete"]
        assert there.read("report.html").count('id="picture-') == 4
        masks = there.contents("masks/vit-kmeans")
        own = there.contents("shard-0-of-2/masks/vit-kmeans")
        assert masks == own | there.contents("shard-1-of-2/masks/vit-kmeans")
        assert len(masks) == 4
    before = there.contents()
    for name in ("summary.json", "report.html"):
        there.system.rm(f"{there.root}/{name}")
    report(there.url)
    assert there.contents() == before
    # The merged run can be gone on with: its records are there in parts as well.
    run(given(there.url, save_masks=True, resume=True), quiet=True)
    assert ids(there.read("per_image.jsonl")) == ["000", "002", "001", "003"]


def test_places_of_other_kinds(given, tmp_path):
    """An unknown one or one without a run is one sentence; `file:` is a folder here."""
    for command in (merge, report):
        with pytest.raises(BenchError, match=r"^memory://bench/none"):
            command("memory://bench/none")
    with pytest.raises(BenchError, match=r"nowhere://x cannot be opened.*or choose a folder"):
        run(given("nowhere://x"), quiet=True)
    summary = run(given(f"file://{tmp_path}/run", limit=1), quiet=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert not (tmp_path / "run" / PARTS).exists()


PICTURES = ("masks/mine.png", "thumbnails/image/000.jpg", "models/vit-kmeans.safetensors")


def test_what_is_not_ours_is_kept(given, place, no_device):
    names = (*FILES, MANIFEST, JOURNAL, *PICTURES, f"{PARTS}/000000.jsonl")
    for number, name in enumerate(names):
        own = Place(f"there/{number}")
        own.write(name, "precious")
        with pytest.raises(BenchError, match=r"was not written by this run|is not a manifest"):
            run(given(own.url, overwrite=True), quiet=True)
        for command in (lambda url: run(given(url, resume=True), quiet=True), report, merge):
            with contextlib.suppress(BenchError):
                command(own.url)
        assert own.read(name) == "precious"
    assert set(FOLDERS) == {name.partition("/")[0] for name in PICTURES}


def test_a_place_elsewhere_is_written_by_one_process(given, place):
    lock = {"token": "x", "host": "another", "process": 7, "time": time.time()}
    path = ".unseg_jax.lock.json"
    place.write(path, json.dumps({"unseg_jax": lock}))
    with pytest.raises(BenchError, match="another process, 7 on another, was writing"):
        run(given(place.url), quiet=True)
    place.write(path, json.dumps({"unseg_jax": lock | {"time": 0}}))
    run(given(place.url, limit=1), quiet=True)
    assert path not in place.contents()
    place.write(path, "precious")
    with pytest.raises(BenchError, match="was not written by this run"):
        run(given(place.url, resume=True), quiet=True)
    assert place.read(path) == "precious"
