"""Whole runs on a small data set with a small random backbone."""

import errno
import functools
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.bench import BenchError, run
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.folder import RunFolder
from unseg_jax.bench.run import engine as engine_module
from unseg_jax.bench.run import runner as runner_module
from unseg_jax.bench.run.engine import Engine
from unseg_jax.bench.run.items import Finisher, Preparer
from unseg_jax.data import Dataset, Item
from unseg_jax.errors import WriteError
from unseg_jax.metrics import dice, iou

OVERRIDES = {"image_size": 48, "epochs": 4}


@pytest.fixture
def both(settings):
    """Settings of the methods of `whole`."""
    return functools.partial(settings, methods=("deepcut", "vit-kmeans"), batch_size=4)


def scores(summary):
    """A summary without timing."""
    timed = {"images_per_second", "device_seconds", "feature_seconds", "compile_seconds"}
    methods = {
        name: {key: value for key, value in found.items() if key not in timed}
        for name, found in summary["methods"].items()
    }
    return methods, summary["paired"], summary["failures"], summary["config"]


def test_summary_and_records_are_as_the_design_says(whole, records):
    out, summary = whole
    assert summary == json.loads((out / "summary.json").read_text())
    assert set(summary) >= {"methods", "config", "versions", "device", "seed", "backbone"}
    assert summary["backbone"] == "tiny"
    assert summary["complete"]
    for found in summary["methods"].values():
        assert found["protocol"] == "honest"
        assert (found["images"], found["failed"]) == (10, 0)
        assert found["images_per_second"] > 0
        assert found["compile_seconds"] > 0
    assert len(records(out)) == 20
    assert 0 < summary["timing"]["device_busy"] <= 1


def test_scores_are_those_of_the_segmenter(whole, data, weights):
    out, summary = whole
    paths = sorted((data / "images").iterdir())
    segmenter = us.Segmenter("deepcut", backbone=weights, batch_size=4, **OVERRIDES)
    found = segmenter([str(path) for path in paths])
    truths = [np.asarray(Image.open(data / "masks" / path.name)) > 127 for path in paths]
    ious = [iou(one.mask, truth) for one, truth in zip(found, truths, strict=True)]
    dices = [dice(one.mask, truth) for one, truth in zip(found, truths, strict=True)]
    assert summary["methods"]["deepcut"]["miou"] == pytest.approx(np.mean(ious), abs=2e-6)
    assert summary["methods"]["deepcut"]["dice"] == pytest.approx(np.mean(dices), abs=2e-6)
    saved = np.asarray(Image.open(out / "masks" / "deepcut" / "003.png")) > 127
    np.testing.assert_array_equal(saved, found[3].mask)


def test_published_is_never_below_honest(whole, tmp_path, both, records):
    changes = {"protocol": "published", "methods": ("deepcut",)}
    summary = run(both(tmp_path / "run", **changes), quiet=True)
    honest = {
        id: found["iou"] for (id, name), found in records(whole[0]).items() if name == "deepcut"
    }
    published = {id: found["iou"] for (id, _), found in records(tmp_path / "run").items()}
    assert summary["methods"]["deepcut"]["protocol"] == "published"
    assert all(published[id] >= honest[id] for id in honest)
    assert summary["methods"]["deepcut"]["flipped"] == sum(
        published[id] > honest[id] for id in honest
    )


class Watched:
    """An image or mask that notes when it is read."""

    def __init__(self, path, log):
        self.path, self.log, self.name = path, log, path.name

    def read(self):
        self.log.append((self.path.parent.name, self.path.stem))
        return self.path.read_bytes()


@pytest.mark.parametrize("protocol", ["honest", "unsegmedgat"])
def test_honest_sees_no_truth_before_it_scores(data, tmp_path, monkeypatch, protocol, both):
    log = []
    items = tuple(
        Item(path.stem, Watched(path, log), Watched(data / "masks" / path.name, log))
        for path in sorted((data / "images").iterdir())[:4]
    )
    monkeypatch.setattr(runner_module, "open_data", lambda _: Dataset("watched", items))
    compute = Engine.run

    def watched_run(self, pixels, *features):
        log.append(("device", ""))
        return compute(self, pixels, *features)

    monkeypatch.setattr(Engine, "run", watched_run)
    changes = {"methods": ("deepcut",), "protocol": protocol}
    run(both(tmp_path / "run", **changes), quiet=True)
    before = [kind for kind, _ in log[: log.index(("device", ""))]]
    # The crop is made from the truth: this protocol does see it, and says so.
    assert ("masks" in before) == (protocol == "unsegmedgat")
    assert before.count("images") == 4
    assert sum(kind == "masks" for kind, _ in log) >= 4


def test_crop_segments_and_scores_the_true_box(data, tmp_path, both, records):
    changes = {"protocol": "published", "crop": True, "methods": ("deepcut",), "limit": 2}
    run(both(tmp_path / "run", **changes), quiet=True)
    for record in records(tmp_path / "run").values():
        truth = np.asarray(Image.open(data / "masks" / f"{record['id']}.png")) > 127
        rows, columns = np.nonzero(truth)
        left, top, right, bottom = record["crop"]
        assert (left, top) == (max(columns.min() - 20, 0), max(rows.min() - 20, 0))
        assert record["size"] == [bottom - top, right - left]


def test_features_are_computed_once_for_methods_that_share_them(tmp_path, monkeypatch, both):
    traced = []
    extract = engine_module.extract_features

    def counted(backbone, method, params, pixels):
        traced.append((method.name, pixels.shape[1:3]))
        return extract(backbone, method, params, pixels)

    monkeypatch.setattr(engine_module, "extract_features", counted)
    methods = ("deepcut", "vit-kmeans", "tokencut")
    changes = {"methods": methods, "limit": 2, "overrides": {"epochs": 1, "image_size": 48}}
    summary = run(both(tmp_path / "run", **changes), quiet=True)
    assert traced == [("deepcut", (48, 48))]
    assert {found["images"] for found in summary["methods"].values()} == {2}
    # What is shared is counted for each, as if it ran alone.
    assert len({found["feature_seconds"] for found in summary["methods"].values()}) == 1


def broken_copy(data, folder):
    shutil.copytree(data, folder)
    (folder / "images" / "002.png").write_bytes(b"not an image")
    (folder / "masks" / "007.png").write_bytes(b"")
    return folder


def test_failures_are_tried_twice_and_listed(whole, data, tmp_path, monkeypatch, both, records):
    tried = []
    prepare = Preparer.__call__

    def counted(self, item, thumbnail=False):
        tried.append(item.id)
        return prepare(self, item, thumbnail)

    monkeypatch.setattr(Preparer, "__call__", counted)
    broken = broken_copy(data, tmp_path / "data")
    summary = run(both(tmp_path / "run", data=broken), quiet=True)
    assert sorted(tried) == sorted([f"{n:03d}" for n in range(10)] + ["002", "007"])
    good = records(whole[0])
    found = records(tmp_path / "run")
    assert len(found) == 20
    for key, record in found.items():
        if key[0] in ("002", "007"):
            assert record["error"]
            assert record["attempts"] == 2
            assert record["iou"] is None
        else:
            assert record == good[key]
    deepcut = summary["methods"]["deepcut"]
    assert (deepcut["images"], deepcut["failed"]) == (10, 2)
    rest = [record["iou"] for (id, name), record in found.items() if name == "deepcut"]
    assert deepcut["miou"] == pytest.approx(sum(filter(None, rest)) / 10, abs=1e-6)
    assert {failure["id"] for failure in summary["failures"]} == {"002", "007"}
    assert all("images/002.png" in f["error"] for f in summary["failures"] if f["id"] == "002")
    # Once mended, only they are done again.
    for kind, name in (("images", "002.png"), ("masks", "007.png")):
        shutil.copy(data / kind / name, broken / kind / name)
    tried.clear()
    changes = {"resume": True, "retry_failed": True}
    mended = run(both(tmp_path / "run", data=broken, **changes), quiet=True)
    assert sorted(tried) == ["002", "007"]
    assert mended["failures"] == []
    assert mended["methods"]["deepcut"]["miou"] == whole[1]["methods"]["deepcut"]["miou"]


def test_a_failure_of_a_moment_is_forgotten(whole, tmp_path, monkeypatch, both, records):
    prepare = Preparer.__call__
    seen = set()

    def shaky(self, item, thumbnail=False):
        if item.id == "004" and item.id not in seen:
            seen.add(item.id)
            raise OSError("the network is away")
        return prepare(self, item, thumbnail)

    monkeypatch.setattr(Preparer, "__call__", shaky)
    summary = run(both(tmp_path / "run"), quiet=True)
    assert summary["failures"] == []
    assert summary["methods"]["deepcut"]["miou"] == whole[1]["methods"]["deepcut"]["miou"]
    attempts = {key: record["attempts"] for key, record in records(tmp_path / "run").items()}
    assert {key[0] for key, count in attempts.items() if count == 2} == {"004"}


def test_fail_fast_stops_at_once(data, tmp_path, both):
    broken = broken_copy(data, tmp_path / "data")
    with pytest.raises(BenchError, match=r"002 failed: image .*002\.png.*--fail-fast"):
        run(both(tmp_path / "run", data=broken, fail_fast=True), quiet=True)


def test_resuming_does_only_what_is_left(whole, tmp_path, monkeypatch, both, records):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    # The third image has one of its two records, and a part of the other.
    texts = (out / "per_image.jsonl").read_text().splitlines(keepends=True)
    lines = dict(zip(records(out), texts, strict=True))
    kept = [lines[id, name] for id in ("000", "001") for name in ("deepcut", "vit-kmeans")]
    kept += [lines["002", "deepcut"], lines["002", "vit-kmeans"][:30]]
    (out / "per_image.jsonl").write_text("".join(kept))
    (out / "summary.json").unlink()
    done = []
    finish = Finisher.__call__

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


def test_another_config_is_refused(whole, both):
    changes = {"resume": True, "overrides": {**OVERRIDES, "epochs": 5}}
    with pytest.raises(BenchError, match="epochs is 4 there and 5 here"):
        run(both(whole[0], **changes), quiet=True)


def test_a_full_disk_ends_the_run_in_one_sentence(whole, tmp_path, monkeypatch, both, records):
    append = RunFolder.append
    room = [8]

    def full(self, lines, files):
        room[0] -= len(lines)
        if room[0] < 0:
            raise WriteError(self.path, OSError(errno.ENOSPC, "no space left"))
        append(self, lines, files)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", full)
        with pytest.raises(BenchError, match=r"no space is left on the disk.*--resume"):
            run(both(out), quiet=True)
    assert 0 < len(records(out)) < 20
    summary = run(both(out, resume=True), quiet=True)
    assert scores(summary)[0] == scores(whole[1])[0]


def test_every_few_epochs_are_recorded_without_a_second_run(tmp_path, both, records):
    changes = {"record_every": 2, "methods": ("deepcut", "vit-kmeans"), "limit": 4}
    summary = run(both(tmp_path / "long", **changes), quiet=True)
    curve = summary["methods"]["deepcut"]["by_epoch"]
    assert curve["epochs"] == [0, 2, 4]
    assert curve["miou"][-1] == pytest.approx(summary["methods"]["deepcut"]["miou"], abs=2e-6)
    losses = summary["methods"]["deepcut"]["loss_by_epoch"]
    assert losses["epochs"] == [0, 1, 2, 3]
    assert losses["mean"][-1] < losses["mean"][0]
    kept = [r for (_, name), r in records(tmp_path / "long").items() if name == "deepcut"]
    assert losses["mean"][-1] == pytest.approx(np.mean([r["loss"] for r in kept]), abs=2e-6)
    assert "loss_by_epoch" not in summary["methods"]["vit-kmeans"]
    # Half as many epochs end where the longer run was half-way.
    changes |= {"record_every": 0, "overrides": {**OVERRIDES, "epochs": 2}, "methods": ("deepcut",)}
    short = run(both(tmp_path / "short", **changes), quiet=True)
    assert curve["miou"][1] == pytest.approx(short["methods"]["deepcut"]["miou"], abs=2e-6)
    assert summary["methods"]["vit-kmeans"]["by_epoch"]["epochs"] == [0]


def test_images_without_masks_are_segmented_and_not_scored(data, tmp_path, both):
    changes = {"methods": ("deepcut",), "save_masks": True, "limit": 3}
    summary = run(both(tmp_path / "run", data=data / "images", **changes), quiet=True)
    assert summary["methods"]["deepcut"]["miou"] is None
    assert summary["methods"]["deepcut"]["images"] == 3
    assert len(list((tmp_path / "run" / "masks" / "deepcut").iterdir())) == 3


def arguments(data, weights, out, *more):
    given = ["--data", data, "--backbone", weights, "--out", out, "--method", "deepcut,vit-kmeans"]
    given += ["--image-size", 48, "--epochs", 4, "--batch-size", 1, "--save-masks", *more]
    return [str(value) for value in given]


# Runs the benchmark and kills itself while the n-th mask is half written.
KILLED = """
import os
import signal
import sys
from unseg_jax.bench.__main__ import main

count, replace = int(sys.argv.pop(1)), os.replace


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
    whole, data, weights, both, records, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    append = RunFolder.append

    def leftovers():
        return list(out.glob("**/.*.part*"))

    def stopped(self, lines, files):
        append(self, lines, files)
        signal.raise_signal(signal.SIGINT)

    given = arguments(data, weights, out, "--resume")
    # A shell without job control starts what runs in its background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", stopped)
        assert main(given) == 130
    signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert "--resume to go on" in said
    done = len({id for id, _ in records(out)})
    assert f"stopped after {done} of 10 images" in said
    assert "Traceback" not in said
    assert not json.loads((out / "summary.json").read_text())["complete"]
    (out / "summary.json").unlink()
    command = [sys.executable, "-c", KILLED, "3", *given]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "summary.json").exists()
    assert leftovers()
    with open(out / "per_image.jsonl", "a") as file:
        file.write('{"id": "009", "meth')  # as if it had been killed in the midst of a line
    assert 0 < (out / "per_image.jsonl").read_text().count("\n") < 20
    summary = run(both(out, resume=True, save_masks=True), quiet=True)
    assert scores(summary)[:3] == scores(whole[1])[:3]
    assert records(out) == records(whole[0])
    for name in ("deepcut/000.png", "vit-kmeans/009.png"):
        mask = (out / "masks" / name).read_bytes()
        assert mask == (whole[0] / "masks" / name).read_bytes()
    assert not leftovers()


def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", "nowhere", "--out", "run"]) == 1
    said = capsys.readouterr().err
    assert "nowhere was not found" in said
    assert "Traceback" not in said
