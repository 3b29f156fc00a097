"""The parts of the benchmarks that numbers in the README rest on."""

import json
import sys

import numpy as np
import pytest

from benchmarks import __main__ as listing
from benchmarks import tables
from benchmarks.measure import common, counts, scaling
from benchmarks.measure.random_weights import random_state
from benchmarks.measure.workers import Worker, WorkerError
from unseg_jax.backbones import load_backbone


def test_counts_written_out():
    nodes, width, clusters = 784, 384, 2
    graph = 2 * (2 * nodes * width * 64)  # ÂX·W, and (ÂX)ᵀ·G for W's gradient
    hidden = 3 * (2 * nodes * 64 * 32)
    last = 3 * (2 * nodes * 32 * clusters)
    loss = 2 * nodes * nodes * clusters
    assert counts.epoch("gcn", nodes, width, clusters).operations == graph + hidden + last + loss
    one = counts.epoch("gat", 100, 24, branches=((64, 64),))
    two = counts.epoch("gat", 100, 24, branches=((64, 64), (128, 128)))
    assert two.operations > 2 * one.operations
    assert two.bytes > one.bytes
    # ViT-S has 21.3 M weights in its blocks; each is used twice (multiply, add) by each token.
    tokens = 785
    weights = 12 * (12 * 384**2)
    attention = 12 * 2 * 2 * tokens**2 * 384
    embedding = 2 * (tokens - 1) * 384 * 192
    whole = 2 * tokens * weights + attention + embedding
    assert counts.vit(tokens) < whole == counts.vit(tokens, keys_only=False)


def test_alternate_takes_turns_in_both_directions():
    calls = []
    sides = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    times = common.alternate(sides, 2)
    assert calls == list("abccba")
    assert times == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_features_make_the_graphs_that_they_promise():
    features = common.clustered_features(300, 384)
    gram = features @ features.T
    assert (gram > 0).all()
    norms = np.linalg.norm(features, axis=1)
    cosine = gram / np.outer(norms, norms)
    for threshold in (0.35, 0.5, 0.7):
        assert 0.3 < (cosine >= threshold).mean() < 0.4


def test_random_weights_fit_the_backbone(tmp_path):
    np.savez(tmp_path / "vit.npz", **random_state(depth=2))
    backbone = load_backbone(tmp_path / "vit.npz")
    assert (backbone.config.width, backbone.config.depth, backbone.config.heads) == (384, 2, 6)
    assert backbone.config.patch_size == 8


def test_intersection_over_union():
    mask, truth = np.zeros((2, 4, 4), bool)
    assert common.intersection_over_union(mask, truth) == 1
    mask[:2], truth[1:3] = True, True
    assert common.intersection_over_union(mask, truth) == pytest.approx(1 / 3)


@pytest.fixture
def kept(tmp_path):
    """`kept(stem, summary)` below a folder of results, which it returns."""

    def keep(stem, summary):
        (tmp_path / "bench").mkdir(exist_ok=True)
        (tmp_path / "bench" / f"{stem}.json").write_text(json.dumps(summary))
        return tmp_path

    return keep


def test_tables_are_filled_between_their_marks(kept):
    scores = {"protocol": "honest", "images": 4, "miou": 0.5, "dice": 0.6}
    scores |= {"miou_interval": [0.4, 0.61], "confidence_correlation": 0.523}
    results = kept("horses", {"methods": {"deepcut": scores}, "backbone": "dino_vits8"})
    text = "before\n<!-- table:bench/horses -->\nold\n<!-- /table -->\nafter\n"
    filled = tables.fill(text, results)
    assert filled.startswith("before\n<!-- table:bench/horses -->\n| data | method |")
    assert "| horses | deepcut | honest | 4 | 0 | 50.0 | 40.0–61.0 | 60.0 | 0.52 |" in filled
    assert "old" not in filled
    assert filled.endswith("<!-- /table -->\nafter\n")
    assert tables.fill(filled, results) == filled
    with pytest.raises(SystemExit, match=r"run python -m benchmarks vit first"):
        tables.fill("<!-- table:vit -->\n<!-- /table -->", results)


def test_methods_stand_beside_one_another_under_both_protocols(kept):
    runs = (("horses", "honest", 0.5), ("horses", "published", 0.625), ("polyps", "honest", 0.25))
    for name, protocol, miou in runs:
        scores = {"deepcut": {"protocol": protocol, "images": 4, "miou": miou}}
        if name == "horses":
            scores["tokencut"] = {"protocol": protocol, "images": 4, "miou": miou / 2}
        kept(f"{name}-{protocol}-every", {"methods": scores, "config": {"dataset": name}})
    table = tables.render("methods/*-every", kept("other", {}))
    assert "| mIoU, honest / published | horses, 4 images | polyps, 4 images |" in table
    assert "| deepcut | 50.0 / 62.5 | 25.0 / – |" in table
    assert "| tokencut | 25.0 / 31.2 | – |" in table


def test_scores_that_ship_are_those_of_the_kept_runs():
    assert tables.scores() == tables.SCORES.read_text(), "run python -m benchmarks tables"


def test_scores_of_other_settings_do_not_ship(kept):
    for stem, miou in {"horses-honest-every": 0.5, "horses-all": 0.75}.items():
        changes = {"deepcut": {"epochs": 10, "branches": [[64]]}, "cc-gcn": {"normalise": False}}
        changes |= {"cc-gat": {"normalise": False}, "gone": {}}
        methods = {
            name: {"stride": 14, "nodes": "patches", "name": name, **fields}
            for name, fields in changes.items()
        }
        summary = {"config": {"dataset": "horses", "methods": methods}, "backbone": "b"}
        summary["methods"] = {name: {"miou": miou, "images": 4} for name in methods}
        results = kept(stem, summary)
    found = json.loads(tables.scores(results))
    assert found["stride"] == 14
    assert list(found["methods"]) == ["deepcut", "cc-gat"]
    assert found["methods"]["deepcut"] == {"horses": {"miou": 0.75, "images": 4}}


def test_kept_summaries_name_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    note = "{} holds 3 images; the whole is at https://example.org/a/b.html."
    config = {"data": "/home/me/horses", "layout": "ecssd:/home/me/ecssd", "tfds": "tfds:pets:test"}
    config["note"] = note.format("/home/me/ecssd")
    (tmp_path / "summary.json").write_text(json.dumps({"config": config}))
    tables.keep_summary(tmp_path / "summary.json", "horses")
    kept = json.loads((tmp_path / "bench" / "horses.json").read_text())
    expected = {"data": "horses", "layout": "ecssd:ecssd", "tfds": "tfds:pets:test"}
    assert kept == {"config": {**expected, "note": note.format("ecssd")}}


def test_committed_results_can_be_shown():
    for path in sorted(common.RESULTS.glob("*.json")):
        if path.stem.partition("-")[0] in tables._TABLES:
            assert tables.render(path.stem).count("|") > 10


def test_parts_measured_again_join_the_others(tmp_path):
    path, parts = tmp_path / "scaling.json", {"epochs": {"10": {"seconds": 1.0}}, "batch": {}}
    before = {"machine": common.machine(), "command": "whole", "commit": "a"}
    path.write_text(json.dumps({**before, "date": "2026-01-01", "parts": parts}))
    row = {"epoch_seconds": 1e-3, "memory_gib": 0.25}
    again = {"parts": {"batch": {1: row}}, "measured": {"batch": "b, 2026-02-02"}}
    joined = scaling._with_other_parts(again, path)
    assert joined["parts"] == parts | {"batch": {1: row}}
    assert (joined["command"], joined["commit"]) == ("whole", "a")
    assert "Measured again at b, 2026-02-02: batch." in scaling.table(joined)
    elsewhere = json.loads(path.read_text()) | {"machine": {"cpu": "another"}}
    path.write_text(json.dumps(elsewhere))
    assert scaling._with_other_parts(again, path) == again


def test_workers_answer_and_report_failures(tmp_path):
    with Worker(sys.executable, "benchmarks.measure.onnx_side") as worker:
        assert worker("environment")["versions"]["python"]
        with pytest.raises(WorkerError, match="KeyError"):
            worker("no such command")
        assert worker("environment")["versions"]["numpy"] == np.__version__
    with pytest.raises(WorkerError, match="cannot be run"):
        Worker(str(tmp_path / "python"), "benchmarks.measure.onnx_side")


def test_every_script_says_what_it_measures():
    found = listing.available()
    names = ("versus_reference", "optimisation", "scaling", "vit", "accelerator", "tables")
    assert set(names) <= found.keys()
    assert all(line for _, line in found.values())
