"""What every measurement here needs: where it ran, how a time is summed up, where it is kept."""

import contextlib
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax import devices

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Flags of processors, the fastest first: what decides how fast products can be.
_VECTORS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "pillow",
    "scikit-image",
    "torch",
    "torch-geometric",
    "onnxruntime",
)


def machine() -> dict[str, Any]:
    """The processor, its widest vectors, its cores and the memory that this process may use."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = set(value.split())
    vectors = next((title for flag, title in _VECTORS.items() if flag in flags), None)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "vectors": vectors,
        "cores": devices.core_count(),
        "memory_gib": round(memory / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here and are installed."""
    return devices.versions(_PACKAGES)


def commit() -> str:
    """The commit that was measured; ends in "+" where tracked files, other than results, had been
    changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        results = f":!{RESULTS.relative_to(ROOT).as_posix()}"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", results)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_result(
    name: str, result: dict[str, Any], out: Path | None = None, *, quiet: bool = False
) -> Path:
    """Writes a result as JSON, whole or not at all, with the machine, versions and commit."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {
        "benchmark": name,
        "command": " ".join(["python -m benchmarks", name, *_shown(sys.argv[1:])]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "load_at_start": LOAD_AT_START,
    }
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(stamp | result, indent=1, default=_plain) + "\n")
    temporary.replace(path)
    if not quiet:
        print(f"wrote {os.path.relpath(path)}", file=sys.stderr)
    return path


def _shown(arguments: Sequence[str]) -> list[str]:
    """Arguments without the places that only this machine knows."""
    return [
        Path(argument).name if argument.startswith(("/", "~", "..")) else argument
        for argument in arguments
    ]


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


# A process that is started is one as users have it: sources are compiled once, not in each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LOAD_AT_START = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
"""Processes that were running or waiting when the benchmark began: near 0 on a quiet machine."""


def summarise(seconds: Iterable[float]) -> dict[str, Any]:
    """Median, fastest and slowest of several times, and how many there were."""
    values = list(seconds)
    return {
        "median": round_to(statistics.median(values)),
        "min": round_to(min(values)),
        "max": round_to(max(values)),
        "repeats": len(values),
    }


def round_to(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call. The garbage collector waits until it is over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    finally:
        if enabled:
            gc.enable()


def alternate(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls all sides in turn, `repeats` times, so that a slow minute hits all of them.

    Every second round runs backwards: no side always follows the same other one.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        names = list(sides) if turn % 2 == 0 else list(reversed(sides))
        for name in names:
            times[name].append(sides[name]())
    return times


def peak_memory_gib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (20 if sys.platform != "darwin" else 30), 3)


def photographs(folder: Path | None = None, limit: int | None = None) -> list[Path]:
    """Image files of a folder, or photographs that scikit-image ships.

    Raises:
        SystemExit: the folder holds no image.
    """
    if folder is None:
        import skimage

        data = Path(skimage.__file__).parent / "data"
        paths = [data / name for name in PHOTOGRAPHS if (data / name).is_file()]
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"no images in {folder}; give a folder of .jpg or .png files.")
    return paths[:limit]


def clustered_features(nodes: int, width: int, seed: int = 0) -> np.ndarray:
    """(N, D) float32 features around three centres.

    Their products are all positive, so that the affinity of DeepCut is a full graph, as on real
    features; cosines are about .8 within a centre and .2 between, so that thresholds of .3 to .7
    keep a third of the edges.
    """
    generator = np.random.default_rng(seed)
    offset, *centres = generator.standard_normal((4, width))
    centres = np.asarray(centres) * 3**0.5
    features = offset + centres[np.arange(nodes) % 3] + generator.standard_normal((nodes, width))
    return features.astype(np.float32)


def intersection_over_union(mask: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two boolean masks; 1 where both are empty."""
    union = np.logical_or(mask, truth).sum()
    return float(np.logical_and(mask, truth).sum() / union) if union else 1.0


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|---|" + "---:|" * (len(header) - 1))
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def seconds(value: float | None) -> str:
    """A time for a table, in µs, ms or s."""
    if value is None:
        return "–"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def ratio(slow: float | None, fast: float | None) -> str:
    """How many times longer, for a table."""
    if slow is None or fast is None:
        return "–"
    value = slow / fast
    return f"{value:.2f}×" if value < 10 else f"{value:.0f}×"
