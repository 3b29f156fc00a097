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
from unseg_jax.bench.scale import merge, on_ray


@pytest.fixture(scope="module")
def alone(settings, records, tmp_path_factory):
    """Records and summary of a run by one process here."""
    out = tmp_path_factory.mktemp("alone") / "run"
    summary = run(settings(out), quiet=True)
    return records(out), summary


def test_merged_shards_are_the_whole(settings, records, alone, tmp_path, monkeypatch):
    """On a slow disk as well."""
    fsync, waits, out = os.fsync, [], tmp_path / "run"

    def work(index, **changes):
        run(settings(out, shard=(index, 3), save_masks=True, **changes), quiet=True)

    with pytest.raises(BenchError, match="holds no shards"):
        merge(out)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: fsync(file) or waits.append(time.sleep(0.05)))
        work(0)
    assert len(waits) > 5  # of the records, and of the masks before them
    work(2)
    with pytest.raises(BenchError, match="lacks the shards 1 of 3"):
        merge(out)
    assert not merge(out, partial=True)["complete"]
    work(1, protocol="deepcut")
    with pytest.raises(BenchError, match=r'protocol\.name is "honest" there and "deepcut" here'):
        merge(out)
    work(1, overwrite=True)
    summary = merge(out)
    assert summary["complete"]
    assert records(out) == alone[0]
    for name in ("miou", "dice", "images", "failed", "miou_interval"):
        assert summary["methods"]["vit-kmeans"][name] == alone[1]["methods"]["vit-kmeans"][name]
    masks = out / "masks" / "vit-kmeans"
    assert len(list(masks.iterdir())) == 10
    assert len(list((out / "thumbnails" / "image").iterdir())) == 10
    assert summary["timing"]["images"] == 10
    for name in ("shard-0-of-3-copy", "shard-9-of-4", "shard-00-of-3", "shard-1-of-3 (1)"):
        shutil.copytree(out / "shard-0-of-3", out / name)
        with pytest.raises(BenchError, match=r"under another name|both hold records"):
            merge(out)
        shutil.rmtree(out / name)
    other = out / "shard-0-of-4"
    shutil.copytree(out / "shard-0-of-3", other)
    config = json.loads((other / "config.json").read_text()) | {"shard": [0, 4]}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BenchError, match="holds shards of 3 and of 4: remove those of one kind"):
        merge(out)
    shutil.rmtree(other)
    # Merging again changes nothing; a mask that is gone comes back, one that was changed is kept.
    mask = next(masks.iterdir())
    content = mask.read_bytes()
    mask.unlink()
    assert merge(out) == summary
    assert records(out) == alone[0]
    assert mask.read_bytes() == content
    mask.unlink()
    mask.write_bytes(b"of somebody else")
    with pytest.raises(BenchError, match="was not written by this run, or was changed since"):
        merge(out)
    assert mask.read_bytes() == b"of somebody else"


def test_processes_of_a_job_with_several_devices_take_a_shard_each(
    data, tiny_weights, records, alone, tmp_path
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
given = {"record_every": 2, "overrides": {"image_size": 48, "epochs": 4}}
settings = Settings(data, out, ("vit-kmeans",), backbone=weights, batch_size=3, **given)
summary = run(settings, quiet=True)
assert summary["device"].startswith("2 × "), summary["device"]
"""
    command = [sys.executable, "-c", script, address]
    folders = [str(data), str(tiny_weights), str(tmp_path)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    how = {"env": os.environ | {"XLA_FLAGS": flags}, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(i), *folders], **how) for i in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert merge(tmp_path)["complete"]
    found = records(tmp_path)
    assert len(found) == 10
    for key, record in alone[0].items():
        # It is of sums in another order; what they lead to is the same.
        confidence = pytest.approx(record["confidence"], rel=1e-4)
        assert found[key] == record | {"confidence": confidence}


def struck(actor, left, lines):
    """An actor whose worker is killed in its third batch, and then another one's node, when the
    first is recorded: Ray hands a batch on when the next one is there."""

    class Struck(actor):
        calls = 0

        def __call__(self, batch):
            self.calls += 1
            for strike, process in (("worker", os.getpid()), ("node", os.getppid())):
                if self.calls == 3 and (left / strike).exists():
                    while not (lines.exists() and f'"{self.worker}"' in lines.read_text()):
                        time.sleep(0.01)
                    (left / strike).rmdir()
                    os.kill(process, signal.SIGKILL)
                    time.sleep(60)
            return super().__call__(batch)

    return Struck


@pytest.mark.filterwarnings("ignore")  # of Ray, which starts processes from one with threads
def test_a_killed_worker_and_a_lost_node_lose_nothing(
    data, tiny_weights, alone, records, tmp_path, monkeypatch
):
    """And the failure of an image comes back from the cluster."""
    pytest.importorskip("ray.data", reason="the extra 'cluster' is not installed")
    from ray.cluster_utils import Cluster

    broken, out, left = tmp_path / "data", tmp_path / "run", tmp_path / "left"
    shutil.copytree(data, broken)
    (broken / "images" / "007.png").write_bytes(b"not an image")
    for strike in ("worker", "node"):
        (left / strike).mkdir(parents=True)
    lines = out / "per_image.jsonl"
    monkeypatch.setattr(on_ray, "SegmentActor", struck(on_ray.SegmentActor, left, lines))
    # A node that refuses to answer is soon given up, and one that is slow has all its time.
    soon = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
    # Workers are as important as the tests beside them, and each imports JAX.
    soon |= {"worker_niceness": 0, "prestart_worker_first_driver": False}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(wait=False, num_cpus=2)
        cluster.wait_for_nodes()
        given = ["--data", broken, "--backbone", tiny_weights, "--out", out, "--save-masks"]
        given += ["--method", "vit-kmeans", "--image-size", 48, "--batch-size", 1, "--quiet"]
        given += ["--epochs", 4, "--every", 2]
        given += ["--cluster", cluster.address, "--actors", 1]
        assert main([*map(str, given)]) == 1
    finally:
        cluster.shutdown()
    assert not list(left.iterdir())
    # Others have taken over; what has failed is tried again in the end, by one more.
    done = map(json.loads, lines.read_text().splitlines())
    assert len({record["worker"] for record in done if not record["error"]}) == 3
    ours = {"seconds", "shared_seconds", "worker", "loss", "confidence", "crc", "run"}
    found = records(out, ours)
    assert "is not an image" in found.pop(("007", "vit-kmeans"))["error"]
    expected = {
        key: {name: value for name, value in record.items() if name not in ours}
        for key, record in alone[0].items()
        if key[0] != "007"
    }
    assert found == expected
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"]
    assert [failure["id"] for failure in summary["failures"]] == ["007"]
    ious = [record["iou"] for record in expected.values()]
    assert summary["methods"]["vit-kmeans"]["miou"] == pytest.approx(sum(ious) / 10, abs=1e-6)
    assert len(list((out / "masks" / "vit-kmeans").iterdir())) == 9


def test_a_cluster_that_cannot_be_had_is_one_sentence(settings, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra 'cluster' is not installed")
    with pytest.raises(BenchError, match=r"at 127\.0\.0\.1:1 cannot be reached"):
        run(settings(tmp_path / "run", cluster="127.0.0.1:1"), quiet=True)
    asked = {}

    def init(**options):
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(BenchError, match=r"at local cannot be reached \(enough\)"):
        run(settings(tmp_path / "run", cluster="local", actors=3, resume=True), quiet=True)
    # Beyond the actors' CPUs, some to decode on.
    assert asked["address"] == "local"
    assert asked["num_cpus"] >= 3 + 4
