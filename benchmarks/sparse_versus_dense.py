"""One GCN propagation ÂX, dense against sparse (jraph's segment_sum), by density of the graph.

    python -m benchmarks.sparse_versus_dense [--nodes 784] [--width 64] [--out FILE]

Both forms are compiled, take the normalised edges as given, and are timed alternately; the JSON
holds the median seconds of each, their ratio and the largest difference between their results.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from unseg_jax.clustering.graphs import Graph, gcn_propagation
from unseg_jax.interop.jraph import to_jraph

DENSITIES = (0.01, 0.03, 0.1, 0.3, 1.0)


def random_graph(nodes: int, width: int, density: float, seed: int = 0) -> Graph:
    """A symmetric graph with that share of its entries positive, already normalised."""
    random = np.random.default_rng(seed)
    upper = np.triu(random.random((nodes, nodes)) * (random.random((nodes, nodes)) < density))
    weights = jnp.asarray(upper + np.triu(upper, 1).T, jnp.float32)
    mask = jnp.ones(nodes, bool)
    features = jnp.asarray(random.normal(size=(nodes, width)), jnp.float32)
    return Graph(features, gcn_propagation(weights, mask), mask)


@jax.jit
def dense(propagation: jax.Array, features: jax.Array) -> jax.Array:
    return propagation @ features


@jax.jit
def sparse(graphs: jraph.GraphsTuple, features: jax.Array) -> jax.Array:
    sent = features[graphs.senders] * graphs.edges
    return jraph.segment_sum(sent, graphs.receivers, len(features))


def alternating_medians(calls: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns so that a busy machine slows all alike."""
    seconds = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(nodes: int, width: int, repeats: int) -> list[dict]:
    """One row a density."""
    rows = []
    for density in DENSITIES:
        graph = random_graph(nodes, width, density)
        graphs = to_jraph(graph)
        count = int((graph.adjacency != 0).sum())
        seconds = alternating_medians(
            {
                "dense": lambda graph=graph: dense(graph.adjacency, graph.nodes),
                "sparse": lambda graphs=graphs: sparse(graphs, graphs.nodes),
            },
            repeats,
        )
        difference = jnp.abs(
            sparse(graphs, graphs.nodes)[:nodes] - dense(graph.adjacency, graph.nodes)
        )
        rows.append(
            {
                "density": density,
                "edges": count,
                "dense_seconds": seconds["dense"],
                "sparse_seconds": seconds["sparse"],
                "dense_is_faster_by": seconds["sparse"] / seconds["dense"],
                "largest_difference": float(difference.max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=784)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {
        "nodes": arguments.nodes,
        "width": arguments.width,
        "repeats": arguments.repeats,
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "rows": measure(arguments.nodes, arguments.width, arguments.repeats),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
