"""What `accelerator.py` measures, part by part."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerators import hlo
from benchmarks.accelerators.operations import count_operations
from benchmarks.measure import common
from benchmarks.measure.workers import Worker, WorkerError, torch_python

WIDTH, NODES, EPOCHS = 384, 784, 100
_LARGEST_BATCH = 8192
FEATURES = common.ROOT / "benchmarks" / "data" / "photographs.npz"


class Clock:
    """The time of the whole run, and the share of it that one part may take."""

    def __init__(self, budget: float):
        self.start, self.budget = time.perf_counter(), budget
        self.deadline = budget
        self.longest = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def begin(self, share: float) -> None:
        """Gives the next part a share of what is left."""
        self.deadline = self.spent + share * max(0.0, self.budget - self.spent)
        self.longest = 0.0

    @property
    def over(self) -> bool:
        """Whether the part should end: its time is spent, or would be after another row as long as
        its longest one so far."""
        return self.spent + self.longest > self.deadline

    def took(self, seconds: float) -> None:
        """Notes how long a row took."""
        self.longest = max(self.longest, seconds)


@dataclasses.dataclass
class Context:
    """What every part gets.

    Attributes:
        options: of the command line.
        weights: file of a ViT-S/8 (or a tiny ViT) of random numbers.
        clock: of the run.
        result: what is written; parts add rows under `result["parts"]`.
    """

    options: argparse.Namespace
    weights: Path
    clock: Clock
    result: dict[str, Any]

    def save(self) -> None:
        """Writes what there is."""
        self.result["seconds"] = round(self.clock.spent, 1)
        if self.options.out or not self.options.quick:
            common.write_result("accelerator", self.result, self.options.out, quiet=True)

    def note(self, part: str, title: str, row: Any) -> None:
        """Adds a row to a part, shows it and writes it."""
        self.result["parts"].setdefault(part, {})[title] = row
        self.save()
        print(f"[{self.clock.spent:4.0f} s] {part}, {title}: {row}", file=sys.stderr, flush=True)


def _median(function: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(function())
    return statistics.median(
        common.timed(lambda: jax.block_until_ready(function())) for _ in range(repeats)
    )


def _doubling(context: Context, quick: int = 2) -> Iterator[int]:
    """Batches 8, 16, 32, … ; the caller stops where memory or time end. Quick: 2 to `quick`."""
    batch, last = (2, quick) if context.options.quick else (8, _LARGEST_BATCH)
    while batch <= last:
        yield batch
        batch *= 2


def _dtypes(context: Context) -> tuple[str, ...]:
    return ("bfloat16",) if context.options.quick else ("bfloat16", "float32")


def _sweep(
    context: Context,
    part: str,
    title: str,
    build: Callable[[int], tuple[Callable, tuple]],
    batches: Iterator[int] | tuple[int, ...],
    **facts: Any,
) -> None:
    """Adds a row with the best batch, written anew after every batch.

    Args:
        context: of the run.
        part, title: of the row.
        build: from a batch to (jitted function, its arguments).
        batches: growing.
        **facts: more that the row says.
    """
    by_batch: dict[int, float] = {}
    best: dict[str, Any] = {}
    stopped = ""
    for batch in batches:
        if by_batch and context.clock.over:
            stopped = f"batch {batch}: no time"
            break
        start = time.perf_counter()
        try:
            function, arguments = build(batch)
            row = _measure(function, arguments, batch, context.options.repeats)
        except Exception as error:
            text = str(error)
            memory = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
            stopped = f"batch {batch}: " + ("no memory" if memory else f"failed ({text[:200]})")
            if by_batch:
                break
            raise
        finally:
            context.clock.took(time.perf_counter() - start)
        by_batch[batch] = row["images_per_second"]
        if not best or row["images_per_second"] > best["images_per_second"]:
            best = row
        context.note(part, title, {**facts, **best, "by_batch": dict(by_batch), "stopped": ""})
    if stopped:
        context.note(part, title, context.result["parts"][part][title] | {"stopped": stopped})


def _measure(function: Any, arguments: tuple, batch: int, repeats: int) -> dict[str, Any]:
    start = time.perf_counter()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    seconds = _median(lambda: compiled(*arguments), repeats)
    operations = count_operations(traced.jaxpr)
    cost = hlo.measure(hlo.parse(compiled.as_text()))
    return {
        "batch": batch,
        "images_per_second": common.round_to(batch / seconds),
        "compile_seconds": round(compile_seconds, 1),
        "operations": {
            "half": operations.half,
            "default": operations.default,
            "exact": operations.exact,
        },
        "bytes": cost.bytes,
        "kernels": cost.kernels,
        "temporaries": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
    }


# ---------------------------------------------------------------- parts


def rates(context: Context) -> None:
    """Operations a second of large products, bytes a second of a copy, and seconds of a launch."""
    quick, repeats = context.options.quick, context.options.repeats
    size = 512 if quick else 8192
    for name, kind, precision in (
        ("float32", jnp.float32, "highest"),
        ("tf32", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        left = jax.random.normal(jax.random.key(0), (size, size)).astype(kind)
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        seconds = _median(lambda product=product, left=left: product(left, left), repeats)
        context.note("rates", name, common.round_to(2 * size**3 / seconds))
    source = jnp.ones((2**22 if quick else 2**28,), jnp.float32)
    negate = jax.jit(lambda x: -x)
    seconds = _median(lambda: negate(source), repeats)
    context.note("rates", "copy_bytes", common.round_to(2 * source.nbytes / seconds))
    context.note("rates", "launch_seconds", common.round_to(_launch_seconds(repeats)))


def _launch_seconds(repeats: int) -> float:
    """Seconds of one kernel of a loop that has next to nothing to compute."""
    turns = 1000

    def run(x):
        def step(x, _):
            # A sort of two columns is a kernel of its own, and cannot be fused with the next.
            return jax.lax.sort(x, dimension=0) + 1, None

        return jax.lax.scan(step, x, None, length=turns)[0]

    x = jnp.zeros((8, 2))
    compiled = jax.jit(run).lower(x).compile()
    kernels = max(1, hlo.measure(hlo.parse(compiled.as_text())).kernels)
    return _median(lambda: compiled(x), repeats) / kernels


def labels(context: Context) -> None:
    """Share of patches of real photographs labelled as a CPU labels them, and how many get the
    same label from two random seeds: chance alone changes as many as that."""
    import unseg_jax as us

    with np.load(FEATURES) as saved:
        features = saved["features"].astype(np.float32)
        expected = {
            name.removeprefix("labels."): saved[name]
            for name in saved.files
            if name.startswith("labels.")
        }
    if context.options.quick:
        expected = {"deepcut": expected["deepcut"]}
    for method, theirs in expected.items():
        for kind in ("float32", "bfloat16"):
            if context.clock.over:
                return
            start = time.perf_counter()
            nodes = jnp.asarray(features).astype(kind).astype(jnp.float32)
            ours, other = (
                np.asarray(us.cluster(nodes, method=method, dropout=0.0, key=key).labels)
                for key in (jax.random.key(0), jax.random.key(1))
            )
            context.note(
                "labels",
                f"{method}, {kind} features",
                {"cpu": alike(ours, theirs), "seed": alike(ours, other)},
            )
            context.clock.took(time.perf_counter() - start)


def alike(labels: np.ndarray, others: np.ndarray) -> float:
    """Mean share of nodes of a batch (B, N) that two clusterings label alike."""
    same = [_same_cut(a, b) for a, b in zip(labels, others, strict=True)]
    return round(float(np.mean(same)), 4)


def _same_cut(labels: np.ndarray, others: np.ndarray) -> float:
    """Share of equal labels; with two clusters, whichever is called 0."""
    same = float((labels == others).mean())
    return max(same, 1 - same) if max(labels.max(), others.max()) < 2 else same


def whole(context: Context) -> None:
    """Pixels on the device to labels: `deepcut` at its own size and epochs."""
    import unseg_jax as us
    from unseg_jax.registry import resolve

    overrides = {"image_size": 64, "epochs": 5} if context.options.quick else {}
    method = resolve("deepcut", **overrides)
    for dtype in _dtypes(context):
        segment, params = us.make_segment_fn(method, context.weights, dtype=dtype)

        def build(batch, segment=segment, params=params):
            return segment, (params, _pixels(batch, method.size[0]))

        title = f"deepcut {method.size[0]}, {method.epochs} epochs, pixels to labels, {dtype}"
        _sweep(context, "whole", title, build, _doubling(context))


def vit(context: Context) -> None:
    """The transformer alone at 224 pixels, up to the keys of its last block."""
    from unseg_jax.backbones import load_backbone

    size = 64 if context.options.quick else 224
    for dtype in _dtypes(context):
        backbone = load_backbone(context.weights, dtype=dtype)  # type: ignore[arg-type]
        extract = jax.jit(
            lambda params, pixels, backbone=backbone: backbone.features(params, pixels, facet="key")
        )

        def build(batch, extract=extract, backbone=backbone):
            return extract, (backbone.params, _pixels(batch, size))

        title = f"ViT-S/8 {size} alone, {dtype}"
        _sweep(context, "vit", title, build, _doubling(context, 4), torch=f"vit {dtype}")


def loop(context: Context) -> None:
    """The loop alone: features to labels."""
    epochs = 5 if context.options.quick else EPOCHS
    nodes = 64 if context.options.quick else NODES
    title = f"deepcut's loop, {nodes} nodes, {epochs} epochs"
    build = _clustering("deepcut", nodes, epochs=epochs)
    _sweep(context, "loop", title, build, _doubling(context), torch="dense loop")


def heads(context: Context) -> None:
    """The other heads at batch 64, and UnSegGNet at its own stride."""
    quick = context.options.quick
    rows: tuple[tuple[str, int, dict[str, Any], tuple[int, ...]], ...] = (
        ("unsegarmanet", NODES, {"epochs": 20, "quirks": "code"}, (64,)),
        ("unsegmedgat", NODES, {"epochs": 20, "quirks": "code"}, (16, 64)),
        ("unseggnet", 3025, {"epochs": 100}, (1, 8)),
        ("deepcut-cc", NODES, {"epochs": 20, "quirks": "code"}, (64,)),
        ("unseggnet", NODES, {"epochs": 20, "quirks": "code"}, (64,)),
    )
    if quick:
        rows = (("deepcut", 64, {"epochs": 5}, (2,)),)  # the program of the part "loop"
    for name, nodes, overrides, batches in rows:
        if context.clock.over:
            return
        title = f"{name}'s loop, {nodes} nodes, {overrides['epochs']} epochs"
        _sweep(context, "heads", title, _clustering(name, nodes, **overrides), batches)


def _clustering(name: str, nodes: int, **overrides: Any):
    """From a batch to the program that clusters so many graphs, and features for it."""
    from unseg_jax.clustering.loop import cluster_batch
    from unseg_jax.registry import resolve

    method = resolve(name, **overrides)

    @jax.jit
    def run(features):
        mask = jnp.ones(features.shape[:2], bool)
        found = cluster_batch(features, None, mask, None, jax.random.key(0), method=method)
        return found.labels, found.losses

    def build(batch):
        return run, (_features(batch, nodes),)

    return build


def torch(context: Context) -> None:
    """The same in PyTorch on the same device, after JAX has let go of its memory."""
    python = torch_python(context.options.torch_python)
    if python is None:
        raise RuntimeError("no PyTorch here")
    from jax.extend.backend import clear_backends

    jax.clear_caches()
    clear_backends()
    quick = context.options.quick
    batch = 2 if quick else 128
    size, repeats = 64 if quick else 224, context.options.repeats
    graph = {"nodes": 64 if quick else NODES, "width": WIDTH}
    epochs = 5 if quick else EPOCHS
    vit_shape = {"weights": context.weights, "size": size, "batch": batch, "repeats": repeats}
    loop_shape = {**graph, "name": "deepcut", "batch": batch, "epochs": epochs, "repeats": 3}
    commands: list[tuple[str, str, dict[str, Any]]] = [
        ("vit bfloat16", "vit", {"kind": "bfloat16", **vit_shape}),
        ("vit float32", "vit", {"kind": "float32", **vit_shape}),
        ("dense loop", "dense", {**loop_shape}),
    ]
    with Worker(python, "benchmarks.accelerators.torch_side") as side:
        context.note("torch", "environment", side("environment"))
        for title, command, arguments in commands:
            if context.clock.over:
                return
            start = time.perf_counter()
            try:
                rate = common.round_to(batch / side(command, **arguments))
                context.note("torch", title, {"batch": batch, "images_per_second": rate})
            except WorkerError as error:
                reason = str(error).strip().splitlines()[-1][:200]
                context.note("torch", title, {"error": reason})
            context.clock.took(time.perf_counter() - start)


def _pixels(batch: int, size: int):
    return jax.random.randint(jax.random.key(0), (batch, size, size, 3), 0, 256, "uint8")


def _features(batch: int, nodes: int):
    images = [common.clustered_features(nodes, WIDTH, seed) for seed in range(min(batch, 8))]
    return jnp.asarray(np.stack([images[index % len(images)] for index in range(batch)]))


PARTS: dict[str, tuple[Callable[[Context], None], float]] = {
    # Of the time that is left, the share that a part may take.
    "rates": (rates, 0.2),
    "whole": (whole, 0.35),
    "labels": (labels, 0.3),
    "loop": (loop, 0.3),
    "vit": (vit, 0.35),
    "heads": (heads, 0.5),
    "torch": (torch, 1.0),
}
"""Name → function and share, the most important first."""
