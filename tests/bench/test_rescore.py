"""Masks scored again under another protocol score as a run under that protocol."""

import json
import shutil

import pytest
from PIL import Image, ImageOps

from unseg_jax.bench import BenchError, Settings, run
from unseg_jax.bench.run.rescore import rescore

# What the device says of an image, or how long it took, is the first run's.
NOT_SCORES = {"seconds", "shared_seconds", "loss", "confidence", "run", "crc"}


def settings(data, weights, out, **changes):
    given = {"methods": ("deepcut", "deepcut-cc"), "batch_size": 4, "limit": 6}
    overrides = {"image_size": 48, "epochs": 4}
    return Settings(
        str(data), str(out), backbone=str(weights), overrides=overrides, **given | changes
    )


def records(out):
    lines = (out / "per_image.jsonl").read_text().splitlines()
    found = {}
    for record in map(json.loads, lines):
        key = record["id"], record["method"]
        found[key] = {name: value for name, value in record.items() if name not in NOT_SCORES}
    return found


@pytest.fixture(scope="module")
def data(data, tmp_path_factory):
    """The usual pairs, but in the second one all is foreground but the object."""
    folder = tmp_path_factory.mktemp("inverted") / "data"
    shutil.copytree(data, folder)
    path = folder / "masks" / "001.png"
    ImageOps.invert(Image.open(path)).save(path)
    return folder


@pytest.fixture(scope="module")
def honest(data, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("honest") / "run"
    run(settings(data, weights, out, save_masks=True), quiet=True)
    return out


def test_as_if_run_under_the_protocol(honest, data, weights, tmp_path):
    summary = rescore(honest, tmp_path / "again", "published")
    wanted = run(settings(data, weights, tmp_path / "run", protocol="published"), quiet=True)
    found = summary["methods"]["deepcut-cc"]
    assert found["protocol"] == "published"
    assert found["flipped"] == wanted["methods"]["deepcut-cc"]["flipped"] > 0
    assert found["miou"] == wanted["methods"]["deepcut-cc"]["miou"]
    assert records(tmp_path / "again") == records(tmp_path / "run")
    assert (tmp_path / "again" / "report.html").exists()
    # And back.
    back = rescore_with_masks(honest, tmp_path)
    assert records(back) == records(honest)


def rescore_with_masks(honest, tmp_path):
    shutil.copytree(honest / "masks", tmp_path / "again" / "masks")
    rescore(tmp_path / "again", tmp_path / "back", "honest")
    return tmp_path / "back"


def test_refusals(honest, tmp_path):
    with pytest.raises(BenchError, match="'unsegmedgat' crops images otherwise"):
        rescore(honest, tmp_path / "out", "unsegmedgat")
    with pytest.raises(BenchError, match="holds a run already"):
        rescore(honest, honest, "published")
    copy = tmp_path / "copy"
    shutil.copytree(honest, copy)
    (copy / "masks" / "deepcut" / "003.png").unlink()
    with pytest.raises(BenchError, match=r"003\.png is missing: .*--save-masks"):
        rescore(copy, tmp_path / "out", "published")
    assert not (tmp_path / "out").exists()
