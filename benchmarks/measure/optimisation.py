"""Time of one epoch of every head: message passing, dense PyTorch, unseg_jax, and the limit.

Graphs of N = 784 nodes with D = 384 features (ViT-S/8 at 224×224), and N = 3025 for one head, one
image alone and batches of 8; dense PyTorch also as one single-threaded process a core, which share
8 images and are all at work at once. All sides take turns in one run. The limit is what the counted
operations need at the rate that the machine shows in the same run.

    python -m benchmarks optimisation [--torch-python PATH] [--heads deepcut,unsegarmanet]
"""

import argparse
import contextlib
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import common, counts
from benchmarks.measure.workers import Worker, WorkerError, torch_python

WIDTH = 384
# name → layer, branches, K, nodes, whether message passing fits in memory
_GAT = ((64, 64), (128, 128))
CASES: dict[str, dict] = {
    "deepcut": {"layer": "gcn", "branches": ((64,),), "clusters": 2, "nodes": 784},
    "deepcut-cc": {"layer": "gcn", "branches": ((64,),), "clusters": 10, "nodes": 784},
    "unseggnet": {"layer": "gcn", "branches": ((64,),), "clusters": 2, "nodes": 784},
    "unsegarmanet": {"layer": "arma", "branches": ((64,),), "clusters": 2, "nodes": 784},
    "unsegarmanet-ncut": {"layer": "arma", "branches": ((64,),), "clusters": 2, "nodes": 784},
    "unsegmedgat": {"layer": "gat", "branches": _GAT, "clusters": 2, "nodes": 784},
    "unseggnet at stride 4": {"layer": "gcn", "branches": ((64,),), "clusters": 2, "nodes": 3025},
}
KINDS = ("pyg", "dense", "compiled", "dense x8", "compiled x8", "dense apart", "jax", "jax x8")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TITLES = {
    "pyg": "PyG, as published",
    "dense": "PyTorch dense",
    "compiled": "torch.compile",
    "dense x8": "PyTorch dense ×8",
    "compiled x8": "torch.compile ×8",
    "dense apart": "PyTorch dense, a process a core",
    "jax": "unseg_jax",
    "jax x8": "unseg_jax ×8",
}


def main() -> None:
    options = _parse()
    python = torch_python(options.torch_python)
    if python is None:
        print("no PyTorch here (see --torch-python): unseg_jax alone", file=sys.stderr)
    result: dict = {"width": WIDTH, "dropout": options.dropout, "heads": {}}
    names = options.heads.split(",") if options.heads else list(CASES)
    jax_side = Worker(sys.executable, "benchmarks.measure.jax_side")
    torch_side = Worker(python, "benchmarks.measure.torch_side") if python else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax_side)
        apart = _Apart(python, stack) if python else None
        result["versions"] = {"jax side": jax_side("environment")["versions"]}
        result["rates"] = _rates(jax_side, torch_side)
        if torch_side:
            result["versions"]["torch side"] = torch_side("environment")["versions"]
        for name in names:
            measured = _measure(name, options, jax_side, torch_side, apart, result["rates"])
            result["heads"][name] = measured
            print(f"{name}: " + ", ".join(_brief(measured)), file=sys.stderr, flush=True)
        if torch_side:
            torch_side.close()
    print(table(result))
    if not (options.quick and options.out is None):
        common.write_result("optimisation", result, options.out)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", help="interpreter with torch and torch_geometric")
    parser.add_argument("--heads", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dropout", type=float, help="one rate for all; default: as published")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="small graphs, once")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    for name in (options.heads or "").split(","):
        if name and name not in CASES:
            parser.error(f"no head '{name}'; known are {', '.join(CASES)}.")
    if options.quick:
        options.repeats = 1
    return options


class _Apart:
    """PyTorch as one would run it over a data set: a process a core, and one thread each."""

    def __init__(self, python: str, stack: contextlib.ExitStack):
        count = min(common.machine()["cores"], 8)
        self.workers = [
            stack.enter_context(Worker(python, "benchmarks.measure.torch_side", _ONE_THREAD))
            for _ in range(count)
        ]
        self._pool = stack.enter_context(ThreadPoolExecutor(count))

    def prepare(self, **graph) -> None:
        list(self._pool.map(lambda worker: worker("prepare_head", **graph), self.workers))

    def time_head(self, epochs: int) -> float:
        """Seconds an epoch and image while all are at work."""
        batch = max(1, 8 // len(self.workers))

        def call(worker):
            return worker("time_head", kind="dense", epochs=epochs, batch=batch)

        return statistics.mean(self._pool.map(call, self.workers)) / len(self.workers)


def _rates(jax_side, torch_side) -> dict[str, float]:
    """The best of both libraries: a product of float32 squares, and a copy, per second."""
    products = [jax_side("matmul_rate")]
    copies = []
    if torch_side:
        products.append(torch_side("matmul_rate"))
        copies.append(torch_side("copy_rate"))
    else:
        copies.append(_numpy_copy_rate())
    return {
        "operations_per_second": common.round_to(max(products)),
        "bytes_per_second": common.round_to(max(copies)),
    }


def _numpy_copy_rate() -> float:
    import numpy as np

    source = np.ones(2**26, np.float32)
    target = np.empty_like(source)
    times = [common.timed(lambda: np.copyto(target, source)) for _ in range(5)]
    return 2 * source.nbytes / min(times)


def _measure(name, options, jax_side, torch_side, apart, rates) -> dict:
    case = CASES[name]
    nodes = min(case["nodes"], 196) if options.quick else case["nodes"]
    large = nodes > 1500
    head = name.split(" ")[0]
    graph = {
        "name": head,
        "nodes": nodes,
        "width": WIDTH,
        "batch": 1 if large else 8,
        "clusters": case["clusters"],
        "dropout": options.dropout,
    }
    jax_side("prepare_head", **graph)
    heavy = case["layer"] != "gcn" or large
    few, many = (2, 12) if heavy else (10, 110)
    sides = {"jax": lambda: jax_side("time_head", few=few, many=many, batch=1)}
    if not large:
        more = 2 + (many - few) // 2
        sides["jax x8"] = lambda: jax_side("time_head", few=2, many=more, batch=8)
    edges = None
    if torch_side:
        edges = torch_side("prepare_head", **graph)["edges"]
        epochs = 5 if heavy else 20

        def torch(kind, epochs, batch):
            return lambda: torch_side("time_head", kind=kind, epochs=epochs, batch=batch)

        sides["pyg"] = torch("pyg", 1 if heavy else 3, 1)
        sides["dense"] = torch("dense", epochs, 1)
        if not options.no_compile:
            sides["compiled"] = torch("compiled", epochs, 1)
        if not large:
            apart.prepare(**graph)
            sides["dense apart"] = lambda: apart.time_head(max(3, epochs // 2))
            sides["dense x8"] = torch("dense", max(3, epochs // 4), 8)
            if not options.no_compile:
                sides["compiled x8"] = torch("compiled", max(3, epochs // 4), 8)
    failures = {}
    for kind, side in list(sides.items()):
        try:
            side()  # compiles, allocates
        except WorkerError as error:
            failures[kind] = str(error).strip().splitlines()[-1][:200]
            del sides[kind]
    times = common.alternate(sides, options.repeats)
    shape = {"branches": case["branches"], "clusters": case["clusters"]}
    count = counts.epoch(case["layer"], nodes, WIDTH, **shape)
    # One image's working set stays in the cache, so the bytes do not bound it; they are reported.
    limit = count.operations / rates["operations_per_second"]
    return {
        "nodes": nodes,
        "clusters": case["clusters"],
        "edges": edges,
        "operations": count.operations,
        "bytes": count.bytes,
        "uncached_bytes_seconds": common.round_to(count.bytes / rates["bytes_per_second"]),
        "limit_seconds": common.round_to(limit),
        "epoch": {kind: common.summarise(values) for kind, values in times.items()},
        "failures": failures,
        "fraction_of_limit": {
            kind: common.round_to(limit / statistics.median(values), 3)
            for kind, values in times.items()
        },
    }


def _brief(measured):
    for kind, times in measured["epoch"].items():
        yield f"{kind} {common.seconds(times['median'])}"
    yield f"limit {common.seconds(measured['limit_seconds'])}"


def table(result: dict) -> str:
    """One row a head: times of an epoch and image, ratios, the limit and how near it we are."""
    kinds = [kind for kind in KINDS if any(kind in h["epoch"] for h in result["heads"].values())]
    header = [
        "epoch of one image",
        "N",
        "edges",
        *(TITLES[kind] for kind in kinds),
        "limit",
        "of limit",
    ]
    if "pyg" in kinds:
        header += ["× published", "× best dense"]
    rows = []
    for name, head in result["heads"].items():
        medians = {kind: times["median"] for kind, times in head["epoch"].items()}
        ours = [value for kind, value in medians.items() if kind.startswith("jax")]
        dense = [v for k, v in medians.items() if k.startswith(("dense", "compiled"))]
        best = min(ours)
        edges = "–" if head["edges"] is None else f"{100 * head['edges']:.0f} %"
        row = [name, head["nodes"], edges, *(common.seconds(medians.get(kind)) for kind in kinds)]
        row += [
            common.seconds(head["limit_seconds"]),
            f"{100 * head['limit_seconds'] / best:.0f} %",
        ]
        if "pyg" in kinds:
            row.append(common.ratio(medians.get("pyg"), best))
            row.append(common.ratio(min(dense) if dense else None, best))
        rows.append(row)
    rates = result["rates"]
    note = (
        f"Limit: counted operations at {rates['operations_per_second'] / 1e9:.0f} GFLOP/s, the "
        "rate of a large float32 product in the same run; element-wise work is not counted. Edges: "
        "their share of all pairs, which only message passing gains by."
    )
    return f"{common.table(header, rows)}\n\n{note}"


def short_table(result: dict) -> str:
    """One row per head: the published loop, the best dense PyTorch, ours, and the ratios."""
    rows = []
    for name, head in result["heads"].items():
        medians = {kind: times["median"] for kind, times in head["epoch"].items()}
        ours = min(value for kind, value in medians.items() if kind.startswith("jax"))
        dense = [v for k, v in medians.items() if k.startswith(("dense", "compiled"))]
        best = min(dense) if dense else None
        times = (medians.get("pyg"), best, ours)
        ratios = (common.ratio(medians.get("pyg"), ours), common.ratio(best, ours))
        share = f"{100 * head['limit_seconds'] / ours:.0f} %"
        rows.append([name, head["nodes"], *map(common.seconds, times), *ratios, share])
    header = ["epoch of one image", "N", "published loop", "best dense PyTorch", "unseg_jax"]
    return common.table([*header, "× published", "× best dense", "of the limit"], rows)


if __name__ == "__main__":
    main()
