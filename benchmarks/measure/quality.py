"""How good `collective` is beside a supervised probe, and what its size, edges and cues need.

    python -m benchmarks quality --data FOLDER [--cache FOLDER]

FOLDER holds one data set a subfolder, as `unseg-jax bench --data` takes them. The model is fitted
on all images of a set without their truths and scored on them (honest IoU). Scores are of margins
before their edges are refined, interpolated to 128 × 128: near those of `bench`, and a hundred
times as fast. It writes benchmarks/results/quality.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata, spearmanr

from benchmarks.measure import common
from benchmarks.measure.quality_sets import SIDE, SOURCES, Set, enlarge, read_set
from unseg_jax.collective import confidence, set_scorer
from unseg_jax.collective.shipped import load_shipped
from unseg_jax.export.records import UNSURE
from unseg_jax.postprocess.margins import refine_margins
from unseg_jax.registry import resolve

SEEDS = (0, 1, 2)
PROBE_IMAGES = 60
SIZES = (12, 25, 50)
"""Sizes of the set that is fitted, to show how scores grow with it."""
EDGES = {"the guided filter, as in the library": "guided", "the bilateral solver": "bilateral"}
LOST = 0.05
"""Share of images with an object that may be called empty."""


def fit(one: Set, seed: int, count: int | None = None) -> set_scorer.Scorer:
    """The scorer of a set, or of `count` of its images."""
    order = np.random.default_rng(seed).permutation(len(one.fine))
    features = one.fine if count is None else one.fine[order[:count]]
    images = list(features.reshape(len(features), *one.grid, -1))
    return set_scorer.fit_scorer(images, key=jax.random.key(seed))[0]


def margins(scorer: set_scorer.Scorer, one: Set) -> np.ndarray:
    """(n, h, w) of a set in -1 to 1, above 0 is foreground."""
    found = [_signs(scorer, None, jnp.asarray(image), one.grid)[0] for image in one.fine]
    return np.clip(np.stack(found).reshape(-1, *one.grid), -1, 1)


def score(one: Set, found: np.ndarray, refine: str = "none") -> np.ndarray:
    """(n,) IoU of margins, with their edges refined or not."""
    if refine != "none":
        method = resolve("collective", refine=refine)
        pairs = zip(one.pixels, found, strict=True)
        found = [refine_margins(image, margin, method) for image, margin in pairs]
    masks = np.stack([enlarge(margin, (SIDE, SIDE)) > 0 for margin in found])
    return iou(masks, one.truths)


def iou(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(n,) intersection over union; 1 where both are empty."""
    both = (masks & truths).sum((1, 2))
    either = (masks | truths).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def probe(one: Set, seed: int) -> np.ndarray:
    """(n − 60,) IoU of a ridge regression on 60 labelled images, scored on the others."""
    order = np.random.default_rng(seed).permutation(len(one.fine))
    seen, new = order[:PROBE_IMAGES], order[PROBE_IMAGES:]
    x = one.fine.astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    small = np.stack([enlarge(truth.astype(np.float32), one.grid) for truth in one.truths])
    rows = x[seen].reshape(-1, x.shape[-1])
    goal = small[seen].reshape(-1) - 0.5
    centre = rows.mean(0)
    gram = (rows - centre).T @ (rows - centre)
    gram += np.eye(len(gram)) * 1e-3 * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram, (rows - centre).T @ (goal - goal.mean()))
    found = ((x[new] - centre) @ weights + goal.mean()).reshape(-1, *one.grid)
    masks = np.stack([enlarge(margin, (SIDE, SIDE)) > 0 for margin in found])
    return iou(masks, one.truths[new])


def interval(scores: np.ndarray, groups: np.ndarray | None = None) -> list[float]:
    """Bootstrap 95 % interval of the mean; groups, (n,), are drawn as a whole."""
    groups = np.arange(len(scores)) if groups is None else groups
    _, groups = np.unique(groups, return_inverse=True)
    totals, counts = np.bincount(groups, scores), np.bincount(groups)
    drawn = np.random.default_rng(0).integers(len(counts), size=(2000, len(counts)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    return [round(float(side), 4) for side in np.percentile(means, (2.5, 97.5))]


def _row(one: Set, scores: list[np.ndarray], sure: list[np.ndarray] | None = None) -> dict:
    """Mean, interval and spread over seeds of (n,) IoUs; ρ with the confidences of each seed."""
    found = {
        "miou": round(float(np.mean(scores)), 4),
        "interval": interval(np.mean(scores, 0), one.groups),
        "seeds": [round(float(those.mean()), 4) for those in scores],
    }
    if sure is not None:
        ranks = [spearmanr(*pair)[0] for pair in zip(sure, scores, strict=True)]
        found["confidence"] = round(float(np.mean(ranks)), 3)
    return found


# ---------------------------------------------------------------- images without an object


RULES = ("confidence", "largest margin", "share in the object", "score in the object")


@functools.partial(jax.jit, static_argnames="grid")
def _signs(scorer, second, features, grid):
    found, scores, valid = set_scorer.score(scorer, features, grid)
    inside = valid & (found > 0)
    mean = jnp.sum(scores * inside) / jnp.maximum(inside.sum(), 1) - scorer.threshold
    sure = confidence.estimate(confidence.FITTED, scorer, features, found, grid)
    if second is not None:
        sure = confidence.second_opinion(sure, second, features, grid)
    return found, jnp.stack([sure, found.max(), -inside.mean(), mean])


def signs(
    scorer: set_scorer.Scorer,
    features: np.ndarray,
    grid: tuple[int, int],
    second: set_scorer.Scorer | None,
) -> np.ndarray:
    """(n, 4) what may tell that an image has an object, larger where it has: the confidence; the
    largest margin; minus the share of the image above its threshold, since Otsu's halves an image
    of one material; and the mean score above the image's threshold less that of the set."""
    return np.array([_signs(scorer, second, jnp.asarray(image), grid)[1] for image in features])


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive value is above a negative one, ties half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.mean() - (len(positive) + 1) / 2) / len(negative))


def no_object(values: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> dict:
    """How well images are told from crops of their background, by models fitted on the images.

    The rule is the one with the best mean AUC on the other sets, and its threshold the mean of the
    values below which `LOST` of the images of each of the others lie.

    Args:
        values: of each set and seed the signs of its images (n, 4) and of its crops (m, 4).
    """
    aucs = {
        name: [
            float(np.mean([auc(with_[:, rule], without[:, rule]) for with_, without in pairs]))
            for rule in range(len(RULES))
        ]
        for name, pairs in values.items()
    }
    result = {}
    for name, pairs in values.items():
        others = [other for other in values if other != name] or [name]
        best = int(np.argmax(np.mean([aucs[other] for other in others], 0)))
        result[name] = {
            "crops": len(pairs[0][1]),
            "auc": {rule: round(value, 3) for rule, value in zip(RULES, aucs[name], strict=True)},
            "unsure": [
                round(float(np.mean([side[:, 0] < UNSURE for side in sides])), 4)
                for sides in zip(*pairs, strict=True)
            ],
            "rule": RULES[best],
        }
        for key, rule in (("confidence", 0), ("chosen", best)):
            lost = [
                np.quantile(with_[:, rule], LOST) for other in others for with_, _ in values[other]
            ]
            result[name][f"called empty by {key}"] = [
                round(float(np.mean([side[:, rule] < np.mean(lost) for side in sides])), 4)
                for sides in zip(*pairs, strict=True)
            ]
    return result


# ---------------------------------------------------------------- the measurement


def measure(sets: dict[str, Set], seeds: tuple[int, ...], say: Callable[[str], None]) -> dict:
    """Every row of the tables."""
    result: dict = {"library": {}, "probe": {}}
    result |= {"edges": {label: {} for label in EDGES}, "sizes": {str(size): {} for size in SIZES}}
    values, ready = {}, load_shipped().scorer
    for name, one in sets.items():
        scorers = [fit(one, seed) for seed in seeds]
        # As in the library, the model that ships is asked too where it reads these features.
        second = ready if one.fine.shape[-1] == len(ready.mean) else None
        values[name] = [
            tuple(signs(scorer, shown, one.grid, second) for shown in (one.fine, one.background))
            for scorer in scorers
        ]
        found = [margins(scorer, one) for scorer in scorers]
        sure = [those[:, 0] for those, _ in values[name]]
        result["library"][name] = _row(one, [score(one, those) for those in found], sure)
        for label, refine in EDGES.items():
            result["edges"][label][name] = _row(one, [score(one, those, refine) for those in found])
        for size in SIZES:
            fewer = [score(one, margins(fit(one, seed, size), one)) for seed in seeds]
            result["sizes"][str(size)][name] = _row(one, fewer)
        labelled = [probe(one, seed).mean() for seed in seeds]
        result["probe"][name] = {"miou": round(float(np.mean(labelled)), 4)}
        say(f"{name}: {result['library'][name]}")
    return result | {"no_object": no_object(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, default=Path("quality-cache"), help="of features")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, 1 to 3")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    start = time.perf_counter()
    sets = {name: read_set(name, arguments.data, arguments.cache) for name in SOURCES}
    seeds = SEEDS[: arguments.seeds]
    result = measure(sets, seeds, lambda line: print(line, flush=True))
    result |= {
        "versions": {"jax side": common.versions()},
        "images": {name: len(one.fine) for name, one in sets.items()},
        "seeds": list(seeds),
        "seconds": round(time.perf_counter() - start, 1),
    }
    common.write_result("quality", result, arguments.out)
    print(table(result))


# ---------------------------------------------------------------- tables


def table(result: dict) -> str:
    """The library beside the probe, how scores grow with the set, what edges add, and how images
    without an object are told."""
    names = list(result["images"])
    parts = [_summary(result, names)]
    base = [float(np.mean(result["library"][name]["seeds"])) for name in names]
    for title, key, start in (
        ("fitted on", "sizes", "all images"),
        ("edges refined by", "edges", "nothing"),
    ):
        lines = [[f"**{start}**", *(f"{100 * s:.1f}" for s in (np.mean(base), *base))]]
        for label, found in result[key].items():
            gains = [np.mean(found[n]["seeds"]) - b for n, b in zip(names, base, strict=True)]
            label = f"{label} images" if key == "sizes" else label
            lines.append([label, *(f"{100 * one:+.1f}" for one in (np.mean(gains), *gains))])
        parts.append(common.table([title, "mean", *names], lines))
    parts.append(_no_object_table(result["no_object"], names))
    return "\n\n".join(parts)


def _summary(result: dict, names: list[str]) -> str:
    rows = []
    for title, key in (
        ("supervised probe, 60 labelled images", "probe"),
        ("`collective`, no labels", "library"),
    ):
        scores = [result[key][name]["miou"] for name in names]
        rows.append([title, *(f"{100 * one:.1f}" for one in (np.mean(scores), *scores))])
    spans = [result["library"][name]["interval"] for name in names]
    rows.append(["its 95 % interval", "", *(f"{100 * a:.1f}–{100 * b:.1f}" for a, b in spans)])
    seeds = [result["library"][name]["seeds"] for name in names]
    apart = [100 * (max(one) - min(one)) for one in seeds]
    rows.append(["spread over three seeds", "", *(f"{one:.1f}" for one in apart)])
    ranks = [result["library"][name]["confidence"] for name in names]
    rows.append(["confidence ρ", *(f"{r:.2f}" for r in (np.mean(ranks), *ranks))])
    return common.table(["mIoU", "mean", *names], rows)


def _no_object_table(found: dict, names: list[str]) -> str:
    rows = [["crops without an object", "", *(str(found[name]["crops"]) for name in names)]]
    for rule in RULES:
        values = [found[name]["auc"][rule] for name in names]
        rows.append([f"AUC of {rule}", *(f"{v:.2f}" for v in (np.mean(values), *values))])
    for title, key in (
        (f"confidence below {UNSURE:g}: crops / images", "unsure"),
        ("called empty by confidence: crops / images", "called empty by confidence"),
        ("called empty by the best rule: crops / images", "called empty by chosen"),
    ):
        pairs = [found[name][key] for name in names]
        pairs = [np.mean(pairs, 0), *pairs]
        rows.append([title, *(f"{crops:.0%} / {images:.0%}" for images, crops in pairs)])
    return common.table(["images and crops of their background", "mean", *names], rows)


def methods_table(result: dict, bench: Path) -> str:
    """mIoU of every published method, measured by `bench` on the same first images of each set."""
    names = list(result["images"])
    every: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    for name in names:
        for protocol in ("honest", "published"):
            path = bench / f"{name}-{protocol}-every.json"
            if path.is_file():
                for method, found in json.loads(path.read_text())["methods"].items():
                    every.setdefault(method, {}).setdefault(name, []).append(found["miou"])
                    counts[name] = found["images"]
    # What it holds of `collective` is an earlier version.
    every.pop("collective", None)
    order = sorted(every, key=lambda method: -np.mean([c[0] for c in every[method].values()]))
    rows = [
        [
            f"`{method}`",
            *(
                " / ".join(f"{100 * s:.1f}" for s in every[method].get(n, [])) or "–"
                for n in counts
            ),
        ]
        for method in order
    ]
    header = [f"{name}, {count} images" for name, count in counts.items()]
    return common.table(["mIoU, honest / published", *header], rows)


if __name__ == "__main__":
    main()
