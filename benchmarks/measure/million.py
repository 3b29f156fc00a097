"""A run of a million images in small: its records, resuming, merging, and an object store.

Records are those of one real run, repeated under other names in 64 shards. Every step is a process
of its own, so that its memory is that of the step alone. The workers of the object store are real
processes that write what workers of a run write; the store is moto's server on this machine, so
seconds are an upper bound and requests and bytes are what counts.

    python -m benchmarks million [--counts 10000,100000,1000000] [--workers 64] [--quick]

The part with the object store needs `pip install s3fs "moto[server]"`; without it is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerators import compiled
from benchmarks.measure import common, host
from benchmarks.measure.random_weights import random_state

SHARDS = 64
_BUCKET = "s3://runs/million"
# What a worker of twenty images a second adds between two copies, which are half a minute apart.
_PUSHED = 600
_PUSHES = 4
_MASKS = 20  # of a copy, since one request each is all there is to count
_A_PROCESS = 4  # workers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--counts", default="10000,100000,1000000", help="images; '' keeps what is measured"
    )
    parser.add_argument("--workers", type=int, default=64, help="of the object store")
    parser.add_argument("--quick", action="store_true", help="few and small: does it run at all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, *arguments = options.step
        _report_step(lambda: STEPS[name](*arguments))
        return
    counts = [200] if options.quick else list(map(int, filter(None, options.counts.split(","))))
    workers = 4 if options.quick else options.workers
    result: dict[str, Any] = {"versions": {"jax side": common.versions()}, "runs": {}}
    if not counts:
        result["runs"] = json.loads((common.RESULTS / "million.json").read_text())["runs"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config, records = real_run(folder / "real")
        for count in counts:
            result["runs"][str(count)] = _measure_run(folder / "run", config, records, count)
        if importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto"):
            result["store"] = _measure_store(folder, config, records, workers)
    if options.out or not options.quick:
        common.write_result("million", result, options.out)
    print(table(result))


# ---------------------------------------------------------------- what is written


def real_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Config and records of a run of ten photographs with a random backbone."""
    from unseg_jax.bench import Settings, run
    from unseg_jax.bench.run_folder import read_config, read_records

    host.photographs(folder / "set" / "images", (60, 80), 10)
    host._write_masks(folder / "set")
    state: dict[str, Any] = random_state(width=64, depth=1, native_grid=8)
    np.savez(folder / "tiny.npz", **state)
    settings = Settings(
        data=str(folder / "set"),
        out=str(folder / "out"),
        backbone=str(folder / "tiny.npz"),
        overrides={"epochs": 2, "image_size": 64},
    )
    run(settings, quiet=True)
    return read_config(folder / "out"), list(read_records(folder / "out"))


def records_of(
    config: dict[str, Any], records: list[dict[str, Any]], index: int, count: int, shards: int
) -> Iterator[dict[str, Any]]:
    """The records of one shard of a run of `count` images."""
    from unseg_jax.bench.run_folder import identity

    rng, run = np.random.default_rng(index), identity(config)
    for number in range(index, count, shards):
        score = round(float(rng.uniform()), 4)
        yield {
            **records[number % len(records)],
            "id": f"image-{number:08d}",
            "iou": score,
            "run": run,
        }


def write_shards(
    folder: Path, config: dict[str, Any], records: list[dict[str, Any]], count: int, shards: int
) -> dict[str, Any]:
    """Writes a finished run in shards; returns its config."""
    from unseg_jax.bench.run_folder import CONFIG, RECORDS, json_bytes, open_store, shard_folder
    from unseg_jax.runs.journal import seal_lines

    config = {**config, "images": count}
    for index in range(shards):
        shard = shard_folder(folder, (index, shards))
        shard.mkdir(parents=True)
        with open_store(shard) as store:
            store.write({CONFIG: json_bytes({**config, "shard": [index, shards]})})
            own = records_of(config, records, index, count, shards)
            store.rewrite_journal(RECORDS, seal_lines(own))
    return config


# ---------------------------------------------------------------- steps, each a process


def _resume(folder: str) -> int:
    from unseg_jax.bench.run_folder import RunFolder, load_config

    path = Path(folder)
    with RunFolder(path, load_config(path), resume=True) as run:
        return len(run.finished)


def _merge(folder: str) -> int:
    from unseg_jax.bench.scale import merge

    summary = merge(folder)
    (column,) = summary["methods"].values()
    return column["images"]


def _push(url: str, first: str, content: str) -> list[float]:
    """Workers `first` and the following ones of the store; seconds of each copy but the last."""
    from concurrent.futures import ThreadPoolExecutor

    from unseg_jax.bench.run_folder import CONFIG, RECORDS, json_bytes, open_store, shard_folder
    from unseg_jax.bench.scale.remote import remote

    given = json.loads(Path(content).read_text())
    config, records, shards = given["config"], given["records"], given["shards"]

    def work(index: int) -> list[float]:
        name, seconds = shard_folder(Path(), (index, shards)).name, []
        lines = list(records_of(config, records, index, config["images"], shards))
        with remote(url, name) as there, there.pushing():
            there.folder.mkdir(parents=True, exist_ok=True)
            with open_store(there.folder) as store:
                store.write({CONFIG: json_bytes({**config, "shard": [index, shards]})})
                journal = store.open_journal(RECORDS)
                with contextlib.closing(journal):
                    for start in range(0, len(lines), _PUSHED):
                        own = lines[start : start + _PUSHED]
                        pictures = [f"masks/deepcut/{record['id']}.png" for record in own[:_MASKS]]
                        store.write(dict.fromkeys(pictures, bytes(2000)))
                        journal.append(own)
                        begun = time.perf_counter()
                        there.push()
                        seconds.append(time.perf_counter() - begun)
        return seconds

    indices = range(int(first), min(int(first) + _A_PROCESS, shards))
    with ThreadPoolExecutor(_A_PROCESS) as pool:
        return [one for seconds in pool.map(work, indices) for one in seconds]


STEPS: dict[str, Callable[..., Any]] = {"resume": _resume, "merge": _merge, "push": _push}


def _report_step(step: Callable[[], Any]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    found = step()
    measured = {
        "found": found,
        "seconds": common.round_to(time.perf_counter() - wall),
        "cpu_seconds": common.round_to(time.process_time() - cpu),
        "gigabytes": common.round_to(_peak_gigabytes()),
    }
    print(json.dumps(measured))


def _peak_gigabytes() -> float:
    """Of this process alone: the peak that `getrusage` knows is inherited."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def _step(*arguments: Any, wait: bool = True, **variables: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.measure.million", "--step", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=common.ROOT, env={**os.environ, **variables}
    )
    return _answer(process) if wait else process


def _answer(process: subprocess.Popen) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args[2:])} failed.")  # type: ignore[index]
    return json.loads(out.splitlines()[-1])


# ---------------------------------------------------------------- measurements


def _measure_run(
    folder: Path, config: dict[str, Any], records: list[dict[str, Any]], count: int
) -> dict[str, Any]:
    """Resuming one shard, merging all, and resuming the merged run."""
    from unseg_jax.bench.run_folder import RECORDS, REPORT, shard_folder

    write_shards(folder, config, records, count, SHARDS)
    first = shard_folder(folder, (0, SHARDS))
    resumed = _step("resume", first)
    merged = _step("merge", folder)
    if merged["found"] != count:
        raise SystemExit(f"{merged['found']} of {count} images were merged.")
    measured = {
        "resume one shard": resumed,
        "merge": merged,
        "resume without shards": _step("resume", folder),
        "record_bytes": (folder / RECORDS).stat().st_size,
        "report_bytes": (folder / REPORT).stat().st_size,
    }
    shutil.rmtree(folder)
    return measured


@contextlib.contextmanager
def _object_store() -> Iterator[tuple[Any, str]]:
    """moto's server in a process of its own, with an empty bucket: its process and address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", program, "-p", str(port)], stderr=log, stdout=log, text=True
        )
        try:
            os.environ |= {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "none",
                "AWS_SECRET_ACCESS_KEY": "none",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            import s3fs

            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            s3fs.S3FileSystem().mkdir(_BUCKET.removeprefix("s3://").partition("/")[0])
            yield log, address
        finally:
            server.terminate()
            server.wait()


def _measure_store(
    folder: Path, config: dict[str, Any], records: list[dict[str, Any]], workers: int
) -> dict[str, Any]:
    """All workers write at the same time, then one process merges what they wrote."""
    count = workers * _PUSHED * _PUSHES
    content = folder / "content.json"
    given = {"config": {**config, "images": count}, "records": records, "shards": workers}
    content.write_text(json.dumps(given))
    with _object_store() as (log, address):
        start, requests = time.perf_counter(), _requests(log)
        begun = [
            _step("push", _BUCKET, first, content, wait=False, AWS_ENDPOINT_URL=address)
            for first in range(0, workers, _A_PROCESS)
        ]
        answers = [_answer(process) for process in begun]
        seconds = time.perf_counter() - start
        written = _requests(log)
        copies = [one for answer in answers for one in answer["found"]]
        merged = _step("merge", _BUCKET, AWS_ENDPOINT_URL=address)
        if merged["found"] != count:
            raise SystemExit(f"{merged['found']} of {count} images arrived.")
        read = _requests(log)
    return {
        "workers": workers,
        "images": count,
        "seconds": common.round_to(seconds),
        "requests_per_copy": common.round_to((written - requests) / len(copies)),
        "median_seconds_of_a_copy": common.round_to(float(np.median(copies))),
        "longest_seconds_of_a_copy": common.round_to(max(copies)),
        "merge": merged,
        "requests_of_the_merge": read - written,
    }


def _requests(log: Any) -> int:
    log.flush()
    with open(f"/proc/self/fd/{log.fileno()}") as lines:
        return sum(" HTTP/1.1" in line for line in lines)


# ---------------------------------------------------------------- tables


def plan(results: Path = common.RESULTS) -> str:
    """What a million photographs take on one device, and how many cores of a host keep up with it.

    Made from other results: whole commands on a CPU (limit), bounds of compiled programs that were
    never run (compiled), and the host's work for an image (host).
    """
    limit, programs, work = (
        json.loads((results / f"{name}.json").read_text()) for name in ("limit", "compiled", "host")
    )
    cpu = statistics.median(run["seconds"] for run in limit["counts"]["200"]["warm"]) / 200
    cores = limit["machine"]["cores"]
    # An accelerator refines edges itself.
    each = work["runs"]["bench without thumbnails, patches"]["cpu_seconds_per_image"]
    rates = {f"CPU, {cores} cores with {limit['machine']['vectors']}, measured": 1 / cpu}
    for row in programs["programs"]:
        name, target = f"{row['method']} {row['dtype']}", row["target"]
        if name == "collective bfloat16" and row["devices"] == 1:
            device = f"{'TPU ' if target == 'tpu' else ''}{compiled.CHIPS[target].name}, at most"
            rates[device] = compiled.bound(row)
    lines = [
        [
            device,
            f"{rate:.0f}" if rate > 10 else f"{rate:.3g}",
            f"{1e6 / rate / 3600:.3g} h",
            "included" if device.startswith("CPU") else f"{rate * each:.0f}",
        ]
        for device, rate in rates.items()
    ]
    header = ["one device", "images/s", "a million images", "cores of a host that keep up"]
    return common.table(header, lines)


def table(result: dict[str, Any]) -> str:
    """Seconds and memory of each step, and what the object store was asked."""
    header = ["images", "resume one of 64 shards", "merge and report", "memory of the merge"]
    header += ["resume without shards", "memory", "records", "report"]
    lines = []
    for count, run in result["runs"].items():
        shard, merge, whole = (
            run[name] for name in ("resume one shard", "merge", "resume without shards")
        )
        lines.append(
            [
                f"{int(count):,}",
                common.seconds(shard["seconds"]),
                common.seconds(merge["seconds"]),
                f"{merge['gigabytes']:.2f} GB",
                common.seconds(whole["seconds"]),
                f"{whole['gigabytes']:.2f} GB",
                f"{run['record_bytes'] / 1e6:.1f} MB",
                f"{run['report_bytes'] / 1e6:.1f} MB",
            ]
        )
    blocks = [common.table(header, lines)]
    if store := result.get("store"):
        blocks.append(
            f"{store['workers']} workers on one object store: {store['requests_per_copy']:.3g} "
            f"requests for each copy of {_PUSHED} records and {_MASKS} masks, "
            f"{common.seconds(store['median_seconds_of_a_copy'])} in the median and "
            f"{common.seconds(store['longest_seconds_of_a_copy'])} at most with all of them "
            f"copying at once; the merge of their {store['images']:,} records takes "
            f"{common.seconds(store['merge']['seconds'])} and "
            f"{store['requests_of_the_merge']:,} requests."
        )
    return "\n\n".join(blocks)


if __name__ == "__main__":
    main()
