"""What is made of compiled programs: what must not be in them, estimates, tables."""

import json

import numpy as np
import pytest

from benchmarks.accelerators import compiled
from benchmarks.measure import host

_LOOP = {"trips": 10, "kernels": 100, "fusions": 90, "copies": 10, "transposes": 0}
ROW = {"target": "cuda", "method": "deepcut", "dtype": "float32", "devices": 1, "batch": 64}
ROW |= {"image_size": 280, "epochs": 10, "seconds_to_compile": 9.0, "temporaries": 1e9}
ROW |= {"operations": {"default": 0.0, "half": 0.0, "exact": 0.0, "open_loops": 0}}
ROW |= {"bytes": 64 * 3.35e9, "padded_bytes": 64 * 3.35e9, "cycles": 0.0, "kernels": 1020}
ROW |= {"loops": [_LOOP | {"bytes": 64 * 0.335e9}], "outside": {"kernels": 20, "bytes": 0.0}}
ROW |= {"collectives": {}, "host_calls": [], "unknown_loops": [], "float64": False, "problems": []}


def test_bytes_bound_large_batches_and_launches_small_ones():
    # 64 images read 64 · 3.35 GB in the loop, which takes an H100 a millisecond an image and 20
    # launches outside.
    assert compiled.bound(ROW) == pytest.approx(64 / (64 * 1e-3 + 20 * 4e-6))
    launches = {**ROW, "loops": [{**ROW["loops"][0], "bytes": 64 * 1.0}]}
    for batch in (8, 256):
        assert compiled.bound(launches, batch) == pytest.approx(batch / (1020 * 4e-6))
    table = compiled.table({"programs": [ROW]})
    assert "H100: compiled, never run" in table
    assert "| deepcut 280, 10 epochs, float32 | 1.00 |" in table


def test_products_bound_what_moves_little():
    # An eighth of a second of bfloat16, as much of TF32, and a quarter of full float32.
    counts = {"half": 989e12 / 8, "default": 494e12 / 8, "exact": 67e12 / 4, "open_loops": 0}
    row = {**ROW, "operations": counts, "loops": []}
    assert compiled.compute_seconds(row) == pytest.approx(0.5)
    assert compiled.bound(row) == pytest.approx(64 / 0.5)
    tpu = {**row, "target": "tpu", "padded_bytes": 819e9}
    assert compiled.bound(tpu) == pytest.approx(
        64 / (989 / 8 / 197 + 494 / 8 / 197 + 6 * 67 / 4 / 197)
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("collectives", {"all-gather (eigh)": 2}, "exchange data"),
        ("host_calls", ["xla_python_cpu_callback"], "host is called"),
        ("float64", True, "float64"),
        ("temporaries", 13e9, "13.00 GB, bound 12.00 GB"),
        ("unknown_loops", ["while.7"], "while.7"),
    ],
)
def test_what_must_not_be_in_a_program_is_found(field, value, words):
    assert compiled.problems(ROW) == []
    (problem,) = compiled.problems({**ROW, field: value})
    assert words in problem


def test_the_stand_in_answers_for_every_image(tmp_path):
    answer = host._answer(3, (5, 7), 4)
    assert answer.labels.shape == (3, 5, 7)
    assert answer.losses.shape == (3, 4)
    assert 0.2 < answer.foreground.mean() < 0.5
    paths = host.photographs(tmp_path, (30, 40), 9)
    pixels = [np.asarray(host.Image.open(path)) for path in paths]
    assert {array.shape for array in pixels} == {(30, 40, 3)}
    # The ninth is another part of the first photograph.
    assert (pixels[8] != pixels[0]).any()


def test_what_an_image_costs_is_told_from_what_a_run_costs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(host.time, "process_time", lambda: now[0])

    def run(count):
        now[0] += 5 + 0.25 * count

    measured = host._measured(80, run)
    assert measured["cpu_seconds_per_image"] == pytest.approx(0.25)
    assert measured["cpu_seconds_of_a_run"] == pytest.approx(5)


def test_the_host_is_measured_to_its_end(tmp_path, monkeypatch, capsys):
    out = tmp_path / "host.json"
    monkeypatch.setattr("sys.argv", ["host.py", "--quick", "--out", str(out)])
    host.main()
    result = json.loads(out.read_text())
    assert list(result["stages"]) == ["400×300"]
    assert all(seconds > 0 for seconds in result["stages"]["400×300"].values())
    assert len(result["runs"]) == 9
    assert "| bench, patches |" in capsys.readouterr().out
