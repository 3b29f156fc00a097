"""How unseg_jax scales: nodes, batch, clusters, epochs, images; memory, compilations.

Weights are random: none of this depends on what they are. With --parts, the other parts are kept
from the result that is there, each with the commit that it was measured at.

    python -m benchmarks scaling [--parts nodes,batch,clusters,epochs,images]
"""

import argparse
import contextlib
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import common
from benchmarks.measure.random_weights import random_state
from benchmarks.measure.workers import Worker

WIDTH = 384
NODES = (196, 400, 784, 1225, 1600, 2500, 3025, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
CLUSTERS = (2, 4, 8, 16, 32)
EPOCHS = (10, 30, 100, 300)
STRIDE_4 = 3025


def main() -> None:
    options = _parse()
    parts = {
        "nodes": _nodes,
        "batch": _batches,
        "clusters": _clusters,
        "epochs": _epochs,
        "stride_4": _stride_4,
        "images": _images,
    }
    result: dict = {"width": WIDTH, "parts": {}, "measured": {}}
    today = time.strftime("%Y-%m-%d", time.gmtime())
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vit.npz"
        np.savez(weights, **random_state())
        with Worker(sys.executable, "benchmarks.measure.jax_side") as side:
            result["versions"] = {"jax side": side("environment")["versions"]}
        for name in options.parts or parts:
            result["parts"][name] = parts[name](options, weights)
            result["measured"][name] = f"{common.commit()}, {today}"
            print(f"{name}: {result['parts'][name]}", file=sys.stderr, flush=True)
    if options.parts and not options.quick:
        result = _with_other_parts(result, options.out or common.RESULTS / "scaling.json")
    print(table(result))
    if not (options.quick and options.out is None):
        common.write_result("scaling", result, options.out)


def _with_other_parts(result: dict, path: Path) -> dict:
    """The result with what an earlier run on the same kind of machine says of the other parts."""
    if not path.is_file():
        return result
    earlier = json.loads(path.read_text())
    if earlier["machine"] != common.machine():
        return result
    stamp = f"{earlier['commit']}, {earlier['date']}"
    dates = dict.fromkeys(earlier["parts"], stamp) | earlier.get("measured", {})
    return result | {
        **{field: earlier[field] for field in ("command", "commit", "date")},
        "parts": earlier["parts"] | result["parts"],
        "measured": dates | result["measured"],
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = ("nodes", "batch", "clusters", "epochs", "stride_4", "images", "start")
    parser.add_argument("--parts", type=lambda text: text.split(","), help=", ".join(known))
    parser.add_argument(
        "--images",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[50, 200],
        help="how many images are segmented, several counts",
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the two smallest of everything")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    for part in options.parts or ():
        if part not in known:
            parser.error(f"no part '{part}'; known are {', '.join(known)}.")
    if options.quick:
        options.repeats, options.images, options.image_size = 1, [8, 16], 64
    return options


def _alternating(options, cases: dict[int, dict]) -> dict[int, dict]:
    """Of each case the median seconds an epoch and image, and the peak memory of a process that
    did only that; all take turns."""
    with contextlib.ExitStack() as stack:
        sides, before = {}, {}
        for name, case in cases.items():
            case = {"nodes": 784, "batch": 1, "clusters": None, "few": 10} | case
            side = stack.enter_context(Worker(sys.executable, "benchmarks.measure.jax_side"))
            before[name] = (side, side("peak_memory"))
            graph = {key: case[key] for key in ("nodes", "batch", "clusters")}
            side("prepare_head", name="deepcut", width=WIDTH, dropout=None, **graph)
            run = {key: case[key] for key in ("few", "many", "batch")}
            sides[name] = functools.partial(side, "time_head", **run)
            sides[name]()  # compiles, allocates
        times = common.alternate(sides, options.repeats)
        return {
            name: {
                "epoch_seconds": common.round_to(statistics.median(times[name])),
                "memory_gib": round(side("peak_memory") - start, 3),
            }
            for name, (side, start) in before.items()
        }


def _some(values, options):
    return values[:2] if options.quick else values


def _nodes(options, _):
    # Differences of long runs where an epoch is short.
    many = {nodes: 10 + max(10, min(200, 160_000 // nodes)) for nodes in _some(NODES, options)}
    return _alternating(options, {n: {"nodes": n, "many": many[n]} for n in many})


def _batches(options, _):
    # As many epochs and images in all, but few enough that the runs stay comparable in length.
    many = {batch: 10 + max(20, 400 // batch) for batch in _some(BATCHES, options)}
    return _alternating(options, {b: {"batch": b, "many": many[b]} for b in many})


def _clusters(options, _):
    chosen = _some(CLUSTERS, options)
    return _alternating(options, {count: {"clusters": count, "many": 110} for count in chosen})


def _epochs(options, _):
    """Seconds of a whole `cluster` call, graph and ÂX included."""
    found = {}
    with Worker(sys.executable, "benchmarks.measure.jax_side") as side:
        graph = {"nodes": 784, "width": WIDTH, "batch": 1, "clusters": None, "dropout": None}
        side("prepare_head", name="deepcut", **graph)
        for epochs in _some(EPOCHS, options):
            times = [side("time_loop", epochs=epochs) for _ in range(options.repeats)]
            found[epochs] = {"seconds": common.round_to(statistics.median(times))}
    return found


def _stride_4(options, _):
    """UnSegGNet at its own stride of 4 pixels: 3025 nodes, 100 epochs, one image."""
    nodes, epochs = (196, 10) if options.quick else (STRIDE_4, 100)
    found = {}
    for head in ("unseggnet", "unsegarmanet", "unsegmedgat"):
        with Worker(sys.executable, "benchmarks.measure.jax_side") as side:
            graph = {"nodes": nodes, "width": WIDTH, "batch": 1, "clusters": 2, "dropout": None}
            side("prepare_head", name=head, **graph)
            seconds = side("time_loop", epochs=epochs)
            found[head] = {
                "nodes": nodes,
                "epochs": epochs,
                "seconds": common.round_to(seconds),
                "process_memory_gib": side("peak_memory"),
            }
            if head == "unseggnet" and options.quick:
                break
    return found


def _images(options, weights):
    """Images a second from files to masks, memory and compilations, for growing numbers."""
    from PIL import Image

    found = {}
    sizes = [(48, 64), (64, 48), (50, 50), (80, 40)]
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        paths = []
        for index in range(max(options.images)):
            height, width = (4 * side for side in sizes[index % len(sizes)])
            pixels = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            path = Path(folder) / f"{index:05d}.jpg"
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            picture.save(path, quality=80)
            paths.append(str(path))
        with Worker(sys.executable, "benchmarks.measure.jax_side") as side:
            side("load_vit", weights=weights)
            size = [options.image_size] * 2
            for count in [8, *sorted(options.images)]:
                answer = side("stream_images", images=paths[:count], size=size, epochs=10)
                found[count] = answer
    return found


def table(result: dict) -> str:
    """A small table a part."""
    parts, blocks = result["parts"], []
    for name, title in (("nodes", "N"), ("batch", "batch"), ("clusters", "K")):
        if name in parts:
            rows = [
                ["epoch of one image"]
                + [common.seconds(row["epoch_seconds"]) for row in parts[name].values()],
                ["memory"] + [f"{row['memory_gib']:.2f} GiB" for row in parts[name].values()],
            ]
            blocks.append(common.table([title, *map(str, parts[name])], rows))
    if "epochs" in parts:
        row = ["one image, N = 784"] + [
            common.seconds(r["seconds"]) for r in parts["epochs"].values()
        ]
        blocks.append(common.table(["epochs", *map(str, parts["epochs"])], [row]))
    if "stride_4" in parts:
        rows = [
            [
                f"{head}, {row['nodes']} nodes, {row['epochs']} epochs",
                common.seconds(row["seconds"]),
                f"{row['process_memory_gib']:.2f} GiB",
            ]
            for head, row in parts["stride_4"].items()
        ]
        blocks.append(common.table(["one image", "time", "memory of the process"], rows))
    if "images" in parts:
        rows = [
            [
                count,
                f"{row['images_per_second']:.2f}",
                f"{row['memory_gib']:.2f} GiB",
                row["compilations"],
            ]
            for count, row in parts["images"].items()
        ]
        blocks.append(common.table(["images", "a second", "peak memory", "compilations"], rows))
    stamp = f"{result.get('commit')}, {result.get('date')}"
    later: dict[str, list[str]] = {}
    for name, measured in result.get("measured", {}).items():
        if "commit" in result and measured != stamp:
            later.setdefault(measured, []).append(name)
    blocks += [f"Measured again at {at}: {', '.join(names)}." for at, names in later.items()]
    return "\n\n".join(blocks)


if __name__ == "__main__":
    main()
