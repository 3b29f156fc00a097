"""What each choice in the evidence of `collective` is worth, on sets that it was not made on.

    python benchmarks/quality.py --data FOLDER [--cache FOLDER]

FOLDER holds one data set a subfolder, as `unseg-jax bench --data` takes them. Every variant is
fitted on all images of a set without their truths and scored on them (honest IoU). A choice is
made on all sets but one and scored on the one left out. Scores are of margins before their edges
are refined, interpolated to 128 × 128: near those of `bench`, and a hundred times as fast.
It writes benchmarks/results/quality.json; tables.py makes the table of the documentation.
The sets are in quality_sets.py, the variants in quality_variants.py.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata, spearmanr

from benchmarks import common
from benchmarks.quality_sets import SIDE, SOURCES, Set, read_set
from benchmarks.quality_variants import (
    EDGES,
    FURTHER,
    LIBRARY,
    SIZES,
    VARIANTS,
    Choices,
    Variants,
    enlarge,
)
from unseg_jax.collective import scoring
from unseg_jax.collective.model import CollectiveModel
from unseg_jax.collective.ready import load_ready
from unseg_jax.method import override
from unseg_jax.postprocess.margins import contrast, refine_margins
from unseg_jax.registry import resolve

SEEDS = (0, 1, 2)
NOISE = 0.002
"""A change that gains less is not chosen."""
PROBE_IMAGES = 60
UNSURE = 0.2
"""Confidence below which reports call a mask unsure."""
LOST = 0.05
"""Share of images with an object that may be called empty."""


class Bench(Variants):
    """The scores of the variants."""

    def __init__(
        self, sets: dict[str, Set], seeds: tuple[int, ...] = SEEDS, cache: Path | None = None
    ):
        super().__init__(sets)
        self.seeds, self.cache = seeds, cache
        self.scores: dict[tuple, np.ndarray] = {}
        self.confidences: dict[tuple, np.ndarray] = {}

    def score(self, name: str, chosen: Choices, seed: int) -> np.ndarray:
        """(n,) IoU of each image."""
        key = (name, chosen, seed)
        if key in self.scores:
            return self.scores[key]
        # A run that is killed goes on from what it has scored. A new field leaves the rest valid.
        text = repr((name, seed, sorted(chosen.changed.items())))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        kept = None if self.cache is None else self.cache / f"scores-{digest}.npz"
        if kept is not None and kept.is_file():
            with np.load(kept) as file:
                self.scores[key], self.confidences[key] = file["scores"], file["confidences"]
        else:
            margins = np.clip(self.margins(name, chosen, seed), -1, 1)
            if chosen.refined != "none":
                method = override(resolve("collective"), refine=chosen.refined)
                pairs = zip(self.sets[name].pixels, margins, strict=True)
                margins = [refine_margins(*pair, method) for pair in pairs]
            masks = np.stack([enlarge(one, (SIDE, SIDE)) > 0 for one in margins])
            self.scores[key] = iou(masks, self.sets[name].truths)
            self.confidences[key] = np.array([contrast(one) for one in margins])
            if kept is not None:
                np.savez(kept, scores=self.scores[key], confidences=self.confidences[key])
        return self.scores[key]

    def signs(self, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """What tells images with an object, (n, 5), from crops without one, (m, 5)."""
        kept = None if self.cache is None else self.cache / f"signs-{name}-{seed}.npz"
        if kept is not None and kept.is_file():
            with np.load(kept) as file:
                return file["images"], file["crops"]
        one = self.sets[name]
        scorer, _ = scoring.fit_scorer([one.fine], [one.grid], key=jax.random.key(seed))
        found = signs(scorer, one.fine, one.grid), signs(scorer, one.background, one.grid)
        if kept is not None:
            np.savez(kept, images=found[0], crops=found[1])
        return found

    def gain(self, names: Iterable[str], chosen: Choices, base: Choices) -> float:
        """What a variant adds: mean over sets of the mean over images and its seeds."""
        gains = [
            self.score(name, chosen, seed).mean() - self.score(name, base, seed).mean()
            for name in names
            for seed in self.seeds
        ]
        return float(np.mean(gains))

    def row(self, chosen: Choices) -> dict:
        """The scores of a variant on each set."""
        found = {}
        for name, one in self.sets.items():
            scores = [self.score(name, chosen, seed) for seed in self.seeds]
            ranks = [
                spearmanr(self.confidences[name, chosen, seed], those)[0]
                for seed, those in zip(self.seeds, scores, strict=True)
            ]
            found[name] = {
                "miou": round(float(np.mean(scores)), 4),
                "interval": interval(np.mean(scores, 0), one.groups),
                "seeds": [round(float(those.mean()), 4) for those in scores],
                "confidence": round(float(np.mean(ranks)), 3),
            }
        return found


def iou(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(n,) intersection over union; 1 where both are empty."""
    both = (masks & truths).sum((1, 2))
    either = (masks | truths).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def _unlike(model: CollectiveModel, features: np.ndarray) -> bool:
    """Whether a model says that an image is unlike those that it was fitted on."""
    return float(scoring.distance(model.evidence, jnp.asarray(features))) > model.unlike


def probe(one: Set, seed: int) -> np.ndarray:
    """(n − 60,) IoU of a ridge regression on 60 labelled images, scored on the others."""
    order = np.random.default_rng(seed).permutation(len(one.fine))
    seen, new = order[:PROBE_IMAGES], order[PROBE_IMAGES:]
    x = one.fine.astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    height, width = one.grid
    small = np.stack([enlarge(truth.astype(np.float32), one.grid) for truth in one.truths])
    rows = x[seen].reshape(-1, x.shape[-1])
    goal = small[seen].reshape(-1) - 0.5
    centre = rows.mean(0)
    gram = (rows - centre).T @ (rows - centre)
    gram += np.eye(len(gram)) * 1e-3 * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram, (rows - centre).T @ (goal - goal.mean()))
    found = ((x[new] - centre) @ weights + goal.mean()).reshape(-1, height, width)
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


def choose(
    bench: Bench, names: list[str], changes: dict[str, dict], base: Choices
) -> tuple[str | None, Choices]:
    """The change that is best on some sets, if it gains more than noise does."""
    gains = {label: bench.gain(names, Choices(**change), base) for label, change in changes.items()}
    label = max(gains, key=gains.__getitem__)
    if gains[label] < NOISE:
        return None, base
    return label, Choices(**changes[label])


# ---------------------------------------------------------------- images without an object


RULES = ("confidence", "largest margin", "share in the object", "score in the object", "distance")


@functools.partial(jax.jit, static_argnames="grid")
def _signs(scorer, features, grid):
    margins, scores, valid = scoring.score(scorer, features, grid)
    inside = valid & (margins > 0)
    score = jnp.sum(scores * inside) / jnp.maximum(inside.sum(), 1) - scorer.threshold
    distance = scoring.distance(scorer, features)
    return margins, jnp.stack([margins.max(), inside.mean(), score, -distance])


def signs(scorer: scoring.Scorer, features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(n, 5) what may tell that an image has an object, larger where it has: the confidence; the
    largest margin; minus the share of the image above its threshold, since Otsu's halves an image
    of one material; the mean score above the image's threshold less the threshold of the set; and
    minus the distance from the set."""
    found = []
    for image in features:
        margins, others = _signs(scorer, jnp.asarray(image), grid)
        largest, share, score, near = np.asarray(others)
        found.append([contrast(np.asarray(margins)), largest, -share, score, near])
    return np.array(found)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive value is above a negative one, ties half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.mean() - (len(positive) + 1) / 2) / len(negative))


def no_object(bench: Bench) -> dict:
    """How well images are told from crops of their background, by models fitted on the images.

    The rule is the one with the best mean AUC on the other sets, and its threshold the mean of the
    values below which `LOST` of the images of each of the others lie.
    """
    values = {name: [bench.signs(name, seed) for seed in bench.seeds] for name in bench.sets}
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
            "crops": len(bench.sets[name].background),
            "auc": {rule: round(value, 3) for rule, value in zip(RULES, aucs[name], strict=True)},
            "unsure": [
                round(float(np.mean([side[:, 0] < UNSURE for side in sides])), 4)
                for sides in zip(*pairs, strict=True)
            ],
            "rule": RULES[best],
        }
        for key, rule in (("confidence", 0), ("chosen", best)):
            limit = np.mean(
                [
                    np.quantile(with_[:, rule], LOST)
                    for other in others
                    for with_, _ in values[other]
                ]
            )
            result[name][f"called empty by {key}"] = [
                round(float(np.mean([side[:, rule] < limit for side in sides])), 4)
                for sides in zip(*pairs, strict=True)
            ]
    return result


# ---------------------------------------------------------------- the measurement


def measure(bench: Bench, say: Callable[[str], None]) -> dict:
    """Every row of the tables."""
    names = list(bench.sets)
    linear, library = Choices(), Choices(**LIBRARY)
    sizes = {str(count): {**LIBRARY, "fitted_on": count} for count in SIZES}
    parts = {"variants": VARIANTS, "further": FURTHER, "edges": EDGES, "sizes": sizes}
    changes = [{}, *(change for part in parts.values() for change in part.values())]
    for seed in bench.seeds:
        for name in names:  # All of a set together: they share what is kept of it.
            for change in changes:
                bench.score(name, Choices(**change), seed)
            say(f"seed {seed}: scored {name}")
    result: dict = {"linear": bench.row(linear), "library": bench.row(library), "left_out": {}}
    say(f"the library: {result['library']}")
    for part, changes in parts.items():
        base = linear if part == "variants" else library
        result[part] = {}
        for label, change in changes.items():
            chosen = Choices(**change)
            result[part][label] = bench.row(chosen)
            say(f"{part}, {label}: {bench.gain(names, chosen, base):+.4f}")
    result["no_object"] = no_object(bench)
    say(f"no object: {result['no_object']}")
    ready = load_ready()
    result["unlike"] = {
        name: round(float(np.mean([_unlike(ready, image) for image in one.fine])), 4)
        for name, one in bench.sets.items()
        if one.fine.shape[-1] == len(ready.evidence.mean)
    }
    result["probe"] = {}
    for name, one in bench.sets.items():
        found = [probe(one, seed) for seed in bench.seeds]
        result["probe"][name] = {"miou": round(float(np.mean([s.mean() for s in found])), 4)}
    for left in names:
        others = [name for name in names if name != left]
        taken, chosen = choose(bench, others, VARIANTS, linear)
        further = None
        if chosen == library:
            further, chosen = choose(bench, others, FURTHER, library)
        found = np.mean([bench.score(left, chosen, seed) for seed in bench.seeds], 0)
        result["left_out"][left] = {
            "change": taken,
            "further": further,
            "miou": round(float(found.mean()), 4),
            "interval": interval(found, bench.sets[left].groups),
            "library": result["library"][left]["miou"],
        }
        say(f"without {left}: {taken}, {further} {found.mean():.4f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--cache", type=Path, default=Path("quality-cache"), help="of features")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, 1 to 3")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    start = time.perf_counter()
    sets = {name: read_set(name, arguments.data, arguments.cache) for name in SOURCES}
    bench = Bench(sets, SEEDS[: arguments.seeds], arguments.cache)
    result = measure(bench, lambda line: print(line, flush=True))
    result |= {
        "versions": {"jax side": common.versions()},
        "images": {name: len(one.fine) for name, one in sets.items()},
        "seeds": list(bench.seeds),
        "seconds": round(time.perf_counter() - start, 1),
    }
    common.write_result("quality", result, arguments.out)
    print(table(result))


# ---------------------------------------------------------------- tables


def table(result: dict) -> str:
    """What is chosen without a set, what each choice is worth, how scores grow with the set, and
    how images without an object are told."""
    names = list(result["images"])
    parts = [_left_out_table(result, names)]
    for title, key in (("The change that is chosen", "change"), ("On top of it", "further")):
        taken = "; ".join(
            f"without {name}: {one[key] or 'nothing'}" for name, one in result["left_out"].items()
        )
        parts.append(f"{title} {taken}.")

    def gains(scores: dict, base: str) -> list[float]:
        found = [
            float(np.mean(scores[name]["seeds"]) - np.mean(result[base][name]["seeds"]))
            for name in names
        ]
        return [float(np.mean(found)), *found]

    for title, key, base, start in (
        ("mIoU, and what a change adds", "variants", "linear", "the linear scorer alone"),
        ("and on top of it", "further", "library", "the library"),
        ("what is done to the margins after", "edges", "library", "nothing"),
        ("fitted on", "sizes", "library", "all images"),
    ):
        scores = [float(np.mean(result[base][name]["seeds"])) for name in names]
        lines = [[f"**{start}**", *(f"{100 * s:.1f}" for s in (np.mean(scores), *scores))]]
        rows = [(label, gains(found, base)) for label, found in result[key].items()]
        if key == "variants":
            rows.sort(key=lambda row: -row[1][0])
        for label, found in rows:
            label = f"{label} images" if key == "sizes" else label
            lines.append([label, *(f"{100 * one:+.1f}" for one in found)])
        parts.append(common.table([title, "mean", *names], lines))
    parts.append(_no_object_table(result["no_object"], names))
    return "\n\n".join(parts)


def _left_out_table(result: dict, names: list[str]) -> str:
    rows = []
    for title, pick in (
        ("supervised probe, 60 labelled images", lambda name: result["probe"][name]["miou"]),
        ("the linear scorer alone", lambda name: result["linear"][name]["miou"]),
        ("the library", lambda name: result["library"][name]["miou"]),
        ("chosen on the other four sets", lambda name: result["left_out"][name]["miou"]),
    ):
        scores = [pick(name) for name in names]
        rows.append([title, *(f"{100 * score:.1f}" for score in (np.mean(scores), *scores))])
    spans = [result["library"][name]["interval"] for name in names]
    rows.append(["95 % of the library", "", *(f"{100 * a:.1f}–{100 * b:.1f}" for a, b in spans)])
    seeds = [result["library"][name]["seeds"] for name in names]
    apart = [100 * (max(one) - min(one)) for one in seeds]
    rows.append(["seeds of the library apart by", "", *(f"{one:.1f}" for one in apart)])
    ranks = [result["library"][name]["confidence"] for name in names]
    rows.append(["confidence ρ of the library", *(f"{r:.2f}" for r in (np.mean(ranks), *ranks))])
    said = [result["unlike"].get(name, float("nan")) for name in names]
    rows.append(["called unlike by the model that ships", "", *(f"{one:.0%}" for one in said)])
    return common.table(["mIoU", "mean", *names], rows)


def _no_object_table(found: dict, names: list[str]) -> str:
    rows = [["crops without an object", "", *(str(found[name]["crops"]) for name in names)]]
    for rule in RULES:
        values = [found[name]["auc"][rule] for name in names]
        rows.append([f"AUC of {rule}", *(f"{v:.2f}" for v in (np.mean(values), *values))])
    values = [found[name]["auc"][found[name]["rule"]] for name in names]
    title = "AUC of the rule chosen on the other four sets"
    rows.append([title, *(f"{v:.2f}" for v in (np.mean(values), *values))])
    for title, key in (
        (f"confidence below {UNSURE:g}: crops / images", "unsure"),
        ("called empty by confidence: crops / images", "called empty by confidence"),
        ("called empty by the chosen rule: crops / images", "called empty by chosen"),
    ):
        pairs = [found[name][key] for name in names]
        pairs = [np.mean(pairs, 0), *pairs]
        rows.append([title, *(f"{crops:.0%} / {images:.0%}" for images, crops in pairs)])
    chosen = "; ".join(f"without {name}: {found[name]['rule']}" for name in names)
    body = common.table(["images and crops of their background", "mean", *names], rows)
    return f"{body}\n\nThe rule that is chosen {chosen}."


def methods_table(result: dict, bench: Path) -> str:
    """The scores above beside those of all methods, which were measured by `bench`."""
    names = list(result["images"])

    def row(title: str, cells: dict[str, list[float]]) -> list[str]:
        shown = [
            " / ".join(f"{100 * score:.1f}" for score in cells[name]) if name in cells else "–"
            for name in names
        ]
        return [title, *shown]

    rows = [
        row("supervised probe, 60 labelled images", _scores(result["probe"])),
        row("chosen on the other four sets", _scores(result["left_out"])),
        row("the library", _scores(result["library"])),
    ]
    every: dict[str, dict[str, list[float]]] = {}
    whole: dict[str, list[float]] = {}
    for name in names:
        for protocol in ("honest", "published"):
            path = bench / f"{name}-{protocol}-every.json"
            if path.is_file():
                for method, found in json.loads(path.read_text())["methods"].items():
                    every.setdefault(method, {}).setdefault(name, []).append(found["miou"])
        path = bench / f"{name}-all.json"
        if path.is_file():
            whole[name] = [json.loads(path.read_text())["methods"]["collective"]["miou"]]
    rows.append(row("`collective`, all images at full size", whole))
    # An earlier version of `collective` is among them; its row is the one before.
    listed = {method: cells for method, cells in every.items() if method != "collective"}
    order = sorted(listed, key=lambda method: -np.mean([c[0] for c in listed[method].values()]))
    rows += [row(f"`{method}`", listed[method]) for method in order]
    return common.table(["mIoU, honest / published", *names], rows)


def _scores(found: dict) -> dict[str, list[float]]:
    return {name: [one["miou"]] for name, one in found.items()}


if __name__ == "__main__":
    main()
