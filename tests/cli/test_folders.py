"""One folder, many runs: waiting, being stopped, dry runs, removing, and models that are kept."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.errors import InputError
from unseg_jax.runs.locking import RunLock
from unseg_jax.terminal import segmenting

# A segmenter that finds what is bright, after what a test lets happen first.
STAND = """
from unseg_jax.data.images import load_image
from unseg_jax.data.reading import PLAIN
from unseg_jax.errors import ImageError
from unseg_jax.registry import resolve
from unseg_jax.segmentation import Segmentation


class Stand:
    def __init__(self, happen=lambda index: None):
        self.method, self.backbone, self.grid = resolve("deepcut"), None, (2, 2)
        self.happen, self.reading, self.fitted = happen, PLAIN, None

    def stream(self, images, *, full_pixels=False):
        for index, path in enumerate(images):
            self.happen(index)
            try:
                pixels = load_image(path)
            except ImageError as error:
                yield error
                continue
            mask = pixels[..., 0] > 128
            yield Segmentation.of(mask, mask, confidence=0.5, pixels=pixels, id=str(path))
"""
exec(STAND)


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
        monkeypatch.setattr(segmenting, "load_segmenter", lambda *_: Stand(happen))  # noqa: F821
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


def names(out):
    return {path.name for path in out.iterdir() if not path.name.startswith(".")}


def test_runs_at_once_wait_for_one_another_and_end_with_the_union(segment, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        STAND
        + textwrap.dedent(
            """
            import sys, time
            from unseg_jax.cli import main
            from unseg_jax.terminal import segmenting

            segmenting.load_segmenter = lambda *_: Stand(lambda index: time.sleep(0.1))
            sys.exit(main.main(sys.argv[1:]))
            """
        )
    )
    out = tmp_path / "found"
    folders = [draw(tmp_path / name, 3) for name in "ab"]
    common = ["--out", out, "--method", "deepcut", "-f", "mask", "-f", "coco", "--quiet"]
    commands = [[sys.executable, script, "segment", folder, *common] for folder in folders]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    expected = {f"{name}{index}" for name in "ab" for index in range(3)}
    assert set(us.read_results(out)["name"]) == expected
    assert {f"{name}_mask.png" for name in expected} <= names(out)
    coco = json.loads((out / "coco.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == {
        f"{name[0]}/{name}.png" for name in expected
    }
    assert "6 images, 6 objects" in (out / "report.html").read_text()
    # Killed outright, a run loses the images that were being written at most.
    more = draw(tmp_path / "d", 40)
    job = subprocess.Popen([sys.executable, script, "segment", more, *common])
    while len(names(out)) < 6 + 4 + 5:
        time.sleep(0.02)
    job.kill()
    job.wait()
    masks = {name for name in names(out) if name.startswith("d") and name.endswith("_mask.png")}
    done = {name for name in us.read_results(out)["name"] if name.startswith("d")}
    assert 0 <= len(masks) - len(done) <= (os.cpu_count() or 1)
    assert {f"{name}_mask.png" for name in done} <= masks
    # The next one ends as one that was never killed.
    code, _, said = segment(more, "-f", "mask", "-f", "coco")
    assert code == 0
    assert f"{len(done)} of 40 images are done already" in said
    assert len({name for name in us.read_results(out)["name"] if name.startswith("d")}) == 40


def test_a_folder_in_use_is_waited_for_or_refused(segment, tmp_path, monkeypatch):
    photos, out = draw(tmp_path / "a", 1), tmp_path / "found"
    taken, leave = threading.Event(), threading.Event()

    def hold():
        with RunLock(out):
            taken.set()
            leave.wait()

    other = threading.Thread(target=hold)
    other.start()
    taken.wait()
    code, _, said = segment(photos, "--no-wait")
    assert (code, said.count("\n")) == (1, 1)
    assert f"another process is writing to {out}: wait for it" in said
    assert segment(photos, "--dry-run")[0] == 0
    say = segmenting.say
    monkeypatch.setattr(segmenting, "say", lambda line: (say(line), leave.set()))
    code, _, said = segment(photos)
    other.join()
    assert code == 0, said
    assert said.splitlines()[0] == f"unseg-jax: another run writes into {out}; waiting"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_counts_what_lies_there(segment, tmp_path, number, code):
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


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_before_it_segments_says_so(
    tmp_path, capsys, monkeypatch, number, code
):
    monkeypatch.setattr(segmenting, "load_segmenter", lambda *_: os.kill(os.getpid(), number))
    words = ["segment", draw(tmp_path / "a", 1), "--out", tmp_path / "out", "--method", "deepcut"]
    assert main.main(list(map(str, words))) == code
    assert capsys.readouterr().err == "unseg-jax: stopped.\n"


def test_a_dry_run_lists_the_model_that_is_fitted(segment, tmp_path):
    photos, out = draw(tmp_path / "a", 2), tmp_path / "found"
    listed = segment(photos, "--method", "collective", "-f", "mask", "--dry-run")[1].splitlines()
    assert listed[3].startswith(f"write {out / 'model-'}")
    assert f"write {out / 'unseg_jax.json'}" in listed
    assert not out.exists()


def test_a_dry_run_lists_every_file_and_the_last_line_counts(segment, tmp_path):
    photos, out = draw(tmp_path / "a", 3), tmp_path / "found"
    assert segment(photos, "-f", "csv")[0] == 0
    (photos / "a2.png").unlink()
    state = {path: path.read_bytes() for path in out.iterdir()}
    change = ["-f", "mask", "--overwrite", "--prune"]
    code, printed, _ = segment(photos / "a0.png", *change, "--dry-run")
    assert code == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == state
    said = [line.split(" ") for line in printed.splitlines()[2:-1]]
    listed = {(word, os.path.basename(path)) for word, path in said}
    assert listed == {
        *(("write", "a0_mask.png"),),
        *(("replace", name) for name in ("objects.csv", "images.csv")),
        *(("replace", name) for name in ("report.html", "unseg_jax.json")),
    }
    assert segment(photos / "a0.png", *change)[1].splitlines()[-1] == "1 result replaced, 2 removed"
    # Files, not only rows of a table.
    segment(photos, "--overwrite", "-f", "png", "-f", "csv")
    change = ["--overwrite", "--prune", "-f", "mask"]
    before = names(out)
    code, printed, _ = segment(photos / "a0.png", *change, "--dry-run")
    said = [line.split(" ") for line in printed.splitlines()[2:-1]]
    listed = {(word, os.path.basename(path)) for word, path in said}
    kinds = ("mask", "labels", "overlay")
    removed = {f"a1_{kind}.png" for kind in kinds} | {"a0_labels.png", "a0_overlay.png"}
    assert {name for word, name in listed if word == "remove"} == removed
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


def test_label_studio_gets_addresses_and_gives_examples(segment, tmp_path, monkeypatch):
    photos, taken = draw(tmp_path / "a", 2), []
    options = ["-f", "label-studio", "--label-studio-url", "https://example.org/x"]
    assert segment(photos, *options)[0] == 0
    export = tmp_path / "found" / "label_studio.json"
    images = [task["data"]["image"] for task in json.loads(export.read_text())]
    assert images == [f"https://example.org/x/a{index}.png" for index in range(2)]

    def fit(sources, *, examples, **_):
        taken.append(examples)
        raise InputError("far enough.")

    monkeypatch.setattr("unseg_jax.collective.fitting.fit", fit)
    words = ["fit", photos, "--examples", export, "--out", tmp_path / "m.safetensors"]
    assert main.main(list(map(str, words))) == 1
    (examples,) = taken
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
    monkeypatch.setattr("unseg_jax.collective.frames.has_black_frame", lambda images: framed)
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
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.err

    run()
    (model,) = out.glob("model-*.safetensors")
    before = {path.name: path.read_bytes() for path in out.glob("*_*.png")}
    run("--min-area", ".5", "-f", "mask", "--overwrite")
    assert fits == [3]
    run("--overwrite")
    assert fits == [3]
    # A model that was read back finds what it found when it had just been fitted.
    assert {path.name: path.read_bytes() for path in out.glob("*_*.png")} == before
    run("--overwrite", "--refit")
    assert fits == [3, 3]
    Image.new("RGB", (24, 20), (9, 9, 200)).save(photos / "new.png")
    run()
    assert fits == [3, 3, 4]
    assert before.items() <= {path.name: path.read_bytes() for path in out.glob("*_*.png")}.items()
    assert "4 of 4" not in run()
    assert fits == [3, 3, 4]
    # What is found of the new image does not depend on what was there.
    run(out=tmp_path / "alone")
    name = "new_labels.png"
    assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    # An image that fails when it is done again keeps its result, and so the model of that.
    run("--overwrite", "--prune")
    assert model.name in names(out)
    run("--prune")
    assert model.name not in names(out)
    assert len(list(out.glob("model-*.safetensors"))) == 1
