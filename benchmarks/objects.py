"""How many objects are found in pictures of several: ours against MaskCut on the same features.

    python benchmarks/objects.py --data FOLDER [--images 40]

Collages are made of photographs of weizmann_horses and ecssd in FOLDER that show one object each.
*Separate*: one to three objects, cut out by their masks, are pasted into a photograph, away from
its own object. *Touching*: one object is pasted so that it overlaps the photograph's by a few
pixels.
Nothing is fitted or chosen on masks; `collective` is fitted on the collages, unlabelled.
MaskCut (Wang et al., Cut and Learn, CVPR 2023, Sec. 3.2) is written from the paper: up to three
normalised cuts, each of what the ones before left, at τ = .15; in place of its CRF edges are
refined as ours are. It writes benchmarks/results/objects.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.linalg import eigh

from benchmarks import common
from unseg_jax.collective import evidence
from unseg_jax.collective.fitting import fit
from unseg_jax.collective.model import CollectiveModel, load_model
from unseg_jax.collective.ready import READY_MODEL
from unseg_jax.data import open_dataset
from unseg_jax.data.images import load_image, resize_image
from unseg_jax.data.masks import load_mask
from unseg_jax.postprocess import Object, find_objects
from unseg_jax.postprocess.margins import contrast, refine_margins, upsample_margins
from unseg_jax.segmenter import ImageSegmenter

SETS = {"weizmann_horses": "{}", "ecssd": "ecssd:{}"}
SIDE = 480
"""Side in pixels of a collage."""
GAP = 24
"""Pixels between separate objects: one patch and a half."""
CUTS = 3
TAU = 0.15
FOUND = 0.5
"""IoU from which on an object counts as found."""


@dataclasses.dataclass(frozen=True)
class Collage:
    """A picture of several objects.

    Attributes:
        pixels: (H, W, 3) uint8.
        objects: (H, W) bool masks, one an object.
    """

    pixels: np.ndarray
    objects: tuple[np.ndarray, ...]


# ---------------------------------------------------------------- collages


def tiles(data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Photographs of one object, (SIDE, SIDE, 3) uint8, with its mask (SIDE, SIDE) bool."""
    found = []
    for name, source in SETS.items():
        dataset = open_dataset(source.format(data / name))
        for item in dataset.items:
            mask = load_mask(item.mask, dataset.rule)
            whole = Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            mask = np.asarray(whole)
            pieces, _ = ndimage.label(mask)
            sizes = np.bincount(pieces.ravel())[1:]
            if len(sizes) == 0 or sizes.max() < 0.95 * mask.sum():
                continue
            if not 0.06 < mask.mean() < 0.5:
                continue
            found.append((resize_image(load_image(item.image), (SIDE, SIDE)), mask))
    return found


def collage(photographs: Sequence, rng: np.random.Generator, *, touch: bool) -> Collage:
    """A photograph with its object, and one to three (touching: one) pasted into it.

    Args:
        photographs: from `tiles`.
        rng: chooses photographs, sizes and places.
        touch: whether the pasted object overlaps the other by a few pixels, or keeps away from all.
    """
    count = 1 if touch else int(rng.integers(1, 4))
    chosen = rng.permutation(len(photographs))
    ground = next(index for index in chosen if photographs[index][1].mean() < 0.25)
    pixels, mask = np.array(photographs[ground][0]), photographs[ground][1]
    objects = [mask]
    for index in chosen:
        if len(objects) > count:
            break
        if index == ground:
            continue
        cut, shape = _cut_out(*photographs[index], round(SIDE * rng.uniform(0.25, 0.45)))
        taken = np.logical_or.reduce(objects)
        place = _place(taken, shape, rng, touch)
        if place is None:
            continue
        new = np.zeros(mask.shape, bool)
        new[place][shape] = True
        pixels[place][shape] = cut[shape]
        objects = [old & ~new for old in objects] + [new]
    return Collage(pixels, tuple(objects))


def _cut_out(pixels: np.ndarray, mask: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """An object's pixels (h, w, 3) and mask (h, w), scaled to a height."""
    rows, columns = np.nonzero(mask)
    box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    width = min(SIDE, max(8, round(mask[box].shape[1] * height / mask[box].shape[0])))
    shape = Image.fromarray(mask[box]).resize((width, height), Image.Resampling.NEAREST)
    return resize_image(pixels[box], (height, width)), np.asarray(shape)


def _place(taken: np.ndarray, shape: np.ndarray, rng: np.random.Generator, touch: bool):
    """Where a shape can go: a random place of those tried that fits, or None."""
    kept_away = ndimage.binary_dilation(taken, iterations=GAP)
    height, width = shape.shape
    for _ in range(3000):
        top = int(rng.integers(0, SIDE - height + 1))
        left = int(rng.integers(0, SIDE - width + 1))
        place = (slice(top, top + height), slice(left, left + width))
        overlap = int((taken[place] & shape).sum())
        if touch and 30 <= overlap <= 300:
            return place
        if not touch and not (kept_away[place] & shape).any():
            return place
    return None


# ---------------------------------------------------------------- MaskCut


def maskcut(features: np.ndarray, grid: tuple[int, int]) -> list[np.ndarray]:
    """Up to three masks (h, w) of patches, by repeated normalised cuts.

    Args:
        features: (N, D) of one image.
        grid: (h, w).
    """
    rows = _unit(features)
    weights = np.where(rows @ rows.T > TAU, 1.0, 1e-5)
    painted = np.zeros(len(rows), bool)
    masks: list[np.ndarray] = []
    for _ in range(CUTS):
        left = weights.copy()
        left[painted] = left[:, painted] = 1e-5
        degrees = np.diag(left.sum(1))
        _, vectors = eigh(degrees - left, degrees, subset_by_index=[1, 1])
        vector = vectors[:, 0]
        inside = vector > vector.mean()
        seed = int(np.argmax(np.abs(vector)))
        if not inside[seed]:
            inside = ~inside
        corners = inside.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]]
        if corners.sum() > 2:  # the background, not an object
            inside = ~inside
            seed = int(np.argmax(np.where(inside, np.abs(vector), -1)))
        pieces, _ = ndimage.label(inside.reshape(grid))
        mask = pieces == pieces.ravel()[seed]
        if pieces.ravel()[seed] == 0:
            break
        if not any(iou(mask, old) > 0.5 for old in masks):
            masks.append(mask)
        painted |= mask.ravel()
    return masks


# ---------------------------------------------------------------- metrics


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    either = (first | second).sum()
    return float((first & second).sum() / either) if either else 0.0


def whole(item: Object, size: tuple[int, int]) -> np.ndarray:
    """An object's mask in its image."""
    mask = np.zeros(size, bool)
    left, top, right, bottom = item.box
    mask[top:bottom, left:right] = item.mask
    return mask


def summarise(
    truths: Sequence[Sequence[np.ndarray]], found: Sequence[Sequence[tuple[np.ndarray, float]]]
) -> dict[str, float]:
    """Share of objects found, mean best IoU, false objects an image, and AP₅₀.

    Args:
        truths: of each image the masks of its objects.
        found: of each image (mask, score) of what was found.
    """
    best, false, ranked = [], 0, []
    for masks, given in zip(truths, found, strict=True):
        overlaps = np.array([[iou(mask, one) for one, _ in given] for mask in masks])
        overlaps = overlaps.reshape(len(masks), len(given))
        best += list(overlaps.max(1, initial=0.0))
        false += int((overlaps.max(0, initial=0.0) < FOUND).sum())
        free = np.ones(len(masks), bool)
        for index in np.argsort([-score for _, score in given], kind="stable"):
            match = int(np.argmax(np.where(free, overlaps[:, index], -1.0)))
            hit = bool(free[match] and overlaps[match, index] >= FOUND)
            free[match] &= not hit
            ranked.append((given[index][1], hit))
    ranked.sort(key=lambda pair: -pair[0])
    hits = np.cumsum([hit for _, hit in ranked])
    precision = hits / np.arange(1, len(hits) + 1)
    # The best precision at this recall or beyond, as usual.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.array([hit for _, hit in ranked], bool)
    return {
        "found": round(float(np.mean(np.array(best) >= FOUND)), 4),
        "best_iou": round(float(np.mean(best)), 4),
        "false": round(false / len(truths), 3),
        "ap50": round(float(precision[gained].sum() / len(best)), 4) if len(ranked) else 0.0,
    }


# ---------------------------------------------------------------- rows


def _own_features(model: CollectiveModel, collages: Sequence[Collage]) -> list[np.ndarray]:
    segmenter = model.segmenter()
    found = []
    for start in range(0, len(collages), 4):
        chosen = collages[start : start + 4]
        pixels = [segmenter.prepare(one.pixels) for one in chosen]
        pixels += pixels[-1:] * (4 - len(pixels))
        found.append(np.asarray(segmenter.features(np.stack(pixels)))[: len(chosen)])
    return list(np.concatenate(found))


def by_head(model: CollectiveModel, collage: Collage, features: np.ndarray):
    """Objects of a linear scorer, from features to masks at the collage's size."""
    grid = model.segmenter().grid
    margins = np.asarray(_score(model.evidence, jnp.asarray(features))).reshape(grid)
    refined = refine_margins(collage.pixels, margins, model.method)
    mask = upsample_margins(refined, collage.pixels.shape[:2])
    soft = np.clip(refined, -1, 1)
    items = find_objects(mask, evidence=soft, confidence=contrast(refined))
    return [(whole(item, mask.shape), item.score) for item in items]


@jax.jit
def _score(scorer, features):
    return evidence.score(scorer, features)[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_maskcut(
    model: CollectiveModel,
    collage: Collage,
    features: np.ndarray,
    centre: np.ndarray | None = None,
):
    """MaskCut's masks at the collage's size; earlier ones count as surer. With a centre its τ is
    read of features that are less alike, as those of its paper are."""
    found = []
    if centre is not None:
        features = _unit(features) - centre
    for number, mask in enumerate(maskcut(features, model.segmenter().grid)):
        margins = np.where(mask, 1.0, -1.0).astype(np.float32)
        refined = refine_margins(collage.pixels, margins, model.method)
        found.append((upsample_margins(refined, collage.pixels.shape[:2]), 1 / (1 + number)))
    return found


def measure(collages: Sequence[Collage], say: Callable[[str], None]) -> dict[str, dict]:
    """Rows of the table: name → scores, and seconds an image beside the backbone where cached
    features are what a row starts from."""
    truths = [one.objects for one in collages]
    fitted = fit([one.pixels for one in collages], steps=0, batch_size=4)
    ready = load_model(READY_MODEL)
    features = _own_features(fitted, collages)
    ways = {
        "collective": functools.partial(by_head, fitted),
        "the model that ships": functools.partial(by_head, ready),
        "MaskCut": functools.partial(by_maskcut, fitted),
        "MaskCut, features centred by the set": functools.partial(
            by_maskcut, fitted, centre=np.concatenate([_unit(rows) for rows in features]).mean(0)
        ),
    }
    found: dict[str, list] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for collage, rows in zip(collages, features, strict=True):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name].append(way(collage, rows))
            seconds[name].append(time.perf_counter() - start)
    result = {}
    for name in ways:
        # The first image pays for compilation.
        middle = statistics.median(seconds[name][1:] or seconds[name])
        result[name] = {**summarise(truths, found[name]), "seconds": common.round_to(middle)}
        say(f"{name}: {result[name]}")
    for name in ("tokencut", "deepcut"):
        segmented = ImageSegmenter(name, batch_size=4)([one.pixels for one in collages])
        masks = [[(one.mask, one.confidence)] if one.mask.any() else [] for one in segmented]
        result[f"{name}, its mask"] = summarise(truths, masks)
        say(f"{name}: {result[f'{name}, its mask']}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--images", type=int, default=40, help="collages of each kind")
    parser.add_argument("--pictures", type=Path, help="folder for some collages with objects drawn")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    photographs = tiles(options.data)
    result: dict = {
        "versions": {"jax side": common.versions()},
        "photographs": len(photographs),
        "kinds": {},
    }
    for kind in ("separate", "touching"):
        rng = np.random.default_rng(0)
        collages = [
            collage(photographs, rng, touch=kind == "touching") for _ in range(options.images)
        ]
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            for number, one in enumerate(collages[:6]):
                drawn = np.array(one.pixels)
                for index, mask in enumerate(one.objects):
                    edge = mask & ~ndimage.binary_erosion(mask, iterations=2)
                    drawn[edge] = ((255, 60, 60), (60, 255, 60), (80, 80, 255), (255, 255, 0))[
                        index
                    ]
                Image.fromarray(drawn).save(options.pictures / f"{kind}-{number}.png")
        print(f"{kind}: {sum(len(one.objects) for one in collages)} objects", flush=True)
        result["kinds"][kind] = {
            "images": len(collages),
            "objects": sum(len(one.objects) for one in collages),
            "rows": measure(collages, lambda line: print(line, flush=True)),
        }
    common.write_result("objects", result, options.out)
    print(table(result))


# ---------------------------------------------------------------- table


def table(result: dict) -> str:
    """One table a kind of collage."""
    blocks = []
    for kind, one in result["kinds"].items():
        lines = [
            [
                name,
                f"{100 * row['found']:.1f} %",
                f"{row['best_iou']:.3f}",
                f"{row['false']:.2f}",
                f"{100 * row['ap50']:.1f}",
                f"{1000 * row['seconds']:.0f} ms" if "seconds" in row else "",
            ]
            for name, row in one["rows"].items()
        ]
        head = [
            f"{kind}: {one['objects']} objects in {one['images']} collages",
            "found",
            "mean best IoU",
            "false an image",
            "AP₅₀",
            "beside the backbone",
        ]
        blocks.append(common.table(head, lines))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    main()
