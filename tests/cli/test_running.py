"""What a user sees and is spared: patterns, typing errors, dry runs, lines of JSON, going on."""

import csv
import html
import json
import logging
import re
import threading

import numpy as np
import pytest
from PIL import Image

import unseg_jax
from unseg_jax.cli import main
from unseg_jax.collective.hub import model_path
from unseg_jax.runs.locking import LOCK
from unseg_jax.terminal.console import progress
from unseg_jax.terminal.segmenting import Segment

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


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"unseg-jax {unseg_jax.__version__}\n"


def test_patterns_are_expanded_and_mistyped_paths_refused_at_once(photos, tmp_path, capsys):
    out = tmp_path / "out"
    never = ["--out", out, "--backbone", tmp_path / "never_read.npz"]
    code, printed, _ = segment(capsys, photos / "[01].png", *never, "--dry-run")
    assert code == 0
    assert "0_mask.png" in printed
    assert "2_mask.png" not in printed
    for path, hint in ((photos / "*.gif", "no file matches"), (photos / "9.png", "not found")):
        code, _, said = segment(capsys, path, *never)
        assert code == 1
        assert hint in said
        assert len(said.splitlines()) == 1
    assert not out.exists()


def test_only_takes_what_a_report_kept(photos, tmp_path, capsys):
    kept = tmp_path / "keep.csv"
    kept.write_text("name,file,decision\r\n0,0.png,reject\r\n2,2.png,keep\r\n")
    arguments = ["--out", tmp_path / "out", "--backbone", tmp_path / "never_read.npz", "--dry-run"]
    code, printed, said = segment(capsys, photos, *arguments, "--only", kept)
    assert code == 0, said
    assert "2_mask.png" in printed
    assert "0_mask.png" not in printed


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


def test_lines_of_json_and_going_on(photos, tiny_weights, tmp_path, capsys):
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


def test_quiet_says_nothing_but_errors(photos, tiny_weights, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    arguments = ["--out", tmp_path / "out", "--backbone", tiny_weights, *FAST, "--quiet"]
    code, printed, said = segment(capsys, photos / "0.png", tmp_path / "bad.png", *arguments)
    assert code == 1
    assert printed == ""
    assert len(said.splitlines()) == 1
    assert "bad.png" in said


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_leaves_out_what_the_library_tells(quiet, photos, monkeypatch, capsys):
    def find(*_, **__):
        logging.getLogger("unseg_jax").info("weights were fetched.")
        raise ValueError("but they are damaged.")

    monkeypatch.setattr("unseg_jax.data.folders.find_images", find)
    code, _, said = segment(capsys, photos, *(["--quiet"] if quiet else []))
    assert code == 1
    assert ("weights were fetched." in said) is not quiet
    assert "but they are damaged." in said


def test_paths_of_options_may_begin_with_the_home_folder(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    code, printed, said = segment(capsys, photos, "--out=~/found", "--dry-run")
    assert code == 0, said
    assert f"all in {tmp_path / 'found'};" in printed
    path = "~/m.safetensors"
    found = Segment(paths=[], model=path).model_path
    assert found == tmp_path / "m.safetensors" == model_path(path)


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


def test_jobs_are_the_threads_that_read_and_write(photos, tiny_weights, tmp_path, monkeypatch):
    from unseg_jax.export import folder
    from unseg_jax.segmenter import streaming

    used = {"read": [], "write": []}

    def reading(*arguments, **options):
        used["read"].append(options["workers"])
        return batches(*arguments, **options)

    def writing(workers):
        used["write"].append(workers)
        return writer(workers)

    batches, writer = streaming.batches, folder.Writer
    monkeypatch.setattr(streaming, "batches", reading)
    monkeypatch.setattr(folder, "Writer", writing)
    contents = []
    for jobs in ([], ["--jobs", "1"], ["--jobs", "3"]):
        out = tmp_path / f"out{len(contents)}"
        arguments = ["--method", "vit-kmeans", "--backbone", tiny_weights, "--image-size", "40"]
        command = ["segment", photos, "--out", out, *arguments, "--quiet", *jobs]
        assert main.main(list(map(str, command))) == 0
        contents.append({path.name: path.read_bytes() for path in out.glob("*.png")})
    assert used["read"] == [None, 1, 3]
    assert used["write"][0] >= 2
    assert used["write"][1:] == [1, 3]
    assert contents[0] == contents[1] == contents[2] != {}


def test_fit_replaces_nothing_but_a_model(photos, tmp_path, capsys):
    image = tmp_path / "a.png"
    image.write_bytes((photos / "0.png").read_bytes())
    before = image.read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(image)
    for out in (image, link):
        assert main.main(["fit", str(photos), str(image), "--out", str(out)]) == 1
        assert "is not a model of unseg-jax" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_a_model_is_fitted_once_and_segments_what_it_does_in_python(
    photos, tiny_weights, tmp_path, capsys
):
    model = tmp_path / "m.safetensors"
    arguments = ["--backbone", tiny_weights, "--image-size", "40", "--epochs", "1"]
    arguments += ["--method", "deepcut", "--passes", "1", "--steps", "1", "--batch-size", "2"]
    command = ["fit", *map(str, [photos, "--out", model, *arguments])]
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


@pytest.mark.parametrize(("command", "words"), [("bench", "--protocol"), ("demo", "--picture")])
def test_other_programs_are_subcommands(command, words, capsys):
    assert main.main([command, "-h"]) == 0
    assert words in capsys.readouterr().out


def test_only_auto_looks_closer_and_a_run_knows_it():
    def asked(method, **overrides):
        return Segment(paths=[], method=method, overrides=overrides)

    assert asked("auto").choose().closer
    assert not asked("auto", tile=0).choose().closer
    assert not asked("collective").choose().closer
    assert asked("auto").settings() != asked("collective").settings()


def test_cut_outs_are_laid_on_a_canvas(tmp_path, tiny_weights):
    photo = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(photo)
    options = ["--format", "cutout", "--crop", "--canvas", "50x30", "--background", "white"]
    common = ["--method", "vit-kmeans", "--backbone", tiny_weights, "--image-size", "32"]
    arguments = [photo, "--out", tmp_path / "found", *common, *options]
    assert main.main(["segment", *map(str, arguments)]) == 0
    with Image.open(tmp_path / "found" / "a_cutout.png") as picture:
        assert (picture.size, picture.mode) == ((50, 30), "RGB")


@pytest.mark.parametrize(
    ("options", "cost"),
    [
        (
            ["--tile", "16"],
            "slow: --tile 16 cuts an image into 12 tiles on average, so expect about 12",
        ),
        (["--tile", "48"], ""),
        (["--method", "deepcut", "--image-size", "1120"], "about 16 times as many patches"),
        (["--method", "unseggnet", "--stride", "2"], "about 4 times as many patches"),
        (["--method", "deepcut", "--image-size", "400"], ""),
    ],
)
def test_slow_choices_say_what_they_cost_before_they_start(photos, tmp_path, capsys, options, cost):
    code, _, said = segment(capsys, photos, "--out", tmp_path / "out", *options, "--dry-run")
    assert code == 0
    assert cost in said
    assert ("slow" in said) == bool(cost)


def test_a_bar_is_redrawn_while_one_step_takes_long(monkeypatch):
    from tqdm import tqdm

    drawn = threading.Event()
    monkeypatch.setattr(tqdm, "refresh", lambda *_, **__: drawn.set())
    with progress(3, quiet=False):
        assert drawn.wait(60)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "cutout", "--canvas", "50"], "--canvas 50 is no size: give it as --canvas"),
        (["--format", "cutout", "--canvas", "0x9"], "--canvas 0,9 must be at least 1 by 1"),
        (
            ["--format", "cutout", "--background", "wite"],
            "--background wite is no colour and no file",
        ),
        (["--format", "cutout", "--edges", "round"], "--edges round is not known: choose"),
        (["--format", "cutout", "--cutout-file", "jpg"], "give --background white, or another"),
        (["--crop"], "are for cut-outs: add --format cutout"),
    ],
)
def test_cut_outs_that_cannot_be_are_one_sentence(tmp_path, capsys, options, said):
    (tmp_path / "a.png").touch()
    assert main.main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), *options]) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_split_reaches_what_is_written_and_is_checked(tmp_path, photos, capsys):
    assert Segment(paths=[], split="auto").output.split == "auto"
    assert Segment(paths=[]).output.split == "never"
    command = ["segment", str(photos), "--out", str(tmp_path / "out"), "--split", "maybe"]
    assert main.main(command) != 0
    assert "split='maybe' is not known: choose never, auto, always" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
