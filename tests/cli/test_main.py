"""The command line on small images and a small random backbone: what it writes and prints."""

import contextlib
import io
import json
import re
import shutil
from importlib.metadata import files
from pathlib import Path
from unittest.mock import create_autospec

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import unseg_jax
from unseg_jax import demo
from unseg_jax.cache import _Clock, enable_compilation_cache
from unseg_jax.cli import main
from unseg_jax.data.folders import ImageFile, find_images
from unseg_jax.export.drawing import palette
from unseg_jax.export.records import Entry, Run
from unseg_jax.registry import resolve
from unseg_jax.runs.locking import LOCK
from unseg_jax.video.following import VideoReport, segment_video

FAST = ["--image-size", "40x48", "--epochs", "60", "--batch-size", "2"]
FAST += ["--set", "learning_rate=0.01", "--set", "dropout=0"]
FAST_FIELDS = {"image_size": (40, 48), "epochs": 60, "batch_size": 2}
FAST_FIELDS |= {"learning_rate": 0.01, "dropout": 0}


def draw(path, size=(40, 48), seed=0):
    """A bright ellipse on dark noise."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (height / 4)) ** 2 + ((x - width / 2) / (width / 4)) ** 2 < 1
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    pixels[inside] += np.array([180, 120, 60])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images, of which two share a stem; one broken one; and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    draw(folder / "one.png", seed=1)
    draw(folder / "two.png", (64, 40), seed=2)
    draw(folder / "two.jpg", (32, 56), seed=3)
    draw(folder / "grey.png", seed=4)
    Image.open(folder / "grey.png").convert("L").save(folder / "grey.png")
    content = draw(folder / "broken.jpg", (200, 200)).read_bytes()
    (folder / "broken.jpg").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def run(photos, tiny_weights, tmp_path_factory):
    """One run over them: the output folder, the exit code, what was printed."""
    out = tmp_path_factory.mktemp("found") / "inner"
    printed, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
        arguments = [str(photos), "--out", str(out), "--backbone", str(tiny_weights), *FAST]
        code = main.main(["segment", *arguments, "--json", "coco"])
    return out, code, printed.getvalue(), complained.getvalue()


GOOD = {"one": "one.png", "two_png": "two.png", "two_jpg": "two.jpg", "grey": "grey.png"}


def test_broken_image_is_named_and_the_others_are_done(run):
    out, code, printed, complained = run
    assert code == 1
    (sentence,) = [line for line in complained.split("\n") if "broken.jpg" in line]
    assert re.search("truncated.*again", sentence)
    assert "Traceback" not in complained
    assert re.search(r"4 of 5 images .*\d images a second", printed)
    expected = {f"{name}_{kind}.png" for name in GOOD for kind in ("mask", "labels", "overlay")}
    whole = {"report.html", "coco.json", "coco_polygons.json", "unseg_jax.json"}
    assert {path.name for path in out.iterdir()} - {LOCK} == expected | whole
    page = (run[0] / "report.html").read_text()
    for name in GOOD:
        assert f'href="{name}_overlay.png"' in page
    assert page.count("data:image/jpeg") == 2 * len(GOOD)
    title = r"<h1>4 images, \d+ objects?, (\d to check|none looks broken), 1 failed</h1>"
    assert re.search(title, page)
    assert "a small graph network was optimised on each image on its own" in page
    assert "broken.jpg" in page
    assert "1 failed: why, and what to do" in page
    assert "http" not in page


def test_files_hold_what_the_api_finds(run, photos, tiny_weights):
    sources = [photos / source for source in GOOD.values()]
    results = unseg_jax.segment(sources, backbone=tiny_weights, **FAST_FIELDS)
    for name, source, found in zip(GOOD, sources, results, strict=True):
        mask, overlay = (
            np.asarray(Image.open(run[0] / f"{name}_{kind}.png")) for kind in ("mask", "overlay")
        )
        np.testing.assert_array_equal(mask, found.mask * np.uint8(255))
        labels = Image.open(run[0] / f"{name}_labels.png")
        np.testing.assert_array_equal(labels, found.labels)
        colours = palette(int(found.labels.max()) + 1)[found.labels]
        np.testing.assert_array_equal(labels.convert("RGB"), colours)
        image = np.asarray(Image.open(source).convert("RGB"))
        assert overlay.shape == image.shape
        assert (overlay != image).any() == found.mask.any()


def test_parts_and_other_fields_reach_the_method(photos, tmp_path, capsys, monkeypatch):
    """That a segmenter of these settings finds what the API finds is shown above."""
    asked = []

    def load(options, chosen, *_):
        asked.append((options.seed, chosen.method))
        raise ValueError("far enough.")

    monkeypatch.setattr("unseg_jax.terminal.segment_command.load_segmenter", load)
    arguments = ["--out", str(tmp_path), *FAST, "--parts", "3", "--set", "parts_epochs=60"]
    arguments += ["--set", "activation=relu", "--foreground", "centre", "--seed", "3"]
    assert main.main(["segment", str(photos / "one.png"), *arguments]) == 1
    fields = {**FAST_FIELDS, "parts": 3, "parts_epochs": 60, "activation": "relu"}
    del fields["batch_size"]
    assert asked == [(3, resolve("deepcut", foreground="centre", **fields))]


def test_methods_prints_every_method_in_its_group_with_the_scores_of_kept_runs(capsys):
    assert main.main(["methods"]) == 0
    head, *blocks = capsys.readouterr().out.split("\n\n")
    columns = {"name", "source", "backbone", "size", "stride", "affinity", "layers", "loss"}
    assert columns | {"epochs", "mIoU"} <= set(head.split())
    groups = {}
    for block in blocks[:-1]:
        title, *lines = block.splitlines()
        groups[title.partition(":")[0]] = [line.split()[0] for line in lines]
    assert list(groups) == ["recommended", "published", "grid", "regions", "baselines"]
    assert groups["recommended"] == ["auto", "collective"]
    listed = [name for names in groups.values() for name in names]
    assert sorted(listed) == sorted(["auto", *unseg_jax.list_methods()])
    assert "deepcut" in groups["published"]
    assert "cc-gat" in groups["grid"]
    assert "tokencut" in groups["baselines"]
    assert blocks[-1].startswith("mIoU in percent: protocol honest, the mean over cvc-clinicdb")
    assert main.main(["methods", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(unseg_jax.list_methods())
    (row,) = [row for row in rows if row["name"] == "deepcut"]
    assert (row["epochs"], row["group"]) == ("10", "published")
    assert main.main(["methods", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    assert len({line.count("|") for line in lines}) == 1
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "bench"
    measured = [
        json.loads(path.read_text())["methods"]["deepcut"]["miou"]
        for path in sorted(results.glob("*-honest-every.json"))
    ]
    assert float(row["mIoU"]) == pytest.approx(100 * np.mean(measured), abs=0.06)
    assert row["images"] == 40 * len(measured)


def test_weights_are_listed_fetched_converted_and_compared(
    tiny_weights, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path))
    assert main.main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == unseg_jax.list_backbones()
    assert lines[-1].split()[1] == "no"
    (tmp_path / "dinov2_vits14_focus.safetensors").write_bytes(b"")
    main.main(["weights", "list"])
    assert capsys.readouterr().out.splitlines()[-1].split()[1] == "yes"
    monkeypatch.setattr("unseg_jax.backbones.get_weights", lambda name: f"where {name} is")
    assert main.main(["weights", "get", "dinov2_vits14_focus"]) == 0
    assert capsys.readouterr().out == "where dinov2_vits14_focus is\n"
    target = tmp_path / "tiny.safetensors"
    assert main.main(["weights", "convert", str(tiny_weights), str(target)]) == 0
    converted = load_file(target)
    with np.load(tiny_weights) as original:
        assert converted.keys() == set(original.files)
        for name, tensor in converted.items():
            np.testing.assert_array_equal(tensor, original[name])
    assert main.main(["weights", "compare", str(tiny_weights), str(target)]) == 0
    printed = capsys.readouterr()
    assert "blocks.0.qkv.kernel" in printed.out
    assert "are identical." in printed.err


def names(images):
    return [image.name for image in images]


def test_names_are_stems_unless_shared_and_never_clash(tmp_path):
    paths = [tmp_path / name for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/y.png", "b/X.gif")]
    more = [tmp_path / name for name in ("x/x.png", "y/x/x.png", "z/x/x.png", "x_png.png")]
    for path in paths + more:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert names(find_images(paths)) == ["x_png", "x_jpg", "b_x", "y", "X_gif"]
    assert names(find_images([tmp_path / "b"])) == ["X_gif", "x_png", "y"]
    assert names(find_images([paths[0], paths[0], tmp_path / "a"])) == ["x_png", "x_jpg"]
    found = names(find_images(more))
    assert len({name.casefold() for name in found}) == len(more)
    assert found[-1] == "x_png"
    # In depth when it is asked for, and never the outputs.
    out = tmp_path / "b"
    assert names(find_images([tmp_path])) == ["x_png"]
    deep = find_images([tmp_path], recursive=True, out=out)
    assert {image.path for image in deep} == {path for path in paths + more if path.parent != out}


def test_clocks_count_spans_once_and_no_failures():
    clock = _Clock()
    clock.spans = [(5.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.0), (5.0, 6.0)]
    assert clock.seconds == pytest.approx(5.0)
    entries = (Entry(ImageFile(None, "a")), Entry(ImageFile(None, "b"), error="no"))
    assert Run(entries, 2.0, 9.0).images_per_second == pytest.approx(0.5)


def test_a_cache_that_the_user_chose_is_left_as_it_is(tmp_path, monkeypatch):
    """`test_damaged_programs_say_nothing` shows that programs are kept in that of the library."""
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path / "ours"))
    chosen = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen != None  # noqa: E711
    assert not (tmp_path / "ours").exists()


def test_demo_writes_one_picture_of_photographs_in_the_wheel_of_scikit_image(
    run, tmp_path, monkeypatch
):
    shipped = {path.name for path in files("scikit-image") if path.parent.name == "data"}
    assert set(demo.PHOTOGRAPHS) <= shipped
    assert len(demo.photographs()) >= 6
    for name in ("one", "grey"):
        for kind in ("overlay", "labels"):
            shutil.copy(run[0] / f"{name}_{kind}.png", tmp_path)
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("one.png", "grey.png", "missing.png"))
    demo.write_picture(tmp_path, tmp_path / "all.webp", columns=2)
    with Image.open(tmp_path / "all.webp") as picture:
        assert picture.size == (2 * 246 + 6, 2 * 186 + 6)


def test_fitted_model_refuses_other_settings(photos, tmp_path, capsys):
    arguments = ["--model", str(tmp_path / "any"), "--out", str(tmp_path / "out")]
    assert main.main(["segment", str(photos / "one.png"), *arguments, "--k", "3"]) == 2
    assert "num_clusters" in capsys.readouterr().err


def test_video_is_asked_for_and_its_flicker_said(tmp_path, capsys, monkeypatch):
    labels, source = np.zeros((3, 5, 5), np.int32), tmp_path / "in.gif"
    report = VideoReport(labels, 0.0123, 0.25, 0.2, 0.9, 3, 1.5, "deepcut", "tiny")
    video = create_autospec(segment_video, return_value=report)
    monkeypatch.setattr("unseg_jax.video.following.segment_video", video)
    arguments = ["--out", str(tmp_path / "out.gif"), "--image-size", "40", "--epochs", "2"]
    assert main.main(["video", str(source), *arguments, "--seed", "4", "--no-compare"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "3 frames in 1.5 s, compilation included",
        "label flicker 1.23 %",
        f"look at {tmp_path / 'out.gif'}",
    ]
    assert video.call_args.args == (source, tmp_path / "out.gif")
    options = video.call_args.kwargs
    assert options["method"] == resolve("deepcut", image_size=40, epochs=2)
    assert (options["seed"], options["compare"], options["overwrite"]) == (4, False, False)
    assert main.main(["video", str(source), "--overwrite"]) == 0
    assert "label flicker 1.23 %, against 25.00 % frame by frame" in capsys.readouterr().out
    assert video.call_args.kwargs["overwrite"]
