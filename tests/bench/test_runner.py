"""Whole runs on a small data set with a small random backbone."""

import errno
import functools
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.bench import BenchError, run
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.run import engine as engine_module
from unseg_jax.bench.run import items as items_module
from unseg_jax.bench.run import runner as runner_module
from unseg_jax.bench.run.engine import Engine
from unseg_jax.bench.run.items import Finisher, Preparer
from unseg_jax.bench.run_folder import RunFolder
from unseg_jax.data import Dataset, Item
from unseg_jax.errors import WriteError
from unseg_jax.metrics import dice, iou

METHODS = ("deepcut", "vit-kmeans")


@pytest.fixture
def both(settings):
    """Settings of the methods of `whole`."""
    return functools.partial(settings, methods=METHODS, batch_size=4)


def scores(summary):
    """A summary without timing."""
    timed = {"images_per_second", "device_seconds", "feature_seconds", "compile_seconds"}
    timed |= {"by_epoch"}  # says after how many seconds; the records hold what is in it
    methods = {
        name: {key: value for key, value in found.items() if key not in timed}
        for name, found in summary["methods"].items()
    }
    return methods, summary["paired"], summary["failures"], summary["config"]


def test_summary_and_records_are_as_the_design_says(whole, records):
    out, summary = whole
    assert summary == json.loads((out / "summary.json").read_text())
    assert set(summary) >= {"methods", "config", "versions", "device", "seed", "backbone"}
    assert (summary["backbone"], summary["complete"]) == ("tiny", True)
    for found in summary["methods"].values():
        assert (found["protocol"], found["images"], found["failed"]) == ("honest", 10, 0)
        assert found["images_per_second"] > 0
        assert found["compile_seconds"] > 0
    assert len(records(out)) == 20
    assert 0 < summary["timing"]["device_busy"] <= 1


def test_every_few_epochs_are_recorded(whole, records):
    out, summary = whole
    deepcut, kmeans = (summary["methods"][name] for name in METHODS)
    curve, losses = deepcut["by_epoch"], deepcut["loss_by_epoch"]
    assert curve["epochs"] == [0, 2, 4]
    assert len(set(curve["miou"])) == 3
    assert curve["miou"][-1] == pytest.approx(deepcut["miou"], abs=2e-6)
    assert losses["epochs"] == [0, 1, 2, 3]
    assert losses["mean"][-1] < losses["mean"][0]
    kept = [record["loss"] for (_, name), record in records(out).items() if name == "deepcut"]
    assert losses["mean"][-1] == pytest.approx(np.mean(kept), abs=2e-6)
    assert "loss_by_epoch" not in kmeans
    assert kmeans["by_epoch"]["epochs"] == [0]


def test_scores_are_those_of_the_segmenter(whole, data, tiny_weights):
    out, summary = whole
    paths = sorted((data / "images").iterdir())
    segmenter = us.Segmenter("vit-kmeans", backbone=tiny_weights, batch_size=4, image_size=48)
    found = segmenter([str(path) for path in paths])
    truths = [np.asarray(Image.open(data / "masks" / path.name)) > 127 for path in paths]
    for name, measure in (("miou", iou), ("dice", dice)):
        values = [measure(one.mask, truth) for one, truth in zip(found, truths, strict=True)]
        assert summary["methods"]["vit-kmeans"][name] == pytest.approx(np.mean(values), abs=2e-6)
    saved = np.asarray(Image.open(out / "masks" / "vit-kmeans" / "003.png")) > 127
    np.testing.assert_array_equal(saved, found[3].mask)


class Watched:
    """An image or mask that notes when it is read."""

    def __init__(self, path, log):
        self.path, self.log, self.name = path, log, path.name

    def read(self):
        self.log.append((self.path.parent.name, self.path.stem))
        return self.path.read_bytes()


@pytest.mark.parametrize("protocol", ["honest", "unsegmedgat"])
def test_the_truth_is_seen_when_it_is_scored_or_to_crop(
    data, tmp_path, monkeypatch, protocol, both, records
):
    log, compute = [], Engine.run
    items = tuple(
        Item(path.stem, Watched(path, log), Watched(data / "masks" / path.name, log))
        for path in sorted((data / "images").iterdir())[:4]
    )
    monkeypatch.setattr(runner_module, "open_data", lambda _: Dataset("watched", items))
    monkeypatch.setattr(Engine, "run", lambda *a: log.append(("device", "")) or compute(*a))
    run(both(tmp_path / "run", protocol=protocol), quiet=True)
    before = [kind for kind, _ in log[: log.index(("device", ""))]]
    # The crop is made from the truth: this protocol does see it, and says so.
    assert ("masks" in before) == (protocol == "unsegmedgat")
    assert before.count("images") == 4
    assert sum(kind == "masks" for kind, _ in log) >= 4
    for record in records(tmp_path / "run").values():
        truth = np.asarray(Image.open(data / "masks" / f"{record['id']}.png")) > 127
        rows, columns = np.nonzero(truth)
        if protocol == "honest":
            assert record["size"] == [*truth.shape]
            continue
        left, top, right, bottom = record["crop"]
        assert (left, top) == (max(columns.min() - 20, 0), max(rows.min() - 20, 0))
        assert record["size"] == [bottom - top, right - left]


def test_features_are_computed_once_for_methods_that_share_them(tmp_path, monkeypatch, both):
    traced, extract = [], engine_module.extract_features

    def counted(backbone, method, params, pixels):
        traced.append((method.name, pixels.shape[1:3]))
        return extract(backbone, method, params, pixels)

    monkeypatch.setattr(engine_module, "extract_features", counted)
    summary = run(both(tmp_path / "run", methods=METHODS[::-1], limit=2), quiet=True)
    assert traced == [("vit-kmeans", (48, 48))]
    assert {found["images"] for found in summary["methods"].values()} == {2}
    # What is shared is counted for each, as if it ran alone.
    assert len({found["feature_seconds"] for found in summary["methods"].values()}) == 1


def test_failures_are_tried_twice_and_listed(whole, data, tmp_path, monkeypatch, both, records):
    tried, prepare, broken, out = [], Preparer.__call__, tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, broken)
    (broken / "images" / "002.png").write_bytes(b"not an image")
    (broken / "masks" / "007.png").write_bytes(b"")
    with pytest.raises(BenchError, match=r"002 failed: image .*002\.png.*--fail-fast"):
        run(both(tmp_path / "fast", data=broken, fail_fast=True), quiet=True)

    def counted(self, item, thumbnail=False):
        tried.append(item.id)
        if tried.count("004") == 1 and item.id == "004":
            raise OSError("the network is away")
        return prepare(self, item, thumbnail)

    monkeypatch.setattr(Preparer, "__call__", counted)
    summary = run(both(out, data=broken), quiet=True)
    assert sorted(tried) == sorted([f"{n:03d}" for n in range(10)] + ["002", "004", "007"])
    good, found = records(whole[0]), records(out)
    assert len(found) == 20
    for key, record in found.items():
        if key[0] in ("002", "007"):
            assert record["error"]
            assert (record["attempts"], record["iou"]) == (2, None)
        else:
            assert record == good[key] | {"attempts": 1 + (key[0] == "004")}
    deepcut = summary["methods"]["deepcut"]
    assert (deepcut["images"], deepcut["failed"]) == (10, 2)
    rest = [record["iou"] for (id, name), record in found.items() if name == "deepcut"]
    assert deepcut["miou"] == pytest.approx(sum(filter(None, rest)) / 10, abs=1e-6)
    assert {failure["id"] for failure in summary["failures"]} == {"002", "007"}
    assert all("images/002.png" in f["error"] for f in summary["failures"] if f["id"] == "002")
    # Once mended, only they are done again.
    for name in ("images/002.png", "masks/007.png"):
        shutil.copy(data / name, broken / name)
    tried.clear()
    mended = run(both(out, data=broken, resume=True, retry_failed=True), quiet=True)
    assert sorted(tried) == ["002", "007"]
    assert mended["failures"] == []
    assert mended["methods"]["deepcut"]["miou"] == whole[1]["methods"]["deepcut"]["miou"]


def test_resuming_does_only_what_is_left(whole, tmp_path, monkeypatch, both, records):
    out, done, finish = tmp_path / "run", [], Finisher.__call__
    shutil.copytree(whole[0], out)
    # The third image has one of its two records, and a part of the other.
    texts = (out / "per_image.jsonl").read_text().splitlines(keepends=True)
    lines = dict(zip(records(out), texts, strict=True))
    kept = [lines[id, name] for id in ("000", "001") for name in METHODS]
    kept += [lines["002", "deepcut"], lines["002", "vit-kmeans"][:30]]
    (out / "per_image.jsonl").write_text("".join(kept))
    (out / "summary.json").unlink()

    def counted(self, items, prepared, results, missing):
        done.extend((item.id, sorted(names)) for item, names in zip(items, missing, strict=True))
        return finish(self, items, prepared, results, missing)

    monkeypatch.setattr(Finisher, "__call__", counted)
    changes = {"resume": True, "save_masks": True}
    summary = run(both(out, **changes), quiet=True)
    assert sorted(done)[0] == ("002", ["vit-kmeans"])
    assert len(done) == 8
    assert records(out) == records(whole[0])
    assert scores(summary) == scores(whole[1])
    done.clear()
    assert scores(run(both(out, **changes), quiet=True)) == scores(whole[1])
    assert done == []
    changes["overrides"] = {"image_size": 48, "epochs": 5}
    with pytest.raises(BenchError, match="epochs is 4 there and 5 here"):
        run(both(out, **changes), quiet=True)


@pytest.mark.parametrize(("number", "writing"), [(errno.ENOSPC, True), (errno.EDQUOT, False)])
def test_a_full_disk_ends_the_run_in_one_sentence(
    whole, tmp_path, monkeypatch, both, records, number, writing
):
    append, load, calls, out = RunFolder.append, items_module.load_truth, [], tmp_path / "run"
    error = OSError(number, os.strerror(number), "x")

    def full_at_the_records(self, lines, files):
        calls.append(lines)
        if len(calls) > 1:
            raise WriteError(self.path, error)
        append(self, lines, files)

    def full_while_reading(*given):
        calls.append(given)
        if len(calls) > 4:
            raise error
        return load(*given)

    with monkeypatch.context() as patch:
        if writing:
            patch.setattr(RunFolder, "append", full_at_the_records)
        else:
            patch.setattr(items_module, "load_truth", full_while_reading)
        with pytest.raises(BenchError, match=r"(no space is left|quota is used up).*--resume"):
            run(both(out), quiet=True)
    assert len(records(out)) < 20
    assert scores(run(both(out, resume=True), quiet=True))[0] == scores(whole[1])[0]


def test_images_without_masks_are_segmented_and_not_scored(data, tmp_path, both):
    changes = {"data": data / "images", "save_masks": True, "limit": 3}
    summary = run(both(tmp_path / "run", **changes), quiet=True)
    assert summary["methods"]["deepcut"]["miou"] is None
    assert summary["methods"]["deepcut"]["images"] == 3
    assert len(list((tmp_path / "run" / "masks" / "deepcut").iterdir())) == 3


# Runs the benchmark and kills itself while the n-th mask is half written.
KILLED = """
import os
import signal
import sys
from unseg_jax.bench.__main__ import main

count, replace = 3, os.replace


def half_written(partial, path):
    global count
    count -= "masks" in str(path)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(partial, path)


os.replace = half_written
sys.exit(main())
"""


def test_stopped_and_killed_and_resumed_ends_as_if_undisturbed(
    whole, data, tiny_weights, records, tmp_path, monkeypatch, capsys, python
):
    out, append = tmp_path / "run", RunFolder.append

    def leftovers():
        return list(out.glob("**/.*.part*"))

    def stopped(self, lines, files):
        append(self, lines, files)
        signal.raise_signal(signal.SIGINT)

    given = ["--data", data, "--backbone", tiny_weights, "--out", out, "--method", "vit-kmeans"]
    given += ["--image-size", 48, "--epochs", 4, "--every", 2, "--batch-size", 1, "--save-masks"]
    given = [*map(str, given), "--resume"]
    # A shell without job control starts what runs in its background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", stopped)
        assert main(given) == 130
    signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    done = len(records(out))
    assert "--resume to go on" in said
    assert f"stopped after {done} of 10 images" in said
    assert "Traceback" not in said
    assert not json.loads((out / "summary.json").read_text())["complete"]
    (out / "summary.json").unlink()
    killed = python(KILLED, *given, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "summary.json").exists()
    assert leftovers()
    with open(out / "per_image.jsonl", "a") as file:
        file.write('{"id": "009", "meth')  # as if it had been killed in the midst of a line
    assert done < (out / "per_image.jsonl").read_text().count("\n") < 10
    assert main(given) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert scores(summary)[0]["vit-kmeans"] == scores(whole[1])[0]["vit-kmeans"]
    assert (summary["failures"], summary["complete"]) == ([], True)
    assert records(out) == {k: v for k, v in records(whole[0]).items() if k[1] == "vit-kmeans"}
    masks = [
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (out / "masks" / "vit-kmeans", whole[0] / "masks" / "vit-kmeans")
    ]
    assert masks[0] == masks[1]
    assert not leftovers()


def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", "nowhere", "--out", "run"]) == 1
    said = capsys.readouterr().err
    assert "nowhere was not found" in said
    assert "Traceback" not in said


def test_what_was_noted_of_an_image_is_recorded(data, settings, records, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    dark = np.full((40, 48), 9, np.uint16)
    dark[10:30, 10:30] = 300
    Image.fromarray(dark).save(folder / "images" / "000.png")
    run(settings(tmp_path / "run", data=str(folder), limit=2), quiet=True)
    found = records(tmp_path / "run")
    noted, plain = (found[id, "vit-kmeans"] for id in ("000", "001"))
    assert noted["notes"] == ["values from 9 to 300 were stretched to 0..255."]
    assert "notes" not in plain
