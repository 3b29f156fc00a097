"""When things are wrong: one sentence that names the culprit and the remedy, no traceback."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unseg_jax.cli import main
from unseg_jax.terminal import console

FAST = ["--method", "vit-kmeans", "--image-size", "40", "--batch-size", "2"]


@pytest.fixture
def images(tmp_path):
    """Three images in a folder."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 48, 3), np.uint8)
    paths = [tmp_path / "in" / f"{index}.png" for index in range(3)]
    paths[0].parent.mkdir()
    for path, values in zip(paths, pixels, strict=True):
        Image.fromarray(values).save(path)
    return paths


@pytest.fixture
def command(tiny_weights, capsys, tmp_path):
    """Runs `unseg-jax segment` on paths; gives the exit code and the sentences said."""

    def run(*arguments):
        options = ["--out", tmp_path / "out", "--backbone", tiny_weights, *FAST]
        code = main.main(["segment", *map(str, [*options, *arguments])])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, [line for line in said.splitlines() if line.startswith("unseg-jax:")]

    return run


def test_what_fails_is_named_once_and_the_rest_is_done(command, images, tmp_path):
    words, out = tmp_path / "words.png", tmp_path / "out"
    words.write_text("not an image")
    (out / "1_mask.png").mkdir(parents=True)
    code, said = command(images[0], words, tmp_path / "missing.png", *images[1:])
    assert code == 1
    for name, reason in (
        ("words.png", "is not an image"),
        ("missing.png", "not found"),
        ("1_mask.png", "is not as unseg-jax wrote it"),
    ):
        (sentence,) = [line for line in said if name in line]
        assert reason in sentence
        assert re.search("[:;] ", sentence.partition(name)[2]), "no remedy"
    assert len(said) == 3
    done = {f"{stem}_{kind}.png" for stem in "02" for kind in ("mask", "labels", "overlay")}
    assert done <= {path.name for path in out.iterdir()}
    assert "words.png" in (out / "report.html").read_text()


def test_all_broken_still_ends_with_a_report(command, tmp_path):
    (tmp_path / "words.png").write_text("not an image")
    code, said = command(tmp_path / "words.png")
    assert (code, len(said)) == (1, 1)
    assert "words.png" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--backbone dino_vit8", 1, "did you mean 'dino_vits8'?"),
        ("--set learning_rat=0.1", 1, "did you mean 'learning_rate'?"),
        ("--refine bilatral", 1, "bilateral"),
        ("--dtype float16", 1, "bfloat16"),
        ("--k 0", 2, ""),
        ("--json yaml", 2, ""),
        ("--backbone wrong.npz", 1, "wrong.npz"),
        ("--backbone absent.npz", 1, "absent.npz"),
        ("--out wrong.npz --backbone never_read.npz", 1, "cannot write wrong.npz: "),
        ("empty", 1, "empty holds no images"),
        ("album", 1, "album/june"),
        ("album", 1, "--recursive"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    command, images, tmp_path, monkeypatch, arguments, code, said
):
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", weight=np.zeros(3))
    Path("empty").mkdir()
    Path("album/june").mkdir(parents=True)
    images[2].rename("album/june/sea.png")
    given = arguments.split()
    ended, sentences = command(*(images[:1] if given[0].startswith("--") else []), *given)
    assert ended == code
    if code == 1:
        assert len(sentences) == 1
        assert said in sentences[0]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission_is_refused(command, images, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, said = command(images[0], "--out", tmp_path / "locked" / "out")
    assert code == 1
    assert "permission" in said[0]


def test_full_disk_stops_the_run_and_leaves_no_half_file(command, images, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target, **options):
        if Path(target).name == "1_labels.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    code, said = command(*images)
    assert (code, len(said)) == (1, 1)
    assert "1_labels.png" in said[0]
    assert "space" in said[0]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert "0_mask.png" in written
    assert "1_labels.png" not in written
    assert not [name for name in written if "part" in name]


def test_a_bug_is_called_a_bug_and_can_be_looked_into(monkeypatch, capsys):
    def broken():
        raise KeyError("colour")

    assert console.guarded(broken) == 1
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert console.DEBUG_VARIABLE in said
    monkeypatch.setenv(console.DEBUG_VARIABLE, "1")
    with pytest.raises(KeyError):
        console.guarded(broken)
    message = console.explain(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert "--batch-size" in message


def test_process_ends_with_the_code_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "unseg_jax", "segment", str(tmp_path), "--method", "deepct"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "unseg-jax: unknown method 'deepct'; did you mean 'deepcut'?\n"
    assert done.stdout == ""
