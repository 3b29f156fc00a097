"""A run on a local Ray cluster finds what a run without finds, even if a worker is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from unseg_jax.bench import Settings, run

pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
TIMES = {"seconds", "shared_seconds", "worker", "loss", "confidence", "crc", "run"}


def timeless(out):
    lines = [json.loads(line) for line in (out / "per_image.jsonl").read_text().splitlines()]
    found = {
        (line["id"], line["method"]): {k: v for k, v in line.items() if k not in TIMES}
        for line in lines
    }
    assert len(found) == len(lines)
    return found


def workers(out):
    path = out / "per_image.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["worker"] for line in lines if line.endswith("\n")]


def command(data, weights, out, *more):
    given = ["--data", data, "--backbone", weights, "--out", out, "--method", "deepcut"]
    given += ["--image-size", 48, "--epochs", 4, "--batch-size", 2]
    return [sys.executable, "-m", "unseg_jax.bench", *map(str, [*given, *more])]


def test_a_killed_worker_loses_nothing(many, weights, tmp_path):
    overrides = {"image_size": 48, "epochs": 4}
    settings = Settings(
        str(many), str(tmp_path / "here"), backbone=str(weights), batch_size=2, overrides=overrides
    )
    summary = run(settings, quiet=True)
    out = tmp_path / "there"
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            command(many, weights, out, "--cluster", "local", "--actors", 1, "--save-masks"),
            stdout=log,
            stderr=log,
        )
        try:
            killed = None
            deadline = time.monotonic() + 300
            while process.poll() is None and time.monotonic() < deadline:
                if killed is None and workers(out):
                    killed = int(workers(out)[0].rpartition(":")[2])
                    os.kill(killed, signal.SIGKILL)
                time.sleep(0.005)
            code = process.wait(timeout=10)
        finally:
            process.kill()
        log.seek(0)
        assert code == 0, log.read()
    assert timeless(out) == timeless(tmp_path / "here")
    # Another worker has taken over.
    assert len(set(workers(out))) == 2
    found = json.loads((out / "summary.json").read_text())
    assert found["methods"]["deepcut"]["miou"] == summary["methods"]["deepcut"]["miou"]
    assert found["complete"]
    assert len(list((out / "masks" / "deepcut").iterdir())) == 60


def test_failures_come_back_from_workers(data, weights, tmp_path):
    broken = tmp_path / "data"
    for kind in ("images", "masks"):
        (broken / kind).mkdir(parents=True)
        for name in ("000.png", "001.png"):
            os.link(data / kind / name, broken / kind / name)
    (broken / "images" / "001.png").unlink()
    (broken / "images" / "001.png").write_bytes(b"not an image")
    done = subprocess.run(
        command(broken, weights, tmp_path / "run", "--cluster", "local", "--actors", 1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (failure,) = summary["failures"]
    assert failure["id"] == "001"
    assert "is not an image" in failure["error"]
    assert summary["methods"]["deepcut"]["images"] == 2


def test_an_unreachable_cluster_is_one_sentence(data, weights, tmp_path):
    done = subprocess.run(
        command(data, weights, tmp_path / "run", "--cluster", "127.0.0.1:1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
