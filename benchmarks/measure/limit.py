"""The whole command against what limits it: the passes of the transformer alone.

`unseg-jax segment FOLDER` is run as a user runs it, a process of its own without any option, on 8,
40 and 200 photographs; before and after each run the transformer alone passes batches of 8 in the
same type. The first run of a count starts with an empty compile cache, the others find it warm.
Beside it stands what the spectral methods cost on the same machine: TokenCut by the same command,
and MaskCut's cuts in SciPy after one pass.

    python -m benchmarks limit [--images FOLDER] [--counts 8 40 200] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import common, host, maskcut
from benchmarks.measure.random_weights import random_state

_BATCH = 8
_AUTO, _TOKENCUT, _MASKCUT = "unseg-jax segment", "--method tokencut", "MaskCut in SciPy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder; default: scikit-image's photographs")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 40, 200])
    parser.add_argument("--rounds", type=int, default=3, help="warm runs of each count")
    parser.add_argument("--quick", action="store_true", help="few and small: does it run at all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.quick:
        options.counts, options.rounds = [2], 1
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    if options.out or not options.quick:
        common.write_result("limit", result, options.out)
    print(table(result))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of whole commands and of bare passes, by the count of images."""
    import jax

    from unseg_jax import load_backbone
    from unseg_jax.devices import resolve_dtype
    from unseg_jax.registry import resolve

    most, side = max(options.counts), 56 if options.quick else resolve("collective").size[0]
    if options.images is None:
        paths = host.photographs(folder / "all", host.SIZES["400×300"], most)
    else:
        paths = common.photographs(options.images, most)
    weights: str | Path = resolve("collective").backbone
    more: list[str] = []
    if options.quick:
        weights = folder / "tiny.npz"
        np.savez(weights, **random_state(width=64, depth=1, native_grid=4))
        more = ["--method", "deepcut", "--image-size", str(side), "--backbone", str(weights)]
    backbone = load_backbone(weights, dtype=resolve_dtype("auto"))
    pixels = np.random.default_rng(0).integers(0, 255, (_BATCH, side, side, 3), np.uint8)

    def bare() -> tuple[float, float]:
        """Wall and CPU seconds of the passes of one image."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(3):
            jax.block_until_ready(backbone.features(backbone.params, pixels))
        images = 3 * _BATCH
        return (time.perf_counter() - wall) / images, (time.process_time() - cpu) / images

    bare()
    counts = {}
    for count in options.counts:
        chosen = folder / str(count)
        chosen.mkdir()
        for path in paths[:count]:
            (chosen / path.name).symlink_to(path.resolve())
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / f"compiled-{count}")}
        passes, runs = [bare()], []
        for turn in range(1 + options.rounds):
            runs.append(_command(chosen, folder / f"{count}-{turn}", cache, more))
            passes.append(bare())
        counts[str(len(list(chosen.iterdir())))] = {
            "bare": [{"seconds": wall, "cpu_seconds": cpu} for wall, cpu in passes],
            "first": runs[0],
            "warm": runs[1:],
        }
    few = folder / str(min(options.counts))
    count = len(list(few.iterdir()))
    beside = {}
    if not options.quick:
        options_of = ["--method", "tokencut"]
        run = [_command(few, folder / f"tokencut-{turn}", {}, options_of) for turn in range(2)][1]
        beside[_TOKENCUT] = run["seconds"] / count
    features = np.asarray(backbone.features(backbone.params, pixels)[0], np.float32)
    grid = (int(len(features) ** 0.5),) * 2
    cuts = common.timed(lambda: maskcut.maskcut(features, grid))
    beside[_MASKCUT] = cuts + statistics.median(
        one["seconds"] for measured in counts.values() for one in measured["bare"]
    )
    return {
        "versions": {"jax side": common.versions()},
        "dtype": resolve_dtype("auto"),
        "counts": counts,
        "beside": beside,
    }


def _command(folder: Path, out: Path, more: dict[str, str], options: Sequence[str]) -> dict:
    """Wall and CPU seconds and peak memory of one command."""
    command = [sys.executable, "-m", "unseg_jax", "segment", str(folder), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--quiet", *options], env=os.environ | more)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}; nothing is measured.")
    kilobytes = used.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {
        "seconds": common.round_to(seconds),
        "cpu_seconds": common.round_to(used.ru_utime + used.ru_stime),
        "peak_gb": common.round_to(kilobytes * 1024 / 1e9, 3),
    }


def table(result: dict[str, Any]) -> str:
    """A row a count of images: passes, the whole command first and warm, its ratio and memory."""
    header = ["photographs", f"bare passes, {result['dtype']}", f"{_AUTO}, first", "warm"]
    header += ["× bare, first", "warm", "CPU time beyond the passes", "peak memory"]
    lines = []
    for count, measured in result["counts"].items():

        def middle(runs: Sequence[dict[str, float]], name: str = "seconds") -> float:
            return statistics.median(run[name] for run in runs)

        passes = int(count) * middle(measured["bare"])
        first, warm = measured["first"]["seconds"], middle(measured["warm"])
        cpu = middle(measured["warm"], "cpu_seconds")
        host_share = 1 - int(count) * middle(measured["bare"], "cpu_seconds") / cpu
        seconds = [common.seconds(value) for value in (passes, first, warm)]
        ratios = [f"{first / passes:.2f}×", f"{warm / passes:.2f}×", f"{100 * host_share:.0f} %"]
        lines.append([count, *seconds, *ratios, f"{middle(measured['warm'], 'peak_gb'):.2f} GB"])
    beside = ", ".join(
        f"{name} {common.seconds(value)}" for name, value in result["beside"].items()
    )
    return f"{common.table(header, lines)}\n\nBeside it, seconds an image: {beside}."


if __name__ == "__main__":
    main()
