"""The whole accelerator table in one command of under eight minutes.

Needs jax with the accelerator's plugin, flax, optax, numpy, pillow, scipy and scikit-image; torch
and torch-geometric for the PyTorch rows. ViT weights are random: speed does not depend on them.
Labels are checked on saved features of real photographs against the labels that a CPU gave.
Images are already decoded and on the device.

    python benchmarks/accelerator.py [--profile DIR] [--torch-python PATH]
    python benchmarks/accelerator.py --save-features    # on a CPU: makes the file of the check
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# PyTorch shares the accelerator, so JAX must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks import common, counts
from benchmarks.random_weights import random_state
from benchmarks.workers import Worker, WorkerError, torch_python

FEATURES = common.ROOT / "benchmarks" / "data" / "photographs.npz"
WIDTH, NODES, EPOCHS = 384, 784, 100


class Clock:
    """Seconds since the start, and whether the budget allows another part."""

    def __init__(self, budget: float):
        self.start, self.budget = time.perf_counter(), budget

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.start

    @property
    def over(self) -> bool:
        return self.spent > self.budget


def main() -> None:
    options = _parse()
    if options.save_features:
        save_features()
        return
    import jax

    device = jax.devices()[0]
    result: dict = {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "versions": {"jax side": common.versions()},
        "parts": {},
        "errors": {},
    }
    print(f"{result['devices']} × {device.device_kind}", file=sys.stderr, flush=True)
    clock = Clock(options.budget)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vit.npz"
        np.savez(weights, **random_state())
        parts: dict[str, Callable] = {
            "rates": _rates,
            "whole": _whole,
            "vit": _vit,
            "loop": _loop,
            "torch": _torch,
            "labels": _labels,
            "heads": _heads,
            "stride_4": _stride_4,
        }
        for name, part in parts.items():
            if options.parts and name not in options.parts:
                continue
            if clock.over:
                result["errors"][name] = f"left out: {clock.spent:.0f} s were spent already"
                continue
            try:
                result["parts"][name] = part(options, weights, result["parts"], clock)
            except Exception as error:  # a row that fails must not cost the others
                result["errors"][name] = f"{type(error).__name__}: {str(error)[-500:]}"
            shown = result["parts"].get(name, result["errors"].get(name))
            print(f"[{clock.spent:4.0f} s] {name}: {shown}", file=sys.stderr, flush=True)
        if options.profile:
            _profile(options, weights)
    result["seconds"] = round(clock.spent, 1)
    print(table(result))
    if not (options.quick and options.out is None):
        common.write_result("accelerator", result, options.out)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", help="interpreter with torch and torch_geometric")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="only these rows")
    parser.add_argument("--budget", type=float, default=400, help="seconds; later parts wait")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="folder for a jax.profiler trace")
    parser.add_argument("--save-features", action="store_true", help="make the file of the check")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    options.size = 64 if options.quick else 224
    options.nodes = (options.size // 8) ** 2
    options.epochs = 5 if options.quick else EPOCHS
    if options.quick:
        options.repeats = 2
    return options


def _median(function: Callable, repeats: int) -> float:
    import jax

    jax.block_until_ready(function())
    return statistics.median(
        common.timed(lambda: jax.block_until_ready(function())) for _ in range(repeats)
    )


def _sweep(time_batch: Callable[[int], float], batches) -> dict:
    """Images a second by batch; stops at the first batch that does not fit in memory."""
    rates: dict[int, float] = {}
    stopped = None
    for batch in batches:
        try:
            rates[batch] = common.round_to(batch / time_batch(batch))
        except Exception as error:
            stopped = f"batch {batch}: {type(error).__name__}: {str(error)[:200]}"
            break
    if not rates:
        raise RuntimeError(stopped)
    best = max(rates, key=lambda batch: rates[batch])
    found = {"batch": best, "images_per_second": rates[best], "by_batch": rates}
    return found | ({"stopped": stopped} if stopped else {})


# ---------------------------------------------------------------- parts


def _rates(options, *_) -> dict:
    """Operations a second of large products, and bytes a second of a copy."""
    import jax
    import jax.numpy as jnp

    size = 512 if options.quick else 8192
    found = {}
    for name, kind, precision in (
        ("float32", jnp.float32, "highest"),
        ("tf32", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        left = jax.random.normal(jax.random.key(0), (size, size)).astype(kind)
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        seconds = _median(lambda product=product, left=left: product(left, left), options.repeats)
        found[name] = common.round_to(2 * size**3 / seconds)
    source = jnp.ones((2**22 if options.quick else 2**28,), jnp.float32)
    negate = jax.jit(lambda x: -x)
    seconds = _median(lambda: negate(source), options.repeats)
    found["copy_bytes"] = common.round_to(2 * source.nbytes / seconds)
    return found


def _pixels(batch: int, size: int):
    import jax

    return jax.random.randint(jax.random.key(0), (batch, size, size, 3), 0, 256, "uint8")


def _batches(options):
    return (2,) if options.quick else (32, 128, 256)


def _vit_operations(options) -> float:
    return counts.vit(options.nodes + 1)


def _loop_operations(options, layer="gcn", nodes=None, branches=((64,),)) -> float:
    return counts.epoch(layer, nodes or options.nodes, WIDTH, 2, branches).operations


def _whole(options, weights, parts, _) -> dict:
    """Pixels on the device to labels, `deepcut`, 100 epochs."""
    import unseg_jax as us

    found = {}
    for dtype in ("bfloat16", "float32"):
        segment, params = us.make_segment_fn(
            "deepcut", weights, dtype=dtype, image_size=options.size, epochs=options.epochs
        )

        def seconds(batch, segment=segment, params=params):
            pixels = _pixels(batch, options.size)
            return _median(lambda: segment(params, pixels), options.repeats)

        found[dtype] = _sweep(seconds, _batches(options))
        rates = parts.get("rates")
        if rates:
            rate = rates["bfloat16" if dtype == "bfloat16" else "tf32"]
            limit = _vit_operations(options) / rate
            limit += options.epochs * _loop_operations(options) / rates["tf32"]
            share = limit * found[dtype]["images_per_second"]
            found[dtype]["fraction_of_limit"] = common.round_to(share, 3)
    return found


def _vit(options, weights, parts, _) -> dict:
    """ViT-S/8 alone, up to the keys of its last block."""
    from unseg_jax.backbones import load_backbone

    found = {}
    for dtype in ("bfloat16", "float32"):
        backbone = load_backbone(weights, dtype=dtype)

        def seconds(batch, backbone=backbone):
            pixels = _pixels(batch, options.size)
            return _median(
                lambda: backbone.features(backbone.params, pixels, facet="key"), options.repeats
            )

        found[dtype] = _sweep(seconds, _batches(options))
        if "rates" in parts:
            rate = parts["rates"]["bfloat16" if dtype == "bfloat16" else "tf32"]
            share = found[dtype]["images_per_second"] * _vit_operations(options) / rate
            found[dtype]["fraction_of_limit"] = common.round_to(share, 3)
    return found


def _features(batch: int, nodes: int):
    import jax.numpy as jnp

    images = [common.clustered_features(nodes, WIDTH, seed) for seed in range(min(batch, 8))]
    return jnp.asarray(np.stack([images[index % len(images)] for index in range(batch)]))


def _loop(options, _, parts, __) -> dict:
    """The loop alone: features to labels, `deepcut`, 100 epochs."""
    import unseg_jax as us

    def seconds(batch):
        features = _features(batch, options.nodes)
        return _median(
            lambda: us.cluster(features, method="deepcut", epochs=options.epochs), options.repeats
        )

    found = _sweep(seconds, _batches(options))
    if "rates" in parts:
        operations = options.epochs * _loop_operations(options)
        share = found["images_per_second"] * operations / parts["rates"]["tf32"]
        found["fraction_of_limit"] = common.round_to(share, 3)
    return found


def _heads(options, *_) -> dict:
    """Images a second of 20 epochs of the other heads, in batches."""
    import unseg_jax as us

    epochs = 2 if options.quick else 20
    found = {}
    for name in ("deepcut-cc", "unseggnet", "unsegarmanet", "unsegmedgat"):

        def seconds(batch, name=name):
            features = _features(batch, options.nodes)
            return _median(
                lambda: us.cluster(features, method=name, quirks="code", epochs=epochs), 3
            )

        found[name] = {
            "epochs": epochs,
            **_sweep(seconds, (2,) if options.quick else (64,)),
        }
    return found


def _stride_4(options, *_) -> dict:
    """UnSegGNet at its own stride: 3025 nodes, 100 epochs."""
    import unseg_jax as us

    nodes = 196 if options.quick else 3025

    def seconds(batch):
        features = _features(batch, nodes)
        return _median(lambda: us.cluster(features, method="unseggnet", epochs=options.epochs), 3)

    return {"nodes": nodes, **_sweep(seconds, (1,) if options.quick else (1, 8))}


def _labels(_, __, ___, ____) -> dict:
    """Share of patches of real photographs labelled as a CPU labels them."""
    import jax.numpy as jnp

    import unseg_jax as us

    with np.load(FEATURES) as saved:
        features = saved["features"].astype(np.float32)
        expected = {
            name.removeprefix("labels."): saved[name]
            for name in saved.files
            if name.startswith("labels.")
        }
    found = {}
    for method, labels in expected.items():
        for kind in ("float32", "bfloat16"):
            nodes = jnp.asarray(features).astype(kind).astype(jnp.float32)
            ours = np.asarray(us.cluster(nodes, method=method, dropout=0.0).labels)
            same = np.mean([_same_cut(a, b) for a, b in zip(ours, labels, strict=True)])
            found[f"{method}, {kind} features"] = round(float(same), 4)
    return found


def _same_cut(labels: np.ndarray, others: np.ndarray) -> float:
    """Share of equal labels; with two clusters, whichever is called 0."""
    same = float((labels == others).mean())
    return max(same, 1 - same) if max(labels.max(), others.max()) < 2 else same


def _torch(options, weights, _, clock) -> dict:
    """The same in PyTorch on the same device."""
    python = torch_python(options.torch_python)
    if python is None:
        raise RuntimeError("no PyTorch here")
    found: dict = {}
    batch = 2 if options.quick else 128
    graph = {"nodes": options.nodes, "width": WIDTH}
    compiled = not options.quick
    with Worker(python, "benchmarks.torch_accelerator") as side:
        found["environment"] = side("environment")

        def add(title, images, command, **arguments):
            if clock.over:
                found[title] = {"error": "left out: the time was spent"}
                return
            try:
                seconds = side(command, **arguments)
                found[title] = {
                    "batch": images,
                    "images_per_second": common.round_to(images / seconds),
                }
            except WorkerError as error:
                found[title] = {"error": str(error).strip().splitlines()[-1][:200]}

        vit = {"weights": weights, "size": options.size, "batch": batch, "repeats": options.repeats}
        loop = {**graph, "name": "deepcut", "batch": batch, "epochs": options.epochs, "repeats": 3}
        add("vit bfloat16", batch, "vit", kind="bfloat16", compiled=False, **vit)
        add("vit float32", batch, "vit", kind="float32", compiled=False, **vit)
        add("dense loop", batch, "dense", compiled=False, **loop)
        try:
            found["pyg epoch seconds"] = common.round_to(
                side("pyg", name="deepcut", epochs=2 if options.quick else 10, **graph)
            )
        except WorkerError as error:
            found["pyg epoch seconds"] = str(error).strip().splitlines()[-1][:200]
        if compiled:
            add("vit bfloat16, torch.compile", batch, "vit", kind="bfloat16", compiled=True, **vit)
            add("dense loop, torch.compile", batch, "dense", compiled=True, **loop)
    return found


def _profile(options, weights) -> None:
    """A trace of one whole batch, compiled beforehand."""
    import jax

    import unseg_jax as us

    segment, params = us.make_segment_fn(
        "deepcut", weights, dtype="bfloat16", image_size=options.size, epochs=options.epochs
    )
    pixels = _pixels(_batches(options)[-1], options.size)
    jax.block_until_ready(segment(params, pixels))
    with jax.profiler.trace(str(options.profile)):
        jax.block_until_ready(segment(params, pixels))


def save_features() -> None:
    """Saves token features of photographs, in float16, with the labels that this CPU gives."""
    from PIL import Image

    import unseg_jax as us
    from unseg_jax.backbones import load_backbone

    backbone = load_backbone("dinov2_vits14_focus")
    images = []
    for path in common.photographs(limit=6):
        with Image.open(path) as opened:
            resized = opened.convert("RGB").resize((168, 168), Image.Resampling.LANCZOS)
        images.append(np.asarray(resized))
    features = np.asarray(backbone.features(backbone.params, np.stack(images))).astype(np.float16)
    labels = {
        f"labels.{method}": np.asarray(
            us.cluster(features.astype(np.float32), method=method, dropout=0.0).labels
        ).astype(np.uint8)
        for method in ("deepcut", "deepcut-cc", "unsegarmanet", "unsegmedgat")
    }
    FEATURES.parent.mkdir(exist_ok=True)
    np.savez_compressed(FEATURES, features=features, **labels)
    print(f"wrote {FEATURES.name}: {FEATURES.stat().st_size / 2**10:.0f} KiB", file=sys.stderr)


# ---------------------------------------------------------------- table


def table(result: dict) -> str:
    """Images a second of unseg_jax and PyTorch on the device, and the share of the limit."""
    parts = result["parts"]
    torch = parts.get("torch", {})
    rows = []

    def add(title, row, other=None):
        if not row:
            return
        theirs = torch.get(other, {}).get("images_per_second") if other else None
        share = row.get("fraction_of_limit")
        rows.append(
            [
                title,
                row["batch"],
                f"{row['images_per_second']:.4g}",
                "–" if theirs is None else f"{theirs:.4g}",
                "–" if theirs is None else common.ratio(row["images_per_second"], theirs),
                "–" if share is None else f"{100 * share:.0f} %",
            ]
        )

    for dtype in ("bfloat16", "float32"):
        add(f"pixels to labels, {dtype} ViT", parts.get("whole", {}).get(dtype))
    for dtype in ("bfloat16", "float32"):
        add(f"ViT-S/8 alone, {dtype}", parts.get("vit", {}).get(dtype), f"vit {dtype}")
    add("loop alone, 100 epochs", parts.get("loop"), "dense loop")
    for name, row in parts.get("heads", {}).items():
        add(f"{name}, {row['epochs']} epochs", row)
    if "stride_4" in parts:
        add(f"unseggnet, {parts['stride_4']['nodes']} nodes, 100 epochs", parts["stride_4"])
    header = [result["device"], "batch", "images/s", "PyTorch dense", "ratio", "of limit"]
    lines = [common.table(header, rows)]
    if "labels" in parts:
        shares = ", ".join(f"{name} {100 * v:.1f} %" for name, v in parts["labels"].items())
        lines.append(f"Patches labelled as on a CPU: {shares}.")
    if result["errors"]:
        lines.append("Not measured: " + "; ".join(result["errors"]) + ".")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
