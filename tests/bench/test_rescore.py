"""Masks scored again under another protocol score as a run under that protocol."""

import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.report.tables import table
from unseg_jax.bench.run.rescore import rescore

# What the device says of an image, or how long it took, is the first run's.
NOT_SCORES = {"seconds", "shared_seconds", "loss", "confidence", "run", "crc", "iou_by_epoch"}


@pytest.fixture(scope="module")
def inverted(data, settings, tmp_path_factory):
    """Settings of the usual pairs, but in the second one all is foreground but the object."""
    folder = tmp_path_factory.mktemp("inverted") / "data"
    shutil.copytree(data, folder)
    path = folder / "masks" / "001.png"
    ImageOps.invert(Image.open(path)).save(path)
    return functools.partial(settings, data=folder, limit=6)


@pytest.fixture(scope="module")
def honest(inverted, tmp_path_factory):
    out = tmp_path_factory.mktemp("honest") / "run"
    run(inverted(out, save_masks=True), quiet=True)
    return out


def test_as_if_run_under_the_protocol(honest, inverted, records, tmp_path):
    def scored(out):
        return records(out, NOT_SCORES)

    summary = rescore(honest, tmp_path / "again", "published")
    wanted = run(inverted(tmp_path / "run", protocol="published"), quiet=True)
    found, wanted = (one["methods"]["vit-kmeans"] for one in (summary, wanted))
    before, after = scored(honest), scored(tmp_path / "again")
    assert after == scored(tmp_path / "run")
    better = [after[key]["iou"] - before[key]["iou"] for key in before]
    assert min(better) >= 0
    assert found["protocol"] == "published"
    assert found["flipped"] == wanted["flipped"] == sum(value > 0 for value in better) > 0
    assert found["miou"] == wanted["miou"]
    assert (tmp_path / "again" / "report.html").exists()
    # And back.
    shutil.copytree(honest / "masks", tmp_path / "again" / "masks")
    rescore(tmp_path / "again", tmp_path / "back", "honest")
    assert scored(tmp_path / "back") == before


def test_refusals(honest, tmp_path):
    with pytest.raises(BenchError, match="'unsegmedgat' crops images otherwise"):
        rescore(honest, tmp_path / "out", "unsegmedgat")
    with pytest.raises(BenchError, match="holds a run already"):
        rescore(honest, honest, "published")
    copy = tmp_path / "copy"
    shutil.copytree(honest, copy)
    (copy / "masks" / "vit-kmeans" / "003.png").unlink()
    with pytest.raises(BenchError, match=r"003\.png is missing: .*--save-masks"):
        rescore(copy, tmp_path / "out", "published")
    assert not (tmp_path / "out").exists()


PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"


def test_the_commands_of_the_page_work_as_printed(
    data, tiny_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    blocks = "".join(re.findall(r"^```\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S))
    commands = re.findall(r"^python -m unseg_jax.bench (.*)", blocks, re.M)
    done = []
    for command in commands:
        # What deepcut optimises takes long to compile.
        command = command.replace("DIR", str(data)).replace("deepcut", "vit-kmeans")
        words = shlex.split(command)
        if "--data" in words:
            words += ["--limit", "3", "--quiet", "--backbone", str(tiny_weights)]
            words += ["--image-size", "48", "--epochs", "4", "--every", "2"]
        assert main(words) == 0, command
        done.append(words[0])
    assert {"rescore", "table", "compare"} < set(done)
    printed = capsys.readouterr().out
    assert "tabular" in printed
    for seed in (1, 2):
        summary = json.loads(Path(f"runs/seeds/seed-{seed}/summary.json").read_text())
        assert summary["seed"] == seed
    assert table([Path(f"runs/seeds/seed-{seed}") for seed in (1, 2)]) in printed
    assert main(["--data", "d", "--out", "o", "--seeds", "0,x"]) != 0
    summary = json.loads(Path("runs/first-published/summary.json").read_text())
    assert summary["protocol"] == "published"
