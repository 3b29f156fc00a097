"""The accelerator table, rehearsed on this CPU: run to its end, and killed half way."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import tables
from benchmarks.accelerators import accelerator, parts
from benchmarks.measure import common


def test_a_rehearsal_measures_every_part(tmp_path, monkeypatch):
    out, names = tmp_path / "accelerator.json", ["rates", "whole", "labels", "loop", "vit", "heads"]
    command = ["accelerator", "--quick", "--out", str(out), "--parts", ",".join(names)]
    monkeypatch.setattr("sys.argv", command)
    accelerator.main()
    result = json.loads(out.read_text())
    assert (result["errors"], result["finished"]) == ({}, True)
    assert list(result["parts"]) == names
    assert {"jax", "jaxlib", "numpy"} <= result["versions"]["jax side"].keys()
    assert {"driver", "platform", "device"} <= result.keys()

    ((title, row),) = result["parts"]["whole"].items()
    assert title == "deepcut 64, 5 epochs, pixels to labels, bfloat16"
    assert row["kernels"] > 0
    assert min(accelerator.shares(row, result["parts"]["rates"])) > 0
    (alone,) = result["parts"]["vit"].values()
    assert list(alone["by_batch"]) == ["2", "4"]
    assert alone["images_per_second"] == max(alone["by_batch"].values())

    (agreement, *_) = result["parts"]["labels"].values()
    # The labels on file are a CPU's, as these are; another seed's are not the same.
    assert agreement["cpu"] > 0.99
    assert agreement["seed"] < agreement["cpu"]
    assert "| deepcut, float32 features | " in tables._TABLES["accelerator"](result)


def test_a_run_that_is_killed_keeps_what_it_measured(tmp_path):
    out = tmp_path / "accelerator.json"
    command = [sys.executable, "-m", accelerator.__name__, "--quick", "--out", str(out)]
    command += ["--parts", "rates,whole"]
    # Whatever else this machine has, the rehearsal is on its CPU.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=environment, cwd=common.ROOT
    ) as process:
        while process.poll() is None:
            if out.is_file() and "launch_seconds" in json.loads(out.read_text())["parts"]["rates"]:
                break
            time.sleep(0.02)
        process.kill()
    assert process.returncode != 0
    result = json.loads(out.read_text())
    assert not result["finished"]
    assert result["parts"]["rates"]["copy_bytes"] > 0
    assert "whole" not in result["parts"]
    assert "The run was ended before it was done." in accelerator.table(result)


def test_rows_that_do_not_fit_into_the_budget_are_left_out():
    clock = parts.Clock(100.0)
    clock.begin(0.5)
    assert not clock.over
    assert 49 < clock.deadline < 51
    clock.took(60.0)  # another row as long would end after the part's time
    assert clock.over
    clock.begin(1.0)
    assert not clock.over


def test_shares_of_the_limits():
    row = {
        "batch": 10,
        "images_per_second": 5.0,  # 2 s a batch
        "operations": {"half": 8e9, "default": 4e9, "exact": 1e9},
        "bytes": 1e9,
        "kernels": 1000,
    }
    rates = {"bfloat16": 8e9, "tf32": 8e9, "float32": 2e9, "copy_bytes": 2e9}
    rates["launch_seconds"] = 1e-4
    assert accelerator.shares(row, rates) == pytest.approx((1.0, 0.25, 0.05))
    assert accelerator.shares(row, {}) == (None, None, None)
