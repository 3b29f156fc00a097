"""CPU time per image of everything around the device, from the file to the files written.

New processes are timed first, by the wall. Stages are timed alone, then whole runs with a stand-in
for the device that answers at once: `segment_files` and the bench runner, from JPEGs of 400×300
pixels to masks. These times are CPU seconds of all threads, so another process on the machine
changes them little. Photographs are made from those that scikit-image ships.

    python -m benchmarks host [--images 256] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.measure import common
from benchmarks.measure.random_weights import random_state

SIZES = {"400×300": (300, 400), "4000×3000": (3000, 4000)}
_CORES = 16
"""Cores of a host beside one accelerator."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=800, help="of the whole runs")
    parser.add_argument("--quick", action="store_true", help="few and small: does it run at all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.quick:
        options.images = 4
    result: dict[str, Any] = {"versions": {"jax side": common.versions()}, "start": {}}
    result |= {"stages": {}, "runs": {}}

    def save() -> None:
        if options.out or not options.quick:
            common.write_result("host", result, options.out)

    with tempfile.TemporaryDirectory() as folder:
        result["start"] = start(Path(folder), repeats=1 if options.quick else 5)
        save()
        sizes = {"400×300": SIZES["400×300"]} if options.quick else SIZES
        for name, size in sizes.items():
            result["stages"][name] = stages(Path(folder) / name, size, quick=options.quick)
            save()
        for title, run in runs(Path(folder), options.images).items():
            result["runs"][title] = run()
            save()
    print(table(result))


# ---------------------------------------------------------------- pictures


def photographs(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """JPEG files (quality 90) of a size (height, width), made of scikit-image's photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Image.open(path).convert("RGB") for path in common.photographs(limit=count)]
    paths = []
    for number in range(count):
        source = sources[number % len(sources)]
        # Another part of the photograph each time it comes round.
        turn = number // len(sources)
        width, height = source.size
        margin = 0.02 * (turn % 10)
        box = (margin * width, margin * height, width, height)
        picture = source.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)
        paths.append(folder / f"image-{number:04d}.jpg")
        picture.save(paths[-1], quality=90)
    return paths


def ellipse(shape: tuple[int, int]) -> np.ndarray:
    """A bool map (h, w) with an ellipse of a third of its area in the middle."""
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return (rows**2 / 0.42 + columns**2 / 0.42) < 1


# ---------------------------------------------------------------- new processes


def start(folder: Path, *, repeats: int) -> dict[str, float]:
    """Seconds of imports, and of the whole command on one photograph, by what is compiled."""
    (photograph,) = photographs(folder / "one", SIZES["400×300"], 1)
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    numbers = itertools.count()

    def run(*arguments: str) -> float:
        command = [sys.executable, *arguments]
        return common.timed(
            lambda: subprocess.run(command, check=True, env=environment, capture_output=True)
        )

    def mask(*, cold: bool) -> float:
        if cold:
            shutil.rmtree(folder / "cache", ignore_errors=True)
        out = str(folder / f"out-{next(numbers)}")
        return run("-m", "unseg_jax", "segment", str(photograph), "--out", out)

    imports = {"python": "pass", "import jax": "import jax", "import unseg_jax": "import unseg_jax"}
    sides: dict[str, Callable[[], float]] = {
        name: functools.partial(run, "-c", code) for name, code in imports.items()
    }
    # Each cold one leaves its programs to the warm one after it.
    sides["unseg-jax segment, nothing compiled"] = lambda: mask(cold=True)
    sides["unseg-jax segment, compiled before"] = lambda: mask(cold=False)
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(side())
    return {name: common.round_to(statistics.median(found)) for name, found in times.items()}


# ---------------------------------------------------------------- stages


def cpu_seconds(function: Callable[[], Any], least: float = 0.3, repeats: int = 3) -> float:
    """CPU seconds of one call: the fastest of several rounds, each long enough to be measured."""
    function()
    rounds = []
    for _ in range(repeats):
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < least or calls == 0:
            function()
            calls += 1
        rounds.append(spent / calls)
    return min(rounds)


def stages(folder: Path, size: tuple[int, int], *, quick: bool = False) -> dict[str, float]:
    """CPU seconds of each stage on a photograph of a size (height, width)."""
    from unseg_jax.data.decoding import load_image, resize_image
    from unseg_jax.export.drawing import colour_labels, overlay
    from unseg_jax.files import encode_png
    from unseg_jax.postprocess import largest_component, object_box, upsample_labels
    from unseg_jax.postprocess.bilateral import refine_segmentation
    from unseg_jax.postprocess.margins import refine_margins, upsample_margins
    from unseg_jax.registry import resolve

    path = photographs(folder, size, 1)[0]
    wanted, grid = (280, 280), (35, 35)
    pixels = load_image(path)
    found = ellipse(grid)
    mask = upsample_labels(found, size)
    labels = mask.astype(np.int32)
    guided = resolve("deepcut", refine="guided")
    margins = np.where(found, 1.0, -1.0).astype(np.float32)
    drawn = overlay(pixels, labels)
    png = encode_png(mask.astype(np.uint8) * 255)

    def write() -> None:
        (folder / "mask.png").write_bytes(png)

    def jpeg(picture: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    def upsample() -> None:
        whole = upsample_labels(largest_component(found), size)
        object_box(whole)

    timed: dict[str, Callable[[], Any]] = {
        "decode": lambda: load_image(path),
        "decode, reduced": lambda: load_image(path, wanted),
        "resize": lambda: resize_image(pixels, wanted),
        "component, upsample, box": upsample,
        "guided filter": lambda: upsample_margins(refine_margins(pixels, margins, guided), size),
        "bilateral solver": lambda: refine_segmentation(pixels, mask, labels, 16.0, 16.0, 8.0),
        "encode mask PNG": lambda: encode_png(mask.astype(np.uint8) * 255),
        "encode labels PNG": lambda: encode_png(colour_labels(labels)),
        "overlay": lambda: overlay(pixels, labels),
        "encode overlay PNG": lambda: encode_png(drawn),
        "encode overlay JPEG": lambda: jpeg(drawn),
        "write": write,
    }
    least, repeats = (0.01, 1) if quick else (0.3, 3)
    return {
        name: common.round_to(cpu_seconds(function, least, repeats))
        for name, function in timed.items()
    }


# ---------------------------------------------------------------- whole runs


def runs(folder: Path, count: int) -> dict[str, Callable[[], dict[str, float]]]:
    """Whole runs on photographs of 400×300 pixels, by title."""
    photographs(folder / "set" / "images", SIZES["400×300"], count)
    _write_masks(folder / "set")
    weights = folder / "tiny.npz"
    np.savez(weights, **random_state(width=64, depth=1, native_grid=8))
    # Small maps on patches, and edges moved to those of the photograph.
    settings: dict[str, dict[str, Any]] = {
        "patches": {"refine": "none"},
        "guided filter": {"refine": "guided"},
    }
    found: dict[str, Callable[[], dict[str, float]]] = {}
    found["Segmenter.stream, mask PNG alone"] = lambda: _stream(folder, weights)
    for title, overrides in settings.items():
        found[f"unseg-jax segment, {title}"] = lambda overrides=overrides: _segment(
            folder, weights, overrides
        )
        found[f"unseg-jax segment --format mask, {title}"] = lambda overrides=overrides: _segment(
            folder, weights, overrides, ("mask",)
        )
        found[f"bench, {title}"] = lambda overrides=overrides: _bench(folder, weights, overrides)
        # As from the thousand and first image on.
        found[f"bench without thumbnails, {title}"] = lambda overrides=overrides: _bench(
            folder, weights, overrides, thumbnails=0
        )
    return found


def _write_masks(folder: Path) -> None:
    """A true mask for every image of a set: an ellipse that the stand-in's is not equal to."""
    (folder / "masks").mkdir(exist_ok=True)
    truth = Image.fromarray(np.roll(ellipse(SIZES["400×300"]), 20, 1))
    for path in (folder / "images").iterdir():
        truth.save(folder / "masks" / f"{path.stem}.png")


def _answer(count: int, grid: tuple[int, int], epochs: int):
    """What the stand-in finds in a batch."""
    from unseg_jax.pipeline import PatchResult

    found = np.broadcast_to(ellipse(grid), (count, *grid))
    return PatchResult(
        found.astype(np.int32),
        found,
        np.full(count, 2, np.int32),
        np.zeros((count, epochs), np.float32),
        np.ones(count, np.float32),
        np.ones(count, bool),
    )


def _measured(images: int, function: Callable[[int], Any]) -> dict[str, float]:
    """What an image of a run costs, and what the run itself does, such as its report.

    Args:
        images: of the longer of two runs; the other has a quarter of them.
        function: does a run of so many images.
    """
    seconds: dict[int, tuple[float, float]] = {}
    for count in (images // 4, images):
        wall, cpu = time.perf_counter(), time.process_time()
        function(count)
        seconds[count] = (time.perf_counter() - wall, time.process_time() - cpu)
    (few_wall, few_cpu), (wall, cpu) = seconds.values()
    more = images - images // 4
    each = (cpu - few_cpu) / more
    return {
        "images": images,
        "cpu_seconds_per_image": common.round_to(each),
        "wall_seconds_per_image": common.round_to((wall - few_wall) / more),
        "cpu_seconds_of_a_run": common.round_to(max(0.0, cpu - images * each)),
        "load": round(os.getloadavg()[0], 1),
    }


@contextlib.contextmanager
def _stand_in(weights: Path, overrides: dict[str, Any]):
    """A `Segmenter` whose device answers at once."""
    from unseg_jax import Segmenter

    segmenter = Segmenter("deepcut", backbone=weights, **overrides)
    grid, epochs = segmenter.grid, segmenter.method.epochs

    def run(_, pixels, *, size=None, record_every=0):
        return _answer(len(pixels), grid, epochs)

    # A segmenter is frozen, its class is not.
    with mock.patch.object(type(segmenter), "run", run):
        yield segmenter


def _stream(folder: Path, weights: Path) -> dict[str, float]:
    """Decoding, masks at the images' own sizes, and a PNG of each: nothing else."""
    from unseg_jax.files import write_png

    paths = sorted((folder / "set" / "images").iterdir())
    with (
        _stand_in(weights, {"refine": "none"}) as segmenter,
        tempfile.TemporaryDirectory() as out,
    ):

        def once(count: int) -> None:
            for found in segmenter.stream(paths[:count]):
                write_png(Path(out) / f"{Path(found.id).stem}.png", found.mask)

        once(8)
        return _measured(len(paths), once)


def _segment(
    folder: Path,
    weights: Path,
    overrides: dict[str, Any],
    formats: tuple[str, ...] = ("png",),
) -> dict[str, float]:
    """`segment_files` behind `unseg-jax segment`, its report as well."""
    from unseg_jax.data.folders import find_images
    from unseg_jax.export.folder import Output, segment_files

    images = find_images([folder / "set" / "images"])
    with _stand_in(weights, overrides) as segmenter, tempfile.TemporaryDirectory() as out:

        def once(count: int) -> None:
            segment_files(segmenter, images[:count], Path(out) / str(count), Output(formats))

        once(8)
        return _measured(len(images), once)


def _bench(folder: Path, weights: Path, overrides: dict[str, Any], **more: Any) -> dict[str, float]:
    """The bench runner with every score, and with masks written."""
    from unseg_jax.bench import Settings, run
    from unseg_jax.bench.run.engine import Engine, Timed

    def answer(engine, pixels, features):
        answers = {}
        for name, segmenter in engine.segmenters.items():
            count = len(next(iter(pixels.values())))
            found = _answer(count, segmenter.grid, segmenter.method.epochs)
            answers[name] = Timed(found, 0.0, 0.0)
        return answers

    def once(count: int) -> None:
        settings = Settings(
            data=str(folder / "set"),
            methods=("deepcut",),
            out=str(out / str(count)),
            backbone=str(weights),
            limit=count,
            save_masks=True,
            overrides=overrides,
            **more,
        )
        run(settings, quiet=True)

    images = len(list((folder / "set" / "images").iterdir()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Engine, "compile"))
        stack.enter_context(mock.patch.object(Engine, "run", answer))
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        once(8)
        return _measured(images, once)


# ---------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    """CPU time of each stage, and images a second and core of whole runs."""
    rows = [[name, _shown(seconds)] for name, seconds in result["start"].items()]
    blocks = [common.table(["new process", "time"], rows)]
    sizes = list(result["stages"])
    names = list(result["stages"][sizes[0]])
    lines = [[name, *(_shown(result["stages"][size][name]) for size in sizes)] for name in names]
    blocks.append(common.table(["CPU time of one image", *sizes], lines))
    if result["runs"]:
        lines = []
        for title, run in result["runs"].items():
            rate = 1 / run["cpu_seconds_per_image"]
            lines.append(
                [
                    title,
                    _shown(run["cpu_seconds_per_image"]),
                    _shown(run["cpu_seconds_of_a_run"]),
                    f"{rate:.0f}",
                    f"{1 / run['wall_seconds_per_image']:.0f}",
                    f"{_CORES * rate:.0f}",
                ]
            )
        header = ["JPEG of 400×300 to masks, stand-in device", "CPU time of one image"]
        header += [
            "of the run itself",
            "images/s and core",
            "images/s here",
            f"at most with {_CORES} cores",
        ]
        blocks.append(common.table(header, lines))
    return "\n\n".join(blocks)


def _shown(seconds: float) -> str:
    return common.seconds(seconds)


if __name__ == "__main__":
    main()
