"""Shards, several devices, processes of a job and a cluster find what one run here finds."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.scale import merge


@pytest.fixture
def alone(records, whole):
    """Records of one method of the whole run."""
    return {k: v for k, v in records(whole[0]).items() if k[1] == "deepcut"}


def test_merged_shards_are_the_whole(whole, settings, records, alone, tmp_path):
    out = tmp_path / "run"
    for index in (0, 2):
        run(settings(out, shard=(index, 3), save_masks=True), quiet=True)
    with pytest.raises(BenchError, match="lacks the shards 1 of 3"):
        merge(out)
    assert not merge(out, partial=True)["complete"]
    run(settings(out, shard=(1, 3), save_masks=True), quiet=True)
    summary = merge(out)
    assert summary["complete"]
    assert records(out) == alone
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
    assert records(out) == alone
    assert mask.read_bytes() == content
    mask.unlink()
    mask.write_bytes(b"of somebody else")
    with pytest.raises(BenchError, match="was not written by this run, or was changed since"):
        merge(out)
    assert mask.read_bytes() == b"of somebody else"


def test_shards_of_other_settings_are_not_merged(settings, tmp_path):
    run(settings(tmp_path, shard=(0, 2), limit=4), quiet=True)
    run(settings(tmp_path, shard=(1, 2), limit=4, seed=1), quiet=True)
    with pytest.raises(BenchError, match="seed is 0 there and 1 here"):
        merge(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(BenchError, match="holds no shards"):
        merge(tmp_path)


def test_processes_of_a_job_with_several_devices_take_a_shard_each(
    whole, data, weights, records, alone, tmp_path
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script = """
import sys
import jax
from unseg_jax.bench import Settings, run
address, index, data, weights, out = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
overrides = {"image_size": 48, "epochs": 4, "foreground": "corner"}
settings = Settings(data, out, backbone=weights, batch_size=3, overrides=overrides)
summary = run(settings, quiet=True)
assert summary["device"].startswith("2 × "), summary["device"]
"""
    arguments = [str(data), str(weights), str(tmp_path)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, address, str(index), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert merge(tmp_path)["complete"]
    found = records(tmp_path)
    assert len(found) == 10
    for key, record in alone.items():
        # Losses are sums in another order; what they lead to is the same.
        assert found[key].pop("loss") == pytest.approx(record.pop("loss"), rel=1e-5)
        assert found[key].pop("confidence") == pytest.approx(record.pop("confidence"), rel=1e-4)
        assert found[key] == record


def workers(out):
    path = out / "per_image.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["worker"] for line in lines if line.endswith("\n")]


def test_a_killed_worker_loses_nothing(many, weights, settings, records, tmp_path):
    """And the failure of an image comes back from it."""
    pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
    broken, out = tmp_path / "data", tmp_path / "there"
    shutil.copytree(many, broken)
    (broken / "images" / "031.png").write_bytes(b"not an image")
    summary = run(settings(tmp_path / "here", data=broken), quiet=True)
    command = [sys.executable, "-m", "unseg_jax.bench", "--data", broken, "--backbone", weights]
    command += ["--out", out, "--method", "deepcut", "--image-size", 48, "--epochs", 4]
    command += ["--batch-size", 2, "--cluster", "local", "--actors", 1, "--save-masks"]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
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
        assert code == 1, log.read()
    ours = {"seconds", "shared_seconds", "worker", "loss", "confidence", "crc", "run"}
    assert records(out, ours) == records(tmp_path / "here", ours)
    # Another worker has taken over.
    assert len(set(workers(out))) >= 2
    found = json.loads((out / "summary.json").read_text())
    assert found["methods"]["deepcut"]["miou"] == summary["methods"]["deepcut"]["miou"]
    assert found["complete"]
    (failure,) = found["failures"]
    assert (failure["id"], "is not an image" in failure["error"]) == ("031", True)
    assert len(list((out / "masks" / "deepcut").iterdir())) == 39


def test_an_unreachable_cluster_is_one_sentence(settings, tmp_path):
    pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
    with pytest.raises(BenchError, match=r"at 127\.0\.0\.1:1 cannot be reached"):
        run(settings(tmp_path / "run", cluster="127.0.0.1:1"), quiet=True)
