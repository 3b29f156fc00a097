"""Every kind of file is read, segmented and fitted: a result, or one sentence that names it."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.errors import ImageError, printable

from .conftest import BAD, EITHER, GOOD, LEFT_OUT


def times(paths):
    return {path: path.lstat().st_mtime_ns for path in paths}


def run(*arguments):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main.main([os.fsdecode(os.fspath(argument)) for argument in arguments])
    said = error.getvalue()
    assert "Traceback" not in said
    assert "Warning" not in said
    return code, out.getvalue(), said


def test_segment_gives_a_result_or_a_sentence_for_each(inputs, tiny_weights, tmp_path):
    folder, expected = inputs
    before = times(folder.iterdir())
    arguments = ["segment", folder, "--out", tmp_path, "--print", "json", "--image-size", "32"]
    arguments += ["--method", "vit-kmeans", "--backbone", tiny_weights, "--batch-size", "8"]
    code, printed, said = run(*arguments)
    assert code == 1
    assert times(folder.iterdir()) == before
    assert "left out by suffix" in said
    results = {}
    for line in map(json.loads, printed.splitlines()):
        name = os.path.relpath(os.fsdecode(os.fsencode(line["path"])), folder)
        results.setdefault(name, []).append(line)
    wanted = {name: found for name, found in expected.items() if found != LEFT_OUT}
    assert results.keys() == wanted.keys()
    assert len(results["pages.tif"]) == 3
    files = 0
    for name, found in wanted.items():
        errors = [line["error"] for line in results[name] if "error" in line]
        assert found == EITHER or bool(errors) == (found == BAD), (name, errors)
        stem = printable(Path(name).stem)[:150]
        for message in errors:
            assert len(message.splitlines()) == 1
            assert stem in message
            assert message.endswith(".")
        for line in results[name]:
            files += "files" in line
            assert all(Path(file).is_file() for file in line.get("files", ())), name
    masks = sorted(tmp_path.glob("*_mask.png"))
    assert len(masks) == files
    assert (tmp_path / "report.html").is_file()
    for path in masks[:5]:
        assert set(np.unique(np.asarray(Image.open(path)))) <= {0, 255}
    # A second run does only what failed.
    before = times(masks)
    assert run(*arguments)[:2] == (1, printed)
    assert times(masks) == before


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


def test_load_image_takes_the_same_files(inputs):
    folder, expected = inputs
    for name, found in expected.items():
        path = folder / name
        if found == LEFT_OUT or not path.is_file() or name.startswith("pages"):
            continue
        data = path.read_bytes()
        for source in (path, data, io.BytesIO(data)):
            try:
                pixels = us.data.load_image(source)
            except ImageError:
                assert found != GOOD, name
            else:
                assert found != BAD, name
                assert (pixels.ndim, pixels.dtype) == (3, np.uint8)
