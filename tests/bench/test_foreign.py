"""No command changes, replaces or removes a file that the run did not write itself."""

import contextlib
import functools
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.folder import FILES, file_stem, open_store
from unseg_jax.bench.run.rescore import rescore
from unseg_jax.bench.scale import merge, report
from unseg_jax.runs.locking import LOCK
from unseg_jax.runs.store import JOURNAL, MANIFEST

PICTURES = (
    "masks/deepcut/000.png",
    "masks/mine.png",
    "thumbnails/image/000.jpg",
    "thumbnails/truth/000.png",
    "thumbnails/deepcut/000.png",
    "models/deepcut.safetensors",
)
NAMES = (*FILES, MANIFEST, JOURNAL, LOCK, *PICTURES)
LINKED = ("summary.json", "per_image.jsonl", MANIFEST, JOURNAL, LOCK, *PICTURES[::2])


def digests(*folders):
    """Every file and link below some folders, with a hash of what it holds."""
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def chosen(settings):
    """Settings of the runs here."""
    return functools.partial(settings, limit=2, save_masks=True)


@pytest.fixture(scope="module")
def made(chosen, tmp_path_factory):
    """A finished run, and its two shards in another folder."""
    folder = tmp_path_factory.mktemp("made")
    run(chosen(folder / "run"), quiet=True)
    for index in range(2):
        run(chosen(folder / "shards", shard=(index, 2)), quiet=True)
    return folder


def put(folder, name, how, elsewhere):
    """A file of somebody else by a name of ours: plain, or reached through a link."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or path.exists():
        path.unlink()
    if how == "file":
        path.write_bytes(b"precious: " + name.encode() + b"\n" * (len(name) % 2))
    elif how == "link":
        (elsewhere / "target").write_bytes(b"precious: " + name.encode())
        path.symlink_to(elsewhere / "target")
    else:  # the folder above is a link
        top = path.parent
        if top == folder:
            pytest.skip("this name has no folder of its own")
        shutil.rmtree(top)
        shutil.copytree(elsewhere, elsewhere.with_name("outside"), dirs_exist_ok=True)
        outside = elsewhere.with_name("outside")
        (outside / path.name).write_bytes(b"precious: " + name.encode())
        top.symlink_to(outside, target_is_directory=True)


COMMANDS = {
    "run": lambda chosen, out: run(chosen(out), quiet=True),
    "overwrite": lambda chosen, out: run(chosen(out, overwrite=True, seed=1), quiet=True),
    "resume": lambda chosen, out: run(chosen(out, resume=True), quiet=True),
    "retry": lambda chosen, out: run(chosen(out, resume=True, retry_failed=True), quiet=True),
    "merge": lambda _, out: merge(out),
    "report": lambda _, out: report(out),
    "rescore": lambda _, out: rescore(out.with_name("source"), out, "published"),
}


@pytest.mark.parametrize("how", ["file", "link", "folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_ours_is_kept(made, chosen, tmp_path, command, how, no_device):
    """Each name in turn is somebody else's, in a run's folder and in one that never saw a run."""
    state = "shards" if "merge" in command else "run"
    # A file by each name; links by one name of each kind.
    names, states = (NAMES, (state, "nothing")) if how == "file" else (LINKED, (state,))
    for name in names:
        for begin in states:
            base = tmp_path / f"{begin}-{file_stem(name)}"
            out, elsewhere = base / "out", base / "elsewhere"
            elsewhere.mkdir(parents=True)
            if begin == "nothing":
                out.mkdir()
            else:
                shutil.copytree(made / begin, out)
            shutil.copytree(made / "run", base / "source")
            with contextlib.suppress(pytest.skip.Exception):
                put(out, name, how, elsewhere)
                foreign = [out / name] if how != "folder" else [(out / name).parent]
                before = digests(*foreign, elsewhere, base / "outside", out.parent / "x")
                before |= {str(path): content(path) for path in foreign}
                with contextlib.suppress(BenchError):
                    COMMANDS[command](chosen, out)
                after = digests(*foreign, elsewhere, base / "outside", out.parent / "x")
                after |= {str(path): content(path) for path in foreign}
                assert after == before, (name, begin)


def content(path):
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else None


def test_a_run_that_overwrites_names_the_file_that_it_keeps(made, tmp_path, chosen):
    out = tmp_path / "out"
    shutil.copytree(made / "run", out)
    (out / "masks" / "mine.png").write_bytes(b"mine")
    (out / "notes.txt").write_text("mine")
    before = digests(out)
    with pytest.raises(BenchError, match=r"masks/mine\.png was not written by this run.*move it"):
        run(chosen(out, overwrite=True), quiet=True)
    assert digests(out) == before | {str(out / LOCK): digests(out)[str(out / LOCK)]}
    (out / "masks" / "mine.png").unlink()
    run(chosen(out, overwrite=True, seed=1, save_masks=False), quiet=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "masks").exists()


def test_a_copied_run_is_still_our_own(made, tmp_path, chosen):
    """A copy has new times; contents decide then."""
    out = tmp_path / "out"
    shutil.copytree(made / "run", out, copy_function=shutil.copyfile)
    run(chosen(out, overwrite=True, save_masks=False), quiet=True)
    assert not (out / "masks").exists()


@pytest.mark.parametrize("place", [".", "images", "masks", "runs", ".."])
def test_a_run_in_its_data_is_refused(data, tmp_path, place, chosen):
    folder = tmp_path / "above" / "data"
    shutil.copytree(data, folder)
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    before = digests(folder)
    lists = folder.parent.parent / "list.csv"
    lists.write_text("image,mask\n" + f"{folder}/images/000.png,{folder}/masks/000.png\n")
    for spec in (folder, link, f"kvasir-seg:{folder}"):
        for base in (folder, link):
            out = os.path.join(base, place)
            if place == ".." and base == link:
                continue
            with pytest.raises(BenchError, match=r"is, contains, or lies in .*choose a folder"):
                run(chosen(out, overwrite=True, data=spec), quiet=True)
    if place in ("images", "masks", ".", ".."):
        with pytest.raises(BenchError, match="is, contains, or lies in"):
            run(chosen(folder / place, limit=1, data=lists), quiet=True)
    assert digests(folder) == before


def test_rescoring_into_the_data_is_refused(data, tmp_path, chosen):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    run(chosen(tmp_path / "run", data=folder), quiet=True)
    before = digests(folder)
    with pytest.raises(BenchError, match="is, contains, or lies in"):
        rescore(tmp_path / "run", folder, "published")
    assert digests(folder) == before


def test_merging_in_a_data_folder_keeps_its_masks(made, data, tmp_path):
    """Shards that were moved into a data folder are merged nowhere near its masks."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for shard in sorted((made / "shards").iterdir()):
        if shard.name.startswith("shard-"):
            shutil.copytree(shard, folder / shard.name)
    before = digests(folder)
    with pytest.raises(BenchError, match=r"masks/000\.png was not written by this run"):
        merge(folder)
    after = digests(folder)
    assert {path: after[path] for path in before} == before


def test_only_part_files_of_the_run_are_swept(made, tmp_path, chosen):
    out = tmp_path / "out"
    shutil.copytree(made / "run", out)
    store = open_store(out)
    store.begin(["masks/deepcut/009.png"])
    store.close()
    digest = hashlib.sha256(b"masks/deepcut/009.png").hexdigest()[:24]
    ours = out / f".{digest}.part.png"
    theirs = [out / ".0123456789ab.part.png", out / "masks" / ".0123456789ab.part.png"]
    theirs += [out / ".0123456789abcdef.manifest.part"]
    for path in (ours, *theirs):
        path.write_bytes(b"half")
    run(chosen(out, resume=True), quiet=True)
    assert not ours.exists()
    assert all(path.read_bytes() == b"half" for path in theirs)


def test_a_merge_does_not_replace_another_run(made, tmp_path, chosen):
    out = tmp_path / "out"
    shutil.copytree(made / "shards", out)
    run(chosen(out, seed=1), quiet=True)
    before = digests(out)
    with pytest.raises(BenchError, match="seed is 1 there and 0 here"):
        merge(out)
    assert digests(out) == before


@pytest.mark.parametrize("name", ["masks/deepcut/001.png", "thumbnails/truth/001.png"])
def test_a_picture_in_the_way_stops_a_resumed_run(made, tmp_path, name, chosen):
    out = tmp_path / "out"
    shutil.copytree(made / "run", out)
    lines = (out / "per_image.jsonl").read_text().splitlines(keepends=True)
    (out / "per_image.jsonl").write_text(lines[0])
    (out / name).write_bytes(b"precious")
    with pytest.raises(BenchError, match=rf"{name} was not written by this run"):
        run(chosen(out, resume=True), quiet=True)
    assert (out / name).read_bytes() == b"precious"
