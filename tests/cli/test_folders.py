"""One folder, many runs: waiting, being stopped, dry runs, removing, and models that are kept."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.errors import InputError
from unseg_jax.export.records import Run
from unseg_jax.terminal import segment_command

from ..export import conftest as export
from ..export.conftest import Stand


def draw(folder, count):
    folder.mkdir()
    for index in range(count):
        pixels = np.zeros((20, 24, 3), np.uint8)
        pixels[2 + index % 8 : 12, 3:15] = 200
        Image.fromarray(pixels).save(folder / f"{folder.name}{index}.png")
    return folder


@pytest.fixture
def segment(monkeypatch, capsys, tmp_path):
    """Runs `segment` with a stand-in; gives the exit code and what was said and printed."""

    def run(*arguments, happen=lambda index: None):
        monkeypatch.setattr(segment_command, "load_segmenter", lambda *_: Stand(happen=happen))
        options = ["--out", tmp_path / "found", "--method", "deepcut"]
        code = main.main(["segment", *map(str, [*options, *arguments])])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def interruptible():
    """Python's own handling of Ctrl-C, which is off where the suite runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def planned(printed):
    """Word and file of what a dry run lists."""
    lines = [line.split(" ") for line in printed.splitlines()[2:-1]]
    return {(word, os.path.basename(path)) for word, path in lines}


def names(out):
    return {path.name for path in out.iterdir() if not path.name.startswith(".")}


# Segments a folder, held up by the test after one image, and then another, slowly.
RUNS = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
from conftest import Stand
from unseg_jax.cli import main
from unseg_jax.terminal import segment_command

def wait(index, name):
    while index and not os.path.exists(name): time.sleep(0.02)

first, second, *common = sys.argv[1:]
segment_command.load_segmenter = lambda *_: Stand(happen=lambda index: wait(index, "seen"))
code = main.main(["segment", first, *common])
wait(1, "done")
segment_command.load_segmenter = lambda *_: Stand(happen=lambda index: time.sleep(0.1))
sys.exit(code or main.main(["segment", second, *common]))
"""


def test_runs_at_once_wait_for_one_another_and_the_killed_go_on(segment, tmp_path, monkeypatch):
    out, c = tmp_path / "found", draw(tmp_path / "c", 40)
    a, b = (draw(tmp_path / name, 3) for name in "ab")
    formats = ["-f", "mask", "-f", "coco"]
    common = ["--out", out, "--method", "deepcut", *formats, "--quiet"]
    stand = Path(export.__file__).parent
    job = subprocess.Popen([sys.executable, "-c", RUNS, stand, a, c, *common], cwd=tmp_path)
    while not (out / "a0_mask.png").exists():
        assert job.poll() is None
        time.sleep(0.02)
    code, _, said = segment(b, "--no-wait", *formats)
    assert (code, said.count("\n")) == (1, 1)
    assert f"another process is writing to {out}: wait for it" in said
    assert segment(b, "--dry-run", *formats)[0] == 0
    say = segment_command.say
    leave = lambda line: (say(line), (tmp_path / "seen").touch())  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(segment_command, "say", leave)
        code, _, said = segment(b, *formats)
    assert code == 0, said
    assert said.splitlines()[0] == f"unseg-jax: another run writes into {out}; waiting"
    expected = {f"{name}{index}" for name in "ab" for index in range(3)}
    assert set(us.read_results(out)["name"]) == expected
    assert {f"{name}_mask.png" for name in expected} <= names(out)
    images = {image["file_name"] for image in json.loads((out / "coco.json").read_text())["images"]}
    assert images == {f"{name[0]}/{name}.png" for name in expected}
    assert "6 images, 6 objects" in (out / "report.html").read_text()
    # Killed outright, a run loses the images that were being written at most.
    (tmp_path / "done").touch()
    while len(names(out)) < 6 + 4 + 5:
        time.sleep(0.02)
    job.kill()
    assert job.wait() == -signal.SIGKILL
    masks = {name for name in names(out) if name.startswith("c") and name.endswith("_mask.png")}
    done = {name for name in us.read_results(out)["name"] if name.startswith("c")}
    assert 0 <= len(masks) - len(done) <= (os.cpu_count() or 1)
    assert {f"{name}_mask.png" for name in done} <= masks
    # The next one ends as one that was never killed.
    code, _, said = segment(c, *formats)
    assert code == 0
    assert f"{len(done)} of 40 images are done already" in said
    assert set(us.read_results(out)["name"]) == expected | {f"c{index}" for index in range(40)}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_counts_what_lies_there(segment, tmp_path, capsys, monkeypatch, number, code):
    photos, out = draw(tmp_path / "a", 8), tmp_path / "found"
    got, _, said = segment(photos, happen=lambda index: index == 5 and os.kill(os.getpid(), number))
    assert got == code
    assert "stopped; the results of 5 of 8 images lie in" in said.splitlines()[-1]
    assert len(us.read_results(out)["name"]) == 5
    did = []
    got, _, said = segment(photos, happen=did.append)
    assert (got, len(did)) == (0, 3)
    assert "5 of 8 images are done already" in said
    assert len(us.read_results(out)["name"]) == 8
    # Before it segments.
    monkeypatch.setattr(segment_command, "load_segmenter", lambda *_: os.kill(os.getpid(), number))
    words = ["segment", photos, "--out", tmp_path / "new", "--method", "deepcut"]
    assert main.main(list(map(str, words))) == code
    assert capsys.readouterr().err == "unseg-jax: stopped.\n"


def test_a_dry_run_lists_every_file_and_the_last_line_counts(segment, tmp_path):
    photos, out = draw(tmp_path / "a", 3), tmp_path / "found"
    listed = segment(photos, "--method", "collective", "-f", "mask", "--dry-run")[1].splitlines()
    assert listed[4].startswith(f"write {out / 'model-'}")
    assert f"write {out / 'unseg_jax.json'}" in listed
    assert not out.exists()
    assert segment(photos, "-f", "csv")[0] == 0
    (photos / "a2.png").unlink()
    state = {path: path.read_bytes() for path in out.iterdir()}
    change = ["-f", "mask", "--overwrite", "--prune"]
    code, printed, _ = segment(photos / "a0.png", *change, "--dry-run")
    assert code == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == state
    replaced = ("objects.csv", "images.csv", "report.html", "unseg_jax.json")
    assert planned(printed) == {("write", "a0_mask.png"), *(("replace", one) for one in replaced)}
    assert segment(photos / "a0.png", *change)[1].splitlines()[-1] == "1 result replaced, 2 removed"
    # Files, not only rows of a table.
    segment(photos, "--overwrite", "-f", "png", "-f", "csv")
    change = ["--overwrite", "--prune", "-f", "mask"]
    before = names(out)
    code, printed, _ = segment(photos / "a0.png", *change, "--dry-run")
    removed = {f"a1_{kind}.png" for kind in ("mask", "labels", "overlay")}
    removed |= {"a0_labels.png", "a0_overlay.png"}
    assert {name for word, name in planned(printed) if word == "remove"} == removed
    segment(photos / "a0.png", *change)
    assert before - names(out) == removed


def test_one_image_goes_from_standard_input_to_standard_output(segment, tmp_path, monkeypatch):
    (photo,) = draw(tmp_path / "a", 1).iterdir()
    for data, options, code in (
        (photo.read_bytes(), ["--format", "mask"], 0),
        (photo.read_bytes(), ["-f", "geojson"], 0),
        (b"no image", [], 1),
        (b"", ["-f", "mask", "-f", "npz"], 2),
    ):
        out = io.TextIOWrapper(io.BytesIO())
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
            patch.setattr("sys.stdout", out)
            found, _, said = segment("-", *options)
        written = out.buffer.getvalue()
        assert found == code, said
        assert bool(written) == (code == 0)
        if "mask" in options and written:
            mask = np.asarray(Image.open(io.BytesIO(written)))
            np.testing.assert_array_equal(mask > 0, np.asarray(Image.open(photo))[..., 0] > 128)
        elif written:
            assert json.loads(written)["features"][0]["properties"]["area"] == 120
        elif code == 1:
            assert "standard input" in said
            assert "\n" not in said.strip()
    assert not (tmp_path / "found").exists()


def test_label_studio_gets_addresses_and_a_fit_its_examples_and_options(
    segment, tmp_path, monkeypatch
):
    photos, taken = draw(tmp_path / "a", 2), []
    options = ["-f", "label-studio", "--label-studio-url", "https://example.org/x"]
    assert segment(photos, *options)[0] == 0
    exported = tmp_path / "found" / "label_studio.json"
    images = [task["data"]["image"] for task in json.loads(exported.read_text())]
    assert images == [f"https://example.org/x/a{index}.png" for index in range(2)]

    def fit(sources, *, examples, **options):
        taken.append((examples, options))
        raise InputError("far enough.")

    monkeypatch.setattr("unseg_jax.collective.fitting.fit", fit)
    words = ["fit", photos, "--examples", exported, "--out", tmp_path / "m.safetensors"]
    words += ["--method", "deepcut", "--passes", "1", "--steps", "2", "--batch-size", "3"]
    words += ["--epochs", "4", "--max-images", "5", "--look-for", "dark"]
    assert main.main(list(map(str, words))) == 1
    ((examples, options),) = taken
    given = {"method": "deepcut", "passes": 1, "steps": 2, "batch_size": 3, "epochs": 4}
    assert {**given, "max_images": 5, "look_for": "dark"}.items() <= options.items()
    for path, mask in examples.items():
        np.testing.assert_array_equal(mask, np.asarray(Image.open(path))[..., 0] > 128)
    assert len(examples) == 2


def test_images_that_arrive_in_a_watched_folder_are_segmented(segment, tmp_path, monkeypatch):
    photos, did = draw(tmp_path / "a", 1), []

    def wait(_):
        did.append(len(us.read_results(tmp_path / "found")["name"]) if len(did) > 1 else 0)
        if len(did) == 2:
            draw(tmp_path / "b", 1).joinpath("b0.png").rename(photos / "b0.png")
        if len(did) == 3:  # it grows while it is written, and is left until it is whole
            with open(photos / "b0.png", "ab") as file:
                file.write(bytes(9))
        if len(did) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("unseg_jax.terminal.feeds.time.sleep", wait)
    code, printed, _ = segment(photos, "--watch", "-f", "mask")
    assert (code, did) == (130, [0, 0, 1, 1, 2, 2])
    assert printed.count("1 of 1 images done") == 2
    assert {"a0_mask.png", "b0_mask.png"} <= names(tmp_path / "found")
    for words in ([photos, photos], [photos / "a0.png"], [photos, "--method", "collective"]):
        assert segment(*words, "--watch")[0] == 2


@pytest.mark.parametrize("framed", [True, False])
def test_auto_adds_few_images_to_many_and_many_to_few(segment, tmp_path, monkeypatch, framed):
    monkeypatch.setattr(
        "unseg_jax.collective.choosing.share_framed", lambda images: framed * (len(images) >= 8)
    )
    few, many, out = draw(tmp_path / "few", 2), draw(tmp_path / "many", 9), tmp_path / "found"
    for photos in (few, many):
        assert segment(photos, "--method", "auto", "--out", out)[0] == 0
    assert len(us.read_results(out)["name"]) == 11
    code, _, said = segment(few, many, "--method", "auto")
    assert code == 0
    by_another = " by a model fitted on other images" if framed else ""
    assert f"11 of 11 images are done already{by_another}; --overwrite" in said


def test_a_fitted_model_is_kept_and_used_for_the_same_images(
    tiny_weights, tmp_path, capsys, monkeypatch, short_training
):
    from unseg_jax.collective import fitting

    fits, fit = [], fitting.fit_set
    monkeypatch.setattr(fitting, "fit_set", lambda *a, **k: fits.append(len(a[0])) or fit(*a, **k))
    photos, out = draw(tmp_path / "a", 3), tmp_path / "found"
    common = ["--backbone", tiny_weights, "--method", "collective", "--image-size", "64"]

    def run(*arguments, out=out):
        code = main.main(["segment", *map(str, [photos, "--out", out, *common, *arguments])])
        printed, said = capsys.readouterr()
        assert code == 0, said
        return printed, said

    printed, said = run("--min-area", ".5", "-f", "mask")
    # One line says what is fitted; the bar of the fit gives its line to the one that stays.
    first, bars, end = said.split("\n")
    assert "fitting collective on these 3 images" in first
    assert re.search(r"fitting: .*segmenting: 100%.* 3/3 ", bars, re.DOTALL)
    assert end == ""
    told = r"3 of 3 images done: fitted in \d+ s, segmented in \d+ s \(\d+ s compiling\), "
    assert re.match(told, printed)
    (model,) = out.glob("model-*.safetensors")
    run("--overwrite")
    assert fits == [3]
    before = {path.name: path.read_bytes() for path in out.glob("*_*.png")}
    run("--overwrite", "--refit")
    assert fits == [3, 3]
    # A model that was read back finds what it finds when it has just been fitted.
    assert {path.name: path.read_bytes() for path in out.glob("*_*.png")} == before
    Image.new("RGB", (24, 20), (9, 9, 200)).save(photos / "new.png")
    run()
    assert fits == [3, 3, 4]
    assert before.items() <= {path.name: path.read_bytes() for path in out.glob("*_*.png")}.items()
    assert "4 of 4" not in run()[1]
    assert fits == [3, 3, 4]
    # What is found of the new image does not depend on what was there.
    monkeypatch.setattr(Run, "small_length", 24)
    printed, _ = run(out=tmp_path / "alone")
    assert "small, about 24 pixels long: --object-size 24 looks closer" in printed
    assert "about 24 pixels long" in (tmp_path / "alone" / "report.html").read_text()
    name = "new_labels.png"
    assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    # An image that fails when it is done again keeps its result, and so the model of that.
    run("--overwrite", "--prune")
    assert model.name in names(out)
    run("--prune")
    assert model.name not in names(out)
    assert len(list(out.glob("model-*.safetensors"))) == 1
