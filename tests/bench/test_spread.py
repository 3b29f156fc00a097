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
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.scale import merge


@pytest.fixture
def alone(records, whole):
    """Records of one method of the whole run, that which compiles in moments."""
    return {k: v for k, v in records(whole[0]).items() if k[1] == "vit-kmeans"}


def test_merged_shards_are_the_whole(whole, settings, records, alone, tmp_path):
    out = tmp_path / "run"
    changes = {"methods": ("vit-kmeans",), "save_masks": True}
    for index in (0, 2):
        run(settings(out, shard=(index, 3), **changes), quiet=True)
    with pytest.raises(BenchError, match="lacks the shards 1 of 3"):
        merge(out)
    assert not merge(out, partial=True)["complete"]
    run(settings(out, shard=(1, 3), **changes), quiet=True)
    summary = merge(out)
    assert summary["complete"]
    assert records(out) == alone
    for name in ("miou", "dice", "images", "failed", "miou_interval"):
        assert summary["methods"]["vit-kmeans"][name] == whole[1]["methods"]["vit-kmeans"][name]
    assert len(list((out / "masks" / "vit-kmeans").iterdir())) == 10
    assert len(list((out / "thumbnails" / "image").iterdir())) == 10
    assert summary["timing"]["images"] == 10
    # Merging again changes nothing; a mask that is gone comes back, one that was changed is kept.
    mask = next((out / "masks" / "vit-kmeans").iterdir())
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
    changes = {"methods": ("vit-kmeans",), "limit": 4}
    run(settings(tmp_path, shard=(0, 2), **changes), quiet=True)
    run(settings(tmp_path, shard=(1, 2), seed=1, **changes), quiet=True)
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
given = {"methods": ("vit-kmeans",), "overrides": {"image_size": 48, "epochs": 4}}
settings = Settings(data, out, backbone=weights, batch_size=3, **given)
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
        # It is of sums in another order; what they lead to is the same.
        assert found[key].pop("confidence") == pytest.approx(record.pop("confidence"), rel=1e-4)
        assert found[key] == record


def struck(actor, once, lines, strike):
    """An actor that is struck once, in its third batch, when the first is recorded: Ray hands a
    batch on when the next one is there."""

    class Struck(actor):
        calls = 0

        def __call__(self, batch):
            self.calls += 1
            if once.exists() and self.calls == 3:
                while not (lines.exists() and lines.read_text().endswith("\n")):
                    time.sleep(0.01)
                once.unlink()
                strike()
            return super().__call__(batch)

    return Struck


@pytest.mark.filterwarnings("ignore")  # of Ray, which starts processes from one with threads
def test_a_killed_worker_loses_nothing(data, weights, alone, records, tmp_path, monkeypatch):
    """And the failure of an image comes back from it."""
    pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
    from unseg_jax.bench.scale import on_ray

    broken, out, once = tmp_path / "data", tmp_path / "run", tmp_path / "once"
    shutil.copytree(data, broken)
    (broken / "images" / "007.png").write_bytes(b"not an image")
    once.touch()
    lines = out / "per_image.jsonl"

    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731 (sent to another process)
    monkeypatch.setattr(on_ray, "SegmentActor", struck(on_ray.SegmentActor, once, lines, kill))
    # Each is a process that imports JAX.
    monkeypatch.setattr(on_ray, "_SPARE_CPUS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    given = ["--data", broken, "--backbone", weights, "--out", out, "--method", "vit-kmeans"]
    given += ["--image-size", 48, "--epochs", 4, "--batch-size", 2, "--save-masks", "--quiet"]
    assert main([*map(str, given), "--cluster", "local", "--actors", "1"]) == 1
    assert not once.exists()
    summary = json.loads((out / "summary.json").read_text())
    # Another worker has taken over; what has failed is tried again in the end, by a third.
    done = map(json.loads, lines.read_text().splitlines())
    assert len({record["worker"] for record in done if not record["error"]}) == 2
    ours = {"seconds", "shared_seconds", "worker", "loss", "confidence", "crc", "run"}
    found = records(out, ours)
    assert "is not an image" in found.pop(("007", "vit-kmeans"))["error"]
    del alone["007", "vit-kmeans"]
    expected = {
        key: {name: value for name, value in record.items() if name not in ours}
        for key, record in alone.items()
    }
    assert found == expected
    assert summary["complete"]
    assert [failure["id"] for failure in summary["failures"]] == ["007"]
    ious = [record["iou"] for record in expected.values()]
    assert summary["methods"]["vit-kmeans"]["miou"] == pytest.approx(sum(ious) / 10, abs=1e-6)
    assert len(list((out / "masks" / "vit-kmeans").iterdir())) == 9


@pytest.mark.filterwarnings("ignore")  # of Ray
def test_a_lost_node_loses_nothing(data, weights, alone, records, tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
    from ray.cluster_utils import Cluster

    from unseg_jax.bench.scale import on_ray

    out, once = tmp_path / "run", tmp_path / "once"
    lines = out / "per_image.jsonl"
    once.touch()

    def take_node_down():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    actor = struck(on_ray.SegmentActor, once, lines, take_node_down)
    monkeypatch.setattr(on_ray, "SegmentActor", actor)
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        given = ["--data", data, "--backbone", weights, "--out", out, "--method", "vit-kmeans"]
        given += ["--image-size", 48, "--epochs", 4, "--batch-size", 2, "--quiet"]
        assert main([*map(str, given), "--cluster", cluster.address, "--actors", "1"]) == 0
    finally:
        cluster.shutdown()
    assert not once.exists()
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len({record["worker"] for record in found}) == 2
    ious = {(record["id"], record["method"]): record["iou"] for record in found}
    assert len(found) == len(ious)
    assert ious == {key: record["iou"] for key, record in alone.items()}


def test_a_slow_disk_loses_nothing(settings, records, alone, tmp_path, monkeypatch):
    fsync, waits = os.fsync, []

    def slow(file):
        waits.append(time.sleep(0.05))
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    run(settings(tmp_path, methods=("vit-kmeans",), save_masks=True), quiet=True)
    assert len(waits) > 10  # of the records, and of the masks before them
    found = records(tmp_path)
    assert found.keys() == alone.keys()
    assert all(found[key]["iou"] == record["iou"] for key, record in alone.items())


def test_an_unreachable_cluster_is_one_sentence(settings, tmp_path):
    pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
    with pytest.raises(BenchError, match=r"at 127\.0\.0\.1:1 cannot be reached"):
        run(settings(tmp_path / "run", cluster="127.0.0.1:1"), quiet=True)
