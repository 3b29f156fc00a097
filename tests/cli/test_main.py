"""The command line on small images and a small random backbone: what it writes and prints."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unseg_jax
from unseg_jax.cache import _Clock
from unseg_jax.cli import main
from unseg_jax.data.folders import ImageFile, find_images
from unseg_jax.export import folder
from unseg_jax.export.drawing import palette
from unseg_jax.export.records import Entry, Run
from unseg_jax.runs.locking import LOCK

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
    _, code, printed, complained = run
    assert code == 1
    sentences = [line for line in complained.split("\n") if "broken.jpg" in line]
    assert len(sentences) == 1
    assert re.search("truncated.*again", sentences[0])
    assert "Traceback" not in complained
    assert "4 of 5 images" in printed
    assert re.search(r"\d images a second", printed)


def test_each_image_has_its_files_and_nothing_else_lies_there(run):
    out = run[0]
    expected = {f"{name}_{kind}.png" for name in GOOD for kind in ("mask", "labels", "overlay")}
    whole = {"report.html", "coco.json", "coco_polygons.json", "unseg_jax.json"}
    assert {path.name for path in out.iterdir()} - {LOCK} == expected | whole


@pytest.fixture(scope="module")
def by_api(photos, tiny_weights):
    """What the API finds, by the name of the files."""
    sources = [photos / source for source in GOOD.values()]
    found = unseg_jax.segment(sources, backbone=tiny_weights, **FAST_FIELDS)
    return dict(zip(GOOD, found, strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_files_hold_what_the_api_finds(run, photos, by_api, name):
    out, found = run[0], by_api[name]
    mask = np.asarray(Image.open(out / f"{name}_mask.png"))
    assert set(np.unique(mask)) <= {0, 255}
    np.testing.assert_array_equal(mask == 255, found.mask)
    labels = Image.open(out / f"{name}_labels.png")
    np.testing.assert_array_equal(np.asarray(labels), found.labels)
    np.testing.assert_array_equal(
        np.asarray(labels.convert("RGB")), palette(int(found.labels.max()) + 1)[found.labels]
    )
    overlay = np.asarray(Image.open(out / f"{name}_overlay.png"))
    image = np.asarray(Image.open(photos / GOOD[name]).convert("RGB"))
    assert overlay.shape == image.shape
    assert (overlay != image).any() == found.mask.any()


def test_report_shows_every_image_and_the_failure(run):
    page = (run[0] / "report.html").read_text()
    for name in GOOD:
        assert f'href="{name}_overlay.png"' in page
    assert page.count("data:image/jpeg") == 2 * len(GOOD)
    assert re.search(
        r"<h1>4 images, \d+ objects?, (\d to check|none looks broken), 1 failed</h1>", page
    )
    assert "a small graph network was optimised on each image on its own" in page
    assert "broken.jpg" in page
    assert "1 failed: why, and what to do" in page
    assert "http" not in page


def test_report_of_many_images_lists_those_it_does_not_show(
    photos, tiny_weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder, "PICTURED", 1)
    chosen = [str(photos / "one.png"), str(photos / "grey.png")]
    arguments = ["--out", str(tmp_path), "--backbone", str(tiny_weights), *FAST]
    assert main.main(["segment", *chosen, *arguments]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert 'href="grey_overlay.png"' in page


def test_parts_and_other_fields_reach_the_method(photos, tiny_weights, tmp_path, capsys):
    arguments = [str(photos / "one.png"), "--out", str(tmp_path), *FAST, "--json", "coco"]
    arguments += ["--backbone", str(tiny_weights), "--parts", "3", "--set", "parts_epochs=60"]
    arguments += ["--set", "activation=relu", "--foreground", "centre", "--seed", "3"]
    code = main.main(["segment", *arguments])
    assert code == 0, capsys.readouterr().err
    found = unseg_jax.segment(
        photos / "one.png",
        backbone=tiny_weights,
        parts=3,
        parts_epochs=60,
        activation="relu",
        foreground="centre",
        seed=3,
        **FAST_FIELDS,
    )[0]
    labels = np.asarray(Image.open(tmp_path / "one_labels.png"))
    np.testing.assert_array_equal(labels, found.labels)
    coco = json.loads((tmp_path / "coco.json").read_text())
    numbers = {annotation["category_id"] for annotation in coco["annotations"]}
    assert found.labels.max() > 1
    assert numbers == {item.label for item in found.objects}


def test_methods_prints_every_method_in_its_group(capsys):
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


def test_methods_as_markdown_and_json(capsys):
    assert main.main(["methods", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(unseg_jax.list_methods())
    (row,) = [row for row in rows if row["name"] == "deepcut"]
    assert (row["epochs"], row["group"]) == ("10", "published")
    assert main.main(["methods", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    assert len({line.count("|") for line in lines}) == 1


def test_scores_of_methods_are_those_of_the_kept_runs(capsys):
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "bench"
    measured = [
        json.loads(path.read_text())["methods"]["deepcut"]["miou"]
        for path in sorted(results.glob("*-honest-every.json"))
    ]
    main.main(["methods", "--format", "json"])
    (row,) = [r for r in json.loads(capsys.readouterr().out) if r["name"] == "deepcut"]
    assert float(row["mIoU"]) == pytest.approx(100 * np.mean(measured), abs=0.06)
    assert row["images"] == 40 * len(measured)


def test_weights_list_names_every_backbone(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path))
    assert main.main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == unseg_jax.list_backbones()
    assert lines[-1].split()[1] == "no"
    (tmp_path / "dinov2_vits14_focus.safetensors").write_bytes(b"")
    main.main(["weights", "list"])
    assert capsys.readouterr().out.splitlines()[-1].split()[1] == "yes"


def test_weights_get_prints_where_they_are(capsys, monkeypatch):
    monkeypatch.setattr("unseg_jax.backbones.get_weights", lambda name: f"where {name} is")
    assert main.main(["weights", "get", "dinov2_vits14_focus"]) == 0
    assert capsys.readouterr().out == "where dinov2_vits14_focus is\n"


def test_weights_convert_keeps_every_tensor(tiny_weights, tmp_path, capsys):
    target = tmp_path / "tiny.safetensors"
    assert main.main(["weights", "convert", str(tiny_weights), str(target)]) == 0
    from safetensors.numpy import load_file

    converted = load_file(target)
    with np.load(tiny_weights) as original:
        assert converted.keys() == set(original.files)
        for name, tensor in converted.items():
            np.testing.assert_array_equal(tensor, original[name])


def names(images):
    return [image.name for image in images]


def test_names_are_stems_unless_shared(tmp_path):
    paths = [tmp_path / name for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/y.png", "b/X.gif")]
    for path in paths:
        draw(path)
    assert names(find_images(paths)) == ["x_png", "x_jpg", "b_x", "y", "X_gif"]
    assert names(find_images([tmp_path / "b"])) == ["X_gif", "x_png", "y"]
    assert names(find_images([paths[0], paths[0], tmp_path / "a"])) == ["x_png", "x_jpg"]


def test_names_never_clash_even_by_design(tmp_path):
    paths = [tmp_path / name for name in ("x/x.png", "y/x/x.png", "z/x/x.png", "x_png.png")]
    for path in paths:
        draw(path)
    found = names(find_images(paths))
    assert len({name.casefold() for name in found}) == len(paths)
    assert found[-1] == "x_png"


def test_folders_are_searched_in_depth_only_when_asked(tmp_path):
    draw(tmp_path / "top.png")
    draw(tmp_path / "inner" / "low.png")
    draw(tmp_path / "inner" / ".hidden" / "no.png")
    draw(tmp_path / "out" / "top_mask.png")
    assert names(find_images([tmp_path])) == ["top"]
    assert names(find_images([tmp_path], recursive=True, out=tmp_path / "out")) == ["top", "low"]


def test_compile_clock_counts_nested_and_repeated_spans_once():
    clock = _Clock()
    clock.spans = [(5.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.0), (5.0, 6.0)]
    assert clock.seconds == pytest.approx(5.0)


def test_speed_leaves_out_failures():
    entries = (Entry(ImageFile(None, "a")), Entry(ImageFile(None, "b"), error="no"))
    assert Run(entries, 2.0, 9.0).images_per_second == pytest.approx(0.5)


def test_shipped_photographs_are_in_the_wheel_of_scikit_image():
    from importlib.metadata import files

    from unseg_jax.demo import PHOTOGRAPHS, photographs

    shipped = {path.name for path in files("scikit-image") if path.parent.name == "data"}
    assert set(PHOTOGRAPHS) <= shipped
    assert len(photographs()) >= 6


@pytest.mark.parametrize("chosen", ["", "mine"])
def test_compiled_programs_are_kept_unless_the_user_has_another_place(tmp_path, chosen):
    code = (
        "import jax; from unseg_jax.cache import enable_compilation_cache as enable; enable()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()"
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"UNSEG_JAX_CACHE": str(tmp_path / "ours")}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / chosen)} if chosen else {}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    kept = tmp_path / (chosen or "ours/compiled")
    assert any(path.name.endswith("cache") for path in kept.iterdir())
    assert (tmp_path / "ours").exists() == (not chosen)


def test_demo_writes_one_picture_of_all(run, tmp_path, monkeypatch):
    from unseg_jax import demo

    for name in ("one", "grey"):
        for kind in ("overlay", "labels"):
            shutil.copy(run[0] / f"{name}_{kind}.png", tmp_path)
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("one.png", "grey.png", "missing.png"))
    demo.write_picture(tmp_path, tmp_path / "all.webp", columns=2)
    with Image.open(tmp_path / "all.webp") as picture:
        assert picture.size == (2 * 246 + 6, 2 * 186 + 6)


def test_methods_of_sets_are_fitted_on_what_is_given(
    photos, tiny_weights, tmp_path, capsys, short_training
):
    chosen = [str(photos / name) for name in ("one.png", "grey.png", "two.png")]
    arguments = ["--backbone", str(tiny_weights), "--image-size", "64", "--method", "collective"]
    assert main.main(["segment", *chosen, "--out", str(tmp_path), *arguments]) == 0
    captured = capsys.readouterr()
    # One line says what is fitted; the bar of the fit gives its line to the one that stays.
    first, bars, end = captured.err.split("\n")
    assert "fitting collective on these 3 images" in first
    assert re.search(r"fitting: .*segmenting: 100%.* 3/3 ", bars, re.DOTALL)
    assert end == ""
    told = r"3 of 3 images done: fitted in \d+ s, segmented in \d+ s \(\d+ s compiling\), "
    assert re.match(told, captured.out)
    assert (tmp_path / "grey_mask.png").is_file()


def test_fitted_model_refuses_other_settings(photos, tmp_path, capsys):
    arguments = ["--model", str(tmp_path / "any"), "--out", str(tmp_path / "out")]
    assert main.main(["segment", str(photos / "one.png"), *arguments, "--k", "3"]) == 2
    assert "num_clusters" in capsys.readouterr().err


def test_video_is_written_and_its_flicker_said(photos, tiny_weights, tmp_path, capsys):
    with Image.open(photos / "one.png") as image:
        frames = [image.crop((step, 0, step + 40, 40)) for step in range(3)]
    source, out = tmp_path / "in.gif", tmp_path / "out.gif"
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=100)
    arguments = ["--backbone", str(tiny_weights), "--image-size", "40", "--epochs", "2"]
    assert main.main(["video", str(source), "--out", str(out), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "3 frames" in printed
    assert re.search(r"label flicker .* against .* frame by frame", printed)
    with Image.open(out) as film:
        assert film.n_frames == 3
        assert film.size == (40, 40)


def test_weights_are_compared(tiny_weights, capsys):
    assert main.main(["weights", "compare", str(tiny_weights), str(tiny_weights)]) == 0
    printed = capsys.readouterr()
    assert "blocks.0.qkv.kernel" in printed.out
    assert "are identical." in printed.err
