"""How many objects of an image are found, and how well, on collages with known objects.

    python -m benchmarks objects --data FOLDER

FOLDER holds the data sets `weizmann_horses` and `ecssd`, as `unseg-jax bench --data` takes them.
Collages are made of both by `benchmarks/collages.py`, with a fixed seed; no file of them is kept.
All rows use the same backbone on the same collages, each at its own size. Times leave the backbone
and decoding out: from features to objects at the image's size, rows in turn. They are CPU seconds
of all threads, which another process on the machine changes little.
It writes benchmarks/results/objects.json; tables.py makes its tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Threads of LAPACK that wait for each other would count as work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.measure import collages, common
from benchmarks.measure.collages import Collage
from benchmarks.measure.maskcut import fast_second_eigenvector, maskcut, second_eigenvector

SETS = {"weizmann_horses": "{}", "ecssd": "ecssd:{}"}
VARIANTS = {"separate": False, "touching": True}
_IOU = 0.5
_BATCH = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """An object that a row found.

    Attributes:
        mask: (H, W) bool.
        score: how sure it is; larger is surer.
    """

    mask: np.ndarray
    score: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--count", type=int, default=40, help="collages of a set and variant")
    parser.add_argument("--timed", type=int, default=20, help="of them that are timed")
    parser.add_argument("--seed", type=int, default=0, help="of the collages")
    parser.add_argument("--cache", type=Path, help="folder for features, to be read again")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = Rows()
    result: dict[str, Any] = {
        "versions": {"jax side": common.versions()},
        "backbone": rows.backbone.name,
        "count": options.count,
        "seed": options.seed,
        "sets": {},
    }
    for name, layout in SETS.items():
        parts = collages.read_parts(layout.format(options.data / name))
        measured = result["sets"][name] = {
            "objects": len(parts[0]),
            "backgrounds": len(parts[1]),
            "variants": {},
        }
        for variant, touching in VARIANTS.items():
            made = collages.build(*parts, options.count, touching=touching, seed=options.seed)
            cache = options.cache and options.cache / f"{name}-{variant}-{options.count}.npz"
            features = rows.features(made, cache)
            measured["variants"][variant] = measure(rows, made, features, options.timed)
            print(name, variant, measured["variants"][variant], file=sys.stderr, flush=True)
    common.write_result("objects", result, options.out)
    print(table(result))


# ---------------------------------------------------------------- scores


def scores(truths: Sequence[np.ndarray], found: Sequence[Sequence[Found]]) -> dict[str, float]:
    """What the objects found in some images are worth.

    Args:
        truths: of each image (n, H, W) bool.
        found: of each image what was found, in any order.

    Returns:
        `recall`, the share of objects whose best IoU is at least .5; `best_iou`, its mean over
        objects; `false`, objects found for an image that match no true one at .5; `ap50`.
    """
    best, hits, sure = [], [], []
    for true, objects in zip(truths, found, strict=True):
        ious = np.array(
            [[common.intersection_over_union(o.mask, t) for t in true] for o in objects]
        )
        ious = ious.reshape(len(objects), len(true))
        best.extend(ious.max(0) if len(objects) else np.zeros(len(true)))
        hits.extend(match(ious, [item.score for item in objects]))
        sure.extend(item.score for item in objects)
    return {
        "recall": float(np.mean(np.asarray(best) >= _IOU)),
        "best_iou": float(np.mean(best)),
        "false": hits.count(False) / len(truths),
        "ap50": average_precision(hits, sure, len(best)),
    }


def match(ious: np.ndarray, sure: Sequence[float]) -> list[bool]:
    """Which found objects take a true one at IoU ≥ .5: the surest first, each its best of those
    that are left.

    Args:
        ious: (found, true).
        sure: of each found object.
    """
    left = np.ones(ious.shape[1], bool)
    hits = [False] * len(ious)
    for index in np.argsort(-np.asarray(sure), kind="stable"):
        open_to = np.where(left, ious[index], 0.0)
        if open_to.max(initial=0.0) >= _IOU:
            left[np.argmax(open_to)] = False
            hits[index] = True
    return hits


def average_precision(hits: Sequence[bool], sure: Sequence[float], total: int) -> float:
    """Area under precision over recall of all images together, precision made to fall (as in
    PASCAL VOC from 2010 on).

    Args:
        hits: of each found object whether it is true.
        sure: its score.
        total: how many true objects there are.
    """
    order = np.argsort(-np.asarray(sure, float), kind="stable")
    right = np.asarray(hits, float)[order]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((falling * right).sum() / total)


# ---------------------------------------------------------------- rows


class Rows:
    """What is compared: segmenters that share a backbone, and MaskCut on the features of the first.

    Attributes:
        backbone: of all rows.
        segmenters: name → segmenter, whose features a row reads.
    """

    def __init__(self) -> None:
        from unseg_jax import Segmenter
        from unseg_jax.collective.shipped import load_shipped
        from unseg_jax.registry import resolve
        from unseg_jax.segmenter import BatchSegmenter, load_for

        self.collective, backbone = load_for(resolve("collective", resize="stretch"))
        assert backbone is not None
        self.backbone = backbone
        self.ready = load_shipped(backbone=backbone).segmenter()
        self.segmenters: dict[str, BatchSegmenter] = {
            "collective": BatchSegmenter(self.collective, backbone, batch_size=_BATCH)
        }
        for name in ("deepcut", "tokencut"):
            # Its features are shared by both rows: the rule acts on masks.
            self.segmenters[name] = Segmenter(name, backbone=backbone, batch_size=_BATCH)
        self.every_piece = {
            name: Segmenter(name, backbone=backbone, largest_component=False)
            for name in ("deepcut", "tokencut")
        }

    def features(self, made: Sequence[Collage], cache: Path | None) -> dict[str, np.ndarray]:
        """Name of a segmenter → (n, N, D) float32; from the cache where they are."""
        if cache is not None and cache.is_file():
            with np.load(cache) as file:
                return dict(file)
        found = {}
        for name, segmenter in self.segmenters.items():
            batches = []
            for start in range(0, len(made), _BATCH):
                pixels = [segmenter.prepare(one.image) for one in made[start : start + _BATCH]]
                missing = _BATCH - len(pixels)
                batch = np.stack(pixels + pixels[-1:] * missing)
                batches.append(np.asarray(segmenter.features(batch)))
            found[name] = np.concatenate(batches)[: len(made)]
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, **found)
        return found

    def fit(self, features: np.ndarray) -> Any:
        """A segmenter with `collective` fitted on the features of a set."""
        import jax

        from unseg_jax.collective.model import CollectiveModel
        from unseg_jax.collective.set_scorer import fit_scorer

        grid = self.segmenters["collective"].grid
        features = features.astype(np.float16)
        images = list(features.reshape(len(features), *grid, -1))
        scorer, _ = fit_scorer(images, key=jax.random.key(0))
        return CollectiveModel(self.collective, self.backbone, scorer, None, ()).segmenter()

    def functions(
        self, made: Sequence[Collage], features: dict[str, np.ndarray], fitted: Any
    ) -> dict[str, Callable[[int], list[Found]]]:
        """Title of a row → from the number of a collage to what is found in it."""
        return {
            "collective, fitted on the collages: .objects": self._scorer(made, features, fitted),
            "the ready model: .objects": self._scorer(made, features, self.ready),
            **{
                f"{name}: .mask": self._published(
                    made, features[name], self.segmenters[name], whole=True
                )
                for name in self.every_piece
            },
            **{
                f"{name}, every piece: .objects": self._published(
                    made, features[name], segmenter, whole=False
                )
                for name, segmenter in self.every_piece.items()
            },
            MASKCUT: self._maskcut(made, features["collective"], 0.15, second_eigenvector),
            FASTER: self._maskcut(made, features["collective"], 0.3, fast_second_eigenvector),
        }

    def _scorer(self, made, features, segmenter):
        import jax

        from unseg_jax.collective.segmenter import apply_fitted

        grid, key = self.segmenters["collective"].grid, jax.random.key(0)

        @jax.jit
        def run(fitted, shown):
            return apply_fitted(segmenter.method, None, key, fitted, shown, grid, 0)

        def find(index: int) -> list[Found]:
            shown = features["collective"][index : index + 1]
            result = run(segmenter.fitted, shown)
            return _objects(segmenter.finish(jax.device_get(result), 0, made[index].image))

        return find

    def _published(self, made, features, segmenter, *, whole):
        import jax

        def find(index: int) -> list[Found]:
            result, _ = segmenter.assign(features[index : index + 1])
            found = segmenter.finish(jax.device_get(result), 0, made[index].image)
            if not whole:
                return _objects(found)
            return [Found(found.mask, found.confidence)] if found.mask.any() else []

        return find

    def _maskcut(self, made, features, tau, eigenvector):
        from unseg_jax.postprocess.margins import (
            margin_confidence,
            refine_margins,
            upsample_margins,
        )

        grid = self.segmenters["collective"].grid

        def find(index: int) -> list[Found]:
            image, found = made[index].image, []
            for piece in maskcut(features[index], grid, tau=tau, eigenvector=eigenvector):
                refined = refine_margins(image, np.where(piece, 1.0, -1.0), self.collective)
                mask = upsample_margins(refined, image.shape[:2])
                if mask.any():
                    found.append(Found(mask, margin_confidence(refined)))
            return found

        return find


MASKCUT = "MaskCut, N = 3, τ = .15"
FASTER = "MaskCut, τ = .3, faster solver"
TRIED = (FASTER,)
"""Rows that are variations of others."""


def _objects(segmentation) -> list[Found]:
    found = []
    for item in segmentation.objects:
        mask = np.zeros(segmentation.size, bool)
        left, top, right, bottom = item.box
        mask[top:bottom, left:right] = item.mask
        found.append(Found(mask, item.score))
    return found


# ---------------------------------------------------------------- measuring


def measure(
    rows: Rows,
    made: Sequence[Collage],
    features: dict[str, np.ndarray],
    timed: int,
) -> dict[str, Any]:
    """Scores of all rows on some collages, and the seconds of an image."""
    rows.fit(features["collective"])  # compiles
    start = time.process_time()
    fitted = rows.fit(features["collective"])
    fit_seconds = time.process_time() - start
    functions = rows.functions(made, features, fitted)
    truths = [one.truths for one in made]
    found = {
        title: [function(index) for index in range(len(made))]
        for title, function in functions.items()
    }
    seconds: dict[str, list[float]] = {title: [] for title in functions}
    for index in range(min(timed, len(made))):
        sides = {
            title: (lambda function=function, index=index: _cpu_seconds(lambda: function(index)))
            for title, function in functions.items()
        }
        for title, values in common.alternate(sides, 2).items():
            seconds[title].append(min(values))
    return {
        "images": len(made),
        "true_objects": sum(len(one) for one in truths),
        "fit_seconds": common.round_to(fit_seconds),
        "rows": {
            title: {
                **{name: common.round_to(value) for name, value in scores(truths, objects).items()},
                "seconds": common.round_to(statistics.median(seconds[title])),
            }
            for title, objects in found.items()
        },
    }


def _cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


# ---------------------------------------------------------------- tables


def table(result: dict[str, Any]) -> str:
    """One block a variant and set."""
    blocks = []
    for variant in VARIANTS:
        for name, measured in result["sets"].items():
            one = measured["variants"][variant]
            header = [
                f"{variant}, {name}: {one['true_objects']} objects in {one['images']} collages",
                *("found", "mean best IoU", "false an image", "AP50", "CPU time an image"),
                "of MaskCut's",
            ]
            whole = one["rows"][MASKCUT]["seconds"]
            lines = [
                [title, *_shown(row), f"{row['seconds'] / whole:.2f}"]
                for title, row in one["rows"].items()
            ]
            blocks.append(common.table(header, lines))
    fits = sorted(
        one["fit_seconds"] / one["images"]
        for measured in result["sets"].values()
        for one in measured["variants"].values()
    )
    blocks.append(
        "Times leave the backbone out. Fitting `collective` adds "
        f"{common.seconds(fits[0])} to {common.seconds(fits[-1])} for each collage of a set."
    )
    return "\n\n".join(blocks)


def _shown(row: dict[str, float]) -> list[str]:
    return [
        f"{100 * row['recall']:.1f} %",
        f"{row['best_iou']:.3f}",
        f"{row['false']:.2f}",
        f"{100 * row['ap50']:.1f}",
        common.seconds(row["seconds"]),
    ]


def short_table(result: dict[str, Any]) -> str:
    """Share found and mean best IoU of both sets together, of what the library and papers offer."""
    header = ["objects found, and their mean best IoU", *VARIANTS, "CPU time an image"]
    blocks = [measured["variants"] for measured in result["sets"].values()]
    lines = []
    for title in blocks[0]["separate"]["rows"]:
        if title in TRIED:
            continue
        cells = []
        for variant in VARIANTS:
            parts = [one[variant] for one in blocks]
            total = sum(one["true_objects"] for one in parts)
            recall, best = (
                sum(one["true_objects"] * one["rows"][title][key] for one in parts) / total
                for key in ("recall", "best_iou")
            )
            cells.append(f"{100 * recall:.0f} %, {best:.2f}")
        seconds = statistics.median(
            one[variant]["rows"][title]["seconds"] for one in blocks for variant in VARIANTS
        )
        lines.append([title, *cells, common.seconds(seconds)])
    return common.table(header, lines)


if __name__ == "__main__":
    main()
