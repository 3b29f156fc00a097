"""No command changes, replaces or removes a file that the run did not write itself."""

import contextlib
import functools
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.run.rescore import rescore
from unseg_jax.bench.run_folder import FILES, file_stem, open_store
from unseg_jax.bench.scale import merge, report
from unseg_jax.runs.locking import LOCK
from unseg_jax.runs.result_store import JOURNAL, MANIFEST

PICTURES = (
    "masks/vit-kmeans/000.png",
    "masks/mine.png",
    "thumbnails/image/000.jpg",
    "thumbnails/truth/000.png",
    "thumbnails/vit-kmeans/000.png",
    "models/vit-kmeans.safetensors",
)
NAMES = (*FILES, MANIFEST, JOURNAL, LOCK, *PICTURES)
LINKED = ("summary.json", "per_image.jsonl", MANIFEST, JOURNAL, LOCK, *PICTURES[::2])


def held(path):
    """What a file holds, or where a link leads."""
    return os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()


def below(folder):
    return {path: held(path) for path in Path(folder).rglob("*")}


@pytest.fixture(scope="module")
def chosen(settings):
    """Settings of the runs here."""
    return functools.partial(settings, limit=2, save_masks=True)


@pytest.fixture(scope="module")
def made(chosen, tmp_path_factory):
    """A finished run, its two shards in another folder, and an empty folder."""
    folder = tmp_path_factory.mktemp("made")
    run(chosen(folder / "run"), quiet=True)
    for index in range(2):
        run(chosen(folder / "shards", shard=(index, 2)), quiet=True)
    (folder / "nothing").mkdir()
    return folder


def put(path, how, outside):
    """A file of somebody else by a name of ours, plain or reached through a link; and that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outside.mkdir()
    if how == "folder":  # the folder above is a link
        (outside / path.name).write_bytes(b"precious: " + path.name.encode())
        shutil.rmtree(path.parent)
        path.parent.symlink_to(outside, target_is_directory=True)
        return path.parent
    path.unlink(missing_ok=True)
    if how == "link":
        (outside / "target").write_bytes(b"precious: " + path.name.encode())
        path.symlink_to(outside / "target")
    else:
        path.write_bytes(b"precious: " + path.name.encode() + b"\n" * (len(path.name) % 2))
    return path


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
    names = {"file": NAMES, "link": LINKED, "folder": PICTURES[::2]}[how]
    for name in names:
        for begin in (state, "nothing") if how == "file" else (state,):
            base = tmp_path / f"{begin}-{file_stem(name)}"
            shutil.copytree(made / begin, base / "out")
            if command == "rescore":
                shutil.copytree(made / "run", base / "source")
            foreign = put(base / "out" / name, how, base / "outside")
            before = held(foreign), below(base / "outside")
            with contextlib.suppress(BenchError):
                COMMANDS[command](chosen, base / "out")
            assert (held(foreign), below(base / "outside")) == before, (name, begin)


def test_a_run_that_overwrites_names_the_file_that_it_keeps(made, tmp_path, chosen):
    """And knows a copy of its own, which has new times, by the contents."""
    out = tmp_path / "out"
    shutil.copytree(made / "run", out, copy_function=shutil.copyfile)
    (out / "masks" / "mine.png").write_bytes(b"mine")
    (out / "notes.txt").write_text("mine")
    before = below(out)
    with pytest.raises(BenchError, match=r"masks/mine\.png was not written by this run.*move it"):
        run(chosen(out, overwrite=True), quiet=True)
    assert below(out) == before | {out / LOCK: held(out / LOCK)}
    (out / "masks" / "mine.png").unlink()
    run(chosen(out, overwrite=True, protocol="published", save_masks=False), quiet=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "masks").exists()


@pytest.mark.parametrize("place", [".", "images", "masks", "runs", ".."])
def test_a_run_in_its_data_is_refused(made, data, tmp_path, place, chosen):
    folder, link, lists = tmp_path / "above" / "data", tmp_path / "link", tmp_path / "list.csv"
    shutil.copytree(data, folder)
    link.symlink_to(folder, target_is_directory=True)
    lists.write_text(f"image,mask\n{folder}/images/000.png,{folder}/masks/000.png\n")
    before = below(folder)
    specs = [folder, link, f"kvasir-seg:{folder}", *([lists] if place != "runs" else [])]
    for spec in specs:
        for base in (folder, link) if place != ".." else (folder,):
            out = os.path.join(base, place)
            with pytest.raises(BenchError, match=r"is, contains, or lies in .*choose a folder"):
                run(chosen(out, overwrite=True, data=spec, limit=1), quiet=True)
    with pytest.raises(BenchError, match="is, contains, or lies in"):
        rescore(made / "run", folder / place, "published", str(folder))
    assert below(folder) == before


def test_a_run_beside_what_links_lead_to_is_refused(data, tmp_path, chosen):
    linked = tmp_path / "linked"
    for kind in ("images", "masks"):
        (linked / kind).mkdir(parents=True)
        real = tmp_path / "real" / kind
        shutil.copytree(data / kind, real)
        (linked / kind / "000.png").symlink_to(real / "000.png")
    before = below(tmp_path)
    for kind in ("images", "masks"):
        with pytest.raises(BenchError, match=rf"lies in .*real/{kind}, which holds the data"):
            run(chosen(tmp_path / "real" / kind / "run", data=linked), quiet=True)
    assert below(tmp_path) == before


def test_only_part_files_of_the_run_are_swept(made, tmp_path, chosen):
    out = tmp_path / "out"
    shutil.copytree(made / "run", out)
    store = open_store(out)
    store.begin(["masks/vit-kmeans/009.png"])
    store.close()
    digest = hashlib.sha256(b"masks/vit-kmeans/009.png").hexdigest()[:24]
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
    run(chosen(out, protocol="published"), quiet=True)
    before = below(out)
    with pytest.raises(BenchError, match=r'protocol\.name is "published" there and "honest" here'):
        merge(out)
    assert below(out) == before


@pytest.mark.parametrize("name", ["masks/vit-kmeans/001.png", "thumbnails/truth/001.png"])
def test_a_picture_in_the_way_stops_a_resumed_run(made, tmp_path, name, chosen):
    out = tmp_path / "out"
    shutil.copytree(made / "run", out)
    lines = (out / "per_image.jsonl").read_text().splitlines(keepends=True)
    (out / "per_image.jsonl").write_text(lines[0])
    (out / name).write_bytes(b"precious")
    with pytest.raises(BenchError, match=rf"{name} was not written by this run"):
        run(chosen(out, resume=True), quiet=True)
    assert (out / name).read_bytes() == b"precious"
