"""A resumed run belongs to its data and its options; damaged files are one sentence."""

import errno
import json
import os
import shutil
import zlib

import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from unseg_jax.bench import BenchError, Settings, run
from unseg_jax.bench.__main__ import tools
from unseg_jax.bench.folder import file_stem
from unseg_jax.bench.run.items import Preparer
from unseg_jax.bench.run.settings import make_config
from unseg_jax.bench.scale import merge
from unseg_jax.runs.journal import seal
from unseg_jax.runs.stamps import is_unchanged, stamp_source


def settings(data, weights, out, **changes):
    given = {"methods": ("deepcut",), "batch_size": 2, "limit": 4, "save_masks": True} | changes
    overrides = {"image_size": 48, "epochs": 4}
    return Settings(str(data), str(out), backbone=str(weights), overrides=overrides, **given)


def records(out):
    lines = (out / "per_image.jsonl").read_text().splitlines()
    return {(line["id"], line["method"]): line for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def made(data, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(data, folder / "data")
    run(settings(folder / "data", weights, folder / "run"), quiet=True)
    return folder


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


def test_a_run_moves_with_its_data(copy, weights, prepared):
    (copy / "data").rename(copy / "renamed")
    for path in (copy / "renamed").rglob("*.png"):
        os.utime(path)  # as a copy that keeps no times
    run(settings(copy / "renamed", weights, copy / "run", resume=True), quiet=True)
    assert prepared == []


def test_what_has_changed_is_said_and_done_again(copy, weights, prepared, caplog):
    before = records(copy / "run")
    truth = copy / "data" / "masks" / "001.png"
    ImageOps.invert(Image.open(truth)).save(truth)
    image = copy / "data" / "images" / "003.png"
    ImageOps.invert(Image.open(image)).save(image)
    summary = run(settings(copy / "data", weights, copy / "run", resume=True), quiet=True)
    assert sorted(prepared) == ["001", "003"]
    assert "2 images or masks have changed since they were scored" in caplog.text
    after = records(copy / "run")
    assert len((copy / "run" / "per_image.jsonl").read_text().splitlines()) == len(after) == 4
    changed = {key[0] for key in after if after[key]["iou"] != before[key]["iou"]}
    assert "001" in changed <= {"001", "003"}
    fresh = run(settings(copy / "data", weights, copy / "fresh"), quiet=True)
    assert summary["methods"]["deepcut"]["miou"] == fresh["methods"]["deepcut"]["miou"]


def test_strict_sees_a_change_that_size_and_time_hide(copy, weights, prepared):
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
        facts = {"dataset": "x", "notes": (), "backbone": "", "weights": "", "shard": (0, 1)}
        return make_config(chosen, [], ["a"], **facts)

    from unseg_jax.bench.folder import check_same

    for key in ("image_key", "mask_key"):
        with pytest.raises(BenchError, match=f"{key} is null there and .*other.* here"):
            check_same(config(), config(**{key: "other"}), "run")


def test_rescoring_opens_the_same_features(copy, weights, tmp_path, monkeypatch):
    from unseg_jax.bench.run.rescore import rescore as module

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


@pytest.mark.parametrize(
    "name", ["config.json", "per_image.jsonl", "sessions.jsonl", "summary.json"]
)
def test_json_of_another_shape_is_one_sentence(copy, weights, name):
    path = copy / "run" / name
    original = path.read_bytes()
    config = json.loads((copy / "run" / "config.json").read_text())
    texts = [text.encode("latin-1") for text in SHAPES]
    texts += [text + b"\n" for text in texts]
    if name == "config.json":
        for key in config:
            for value in (None, [], {}, "x", -1, [[]], {"x": []}):
                texts.append(json.dumps({**config, key: value}).encode())
    elif name != "summary.json":
        line = json.loads(original.splitlines()[0])
        line.pop("crc", None)
        for key in line:
            for value in ([], {}, "x", -7.5, 7.5, True, [[]]):
                texts.append(seal({**line, key: value}).encode())
    for text in texts:
        path.write_bytes(text)
        for command in ("report", "merge"):
            done = CliRunner().invoke(tools, [command, str(copy / "run")])
            assert isinstance(done.exception, SystemExit | None), (text, done.exception)
            if done.exit_code:
                assert done.stderr.startswith("error: ")
                assert done.stderr.rstrip().endswith("."), done.stderr
    path.write_bytes(original)


@pytest.mark.parametrize("value", [7.5, -0.1, float("nan"), float("inf"), "0.5", True])
def test_scores_that_cannot_be_are_refused(copy, weights, value):
    path = copy / "run" / "per_image.jsonl"
    line = json.loads(path.read_text().splitlines()[0]) | {"iou": value}
    line.pop("crc")
    body = json.dumps(line)
    sealed = f'{body[:-1]}, "crc": "{zlib.crc32(body.encode()):08x}"}}\n'
    path.write_text(sealed)
    with pytest.raises(BenchError, match=r"line 1 of .*per_image\.jsonl is damaged"):
        run(settings(copy / "data", weights, copy / "run", resume=True), quiet=True)


def test_a_line_that_was_changed_is_refused(copy, weights):
    path = copy / "run" / "per_image.jsonl"
    path.write_text(path.read_text().replace('"iou": 0.', '"iou": 0.1', 1))
    with pytest.raises(BenchError):
        run(settings(copy / "data", weights, copy / "run", resume=True), quiet=True)
    done = CliRunner().invoke(tools, ["report", str(copy / "run")])
    assert "its checksum does not match" in done.stderr


def test_records_of_another_run_are_refused(copy, weights):
    run(settings(copy / "data", weights, copy / "other", seed=1), quiet=True)
    (copy / "run" / "config.json").unlink()
    with pytest.raises(BenchError, match=r"per_image\.jsonl has no config\.json beside it"):
        run(settings(copy / "data", weights, copy / "run", seed=1, resume=True), quiet=True)
    shutil.copy(copy / "run" / "per_image.jsonl", copy / "other" / "per_image.jsonl")
    with pytest.raises(BenchError, match=r"line 1 of .* was made with another config"):
        run(settings(copy / "data", weights, copy / "other", seed=1, resume=True), quiet=True)


def test_a_torn_session_is_mended(copy, weights):
    path = copy / "run" / "sessions.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    (copy / "run" / "per_image.jsonl").write_text("")
    summary = run(settings(copy / "data", weights, copy / "run", resume=True), quiet=True)
    lines = path.read_text().splitlines(keepends=True)
    assert lines[0] == whole
    assert len(lines) == 2
    assert summary["device"]


def test_copied_and_impossible_shards_are_refused(copy, weights, tmp_path):
    out = tmp_path / "out"
    for index in range(2):
        changes = {"shard": (index, 2), "limit": 2, "save_masks": False}
        run(settings(copy / "data", weights, out, **changes), quiet=True)
    for name in ("shard-0-of-2-copy", "shard-9-of-3", "shard-00-of-2", "shard-1-of-2 (1)"):
        shutil.copytree(out / "shard-0-of-2", out / name)
        with pytest.raises(BenchError, match=r"under another name|both hold records"):
            merge(out)
        shutil.rmtree(out / name)
    assert merge(out)["methods"]["deepcut"]["images"] == 2


@pytest.mark.parametrize("where", ["image", "mask"])
def test_an_error_of_any_number_costs_one_image(copy, weights, tmp_path, monkeypatch, where):
    from unseg_jax.bench.run import items
    from unseg_jax.data import reading

    module, name = (reading, "read_image") if where == "image" else (items, "load_truth")
    real = getattr(module, name)
    for number in (errno.EIO, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE):

        def broken(source, *rest, number=number, **options):
            if "001" in str(source):
                raise OSError(number, os.strerror(number), "001.png")
            return real(source, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            out = tmp_path / str(number)
            summary = run(settings(copy / "data", weights, out, limit=2), quiet=True)
        assert [failure["id"] for failure in summary["failures"]] == ["001"]
        assert summary["methods"]["deepcut"]["images"] == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_run(copy, weights, tmp_path, monkeypatch, number):
    from unseg_jax.bench.run import items

    def broken(*_):
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr(items, "load_truth", broken)
    with pytest.raises(BenchError, match=r"(no space is left|quota is used up).*--resume"):
        run(settings(copy / "data", weights, tmp_path / "out"), quiet=True)


def test_hostile_items_cost_one_record_each(copy, weights, tmp_path):
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
    summary = run(settings(listed, weights, out, limit=None), quiet=True)
    assert summary["methods"]["deepcut"]["images"] == len(rows) - 1
    assert {failure["id"] for failure in summary["failures"]} == {"gone", "nul", "locked"}
    stems = [path.stem for path in (out / "masks" / "deepcut").iterdir()]
    assert len(stems) == 5
    assert all(len(os.fsencode(stem)) < 200 for stem in stems)
    resumed = run(settings(listed, weights, out, limit=None, resume=True), quiet=True)
    assert resumed["methods"] == summary["methods"]


def test_names_that_are_not_utf8_are_escaped(copy, weights, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for kind in ("images", "masks"):
        folder = copy / "data" / kind
        try:
            (folder / "000.png").rename(folder / f"{name}.png")
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
    summary = run(settings(copy / "data", weights, tmp_path / "out", limit=None), quiet=True)
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
