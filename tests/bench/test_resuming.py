"""A resumed run belongs to its data and its options; damaged files are one sentence."""

import errno
import functools
import json
import os
import shutil
import zlib

import pytest
from PIL import Image, ImageOps

from unseg_jax.bench import BenchError, Settings, run, summarise, write_summary
from unseg_jax.bench.run import items, rescore
from unseg_jax.bench.run.items import Preparer
from unseg_jax.bench.run.settings import make_config
from unseg_jax.bench.run_folder import (
    check_same,
    file_stem,
    identity,
    read_config,
    read_records,
    read_sessions,
)
from unseg_jax.data import reading_options
from unseg_jax.runs.journal import seal
from unseg_jax.runs.stamps import is_unchanged, stamp_source


@pytest.fixture(scope="module")
def made(data, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(data, folder / "data")
    run(settings(folder / "run", data=folder / "data", limit=4, save_masks=True), quiet=True)
    return folder


@pytest.fixture
def chosen(settings):
    """Settings of the run in `made`."""
    return functools.partial(settings, limit=4, save_masks=True)


@pytest.fixture
def copy(made, tmp_path):
    """A run and its data, moved together to another place."""
    shutil.copytree(made, tmp_path / "moved")
    return tmp_path / "moved"


@pytest.fixture
def prepared(monkeypatch):
    """Ids of the images that a run decodes."""
    ids, prepare = [], Preparer.__call__

    def counted(self, item, thumbnail=False):
        ids.append(item.id)
        return prepare(self, item, thumbnail)

    monkeypatch.setattr(Preparer, "__call__", counted)
    return ids


def test_a_run_moves_with_its_data_and_does_again_what_has_changed(
    copy, prepared, caplog, chosen, records
):
    before, data = records(copy / "run"), copy / "renamed"
    (copy / "data").rename(data)
    for path in data.rglob("*.png"):
        os.utime(path)  # as a copy that keeps no times
    run(chosen(copy / "run", data=data, resume=True), quiet=True)
    assert prepared == []
    for path in (data / "masks" / "001.png", data / "images" / "003.png"):
        ImageOps.invert(Image.open(path)).save(path)
    summary = run(chosen(copy / "run", data=data, resume=True), quiet=True)
    assert sorted(prepared) == ["001", "003"]
    assert "2 images or masks have changed since they were scored" in caplog.text
    after = records(copy / "run")
    assert len((copy / "run" / "per_image.jsonl").read_text().splitlines()) == len(after) == 4
    changed = {key[0] for key in after if after[key]["iou"] != before[key]["iou"]}
    assert "001" in changed <= {"001", "003"}
    fresh = run(chosen(copy / "fresh", data=data), quiet=True)
    assert summary["methods"]["vit-kmeans"]["miou"] == fresh["methods"]["vit-kmeans"]["miou"]


def test_strict_sees_a_change_that_size_and_time_hide(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(b"a mask")
    state, stamp = path.stat(), stamp_source(path)
    path.write_bytes(b"a musk")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert is_unchanged(path, stamp)
    assert not is_unchanged(path, stamp, strict=True)
    assert stamp_source(path) != stamp


def test_another_feature_of_the_data_is_another_run(copy, tmp_path, monkeypatch):
    def config(**keys):
        facts = {"dataset": "x", "notes": (), "backbone": "", "weights": ""}
        return make_config(Settings("tfds:x", "out", **keys), [], ["a"], **facts)

    for key in ("image_key", "mask_key"):
        with pytest.raises(BenchError, match=f"{key} is null there and .*other.* here"):
            check_same(config(), config(**{key: "other"}), "run")
    # Rescoring opens the same ones.
    path, asked = copy / "run" / "config.json", {}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_key": "a/b"}))
    monkeypatch.setattr(rescore, "open_data", lambda chosen: asked.update(chosen) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rescore.rescore(copy / "run", tmp_path / "out", "published")
    assert asked["mask_key"] == "a/b"


SHAPES = ["[]", "{}", "null", "3", '"text"', '{"methods": 3}', '{"protocol": {}}', "{", "", "\xff"]


@pytest.mark.parametrize("name", ["config.json", "per_image.jsonl", "sessions.jsonl"])
def test_json_of_another_shape_is_one_sentence(copy, name):
    path = copy / "run" / name
    original = path.read_bytes()
    texts = [text.encode("latin-1") for text in SHAPES]
    texts += [text + b"\n" for text in texts]
    if name == "config.json":
        config = json.loads(original)
        values = (None, [], {}, "x", -1, [[]], {"x": []})
        changed = ({**config, key: value} for key in config for value in values)
        texts += [json.dumps(one).encode() for one in changed]
    else:
        line = json.loads(original.splitlines()[0])
        line.pop("crc", None)
        line |= {"loss_by_epoch": [1.0]} if name == "per_image.jsonl" else {}
        values = ([], {}, "x", -7.5, 7.5, True, [[]])
        texts += [seal({**line, key: value}).encode() for key in line for value in values]
    said = []
    for text in texts:
        path.write_bytes(text)
        try:
            config = read_config(copy / "run")
            records = read_records(copy / "run", identity(config))
            summarise(records, config, read_sessions(copy / "run"))
        except BenchError as error:
            said.append(str(error))
    assert len(said) >= 14
    assert all(message.endswith(".") for message in said)
    path.write_bytes(SHAPES[0].encode() + b"\n")
    with pytest.raises(BenchError, match=name):
        write_summary(copy / "run")


def test_a_line_that_cannot_be_or_was_changed_is_refused(copy, chosen):
    path = copy / "run" / "per_image.jsonl"
    original = path.read_text()
    line = json.loads(original.splitlines()[0])
    line.pop("crc")
    for value in (7.5, -0.1, float("nan"), float("inf"), "0.5", True):
        body = json.dumps(line | {"iou": value})
        path.write_text(f'{body[:-1]}, "crc": "{zlib.crc32(body.encode()):08x}"}}\n')
        with pytest.raises(BenchError, match=r"line 1 of .*per_image\.jsonl is damaged"):
            list(read_records(copy / "run"))
    path.write_text(original.replace('"iou": 0.', '"iou": 0.1', 1))
    with pytest.raises(BenchError, match="was not written by this run, or was changed since"):
        run(chosen(copy / "run", data=copy / "data", resume=True), quiet=True)
    with pytest.raises(BenchError, match="its checksum does not match"):
        write_summary(copy / "run")


def test_records_of_another_run_are_refused(copy, chosen):
    other = functools.partial(chosen, data=copy / "data", protocol="published")
    run(other(copy / "other"), quiet=True)
    (copy / "run" / "config.json").unlink()
    with pytest.raises(BenchError, match=r"per_image\.jsonl has no config\.json beside it"):
        run(other(copy / "run", resume=True), quiet=True)
    shutil.copy(copy / "run" / "per_image.jsonl", copy / "other" / "per_image.jsonl")
    with pytest.raises(BenchError, match=r"line 1 of .* was made with another config"):
        run(other(copy / "other", resume=True), quiet=True)


def test_a_torn_session_is_mended(copy, chosen):
    path = copy / "run" / "sessions.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    (copy / "run" / "per_image.jsonl").write_text("")
    summary = run(chosen(copy / "run", data=copy / "data", resume=True), quiet=True)
    lines = path.read_text().splitlines(keepends=True)
    assert lines[0] == whole
    assert len(lines) == 2
    assert summary["device"]


def test_an_error_of_any_number_costs_one_image(copy, chosen, tmp_path, monkeypatch):
    numbers = (errno.EIO, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
    for module, name, first in ((reading_options, "read_image", 0), (items, "load_truth", 4)):
        real = getattr(module, name)

        def broken(source, *rest, real=real, first=first, **options):
            for index, number in enumerate(numbers, first):
                if f"00{index}" in str(source):
                    raise OSError(number, os.strerror(number), "x.png")
            return real(source, *rest, **options)

        monkeypatch.setattr(module, name, broken)
    summary = run(chosen(tmp_path / "out", data=copy / "data", limit=None), quiet=True)
    assert [failure["id"] for failure in summary["failures"]] == [f"00{n}" for n in range(8)]
    assert summary["methods"]["vit-kmeans"]["images"] == 10


def test_hostile_items_cost_one_record_each(copy, tmp_path, chosen):
    rows = [{"id": id} for id in ("a\0b", "x" * 300, "../../up", "\x1b[31mred", "good")]
    rows += [{"id": "gone", "image": "gone.png"}, {"id": "nul", "image": "nu\0l.png"}]
    rows += [{"id": "locked", "mask": "folder.png"}]
    (copy / "data" / "folder.png").mkdir()
    listed, out = copy / "data" / "list.jsonl", tmp_path / "out"
    defaults = {kind: str(copy / "data" / f"{kind}s" / "000.png") for kind in ("image", "mask")}
    listed.write_text("".join(json.dumps(defaults | row) + "\n" for row in rows))
    summary = run(chosen(out, data=listed, limit=None), quiet=True)
    assert summary["methods"]["vit-kmeans"]["images"] == len(rows)
    assert {failure["id"] for failure in summary["failures"]} == {"gone", "nul", "locked"}
    stems = [path.stem for path in (out / "masks" / "vit-kmeans").iterdir()]
    assert len(stems) == 5
    assert all(len(os.fsencode(stem)) < 200 for stem in stems)
    resumed = run(chosen(out, data=listed, limit=None, resume=True), quiet=True)
    assert resumed["methods"] == summary["methods"]


def test_names_that_are_not_utf8_are_escaped(copy, tmp_path, chosen, records):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        for folder in (copy / "data" / "images", copy / "data" / "masks"):
            (folder / "000.png").rename(folder / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    summary = run(chosen(tmp_path / "out", data=copy / "data", limit=None), quiet=True)
    assert summary["failures"] == []
    assert ("caf%udce9", "vit-kmeans") in records(tmp_path / "out")
    assert "caf%udce9" in (tmp_path / "out" / "report.html").read_text()


def test_file_names_are_safe_and_tell_ids_apart():
    ids = ["a", "A/b", "a\0", "a\1", "x" * 300, "x" * 301, ".hidden", "..", "", "é" * 90]
    stems = [file_stem(id) for id in [*ids, "a:b", "a b"]]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        assert 0 < len(stem.encode()) <= 140
        assert not set(stem) & set('/\\\0:<>|?*"')
        assert not stem.startswith(".")
    assert stems[-1] == "a b"
