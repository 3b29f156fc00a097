"""The benchmarks of what a user runs: a whole folder against its limit, and folders of any kind."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.measure import any_folder, limit
from unseg_jax.data import open_dataset
from unseg_jax.registry import resolve


def test_the_whole_command_is_compared_with_bare_passes(tmp_path, monkeypatch):
    asked = []

    def command(folder, out, cache, options):
        asked.append((len(list(folder.iterdir())), tuple(cache)))
        return {"seconds": 2.0 * len(asked), "cpu_seconds": 8.0, "peak_gb": 0.5}

    monkeypatch.setattr(limit, "_command", command)
    options = argparse.Namespace(images=None, counts=[2], rounds=3, quick=True)
    result = limit.measure(tmp_path, options)
    assert asked == [(2, ("JAX_COMPILATION_CACHE_DIR",))] * 4
    measured = result["counts"]["2"]
    assert measured["first"]["seconds"] == 2
    assert len(measured["bare"]) == 5
    for passed in measured["bare"]:
        passed.update(seconds=0.5, cpu_seconds=1.0)
    row = limit.table(result).splitlines()[2]
    # The median warm run takes 6 s, of which the passes of two images take 1 s, and 2 of 8 CPU s.
    assert "| 2 | 1 s | 2 s | 6 s | 2.00× | 6.00× | 75 % | 0.50 GB |" in row


@pytest.fixture
def two_sets(tmp_path):
    """Images of a bright box, and their masks, in two folders."""
    for name in ("boxes", "more"):
        for number in range(4):
            mask = np.zeros((40, 48), np.uint8)
            mask[8 + 2 * number : 28 + 2 * number, 12:34] = 255
            pixels = np.random.default_rng(number).integers(0, 60, (40, 48, 3))
            pixels = (pixels + mask[..., None] // 2).astype(np.uint8)
            for kind, image in (("images", pixels), ("masks", mask)):
                (tmp_path / name / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(tmp_path / name / kind / f"{number}.png")
    return tmp_path


def test_folders_of_any_kind_are_measured(
    two_sets, tiny_weights, tmp_path, monkeypatch, capsys, short_training
):
    def small(name):
        return resolve(name, image_size=64, epochs=0 if name == "collective" else 2, refine="none")

    real = any_folder.load_for
    monkeypatch.setattr(any_folder, "resolve", small)
    monkeypatch.setattr(any_folder, "load_for", lambda method, _: real(method, tiny_weights))
    monkeypatch.setattr(any_folder, "load_shipped", lambda backbone: fitted[0])
    monkeypatch.setattr(any_folder, "EXAMPLES", (1,))
    images = [item.image for item in open_dataset(str(two_sets / "boxes")).items]
    method, backbone = real(small("collective"), tiny_weights)
    fitted = [any_folder.fit_set(images, method, any_folder.PLAIN, steps=0, backbone=backbone)]
    out, sheets = tmp_path / "any.json", tmp_path / "sheets"
    command = ["any_folder.py", "--data", two_sets, "--images", 4, "--draws", 1]
    command += ["--out", out, "--sheets", sheets]
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    any_folder.main()
    sets = json.loads(out.read_text())["sets"]
    assert list(sets) == ["boxes", "more"]
    for one in sets.values():
        # Four images are no set to fit, so the ready model did them, which is this very fit.
        assert one["images"] == 4
        assert one["auto"] == one["ready"]
        assert {"deepcut", "examples 1", "auto beside 1", "probe"} < set(one)
        pairs = np.array(one.pop("confidence")["auto"])
        assert pairs[:, 0].mean() == pytest.approx(one["auto"], abs=1e-3)
        assert ((pairs >= 0) & (pairs <= 1)).all()
        assert all(0 <= value <= 1 for name, value in one.items() if name != "images")
    assert sets["boxes"]["ready"] == sets["boxes"]["fit"]
    assert np.asarray(Image.open(sheets / "boxes.png")).shape == (40, 3 * 48, 3)
    assert "| **mean** |" in capsys.readouterr().out


def test_the_table_says_what_examples_add():
    one = {"images": 24, "auto": 0.5, "ready": 0.5, "fit": 0.4, "deepcut": 0.3, "probe": 0.7}
    one |= {"examples 1": 0.55, "auto beside 1": 0.52}
    other = {**one, "auto": 0.7, "examples 1": 0.75}
    lines = any_folder.table({"sets": {"cats": one, "dogs": other}}).splitlines()
    assert "| cats | 24 | 50.0 | 50.0 | 40.0 | 30.0 | 55.0 (+3.0) | – | – | 70.0 |" in lines
    assert "| **mean** |  | 60.0 | 50.0 | 40.0 | 30.0 | 65.0 (+13.0) | – | – | 70.0 |" in lines


def test_the_table_says_how_confidence_tells_what_is_wrong():
    pairs = [[0.9, 0.95], [0.7, 0.6], [0.5, 0.4], [0.4, 0.5], [0.1, 0.1]]
    right = [[1.0, 0.8]]
    sets = {
        "cats": {"confidence": {"auto": pairs, "ready": right, "fit": right}},
        "dogs": {"confidence": {"auto": right, "ready": right, "fit": right}},
    }
    lines = any_folder.confidence_table({"sets": sets}).splitlines()
    # Of 4 right and 2 wrong ones, one pair of 8 is the wrong way round.
    shares = "0% of 1 | 100% of 1 | 50% of 2 | 100% of 2"
    assert f"| auto | 0.88 | 50% | 25% | {shares} |" in lines
    assert "| fit | – | – | 0% | – of 0 | – of 0 | – of 0 | 100% of 2 |" in lines


def test_the_probe_finds_what_one_feature_says():
    rng = np.random.default_rng(0)
    truths = [np.kron(rng.random((5, 6)) < 0.4, np.ones((8, 8))).astype(bool) for _ in range(6)]
    features = []
    for truth in truths:
        says = truth[4::8, 4::8]
        noise = rng.normal(scale=0.05, size=(5, 6, 7))
        features.append(np.dstack([says, ~says, noise]).astype(np.float16))
    found = any_folder.probe(features, truths, np.arange(6))
    shuffled = [one[::-1] for one in features]
    assert found > 0.6 > any_folder.probe(shuffled, truths, np.arange(6)) + 0.2
