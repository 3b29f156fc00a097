"""Compiles whole programs for a TPU v5e and an H100 without having one, and reads what came out.

Nothing is run: seconds and images a second in the result are estimates. Compiling for a TPU needs
the package libtpu, for an H100 JAX's CUDA plugin and nvcc; each lies in a folder of its own, so
that the ordinary environment never sees them:

    pip install --no-deps --target .tpu libtpu
    pip install --no-deps --target .cuda jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
    python -m benchmarks compiled             # all programs; the result is written after each
    python -m benchmarks compiled --quick     # small ones: is anything in there that must not be
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.accelerators import hlo
from benchmarks.measure import common
from benchmarks.measure.random_weights import DINOV2, random_state

METHODS = ("deepcut", "tokencut", "collective", "unsegarmanet", "unsegmedgat")
BATCH = 64
LAUNCH_BATCHES = (8, 64, 256)
TEMPORARIES = 12e9
"""Bytes that a program may take beside its arguments, of the 16 GB of a v5e."""
QUICK_TEMPORARIES = 64e6
"""The same for the small programs of `--quick`, which take a quarter of that."""
_QUICK = (
    # Method, dtype, devices: what each is there for is that something of its own is in it.
    ("deepcut", "float32", 4),
    ("dmon-gat", "bfloat16", 1),
    ("tokencut", "float32", 4),
    ("collective", "bfloat16", 4),
)
_PASSES_OF_EXACT = 6
"""bfloat16 products that a TPU makes one float32 product from."""
_LAUNCH_SECONDS = 4e-6


@dataclasses.dataclass(frozen=True)
class Chip:
    """What an accelerator could do at best, by its maker.

    Attributes:
        name: of the chip.
        half: operations a second of bfloat16 products.
        single: of float32 products at JAX's default precision.
        exact: of float32 products in full precision.
        bytes: moved to and from HBM in a second.
        clock: cycles a second, where the compiler counts cycles; else 0.
    """

    name: str
    half: float
    single: float
    exact: float
    bytes: float
    clock: float = 0.0


CHIPS = {
    # float32 products are bfloat16 products by default. The clock is what 4 units of 128 × 128
    # need for 197 TFLOP/s.
    "tpu": Chip("v5e", 197e12, 197e12, 197e12 / _PASSES_OF_EXACT, 819e9, 1.5e9),
    # float32 products are TF32 by default.
    "cuda": Chip("H100", 989e12, 494e12, 67e12, 3.35e12),
}

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main() -> None:
    options = _parse()
    targets = prepare(options.libtpu, options.cuda)
    if options.targets:
        targets = [name for name in targets if name in options.targets]
    if not targets:
        raise SystemExit(
            f"neither {options.libtpu} nor {options.cuda} holds a compiler: "
            "pip install --no-deps --target .tpu libtpu."
        )
    if options.quick:
        quick()
        return
    result: dict[str, Any] = {
        "estimated": True,
        "versions": {"jax side": common.versions() | compiler_versions()},
        "programs": [],
    }
    out = options.out or common.RESULTS / "compiled.json"
    if options.add and out.is_file():
        result["programs"] = json.loads(out.read_text())["programs"]
    with weights_files() as (weights, _):
        for method in options.methods:
            for target in targets:
                for row in _rows(target, method, options.dtypes, weights):
                    result["programs"] = [
                        *(one for one in result["programs"] if _mark(one) != _mark(row)),
                        row,
                    ]
                    common.write_result("compiled", result, out)
                    print(json.dumps(_short(row)), file=sys.stderr, flush=True)
    print(table(result))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    listed: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--libtpu", type=Path, default=common.ROOT / ".tpu", help="its folder")
    parser.add_argument("--cuda", type=Path, default=common.ROOT / ".cuda", help="its folder")
    parser.add_argument("--targets", type=listed, help="tpu, cuda or both; default: what is there")
    parser.add_argument("--methods", type=listed, default=list(METHODS))
    parser.add_argument("--dtypes", type=listed, default=["bfloat16", "float32"])
    parser.add_argument("--add", action="store_true", help="keep the other rows of the result")
    parser.add_argument("--quick", action="store_true", help="small programs for a TPU, checked")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


# ---------------------------------------------------------------- compilers


def prepare(libtpu: Path, cuda: Path) -> list[str]:
    """Makes the compilers that are in these folders known to JAX, before JAX is imported.

    Returns:
        Their platforms: "tpu", "cuda".
    """
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # A program from the cache would be compiled in no time.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    targets = []
    if (libtpu / "libtpu" / "libtpu.so").is_file():
        sys.path.append(str(libtpu.resolve()))
        targets.append("tpu")
    nvcc = cuda / "nvidia" / "cuda_nvcc"
    if nvcc.is_dir():
        sys.path.append(str(cuda.resolve()))
        os.environ["PATH"] = f"{nvcc.resolve() / 'bin'}:{os.environ['PATH']}"
        flags = f"--xla_gpu_cuda_data_dir={nvcc.resolve()}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        targets.append("cuda")
    return targets


def compiler_versions() -> dict[str, str]:
    """Versions of the compilers."""
    import importlib.metadata

    versions = {}
    for name in ("libtpu", "jax-cuda12-pjrt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def devices(target: str) -> list[Any]:
    """Devices of a platform that need not be here."""
    from jax.experimental import topologies

    if target == "tpu":
        return list(topologies.get_topology_desc("v5e:2x2", "tpu").devices)
    described = topologies.get_topology_desc("h100", "cuda", topology="1x1x1", target_config=_H100)
    return list(described.devices)


# ---------------------------------------------------------------- programs


@contextlib.contextmanager
def weights_files():
    """Paths of random weights: DINOv2 ViT-S/14, and a tiny ViT/8 for quick checks."""
    with tempfile.TemporaryDirectory() as folder:
        whole, tiny = Path(folder) / "vits14.npz", Path(folder) / "tiny.npz"
        np.savez(whole, **random_state(**DINOV2))  # type: ignore[arg-type]
        np.savez(tiny, **random_state(width=128, depth=2, native_grid=8))
        yield whole, tiny


def build(
    method: str, weights: Path, dtype: str, image_size: int | None = None, refined: bool = True
):
    """A program from pixels to labels (of `collective`: margins) and the arrays it takes.

    Args:
        method, weights, dtype: of the program.
        image_size: None for the method's own.
        refined: whether margins are moved to the images' edges, as accelerators do.

    Returns:
        (function of (params, pixels), params, side of the images in pixels, epochs).
    """
    import jax

    import unseg_jax as us
    from unseg_jax.registry import resolve
    from unseg_jax.segmenter import load_for

    overrides = {} if image_size is None else {"image_size": image_size}
    resolved = resolve(method, **overrides)
    height, width = resolved.size
    assert height == width
    if resolved.foreground != "set":
        function, params = us.make_segment_fn(method, weights, dtype=dtype, **overrides)
        return function, params, height, resolved.epochs
    from unseg_jax.collective.model import CollectiveModel
    from unseg_jax.pipeline import extract_features

    resolved, backbone = load_for(resolved, weights, dtype=dtype)
    assert backbone is not None
    scorer = random_scorer(backbone.config.width)
    segmenter = CollectiveModel(resolved, backbone, scorer, None, (), shipped=True).segmenter()

    def function(params, pixels):
        features = extract_features(backbone, resolved, params, pixels)
        grid = backbone.grid(pixels.shape[1:3], resolved.stride)
        apply, refine = segmenter.work.apply, segmenter.work.refine
        found = apply(resolved, None, segmenter.key, segmenter.fitted, features, grid, 0)
        return refine(pixels, found) if refined else found

    return jax.jit(function), backbone.params, height, resolved.epochs


def random_scorer(width: int, clusters: int = 16, components: int = 96):
    """A scorer as fitting a set gives it, of random numbers."""
    import jax.numpy as jnp

    from unseg_jax.collective.convolution import HIDDEN
    from unseg_jax.collective.set_scorer import Scorer

    generator = np.random.default_rng(0)
    components = min(components, width)

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    return Scorer(
        mean=draw(width),
        basis=draw(width, components),
        rest=draw(),
        centres=draw(clusters, components),
        frame=jnp.arange(clusters) == 0,
        weights=draw(components),
        offset=draw(),
        kernel=draw(3, 3, components, 2 * HIDDEN).astype(jnp.float16),
        bias=draw(2 * HIDDEN),
        readout=draw(2 * HIDDEN),
        shift=draw(),
        threshold=draw(),
    )


def compile_for(target: str, function, params, batch: int, size: int, count: int):
    """Traces, lowers and compiles a program for devices that are not here.

    Args:
        target: "tpu" or "cuda".
        function, params: from `build`.
        batch: images, shared among the devices.
        size: side of the images.
        count: devices.

    Returns:
        (compiled program, its jaxpr, seconds of tracing and lowering, seconds of compiling).
    """
    import jax
    from jax._src.cudnn import fused_attention_stablehlo as cudnn
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from unseg_jax.backbones import attention

    jax.clear_caches()  # what was traced for another target
    mesh = Mesh(np.asarray(devices(target)[:count]), ("images",))
    whole = NamedSharding(mesh, PartitionSpec())
    shared = NamedSharding(mesh, PartitionSpec("images"))
    if count > 1:  # as `batching.by_shares`, which takes the devices that are here
        function = jax.jit(
            jax.shard_map(
                function,
                mesh=mesh,
                in_specs=(whole.spec, shared.spec),
                out_specs=shared.spec,
                check_vma=False,
            )
        )
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=whole), params
    )
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8, sharding=shared)
    start = time.perf_counter()
    platform = "gpu" if target == "cuda" else target
    with (
        mock.patch.object(attention, "_is_here", lambda wanted: wanted == platform),
        # JAX would ask the GPU and its cuDNN, which are not here.
        mock.patch.object(cudnn, "check_cudnn_version", return_value=91000),
        mock.patch.object(cudnn, "check_compute_capability", return_value=True),
    ):
        traced = function.trace(shapes, pixels)
        lowered = traced.lower(lowering_platforms=(target,))
    traced_at = time.perf_counter()
    compiled = lowered.compile()
    return compiled, traced.jaxpr, traced_at - start, time.perf_counter() - traced_at


def examine(target: str, method: str, weights: Path, dtype: str, batch: int, count: int, **sizes):
    """One row of the result: a program compiled, and what is in it."""
    # It imports JAX, which must not happen before `prepare`.
    from benchmarks.accelerators.operations import count_operations

    function, params, size, epochs = build(method, weights, dtype, **sizes)
    compiled, jaxpr, tracing, compiling = compile_for(target, function, params, batch, size, count)
    text = compiled.as_text()
    cost = hlo.measure(hlo.parse(text))
    operations = count_operations(jaxpr)
    memory = compiled.memory_analysis()
    row = {
        "target": target,
        "method": method,
        "dtype": dtype,
        "devices": count,
        "batch": batch,
        "image_size": size,
        "epochs": epochs,
        "seconds_to_trace": round(tracing, 1),
        "seconds_to_compile": round(compiling, 1),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "operations": {
            "default": operations.default / count,
            "half": operations.half / count,
            "exact": operations.exact / count,
            "open_loops": operations.open_loops,
        },
        "bytes": cost.bytes,
        "padded_bytes": cost.padded_bytes,
        "vmem_bytes": cost.fast_bytes,
        "cycles": _known(cost.cycles),
        "kernels": cost.kernels,
        "collectives": dict(cost.collectives),
        "host_calls": cost.host_calls,
        "loops": [_loop(loop) for loop in cost.loops],
        "outside": _outside(cost),
        "unknown_loops": cost.unknown_loops,
        "float64": bool(re.search(r"\b(f64|c128)\[", text)),
    }
    return row | {"problems": problems(row)}


def problems(row: dict[str, Any], temporaries: float = TEMPORARIES) -> list[str]:
    """What must not be in a program and is in this one."""
    found = []
    if row["collectives"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
        found.append(f"devices exchange data ({kinds}), though every image is on one device")
    if row["host_calls"]:
        found.append(f"the host is called ({', '.join(row['host_calls'])})")
    if row["float64"]:
        found.append("there are float64 arrays")
    if row["temporaries"] > temporaries:
        sizes = f"{row['temporaries'] / 1e9:.2f} GB, bound {temporaries / 1e9:.2f} GB"
        found.append(f"temporaries take {sizes}")
    if row["unknown_loops"]:
        found.append(f"trips of {', '.join(row['unknown_loops'])} are not known")
    return found


def _loop(loop: hlo.Loop) -> dict[str, Any]:
    body = loop.body
    return {
        "trips": loop.trips,
        "kernels": body.kernels,
        "fusions": body.opcodes["fusion"],
        "copies": body.opcodes["copy"] + body.opcodes["copy-start"],
        "transposes": body.opcodes["transpose"],
        "bytes": body.bytes,
        "padded_bytes": body.padded_bytes,
        "vmem_bytes": body.fast_bytes,
        "cycles": _known(body.cycles),
    }


def _known(cycles: float) -> float | None:
    return None if math.isnan(cycles) else cycles


def _outside(cost: hlo.Cost) -> dict[str, float]:
    """Kernels and bytes that are in no loop."""
    looped = [(loop.trips or 1, loop.body) for loop in cost.loops]
    return {
        "kernels": cost.kernels - sum(trips * body.kernels for trips, body in looped),
        "bytes": cost.bytes - sum(trips * body.bytes for trips, body in looped),
    }


def _rows(target: str, method: str, dtypes: list[str], weights: Path):
    """Rows of one method: each dtype on one device, and for a TPU the first one on four."""
    batch = BATCH
    for place, dtype in enumerate(dtypes):
        if target == "tpu" and place == 0:
            shared = examine(target, method, weights, dtype, BATCH, 4)
            yield shared
            # Temporaries grow with the batch: no need to compile what would not fit.
            each = shared["temporaries"] / (BATCH / 4)
            while batch * each > TEMPORARIES and batch > 1:
                batch //= 2
        row = examine(target, method, weights, dtype, batch, 1)
        while target == "tpu" and row["temporaries"] > TEMPORARIES and batch > 1:
            batch //= 2
            row = examine(target, method, weights, dtype, batch, 1)
        yield row


def _mark(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from the others."""
    return tuple(row[key] for key in ("target", "method", "dtype", "devices"))


def quick() -> None:
    """Small programs for a TPU; fails if one holds what it must not."""
    started, failed = time.perf_counter(), []
    with weights_files() as (_, tiny):
        for method, dtype, count in _QUICK:
            row = examine("tpu", method, tiny, dtype, 8, count, image_size=64)
            found = problems(row, QUICK_TEMPORARIES)
            spent = row["seconds_to_trace"] + row["seconds_to_compile"]
            print(
                f"{method}, {dtype}, {count} devices: {spent:.0f} s, temporaries "
                f"{row['temporaries'] / 1e6:.1f} MB, {row['kernels']} kernels"
            )
            failed += [f"{method} ({dtype}, {count} devices): {problem}" for problem in found]
    print(f"{len(_QUICK)} programs compiled for a TPU in {time.perf_counter() - started:.0f} s")
    if failed:
        raise SystemExit("; ".join(failed) + ".")


# ---------------------------------------------------------------- estimates


def compute_seconds(row: dict[str, Any]) -> float:
    """Seconds that the products of a program take at the chip's best."""
    chip, count = CHIPS[row["target"]], row["operations"]
    return count["half"] / chip.half + count["default"] / chip.single + count["exact"] / chip.exact


def bound(row: dict[str, Any], batch: int | None = None) -> float:
    """Images a second that a program could reach at most on one device, or on all of its devices.

    On a TPU products or bytes (with arrays padded to tiles) bound it. On a GPU also the launches
    of kernels: of each loop the larger of bytes and launches counts.

    Args:
        row: of the result.
        batch: of a GPU, for another batch than the one compiled; bytes and operations grow with it.
    """
    chip = CHIPS[row["target"]]
    scale = 1.0 if batch is None else batch / row["batch"]
    images = row["batch"] if batch is None else batch
    compute = scale * compute_seconds(row)
    if row["target"] == "tpu":
        return images / max(compute, row["padded_bytes"] / chip.bytes)
    parts = [(1, row["outside"]), *((loop["trips"] or 1, loop) for loop in row["loops"])]
    moved = sum(
        trips * max(scale * part["bytes"] / chip.bytes, part["kernels"] * _LAUNCH_SECONDS)
        for trips, part in parts
    )
    return images / max(compute, moved)


def cycle_rate(row: dict[str, Any]) -> float:
    """Images a second of a TPU program by the cycles that its compiler expects."""
    return row["batch"] * CHIPS["tpu"].clock / row["cycles"]


def epoch_loop(row: dict[str, Any]) -> dict[str, Any] | None:
    """The loop over epochs; None of a method that has none."""
    loops = [loop for loop in row["loops"] if loop["trips"] == row["epochs"]]
    return loops[-1] if row["epochs"] and loops else None


# ---------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    """What was compiled for each chip, and the estimates made of it."""
    rows = sorted(result["programs"], key=lambda row: (METHODS.index(row["method"]), row["dtype"]))
    blocks = [
        block(chosen)
        for target, block in (("tpu", _tpu_table), ("cuda", _cuda_table))
        if (chosen := [row for row in rows if row["target"] == target])
    ]
    found = [f"{_title(row)}: {problem}" for row in rows for problem in row["problems"]]
    blocks.append(f"Must not be there: {'; '.join(found)}." if found else _NOTHING_FOUND)
    return "\n\n".join(blocks)


_NOTHING_FOUND = (
    "In none of these programs is the host called, is anything float64, do devices exchange "
    f"patches or parameters, or do temporaries take more than {TEMPORARIES / 1e9:.0f} GB."
)


def _tpu_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        loop, images = epoch_loop(row), row["batch"] / row["devices"]
        lines.append(
            [
                _title(row),
                f"{row['batch']} / {row['devices']}",
                f"{row['temporaries'] / 1e9:.2f}",
                f"{_operations(row) / images / 1e9:.1f}",
                f"{row['bytes'] / images / 1e6:.0f}",
                f"{row['padded_bytes'] / images / 1e6:.0f}",
                *_loop_cells(loop),
                f"{row['seconds_to_compile']:.0f}",
                f"{bound(row):.0f}",
                f"{cycle_rate(row):.0f}" if row["cycles"] else "–",
            ]
        )
    header = ["TPU v5e: compiled, never run", "batch / devices", "temporaries, GB"]
    header += ["GFLOP an image", "MB an image", "with tiles", "fusions an epoch", "copies"]
    header += ["transposes", "compiled in, s", "images/s at most", "by the compiler's cycles"]
    return common.table(header, lines)


def _cuda_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        loop, images = epoch_loop(row), row["batch"]
        lines.append(
            [
                _title(row),
                f"{row['temporaries'] / 1e9:.2f}",
                f"{_operations(row) / images / 1e9:.1f}",
                f"{row['bytes'] / images / 1e6:.0f}",
                "–" if loop is None else str(loop["kernels"]),
                *_loop_cells(loop),
                f"{row['seconds_to_compile']:.0f}",
                *(f"{bound(row, batch):.0f}" for batch in LAUNCH_BATCHES),
            ]
        )
    header = ["H100: compiled, never run", "temporaries, GB", "GFLOP an image", "MB an image"]
    header += ["kernels an epoch", "fusions", "copies", "transposes", "compiled in, s"]
    header += [f"images/s at most, batch {batch}" for batch in LAUNCH_BATCHES]
    return common.table(header, lines)


def _title(row: dict[str, Any]) -> str:
    epochs = f", {row['epochs']} epochs" if row["epochs"] and epoch_loop(row) else ""
    return f"{row['method']} {row['image_size']}{epochs}, {row['dtype']}"


def _operations(row: dict[str, Any]) -> float:
    return sum(row["operations"][kind] for kind in ("default", "half", "exact"))


def _loop_cells(loop: dict[str, Any] | None) -> list[str]:
    return [
        "–" if loop is None else str(loop[kind]) for kind in ("fusions", "copies", "transposes")
    ]


def _short(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("target", "method", "dtype", "devices", "batch", "seconds_to_compile", "problems")
    return {key: row[key] for key in kept} | {"images_per_second": round(bound(row), 1)}


if __name__ == "__main__":
    main()
