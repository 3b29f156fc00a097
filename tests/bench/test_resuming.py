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
from unseg_jax.bench.folder import (
    check_same,
    file_stem,
    identity,
    read_config,
    read_records,
    read_sessions,
)
from unseg_jax.bench.run.items import Preparer
from unseg_jax.bench.run.settings import make_config
from unseg_jax.bench.scale import merge
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


def test_a_run_moves_with_its_data(copy, prepared, chosen):
    (copy / "data").rename(copy / "renamed")
    for path in (copy / "renamed").rglob("*.png"):
        os.utime(path)  # as a copy that keeps no times
    run(chosen(copy / "run", data=copy / "renamed", resume=True), quiet=True)
    assert prepared == []


def test_what_has_changed_is_said_and_done_again(copy, prepared, caplog, chosen, records):
    before = records(copy / "run")
    truth = copy / "data" / "masks" / "001.png"
    ImageOps.invert(Image.open(truth)).save(truth)
    image = copy / "data" / "images" / "003.png"
    ImageOps.invert(Image.open(image)).save(image)
    summary = run(chosen(copy / "run", data=copy / "data", resume=True), quiet=True)
    assert sorted(prepared) == ["001", "003"]
    assert "2 images or masks have changed since they were scored" in caplog.text
    after = records(copy / "run")
    assert len((copy / "run" / "per_image.jsonl").read_text().splitlines()) == len(after) == 4
    changed = {key[0] for key in after if after[key]["iou"] != before[key]["iou"]}
    assert "001" in changed <= {"001", "003"}
    fresh = run(chosen(copy / "fresh", data=copy / "data"), quiet=True)
    assert summary["methods"]["deepcut"]["miou"] == fresh["methods"]["deepcut"]["miou"]


def test_strict_sees_a_change_that_size_and_time_hide(copy, prepared, records):
    path = copy / "data" / "masks" / "002.png"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    stamp = records(copy / "run")["002", "deepcut"]["mask_stamp"]
    assert is_unchanged(path, stamp)
    assert not is_unchanged(path, stamp, strict=True)
    assert stamp_source(path) != stamp


def test_another_feature_of_the_data_is_another_run(tmp_path):
    def config(**keys):
        chosen = Settings("tfds:x", "out", **keys)
        facts = {"dataset": "x", "notes": (), "backbone": "", "weights": ""}
        return make_config(chosen, [], ["a"], **facts)

    for key in ("image_key", "mask_key"):
        with pytest.raises(BenchError, match=f"{key} is null there and .*other.* here"):
            check_same(config(), config(**{key: "other"}), "run")


def test_rescoring_opens_the_same_features(copy, tmp_path, monkeypatch):
    from unseg_jax.bench.run import rescore as module

    path = copy / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_key": "a/b"}))
    asked = {}

    def open_data(chosen):
        asked.update(chosen)
        raise BenchError("enough.")

    monkeypatch.setattr(module, "open_data", open_data)
    with pytest.raises(BenchError, match="enough"):
        module.rescore(copy / "run", tmp_path / "out", "published")
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
        for key in config:
            for value in (None, [], {}, "x", -1, [[]], {"x": []}):
                texts.append(json.dumps({**config, key: value}).encode())
    else:
        line = json.loads(original.splitlines()[0])
        line.pop("crc", None)
        for key in line:
            for value in ([], {}, "x", -7.5, 7.5, True, [[]]):
                texts.append(seal({**line, key: value}).encode())
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


@pytest.mark.parametrize("value", [7.5, -0.1, float("nan"), float("inf"), "0.5", True])
def test_scores_that_cannot_be_are_refused(copy, value):
    path = copy / "run" / "per_image.jsonl"
    line = json.loads(path.read_text().splitlines()[0]) | {"iou": value}
    line.pop("crc")
    body = json.dumps(line)
    sealed = f'{body[:-1]}, "crc": "{zlib.crc32(body.encode()):08x}"}}\n'
    path.write_text(sealed)
    with pytest.raises(BenchError, match=r"line 1 of .*per_image\.jsonl is damaged"):
        list(read_records(copy / "run"))


def test_a_line_that_was_changed_is_refused(copy, chosen):
    path = copy / "run" / "per_image.jsonl"
    path.write_text(path.read_text().replace('"iou": 0.', '"iou": 0.1', 1))
    with pytest.raises(BenchError):
        run(chosen(copy / "run", data=copy / "data", resume=True), quiet=True)
    with pytest.raises(BenchError, match="its checksum does not match"):
        write_summary(copy / "run")


def test_records_of_another_run_are_refused(copy, chosen):
    run(chosen(copy / "other", data=copy / "data", seed=1), quiet=True)
    (copy / "run" / "config.json").unlink()
    with pytest.raises(BenchError, match=r"per_image\.jsonl has no config\.json beside it"):
        run(chosen(copy / "run", data=copy / "data", seed=1, resume=True), quiet=True)
    shutil.copy(copy / "run" / "per_image.jsonl", copy / "other" / "per_image.jsonl")
    with pytest.raises(BenchError, match=r"line 1 of .* was made with another config"):
        run(chosen(copy / "other", data=copy / "data", seed=1, resume=True), quiet=True)


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


def test_copied_and_impossible_shards_are_refused(copy, tmp_path, chosen):
    out = tmp_path / "out"
    for index in range(2):
        changes = {"shard": (index, 2), "limit": 2, "save_masks": False}
        run(chosen(out, data=copy / "data", **changes), quiet=True)
    for name in ("shard-0-of-2-copy", "shard-9-of-3", "shard-00-of-2", "shard-1-of-2 (1)"):
        shutil.copytree(out / "shard-0-of-2", out / name)
        with pytest.raises(BenchError, match=r"under another name|both hold records"):
            merge(out)
        shutil.rmtree(out / name)
    assert merge(out)["methods"]["deepcut"]["images"] == 2


def test_an_error_of_any_number_costs_one_image(copy, chosen, tmp_path, monkeypatch):
    from unseg_jax.bench.run import items
    from unseg_jax.data import reading

    numbers = (errno.EIO, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
    for module, name, first in ((reading, "read_image", 0), (items, "load_truth", 4)):
        real = getattr(module, name)

        def broken(source, *rest, real=real, first=first, **options):
            for index, number in enumerate(numbers, first):
                if f"00{index}" in str(source):
                    raise OSError(number, os.strerror(number), "x.png")
            return real(source, *rest, **options)

        monkeypatch.setattr(module, name, broken)
    summary = run(chosen(tmp_path / "out", data=copy / "data", limit=None), quiet=True)
    assert [failure["id"] for failure in summary["failures"]] == [f"00{n}" for n in range(8)]
    assert summary["methods"]["deepcut"]["images"] == 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_run(copy, tmp_path, monkeypatch, number, chosen):
    from unseg_jax.bench.run import items

    def broken(*_):
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr(items, "load_truth", broken)
    with pytest.raises(BenchError, match=r"(no space is left|quota is used up).*--resume"):
        run(chosen(tmp_path / "out", data=copy / "data"), quiet=True)


def test_hostile_items_cost_one_record_each(copy, tmp_path, chosen):
    images, masks = copy / "data" / "images", copy / "data" / "masks"
    rows = [
        {"id": "a\0b"},
        {"id": "x" * 300},
        {"id": "../../up"},
        {"id": "\x1b[31mred"},
        {"id": "fifo", "image": "fifo.png"},
        {"id": "gone", "image": "gone.png"},
        {"id": "nul", "image": "nu\0l.png"},
        {"id": "locked", "mask": "folder.png"},
        {"id": "good"},
    ]
    (copy / "data" / "folder.png").mkdir()
    listed = copy / "data" / "list.jsonl"
    defaults = {"image": str(images / "000.png"), "mask": str(masks / "000.png")}
    listed.write_text(
        "".join(json.dumps(defaults | row) + "\n" for row in rows if row["id"] != "fifo")
    )
    out = tmp_path / "out"
    summary = run(chosen(out, data=listed, limit=None), quiet=True)
    assert summary["methods"]["deepcut"]["images"] == len(rows) - 1
    assert {failure["id"] for failure in summary["failures"]} == {"gone", "nul", "locked"}
    stems = [path.stem for path in (out / "masks" / "deepcut").iterdir()]
    assert len(stems) == 5
    assert all(len(os.fsencode(stem)) < 200 for stem in stems)
    resumed = run(chosen(out, data=listed, limit=None, resume=True), quiet=True)
    assert resumed["methods"] == summary["methods"]


def test_names_that_are_not_utf8_are_escaped(copy, tmp_path, chosen, records):
    name = os.fsdecode(b"caf\xe9")
    for kind in ("images", "masks"):
        folder = copy / "data" / kind
        try:
            (folder / "000.png").rename(folder / f"{name}.png")
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
    summary = run(chosen(tmp_path / "out", data=copy / "data", limit=None), quiet=True)
    assert summary["failures"] == []
    assert ("caf%udce9", "deepcut") in records(tmp_path / "out")
    assert "caf%udce9" in (tmp_path / "out" / "report.html").read_text()


def test_seeds_that_do_not_fit_are_refused_early():
    for seed in (2**63, -1):
        with pytest.raises(ValueError, match=r"must be from 0 to 2\*\*63 - 1"):
            run(Settings("nowhere", "out", seed=seed), quiet=True)


def test_file_names_are_safe_and_tell_ids_apart():
    ids = [
        "a",
        "A/b",
        "a\0",
        "a\1",
        "x" * 300,
        "x" * 301,
        ".hidden",
        "..",
        "",
        "é" * 90,
        "a:b",
        "a b",
    ]
    stems = [file_stem(id) for id in ids]
    assert len(set(stems)) == len(ids)
    for stem in stems:
        assert stem
        assert len(stem.encode()) <= 140
        assert not set(stem) & set('/\\\0:<>|?*"')
        assert not stem.startswith(".")
    assert file_stem("a b") == "a b"
