"""What a user sees and is spared: patterns, typing errors, dry runs, lines of JSON, going on."""

import csv
import html
import json
import logging
import re
import threading
from unittest.mock import Mock

import numpy as np
import pytest
import typer
from PIL import Image
from tqdm import tqdm

import unseg_jax
from unseg_jax.cli import main
from unseg_jax.collective.model_hub import model_path
from unseg_jax.export import folder
from unseg_jax.runs.locking import LOCK
from unseg_jax.segmenter import streaming
from unseg_jax.terminal.console import progress
from unseg_jax.terminal.segment_command import Segment

from ..export.conftest import Stand

FAST = ["--method", "vit-kmeans", "--image-size", "40", "--batch-size", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 60, (40, 48, 3))
        pixels[10:30, 12 : 30 + index] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def segment(capsys, *arguments):
    code = main.main(["segment", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_patterns_are_expanded_and_mistyped_paths_refused_at_once(photos, tmp_path, capsys):
    out = tmp_path / "out"
    never = ["--out", out, "--backbone", tmp_path / "never_read.npz"]
    code, printed, _ = segment(capsys, photos / "[01].png", *never, "--dry-run")
    assert code == 0
    assert "0_mask.png" in printed
    assert "2_mask.png" not in printed
    for path, hint in ((photos / "*.gif", "no file matches"), (photos / "9.png", "not found")):
        code, _, said = segment(capsys, path, *never)
        assert (code, len(said.splitlines())) == (1, 1)
        assert hint in said
    # Of these, what a report kept.
    kept = tmp_path / "keep.csv"
    kept.write_text("name,file,decision\r\n0,0.png,reject\r\n2,2.png,keep\r\n")
    code, printed, said = segment(capsys, photos, *never, "--only", kept, "--dry-run")
    assert code == 0, said
    assert "2_mask.png" in printed
    assert "0_mask.png" not in printed
    assert not out.exists()


def test_kinds_are_told_and_decided_on(photos, tiny_weights, tmp_path, capsys):
    common = [photos, "--backbone", tiny_weights, *FAST, "--format", "coco", "--out"]
    code, printed, said = segment(capsys, *common, tmp_path / "out", "--kinds", "2")
    assert code == 0, said
    assert re.search(r"^kinds: kind 1 \(\d+\), kind 2 \(\d+\)$", printed, re.MULTILINE)
    page = (tmp_path / "out" / "report.html").read_text()
    told = json.loads(html.unescape(re.search('data-told="([^"]*)"', page)[1]))
    decided = tmp_path / "decisions.json"
    content = {"format": "unseg-jax decisions", "images": [{"name": "2", "decision": "reject"}]}
    kinds = {"told": told, "names": ["cat", ""], "dropped": [2]}
    decided.write_text(json.dumps({**content, "kinds": kinds}))
    only = [*common, tmp_path / "new", "--only", decided]
    assert segment(capsys, *only)[0] == 0
    coco = json.loads((tmp_path / "new" / "coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "cat"}]
    assert [image["file_name"] for image in coco["images"]] == ["0.png", "1.png"]
    for kinds, said in (("3", "3 are not the 2 kinds"), ("1", "no number of kinds")):
        code, _, message = segment(capsys, *only, "--kinds", kinds)
        assert code > 0
        assert said in message


def test_lines_of_json_going_on_and_quiet_runs(photos, tiny_weights, tmp_path, capsys):
    arguments = [photos, "--out", tmp_path, "--backbone", tiny_weights, *FAST, "--print", "json"]
    code, printed, said = segment(capsys, *arguments)
    assert code == 0
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["path"] for line in lines] == [str(photos / f"{n}.png") for n in range(3)]
    assert {"size", "coverage", "confidence", "objects", "files"} <= lines[0].keys()
    assert "3 of 3 images" in said
    # Nothing is left to do, so not even the weights are read.
    code, again, said = segment(capsys, *arguments)
    assert code == 0
    assert again == printed
    assert "3 of 3 images are done already" in said
    other = [*arguments, "--seed", "5"]
    code, _, said = segment(capsys, *other)
    assert code == 1
    assert "seed 0, now 5" in said
    assert segment(capsys, *other, "--overwrite", "--quiet")[0] == 0
    # Quiet runs say nothing but errors.
    (tmp_path / "bad.png").write_text("no image")
    arguments = ["--out", tmp_path / "out", "--backbone", tiny_weights, *FAST, "--quiet"]
    code, printed, said = segment(capsys, photos / "0.png", tmp_path / "bad.png", *arguments)
    assert (code, printed, len(said.splitlines())) == (1, "", 1)
    assert "bad.png" in said


def test_quiet_leaves_out_what_the_library_tells(photos, monkeypatch, capsys):
    def find(*_, **__):
        logging.getLogger("unseg_jax").info("weights were fetched.")
        raise ValueError("but they are damaged.")

    monkeypatch.setattr("unseg_jax.data.folders.find_images", find)
    for options in ([], ["--quiet"]):
        code, _, said = segment(capsys, photos, *options)
        assert (code, "weights were fetched." in said) == (1, not options)
        assert "but they are damaged." in said


def test_paths_of_options_may_begin_with_the_home_folder(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    code, printed, said = segment(capsys, photos, "--out=~/found", "--dry-run")
    assert code == 0, said
    assert f"all in {tmp_path / 'found'};" in printed
    found = Segment(paths=[], model="~/m.safetensors").model_path
    assert found == tmp_path / "m.safetensors" == model_path("~/m.safetensors")


def test_formats_and_objects_are_chosen(photos, tiny_weights, tmp_path, capsys):
    arguments = ["--out", tmp_path, "--backbone", tiny_weights, *FAST, "--objects", "largest"]
    size = ["--pixel-size", "0.5um"]
    code, _, said = segment(capsys, photos / "0.png", *arguments, "-f", "npz", *size)
    assert code == 0, said
    names = {path.name for path in tmp_path.iterdir()}
    tables = {"objects.csv", "images.csv"}
    assert names - {LOCK} == {"0.npz", "report.html", "unseg_jax.json", *tables}
    rows = list(csv.DictReader((tmp_path / "objects.csv").read_text().splitlines()))
    assert [float(row["area_um2"]) for row in rows] == [int(row["area"]) / 4 for row in rows]
    assert len(rows) <= 1
    code, _, said = segment(capsys, photos, "--out", tmp_path, "--pixel-size", "3 inch")
    assert (code, "--pixel-size '3 inch' is no size" in said) == (1, True)
    assert segment(capsys, photos, "--out", tmp_path, "-f", "pgn")[0] == 1
    assert segment(capsys, photos, "--out", tmp_path, "--objects", "some")[0] == 1


def test_jobs_are_the_threads_that_read_and_write(
    photos, tiny_weights, tmp_path, monkeypatch, capsys
):
    reading, writing = Mock(wraps=streaming.batches), Mock(wraps=folder.Writer)
    monkeypatch.setattr(streaming, "batches", reading)
    monkeypatch.setattr(folder, "Writer", writing)
    contents = []
    for jobs in ([], ["--jobs", "1"], ["--jobs", "3"]):
        out = tmp_path / f"out{len(contents)}"
        arguments = ["--out", out, "--backbone", tiny_weights, *FAST, "--quiet", *jobs]
        assert segment(capsys, photos, *arguments)[0] == 0
        contents.append({path.name: path.read_bytes() for path in out.glob("*.png")})
    assert [call.kwargs["workers"] for call in reading.call_args_list] == [None, 1, 3]
    workers = [call.args[0] for call in writing.call_args_list]
    assert workers == [max(workers[0], 2), 1, 3]
    assert contents[0] == contents[1] == contents[2] != {}


def test_a_model_is_fitted_once_and_segments_what_it_does_in_python(
    photos, tiny_weights, tmp_path, capsys, short_training
):
    image, link, model = (
        tmp_path / name for name in ("a.png", "link.safetensors", "m.safetensors")
    )
    image.write_bytes(before := (photos / "0.png").read_bytes())
    link.symlink_to(image)
    for out in (image, link):
        assert main.main(["fit", str(photos), str(image), "--out", str(out)]) == 1
        assert "is not a model of unseg-jax" in capsys.readouterr().err
    assert image.read_bytes() == before
    arguments = ["--out", model, "--backbone", tiny_weights, "--image-size", "64"]
    command = ["fit", *map(str, [photos, *arguments])]
    assert main.main(command) == 0
    printed, said = capsys.readouterr()
    assert "3/3" in said  # how far it is
    assert "fitted on 3 images" in printed
    before = model.stat().st_mtime_ns
    assert main.main(command) == 1
    assert "is a model already" in capsys.readouterr().err
    assert model.stat().st_mtime_ns == before
    assert main.main([*command, "--overwrite"]) == 0
    assert model.stat().st_mtime_ns > before
    image, out = photos / "0.png", tmp_path / "found"
    assert segment(capsys, image, "--model", model, "--out", out)[0] == 0
    (found,) = unseg_jax.load_model(model).segment(image)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "0_labels.png")), found.labels)


def test_the_version_is_printed_and_other_programs_are_subcommands(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"unseg-jax {unseg_jax.__version__}\n"
    for command, words in (("bench", "--protocol"), ("demo", "--picture")):
        assert main.main([command, "-h"]) == 0
        assert words in capsys.readouterr().out


def test_only_auto_looks_closer_and_a_run_knows_it():
    def asked(method, **overrides):
        return Segment(paths=[], method=method, overrides=overrides)

    assert asked("auto").choose().closer
    assert not asked("auto", tile=0).choose().closer
    assert not asked("collective").choose().closer
    assert asked("auto").settings() != asked("collective").settings()


def test_the_size_of_objects_sets_tiles_and_specks():
    def asked(**options):
        return Segment(**{"paths": [], "object_size": 25, **options})

    assert asked().choose().method.tile == 150
    assert asked().output.min_area == pytest.approx((25 / 3) ** 2)
    assert asked(min_area=0.0).output.min_area == 0
    assert asked(object_size=1).output.min_area == 1
    with pytest.raises(typer.BadParameter, match="leave one of them out"):
        asked(overrides={"tile": 100})


def test_slow_choices_say_what_they_cost_before_they_start(photos, tmp_path, capsys):
    for options, cost in {
        "--tile 16": "slow: --tile 16 cuts an image into 12 tiles on average, so expect about 12",
        "--tile 48": "",
        "--object-size 2.7": "slow: --tile 16 cuts an image into 12 tiles",
        "--method deepcut --image-size 1120": "about 16 times as many patches",
        "--method unseggnet --stride 2": "about 4 times as many patches",
        "--stride 7": "about 4 times as many patches",
        "--method deepcut --image-size 400": "",
    }.items():
        arguments = [photos, "--out", tmp_path / "out", *options.split(), "--dry-run"]
        code, _, said = segment(capsys, *arguments)
        assert (code, "slow" in said) == (0, bool(cost))
        assert cost in said


def test_a_bar_is_redrawn_while_one_step_takes_long(monkeypatch):
    drawn = threading.Event()
    monkeypatch.setattr(tqdm, "refresh", lambda *_, **__: drawn.set())
    with progress(3, quiet=False):
        assert drawn.wait(60)


def test_cut_outs_are_laid_on_a_canvas_or_refused_in_one_sentence(
    photos, tmp_path, capsys, monkeypatch
):
    out, cutout = tmp_path / "out", "--format cutout --out"
    for options, said in {
        "--canvas 50": "--canvas 50 is no size: give it as --canvas",
        "--canvas 0x9": "--canvas 0,9 must be at least 1 by 1",
        "--background wite": "--background wite is no colour and no file",
        "--edges round": "--edges round is not known: choose",
        "--cutout-file jpg": "give --background white, or another",
    }.items():
        code, _, message = segment(capsys, photos, *cutout.split(), out, *options.split())
        assert (code != 0, said in " ".join(message.split())) == (True, True), message
    code, _, message = segment(capsys, photos, "--out", out, "--crop")
    assert (code, "are for cut-outs: add --format cutout" in " ".join(message.split())) == (2, True)
    code, _, message = segment(capsys, photos, "--out", out, "--split", "maybe")
    assert (code, "split='maybe' is not known: choose never, auto, always" in message) == (1, True)
    assert not out.exists()
    assert [Segment(paths=[], **s).output.split for s in ({}, {"split": "auto"})] == [
        "never",
        "auto",
    ]
    monkeypatch.setattr("unseg_jax.terminal.segment_command.load_segmenter", lambda *_: Stand())
    options = "--crop --canvas 50x30 --background white --method deepcut"
    assert segment(capsys, photos / "0.png", *cutout.split(), out, *options.split())[0] == 0
    with Image.open(out / "0_cutout.png") as picture:
        assert (picture.size, picture.mode) == ((50, 30), "RGB")
