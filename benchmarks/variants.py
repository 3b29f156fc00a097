"""What other shapes and precisions of the loop would change on a TPU v5e and an H100.

The loop over epochs alone is compiled, from features of a batch to labels, with one thing changed
at a time; nothing is run on either chip. Labels are compared on this CPU, on saved features of
photographs. Compilers lie where `benchmarks/compiled.py` says.

    python benchmarks/variants.py
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, compiled, hlo

_WIDTH = 384
# Method and nodes: its own size and stride on patches of 14 pixels.
_LOOPS = (("deepcut", 400), ("unsegarmanet", 961), ("unsegmedgat", 961))
_BATCHES = (8, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--libtpu", type=Path, default=common.ROOT / ".tpu", help="its folder")
    parser.add_argument("--cuda", type=Path, default=common.ROOT / ".cuda", help="its folder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    targets = compiled.prepare(options.libtpu, options.cuda)
    if not targets:
        raise SystemExit("no compiler is here: pip install --no-deps --target .tpu libtpu.")
    result: dict[str, Any] = {
        "estimated": True,
        "versions": {"jax side": common.versions() | compiled.compiler_versions()},
        "loops": [],
        "labels": {},
    }
    for method, nodes in _LOOPS:
        result["labels"][method] = agreement(method)
        for target in targets:
            for variant in VARIANTS:
                batches = _BATCHES if variant == "as it is" and target == "tpu" else (64,)
                for batch in batches:
                    row = loop_cost(target, method, nodes, batch, variant)
                    result["loops"].append(row)
                    common.write_result("variants", result, options.out, quiet=True)
                    print(row, file=sys.stderr, flush=True)
    print(table(result))


# ---------------------------------------------------------------- variants


def _flat_parameters():
    """AdamW on one vector of all parameters."""
    import optax

    from unseg_jax.clustering import loop

    make = loop.make_optimiser
    return mock.patch.object(
        loop, "make_optimiser", lambda method, params: optax.flatten(make(method, params))
    )


def _barriers_everywhere():
    """Barriers that only XLA for CPU needs."""
    import jax

    from unseg_jax.clustering import layers

    return mock.patch.object(layers, "_barrier_on_cpu", jax.lax.optimization_barrier)


@contextlib.contextmanager
def _half_adjacency():
    """The affinity W that the loss reads, in bfloat16."""
    import jax.numpy as jnp

    from unseg_jax.clustering import loop

    make = loop.make_loss

    def make_loss(method, graph):
        half = graph.adjacency.astype(jnp.bfloat16)
        return make(method, dataclasses.replace(graph, adjacency=half))

    with mock.patch.object(loop, "make_loss", make_loss):
        yield


@contextlib.contextmanager
def _half_constants():
    """All that does not change over epochs (W, ÂX, L̂, edges) in bfloat16."""
    import jax.numpy as jnp

    from unseg_jax.clustering import head

    prepare = head.prepare_head

    def prepare_head(method, graph):
        return {
            name: array.astype(jnp.bfloat16) if array.dtype == jnp.float32 else array
            for name, array in prepare(method, graph).items()
        }

    with _half_adjacency(), mock.patch.object(head, "prepare_head", prepare_head):
        yield


VARIANTS = {
    "as it is": contextlib.nullcontext,
    "barriers kept": _barriers_everywhere,
    "one vector of parameters": _flat_parameters,
    "W in bfloat16": _half_adjacency,
    "all constants in bfloat16": _half_constants,
}
"""Name → context manager."""


# ---------------------------------------------------------------- measuring


def loop_cost(target: str, method: str, nodes: int, batch: int, variant: str) -> dict[str, Any]:
    """What one epoch of one image costs in a batch."""
    import jax
    import jax.numpy as jnp

    from unseg_jax.clustering.loop import cluster_batch
    from unseg_jax.registry import resolve

    resolved = resolve(method)
    sharding = jax.sharding.SingleDeviceSharding(compiled.devices(target)[0])
    features = jax.ShapeDtypeStruct((batch, nodes, _WIDTH), jnp.float32, sharding=sharding)

    def run(features):
        mask = jnp.ones(features.shape[:2], bool)
        found = cluster_batch(
            features, None, mask, None, jax.random.key(0), method=resolved, map="vmap"
        )
        return found.labels

    with VARIANTS[variant]():
        program = jax.jit(run).trace(features).lower(lowering_platforms=(target,)).compile()
    cost = hlo.measure(hlo.parse(program.as_text()))
    body = [loop for loop in cost.loops if loop.trips == resolved.epochs][-1].body
    return {
        "target": target,
        "method": method,
        "nodes": nodes,
        "batch": batch,
        "variant": variant,
        "kernels": body.kernels,
        "bytes": body.bytes / batch,
        "padded_bytes": body.padded_bytes / batch,
        "vmem_bytes": body.fast_bytes / batch,
        "cycles": body.cycles / batch,
    }


def agreement(method: str) -> dict[str, float]:
    """Share of patches of photographs that keep their label, by variant, and with another seed."""
    import jax

    import unseg_jax as us
    from benchmarks.accelerator import FEATURES
    from benchmarks.accelerator_parts import alike

    with np.load(FEATURES) as saved:
        features = saved["features"].astype(np.float32)

    def labels(seed: int = 0) -> np.ndarray:
        jax.clear_caches()
        key = jax.random.key(seed)
        return np.asarray(us.cluster(features, method=method, dropout=0.0, key=key).labels)

    ours = labels()
    shares = {"another random seed": alike(ours, labels(1))}
    for name, variant in VARIANTS.items():
        if "bfloat16" in name:
            with variant():
                shares[name] = alike(ours, labels())
    return shares


# ---------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    """An epoch of one image, by variant."""
    rows = []
    for row in result["loops"]:
        shares = result["labels"][row["method"]]
        same = shares.get(row["variant"])
        tpu = row["target"] == "tpu"
        rows.append(
            [
                f"{row['method']}, N = {row['nodes']}",
                compiled.CHIPS[row["target"]].name,
                row["batch"],
                row["variant"],
                row["kernels"],
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['padded_bytes'] / 1e6:.2f}" if tpu else "–",
                f"{row['vmem_bytes'] / 1e6:.2f}" if tpu else "–",
                f"{row['cycles'] / 1e3:.1f}" if tpu else "–",
                "–" if same is None else f"{100 * same:.1f} %",
            ]
        )
    header = ["epoch of one image: compiled, never run", "chip", "batch", "variant"]
    header += ["kernels", "HBM, MB", "with tiles", "VMEM, MB", "thousand cycles", "labels alike"]
    seeds = ", ".join(
        f"{method} {100 * shares['another random seed']:.1f} %"
        for method, shares in result["labels"].items()
    )
    note = f"Labels alike with another random seed instead: {seeds}."
    return f"{common.table(header, rows)}\n\n{note}"


if __name__ == "__main__":
    main()
