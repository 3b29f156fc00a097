"""When things are wrong: one sentence that names the culprit and the remedy, no traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unseg_jax.cli import main
from unseg_jax.terminal import console

FAST = ["--method", "vit-kmeans", "--image-size", "40", "--batch-size", "2"]


def draw(path: Path, size=(40, 48), seed=0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def command(tiny_weights, capsys, tmp_path):
    """Runs `unseg-jax segment` on paths; gives the exit code and the sentences said."""

    def run(*arguments, weights=tiny_weights, out=tmp_path / "out"):
        options = ["--out", out, "--backbone", weights, *FAST]
        code = main.main(["segment", *map(str, [*options, *arguments])])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, [line for line in said.splitlines() if line.startswith("unseg-jax:")]

    return run


def truncated(path: Path) -> None:
    content = draw(path, (300, 300)).read_bytes()
    path.write_bytes(content[: len(content) // 3])


def bomb(path: Path) -> None:
    """A PNG of 2 · 10⁹ pixels in its header and none in its body."""
    content = bytearray(draw(path).read_bytes())
    content[16:24] = (50_000).to_bytes(4, "big") + (40_000).to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


BROKEN = {
    "truncated.jpg": (truncated, "truncated"),
    "words.png": (lambda path: path.write_text("not an image"), "not an image"),
    "nothing.png": (lambda path: path.write_bytes(b""), "empty"),
    "huge.png": (bomb, "too large"),
    "missing.png": (lambda path: None, "not found"),
}


def test_every_broken_image_is_named_once_and_good_ones_are_done(command, tmp_path):
    folder = tmp_path / "in"
    good = [draw(folder / f"good{index}.png", seed=index) for index in range(3)]
    paths = [good[0]]
    for name, (spoil, _) in BROKEN.items():
        spoil(folder / name)
        paths.append(folder / name)
    code, said = command(*paths, *good[1:])
    assert code == 1
    for name, (_, reason) in BROKEN.items():
        sentences = [sentence for sentence in said if name in sentence]
        assert len(sentences) == 1
        assert reason in sentences[0]
        assert ": " in sentences[0].partition(name)[2], "no remedy"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    for image in good:
        assert {f"{image.stem}_{kind}.png" for kind in ("mask", "labels", "overlay")} <= written
    assert len(written) == 3 * len(good) + 3  # and the report, the manifest and the lock


def test_all_broken_still_ends_with_a_report(command, tmp_path):
    BROKEN["words.png"][0](tmp_path / "words.png")
    code, said = command(tmp_path / "words.png")
    assert code == 1
    assert len(said) == 1
    assert "words.png" in (tmp_path / "out" / "report.html").read_text()


def test_empty_folder_says_so(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, said = command(tmp_path / "empty")
    assert code == 1
    assert len(said) == 1
    assert "empty holds no images" in said[0]


def test_folder_of_folders_names_one(command, tmp_path):
    draw(tmp_path / "album" / "june" / "sea.png")
    code, said = command(tmp_path / "album")
    assert code == 1
    assert "album/june" in said[0]
    assert "--recursive" in said[0]


def test_unknown_names_suggest_the_nearest(command, tmp_path):
    image = draw(tmp_path / "one.png")
    cases = {
        ("--method", "depcut"): "did you mean 'deepcut'?",
        ("--backbone", "dino_vit8"): "did you mean 'dino_vits8'?",
        ("--set", "learning_rat=0.1"): "did you mean 'learning_rate'?",
        ("--refine", "bilatral"): "bilateral",
        ("--foreground", "middle"): "centre",
        ("--dtype", "float16"): "bfloat16",
        ("--set", "facet=kye"): "key",
    }
    for options, hint in cases.items():
        code, said = command(image, *options)
        assert code == 1, options
        assert len(said) == 1, options
        assert hint in said[0]


@pytest.mark.parametrize(
    "options",
    [
        ("--image-size", "large"),
        ("--image-size", "3x4x5"),
        ("--set", "tau"),
        ("--k", "0"),
        ("--json", "yaml"),
    ],
    ids=" ".join,
)
def test_malformed_options_are_usage_errors(command, tmp_path, options):
    code, _ = command(draw(tmp_path / "one.png"), *options)
    assert code == 2


def test_output_that_is_a_file_is_refused_before_anything_is_loaded(command, tmp_path):
    (tmp_path / "taken").write_text("")
    weights = tmp_path / "never_read.npz"
    code, said = command(draw(tmp_path / "one.png"), out=tmp_path / "taken", weights=weights)
    assert code == 1
    assert len(said) == 1
    assert f"cannot write {tmp_path / 'taken'}: " in said[0]
    assert "choose another" in said[0]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission_is_refused(command, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, said = command(draw(tmp_path / "one.png"), out=tmp_path / "locked" / "out")
    assert code == 1
    assert "permission" in said[0]


def test_full_disk_stops_the_run_and_leaves_no_half_file(command, tmp_path, monkeypatch):
    paths = [draw(tmp_path / "in" / f"{index}.png", seed=index) for index in range(4)]
    replace = os.replace

    def full(source, target, **options):
        if Path(target).name == "1_labels.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    code, said = command(*paths)
    assert code == 1
    assert len(said) == 1
    assert "1_labels.png" in said[0]
    assert "space" in said[0]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert "0_mask.png" in written
    assert "1_labels.png" not in written
    assert not [name for name in written if "part" in name]


def test_one_file_that_cannot_be_written_costs_only_its_image(command, tmp_path, monkeypatch):
    paths = [draw(tmp_path / "in" / f"{index}.png", seed=index) for index in range(3)]
    (tmp_path / "out" / "1_mask.png").mkdir(parents=True)
    code, said = command(*paths)
    assert code == 1
    assert len(said) == 1
    assert "1_mask.png" in said[0]
    assert (tmp_path / "out" / "2_mask.png").is_file()


def test_weights_that_do_not_fit_are_named(command, tmp_path):
    image = draw(tmp_path / "one.png")
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, weight=np.zeros(3))
    for weights in (wrong, tmp_path / "absent.npz"):
        code, said = command(image, weights=weights)
        assert code == 1
        assert len(said) == 1
        assert weights.name in said[0]


def test_out_of_memory_says_what_to_make_smaller():
    message = console.explain(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert "--batch-size" in message


def test_bug_is_called_a_bug_and_can_be_looked_into(monkeypatch, capsys):
    def broken():
        raise KeyError("colour")

    assert console.guarded(broken) == 1
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert console.DEBUG_VARIABLE in said
    monkeypatch.setenv(console.DEBUG_VARIABLE, "1")
    with pytest.raises(KeyError):
        console.guarded(broken)


def test_process_ends_with_the_code_and_without_a_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "unseg_jax.cli.main",
        "segment",
        str(tmp_path),
        "--method",
        "deepct",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "unseg-jax: unknown method 'deepct'; did you mean 'deepcut'?\n"
    assert done.stdout == ""
