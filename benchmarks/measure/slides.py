"""Small objects on a large slide, seen whole and in tiles: how many are found, and at what cost.

    python -m benchmarks slides --data FOLDER [--large]

FOLDER holds images and masks as `unseg-jax bench --data` takes them. A slide is grass (a texture
that scikit-image ships) of 3000 × 2250 pixels with 50 objects, cut out by their masks and reduced
to about 100 pixels. It is the only image that is given, so a model is fitted on its own tiles.
--large adds a slide of 12000 × 9000 pixels with 50 objects of 400 pixels, in a process of its own,
for its memory. It writes benchmarks/results/slides.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import grass

from benchmarks.measure import common
from benchmarks.measure.collages import Cutout, read_parts
from benchmarks.measure.objects import match
from unseg_jax import Segmenter

COUNT = 50
TILES = (0, None, 1024, 512, 384)
"""Sides of tiles; 0 sees the slide whole, and None leaves it to `auto`."""
SMALL, LARGE = (2250, 3000), (9000, 12000)
_ROWS, _COLUMNS = 8, 10


def make_slide(
    cutouts: list[Cutout], size: tuple[int, int], seed: int = 0
) -> tuple[np.ndarray, list[tuple[tuple[int, int], np.ndarray]]]:
    """A slide (H, W, 3) uint8, and of each object (left, top) and its mask."""
    rng = np.random.default_rng(seed)
    texture = np.asarray(Image.fromarray(grass()).resize((1024, 1024)))
    repeats = [-(-side // 1024) for side in size]
    texture = np.tile(texture, repeats)[: size[0], : size[1]]
    slide = np.empty((*size, 3), np.uint8)
    for channel, share in enumerate((0.75, 0.95, 0.6)):
        slide[..., channel] = texture * share
    longest = size[0] // 22
    truths = []
    cells = rng.permutation(_ROWS * _COLUMNS)[:COUNT]
    for cell, index in zip(cells, rng.permutation(len(cutouts))[:COUNT], strict=True):
        cutout = cutouts[index]
        height, width = cutout.mask.shape
        scale = longest / max(height, width)
        shape = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(Image.fromarray(cutout.pixels).resize(shape))
        mask = np.asarray(Image.fromarray(cutout.mask).resize(shape))
        row, column = divmod(int(cell), _COLUMNS)
        room = (size[0] // _ROWS - mask.shape[0], size[1] // _COLUMNS - mask.shape[1])
        top = row * (size[0] // _ROWS) + int(rng.integers(room[0]))
        left = column * (size[1] // _COLUMNS) + int(rng.integers(room[1]))
        slide[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = pixels[mask]
        truths.append(((left, top), mask))
    return slide, truths


def overlaps(objects, truths) -> np.ndarray:
    """(found, true) IoU."""
    ious = np.zeros((len(objects), len(truths)))
    for at, item in enumerate(objects):
        left, top, right, bottom = item.box
        for number, ((x, y), mask) in enumerate(truths):
            first = (max(left, x), max(top, y))
            last = (min(right, x + mask.shape[1]), min(bottom, y + mask.shape[0]))
            if first[0] >= last[0] or first[1] >= last[1]:
                continue
            found = item.mask[first[1] - top : last[1] - top, first[0] - left : last[0] - left]
            true = mask[first[1] - y : last[1] - y, first[0] - x : last[0] - x]
            both = int((found & true).sum())
            ious[at, number] = both / (item.area + int(mask.sum()) - both)
    return ious


def measure(slide: np.ndarray, truths, tile: int | None) -> dict:
    """One row: the default, with tiles of that side."""
    segmenter = Segmenter(tile=tile)
    start = time.perf_counter()
    (found,) = segmenter(slide)
    seconds = time.perf_counter() - start
    ious = overlaps(found.objects, truths)
    hits = match(ious, [item.score for item in found.objects])
    return {
        "tile": tile,
        "pixels": list(slide.shape[:2]),
        "found": sum(hits),
        "objects": len(truths),
        "mean_best_iou": round(float(ious.max(0, initial=0.0).mean()), 4),
        "false": len(hits) - sum(hits),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="images and masks that objects are cut of")
    parser.add_argument("--large", action="store_true", help="also 12000 × 9000 pixels")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cutouts, _ = read_parts(arguments.data)
    if arguments.only_large:
        row = measure(*make_slide(cutouts, LARGE), 2048)
        row["gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        print(json.dumps(row))
        return
    slide, truths = make_slide(cutouts, SMALL)
    rows = []
    for tile in TILES:
        rows.append(measure(slide, truths, tile))
        print(rows[-1], flush=True)
    if arguments.large:
        command = [
            sys.executable,
            "-m",
            "benchmarks.measure.slides",
            "--data",
            arguments.data,
            "--only-large",
        ]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(printed.splitlines()[-1]))
        print(rows[-1], flush=True)
    common.write_result(
        "slides", {"rows": rows, "versions": {"jax side": common.versions()}}, arguments.out
    )


def table(result: dict) -> str:
    """A row for each slide and side of tiles."""
    rows = []
    for row in result["rows"]:
        height, width = row["pixels"]
        shown = f"{row['tile']} × {row['tile']}" if row["tile"] else "whole"
        shown = "left to auto" if row["tile"] is None else shown
        found = f"{row['found']} of {row['objects']}"
        memory = f"{row['gib']} GiB" if "gib" in row else "–"
        iou = f"{row['mean_best_iou']:.3f}"
        rows.append([f"{width} × {height}, {shown}", found, iou, row["false"], memory])
    header = ["slide, tiles", "found", "mean best IoU", "false", "peak memory"]
    return common.table(header, rows)


if __name__ == "__main__":
    main()
