"""Runs in shards and on several devices find what one run on one device finds."""

import json
import os
import socket
import subprocess
import sys

import pytest

from unseg_jax.bench import BenchError, Settings, run
from unseg_jax.bench.scale import merge

TIMES = {"seconds", "shared_seconds", "run", "crc"}


def settings(data, weights, out, **changes):
    overrides = {"image_size": 48, "epochs": 4}
    given = {"methods": ("deepcut",), "batch_size": 4, "overrides": overrides, **changes}
    return Settings(data=str(data), out=str(out), backbone=str(weights), **given)


def timeless(out):
    lines = [json.loads(line) for line in (out / "per_image.jsonl").read_text().splitlines()]
    found = {
        (line["id"], line["method"]): {k: v for k, v in line.items() if k not in TIMES}
        for line in lines
    }
    assert len(found) == len(lines)
    return found


@pytest.fixture(scope="module")
def whole(data, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run(settings(data, weights, out), quiet=True)


def test_merged_shards_are_the_whole(whole, data, weights, tmp_path):
    out = tmp_path / "run"
    for index in (0, 2):
        run(settings(data, weights, out, shard=(index, 3), save_masks=True), quiet=True)
    with pytest.raises(BenchError, match="lacks the shards 1 of 3"):
        merge(out)
    assert not merge(out, partial=True)["complete"]
    run(settings(data, weights, out, shard=(1, 3), save_masks=True), quiet=True)
    summary = merge(out)
    assert summary["complete"]
    assert timeless(out) == timeless(whole[0])
    for name in ("miou", "dice", "images", "failed", "miou_interval"):
        assert summary["methods"]["deepcut"][name] == whole[1]["methods"]["deepcut"][name]
    assert len(list((out / "masks" / "deepcut").iterdir())) == 10
    assert len(list((out / "thumbnails" / "image").iterdir())) == 10
    assert summary["timing"]["images"] == 10
    # Merging again changes nothing; a mask that is gone comes back, one that was changed is kept.
    mask = next((out / "masks" / "deepcut").iterdir())
    content = mask.read_bytes()
    mask.unlink()
    assert merge(out) == summary
    assert timeless(out) == timeless(whole[0])
    assert mask.read_bytes() == content
    mask.unlink()
    mask.write_bytes(b"of somebody else")
    with pytest.raises(BenchError, match="was not written by this run, or was changed since"):
        merge(out)
    assert mask.read_bytes() == b"of somebody else"


def test_shards_of_other_settings_are_not_merged(data, weights, tmp_path):
    run(settings(data, weights, tmp_path, shard=(0, 2), limit=4), quiet=True)
    run(settings(data, weights, tmp_path, shard=(1, 2), limit=4, seed=1), quiet=True)
    with pytest.raises(BenchError, match="seed is 0 there and 1 here"):
        merge(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(BenchError, match="holds no shards"):
        merge(tmp_path)


def test_several_devices_find_what_one_finds(whole, data, weights, tmp_path):
    out = tmp_path / "run"
    arguments = {
        "data": data,
        "backbone": weights,
        "out": out,
        "method": "deepcut,vit-kmeans",
        "image-size": 48,
        "epochs": 4,
        "batch-size": 6,
    }
    flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    flags += ["--foreground", "corner"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-m", "unseg_jax.bench", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["device"].startswith("4 × ")
    found = {key: record for key, record in timeless(out).items() if key[1] == "deepcut"}
    for key, record in timeless(whole[0]).items():
        # Losses are sums in another order; what they lead to is the same.
        assert found[key].pop("loss") == pytest.approx(record.pop("loss"), rel=1e-5)
        assert found[key].pop("confidence") == pytest.approx(record.pop("confidence"), rel=1e-4)
        assert found[key] == record


def test_processes_of_a_job_take_a_shard_each(whole, data, weights, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script = """
import sys
import jax
from unseg_jax.bench import Settings, run
address, index, data, weights, out = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
overrides = {"image_size": 48, "epochs": 4}
run(Settings(data, out, backbone=weights, batch_size=4, overrides=overrides), quiet=True)
"""
    arguments = [str(data), str(weights), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, address, str(index), *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert merge(tmp_path)["complete"]
    assert timeless(tmp_path) == timeless(whole[0])
