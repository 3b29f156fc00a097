"""ViT-S/8 up to the keys of its last block: PyTorch, onnxruntime and unseg_jax, taking turns.

python -m benchmarks vit [--torch-python PATH] [--sizes 224,280] [--batches 1,8]
"""

import argparse
import importlib.util
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.measure import common, counts
from benchmarks.measure.random_weights import random_state
from benchmarks.measure.workers import Worker, WorkerError, torch_python

KINDS = (
    "torch fp32",
    "torch.compile fp32",
    "onnxruntime fp32",
    "unseg_jax fp32",
    "torch bf16",
    "torch.compile bf16",
    "unseg_jax bf16",
)


def main() -> None:
    options = _parse()
    python = torch_python(options.torch_python)
    if python is None:
        print("no PyTorch here (see --torch-python): unseg_jax alone", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        np.savez(scratch / "vit.npz", **random_state())
        jax_side = stack.enter_context(Worker(sys.executable, "benchmarks.measure.jax_side"))
        jax_side("load_vit", weights=scratch / "vit.npz")
        result: dict = {"versions": {"jax side": jax_side("environment")["versions"]}}
        torch_side = onnx_side = None
        if python:
            torch_side = stack.enter_context(Worker(python, "benchmarks.measure.torch_side"))
            torch_side("load_vit", weights=scratch / "vit.npz")
            result["versions"]["torch side"] = torch_side("environment")["versions"]
            if importlib.util.find_spec("onnxruntime"):
                onnx_side = stack.enter_context(
                    Worker(sys.executable, "benchmarks.measure.onnx_side")
                )
        result["rates"] = _rates(jax_side, torch_side)
        result["cases"] = []
        for size in options.sizes:
            for batch in options.batches:
                case = _measure(options, size, batch, jax_side, torch_side, onnx_side, scratch)
                result["cases"].append(case)
                times = {kind: row["median"] for kind, row in case["seconds_an_image"].items()}
                shown = ", ".join(f"{kind} {common.seconds(s)}" for kind, s in times.items())
                print(f"{size}, batch {batch}: {shown}", file=sys.stderr, flush=True)
    print(table(result))
    if not (options.quick and options.out is None):
        common.write_result("vit", result, options.out)


def _parse() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", help="interpreter with torch and torch_geometric")
    parser.add_argument("--sizes", type=numbers, default=[224, 280], help="sides in pixels")
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="64 pixels, once")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.batches, options.repeats = [64], [1], 1
    return options


def _rates(jax_side, torch_side) -> dict[str, float]:
    rates = {}
    for kind, bfloat16 in (("fp32", False), ("bf16", True)):
        found = [side("matmul_rate", bfloat16=bfloat16) for side in (jax_side, torch_side) if side]
        rates[kind] = common.round_to(max(found))
    return rates


def _measure(options, size, batch, jax_side, torch_side, onnx_side, scratch) -> dict:
    generator = np.random.default_rng(size)
    pixels = scratch / "pixels.npy"
    np.save(pixels, generator.integers(0, 256, (batch, size, size, 3), dtype=np.uint8))
    sides = {
        "unseg_jax fp32": lambda: jax_side("time_vit", pixels=pixels),
        "unseg_jax bf16": lambda: jax_side("time_vit", pixels=pixels, dtype="bfloat16"),
    }
    if torch_side:
        for name, bfloat16 in (("fp32", False), ("bf16", True)):
            for prefix, compiled in (("torch", False), ("torch.compile", True)):
                if compiled and options.no_compile:
                    continue
                more = {"bfloat16": bfloat16, "compiled": compiled}
                sides[f"{prefix} {name}"] = lambda more=more: torch_side(
                    "time_vit", pixels=pixels, **more
                )
    failures = {}
    if onnx_side:
        try:
            graph = scratch / f"vit-{size}-{batch}.onnx"
            torch_side("export_onnx", out=graph, height=size, width=size, batch=batch)
            onnx_side("load_vit", path=graph)
            sides["onnxruntime fp32"] = lambda: onnx_side("time_vit", pixels=pixels)
        except WorkerError as error:
            failures["onnxruntime fp32"] = str(error).strip().splitlines()[-1][:200]
    for kind, side in list(sides.items()):
        try:
            side()
        except WorkerError as error:
            failures[kind] = str(error).strip().splitlines()[-1][:200]
            del sides[kind]
    times = common.alternate(sides, options.repeats)
    case = {
        "size": size,
        "batch": batch,
        "operations_an_image": counts.vit((size // 8) ** 2 + 1),
        "seconds_an_image": {
            kind: common.summarise(value / batch for value in times[kind])
            for kind in KINDS
            if kind in times
        },
        "failures": failures,
        "difference_from_torch_fp32": {},
    }
    if torch_side:
        case["difference_from_torch_fp32"] = _differences(jax_side, torch_side, pixels, scratch)
    return case


def _differences(jax_side, torch_side, pixels, scratch) -> dict[str, float]:
    """Largest difference of a feature over the largest feature."""
    found = {}
    for name, side, more in (
        ("torch fp32", torch_side, {}),
        ("torch bf16", torch_side, {"bfloat16": True}),
        ("unseg_jax fp32", jax_side, {}),
        ("unseg_jax bf16", jax_side, {"dtype": "bfloat16"}),
    ):
        side("save_features", pixels=pixels, out=scratch / "features.npy", **more)
        found[name] = np.load(scratch / "features.npy")
    truth = found.pop("torch fp32")
    return {
        name: float(f"{np.abs(features - truth).max() / np.abs(truth).max():.2g}")
        for name, features in found.items()
    }


def table(result: dict) -> str:
    """One row a size and batch; ratios of our time to PyTorch's, and the share of the limit."""
    cases = result["cases"]
    kinds = [kind for kind in KINDS if any(kind in c["seconds_an_image"] for c in cases)]
    header = ["seconds an image", *kinds, "fp32 / torch", "bf16 / torch", "fp32 of limit", "bf16"]
    rows = []
    for case in cases:
        medians = {kind: row["median"] for kind, row in case["seconds_an_image"].items()}
        row = [f"{case['size']}×{case['size']}, batch {case['batch']}"]
        row += [common.seconds(medians.get(kind)) for kind in kinds]
        for kind in ("fp32", "bf16"):
            row.append(common.ratio(medians[f"unseg_jax {kind}"], medians.get(f"torch {kind}")))
        for kind in ("fp32", "bf16"):
            limit = case["operations_an_image"] / result["rates"][kind]
            row.append(f"{100 * limit / medians[f'unseg_jax {kind}']:.0f} %")
        rows.append(row)
    fastest = {kind: rate / 1e9 for kind, rate in result["rates"].items()}
    note = (
        f"Limit: counted products at {fastest['fp32']:.0f} (float32) and {fastest['bf16']:.0f} "
        "(bfloat16) GFLOP/s, the rates of a large product in the same run."
    )
    return f"{common.table(header, rows)}\n\n{note}"


if __name__ == "__main__":
    main()
