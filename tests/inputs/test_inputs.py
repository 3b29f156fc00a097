"""Every kind of file goes through every command: a result, or one sentence that names it."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.errors import ImageError, printable, readable

from .conftest import BAD, GOOD, LEFT_OUT

FAST = ["--image-size", "32", "--batch-size", "8"]


def snapshot(folder):
    """Name → what can be told of it without opening."""
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))
    }


def segment(inputs, tiny_weights, out):
    """The arguments of `segment` over the folder."""
    arguments = ["--method", "vit-kmeans", "--backbone", tiny_weights, *FAST, "--print", "json"]
    return ["segment", inputs[0], "--out", out, *arguments]


def run(*arguments):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main.main([os.fsdecode(os.fspath(argument)) for argument in arguments])
    said = error.getvalue()
    assert "Traceback" not in said
    assert "Warning" not in said
    return code, out.getvalue(), said


@pytest.fixture(scope="module")
def segmented(inputs, tiny_weights, tmp_path_factory):
    """One run of `segment` over the folder."""
    folder, _ = inputs
    out = tmp_path_factory.mktemp("out")
    before = snapshot(folder)
    code, printed, said = run(*segment(inputs, tiny_weights, out))
    assert snapshot(folder) == before
    lines = [json.loads(line) for line in printed.splitlines()]
    return code, lines, said, out


def test_segment_gives_a_result_or_a_sentence_for_each(inputs, segmented):
    folder, expected = inputs
    code, lines, said, out = segmented
    assert code == 1
    results = {}
    for line in lines:
        name = os.path.relpath(os.fsdecode(os.fsencode(line["path"])), folder)
        results.setdefault(name, []).append(line)
    wanted = {name: found for name, found in expected.items() if found != LEFT_OUT}
    assert results.keys() == wanted.keys()
    wrong = []
    for name, found in wanted.items():
        errors = [line["error"] for line in results[name] if "error" in line]
        if (found == GOOD and errors) or (found == BAD and not errors):
            wrong.append((name, found, errors))
        for message in errors:
            assert len(message.splitlines()) == 1
            stem = printable(Path(name).stem)
            assert stem in message or stem[:150] in message, (name, message)
            assert message.endswith(".")
        for line in results[name]:
            assert all(Path(file).is_file() for file in line.get("files", ())), name
    assert wrong == []
    assert "left out by suffix" in said
    assert len(results["pages.tif"]) == 3
    masks = list(out.glob("*_mask.png"))
    assert len(masks) == sum("files" in line for line in lines)
    assert (out / "report.html").is_file()
    for path in masks[:5]:
        assert set(np.unique(np.asarray(Image.open(path)))) <= {0, 255}


def test_a_second_run_does_only_what_failed(inputs, segmented, tiny_weights):
    _, lines, _, out = segmented
    before = snapshot(out)
    code, printed, _ = run(*segment(inputs, tiny_weights, out))
    assert code == 1
    assert [json.loads(line) for line in printed.splitlines()] == lines
    masks = [path for path in before if path.suffix == ".png"]
    assert {path: snapshot(out)[path] for path in masks} == {path: before[path] for path in masks}


def test_fit_leaves_out_what_it_cannot_read(inputs, tiny_weights, tmp_path, short_training):
    folder, expected = inputs
    model = tmp_path / "model.safetensors"
    arguments = ["--backbone", tiny_weights, "--image-size", 64, "--k", 16]
    arguments += ["--steps", 0, "--passes", 0]
    code, _, said = run("fit", folder, "--out", model, *map(str, arguments), "--quiet")
    assert code == 1
    assert model.is_file()
    for name, found in expected.items():
        if found == BAD:
            assert printable(name)[:100] in said, name
        elif found == GOOD:
            assert f"/{printable(name)} " not in said


def test_bench_gives_a_record_for_each(inputs, tiny_weights, tmp_path):
    folder, expected = inputs
    data = tmp_path / "data"
    (data / "masks").mkdir(parents=True)
    (data / "images").mkdir()
    truth = np.zeros((24, 32), np.uint8)
    truth[6:-6, 8:-8] = 255
    wanted = {}
    for name, found in expected.items():
        # Names that share a stem share their mask as well, and so would be refused.
        if found == LEFT_OUT or name.startswith(("pages", "mode", "format", "flip", "cut")):
            continue
        (data / "images" / name).symlink_to(folder / name)
        Image.fromarray(truth).save(data / "masks" / f"{Path(name).stem}.png")
        wanted[name] = found
    out = tmp_path / "out"
    arguments = ["--method", "vit-kmeans", "--backbone", tiny_weights, *FAST, "--quiet"]
    _, _, said = run("bench", "--data", data, "--out", out, *arguments)
    records = [json.loads(line) for line in (out / "per_image.jsonl").read_text().splitlines()]
    assert len(records) == len(wanted), said
    failed = [record["id"] for record in records if record["error"]]
    for name, found in wanted.items():
        if found == BAD:
            assert readable(Path(name).stem) in failed, name
        elif found == GOOD and not name.startswith("exif"):  # turned, so the mask's size differs
            assert readable(Path(name).stem) not in failed, name


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_load_image_takes_the_same_files(inputs, kind):
    folder, expected = inputs
    wrong = []
    for name, found in expected.items():
        path = folder / name
        if found == LEFT_OUT or not path.is_file() or name.startswith("pages"):
            continue
        data = path.read_bytes()
        source = {"path": path, "bytes": data, "file": io.BytesIO(data)}[kind]
        try:
            pixels = us.data.load_image(source)
        except ImageError:
            wrong += [name] if found == GOOD else []
        else:
            wrong += [name] if found == BAD else []
            assert pixels.ndim == 3
            assert pixels.dtype == np.uint8
    assert wrong == []
