"""What each choice in the evidence of `collective` is worth, on sets that it was not made on.

    python benchmarks/quality.py --data FOLDER [--cache FOLDER]

FOLDER holds one data set a subfolder, as `unseg-jax bench --data` takes them. Every variant is
fitted on all images of a set without their truths and scored on them (honest IoU). A choice is
made on all sets but one and scored on the one left out. Scores are of margins before their edges
are refined, interpolated to 128 × 128: near those of `bench`, and a hundred times as fast.
It writes benchmarks/results/quality.json; tables.py makes the table of the documentation.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import bootstrap, spearmanr

from benchmarks import common
from unseg_jax.collective import evidence
from unseg_jax.collective.model import CollectiveModel
from unseg_jax.collective.ready import load_ready
from unseg_jax.data import open_dataset
from unseg_jax.data.images import load_image, resize_image
from unseg_jax.data.masks import load_mask
from unseg_jax.methods import override, resolve
from unseg_jax.postprocess.margins import contrast
from unseg_jax.segmenter import BatchSegmenter, load_for

SIDE = 128
SEEDS = (0, 1, 2)
NOISE = 0.002
"""A change that gains less is not chosen."""
PROBE_IMAGES = 60
COARSE = 196
"""Side of the image that coarse features are taken of: half that of the method."""
SOURCES = {
    "weizmann_horses": "{}",
    "isic2018": "{}",
    "kvasir-seg": "{}",
    "cvc-clinicdb": "{}",
    "ecssd": "ecssd:{}",
}


@dataclasses.dataclass(frozen=True)
class Set:
    """The features and truths of a data set.

    Attributes:
        fine: (n, N, D) float16 patch features at the method's size.
        coarse: (n, M, D) float16 patch features of the image at half that size.
        truths: (n, SIDE, SIDE) bool.
        grid, coarse_grid: patches, (h, w).
    """

    fine: np.ndarray
    coarse: np.ndarray
    truths: np.ndarray
    grid: tuple[int, int]
    coarse_grid: tuple[int, int]


def read_set(name: str, data: Path, cache: Path) -> Set:
    """Features of a set, from the cache where they are."""
    path = cache / f"{name}.npz"
    if not path.is_file():
        dataset = open_dataset(SOURCES[name].format(data / name))
        items = dataset.items
        method, backbone = load_for(resolve("collective"), "auto", dtype="float32")
        halved, _ = load_for(override(method, image_size=COARSE), backbone, dtype="float32")
        features = {}
        for key, one in (("fine", method), ("coarse", halved)):
            segmenter = BatchSegmenter(one, backbone, batch_size=4)
            found = []
            for start in range(0, len(items), 4):
                chosen = items[start : start + 4]
                pixels = [segmenter.prepare(load_image(item.image)) for item in chosen]
                pixels += pixels[-1:] * (4 - len(pixels))
                found.append(np.asarray(segmenter.features(np.stack(pixels)), np.float16))
            features[key] = np.concatenate(found)[: len(items)]
            features[f"{key}_grid"] = np.array(segmenter.grid)
        truths = []
        for item in items:
            mask = load_mask(item.mask, dataset.rule)
            small = resize_image(np.repeat(mask[..., None] * np.uint8(255), 3, 2), (SIDE, SIDE))
            truths.append(small[..., 0] > 127)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, truths=np.stack(truths), **features)
    with np.load(path) as file:
        grids = (tuple(int(side) for side in file[key]) for key in ("fine_grid", "coarse_grid"))
        return Set(file["fine"], file["coarse"], file["truths"], *grids)


@dataclasses.dataclass(frozen=True)
class Choices:
    """Every choice that is tried; the defaults are what the library does.

    Attributes:
        cues: whose sum is the evidence of an image; see `CUES`.
        tau: affinities below it are cut, "quantile" for the image's own .6 quantile.
        nearest: patches of the border that "apart" compares with.
        frame: whether clusters along the border are taken away.
        clusters: of the set, from which frames are told.
        components: principal components that the scorer reads.
        whitened: whether they are scaled to unit variance.
        ridge: of the regression, a share of the mean variance.
        rounds: in which the scorer learns from its own labels.
        threshold: "own" Otsu's of each image, "set" that of all scores, "both" their mean.
        head: "linear", or "conv": a 3 × 3 convolution with 32 hidden units, trained on what the
            linear one is sure of, with flips, as the mean of two of them on halves of the set.
        coarse: weight of the margins of the image at half its size.
        diffused: steps of a random walk on the image's graph that smooth the margins.
        fitted_on: images that are fitted; None for all.
    """

    cues: tuple[str, ...] = ("unlike", "apart", "cut")
    tau: float | str = 0.2
    nearest: int = 5
    frame: bool = True
    clusters: int = 16
    components: int = 96
    whitened: bool = False
    ridge: float = 0.02
    rounds: int = 2
    threshold: str = "own"
    head: str = "linear"
    coarse: float = 0.0
    diffused: int = 0
    fitted_on: int | None = None


VARIANTS: dict[str, dict] = {
    "the border alone: unlike": {"cues": ("unlike",)},
    "the border alone: apart": {"cues": ("apart",)},
    "the cut alone": {"cues": ("cut",)},
    "without unlike": {"cues": ("apart", "cut")},
    "without apart": {"cues": ("unlike", "cut")},
    "without the cut": {"cues": ("unlike", "apart")},
    "a second cut of what remains": {"cues": ("unlike", "apart", "cut", "again")},
    "a cut of features centred by the set": {"cues": ("unlike", "apart", "centred")},
    "the distance from the centre as well": {"cues": ("unlike", "apart", "cut", "centre")},
    "the nearest border patch": {"nearest": 1},
    "20 nearest border patches": {"nearest": 20},
    "τ = 0": {"tau": 0.0},
    "τ = 0.4": {"tau": 0.4},
    "τ = .6 quantile of the image": {"tau": "quantile"},
    "no frame is taken away": {"frame": False},
    "8 clusters for the frame": {"clusters": 8},
    "32 clusters for the frame": {"clusters": 32},
    "48 components": {"components": 48},
    "192 components": {"components": 192},
    "whitened components": {"whitened": True},
    "ridge 0.002": {"ridge": 0.002},
    "ridge 0.2": {"ridge": 0.2},
    "no learning from its own labels": {"rounds": 0},
    "4 rounds of its own labels": {"rounds": 4},
    "one threshold for the set": {"threshold": "set"},
    "mean of both thresholds": {"threshold": "both"},
    "a convolution as the head": {"head": "conv"},
    "two scales, the coarse one half": {"coarse": 0.5},
    "margins smoothed on the graph, 1 step": {"diffused": 1},
    "margins smoothed on the graph, 3 steps": {"diffused": 3},
}
SIZES = (12, 25, 50, 100)
"""Sizes of the set that is fitted, to show how scores grow with it."""


@functools.partial(jax.jit, static_argnames=("grid", "tau", "nearest"))
def _cues(features, projection, valid, *, grid, tau, nearest):
    """Every cue of one image, standardised: name → (N,)."""
    x, whole = evidence.project(features, projection)
    border = evidence.border_of(valid.reshape(grid)).ravel()
    share = border.astype(jnp.float32) / jnp.maximum(border.sum(), 1)
    cosines = whole @ whole.T
    unlike = -(cosines @ share)

    def cut(similarity, kept, start):
        least = jnp.quantile(similarity[::4, ::4], 0.6) if tau == "quantile" else tau
        # `_normalised_cut` cuts below its own τ, so ours is moved there.
        moved = jnp.where(similarity < least, -1.0, jnp.maximum(similarity, evidence._TAU))
        return evidence._normalised_cut(moved, kept, share * kept, start)

    first = cut(cosines, valid, unlike)
    mean = jnp.sum(first * valid) / jnp.maximum(valid.sum(), 1)
    remaining = valid & ~(first > mean)
    second = cut(cosines, remaining, jnp.where(remaining, unlike, 0.0))
    rows, columns = jnp.meshgrid(*(jnp.linspace(-1, 1, side) for side in grid), indexing="ij")
    found = {
        "unlike": unlike,
        "apart": -evidence.nearest_mean(cosines, border, nearest),
        "cut": first,
        "again": jnp.where(remaining, second, jnp.max(second)),
        "centred": cut(x @ x.T, valid, unlike),
        "centre": -jnp.hypot(rows, columns).ravel(),
    }
    return {name: evidence._standardise(values, valid) for name, values in found.items()}


CUES = ("unlike", "apart", "cut", "again", "centred", "centre")


class Bench:
    """The sets, with everything computed once that several variants share."""

    def __init__(
        self, sets: dict[str, Set], seeds: tuple[int, ...] = SEEDS, cache: Path | None = None
    ):
        self.sets, self.seeds, self.cache = sets, seeds, cache
        self.scores: dict[tuple, np.ndarray] = {}
        self.confidences: dict[tuple, np.ndarray] = {}

    @functools.lru_cache(maxsize=24)  # noqa: B019 - it lives as long as the program
    def prepared(self, name, scale, components, clusters, frame, seed, fitted_on):
        """Projection, coordinates and valid patches of a set, and which images are fitted."""
        features = getattr(self.sets[name], scale)
        grid = self.sets[name].grid if scale == "fine" else self.sets[name].coarse_grid
        key = jax.random.key(seed)
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (2,), jnp.uint32)))
        fitted = np.arange(len(features))
        if fitted_on is not None:
            fitted = np.random.default_rng(seed).permutation(len(features))[:fitted_on]
        projection = evidence.fit_projection(features[fitted], components, rng)
        project = jax.jit(lambda one: evidence.project(one, projection)[0])
        x = np.stack([np.asarray(project(jnp.asarray(one))) for one in features])
        valid = np.ones(x.shape[:2], bool)
        if frame:
            rows = x[fitted].reshape(-1, x.shape[-1])
            centres = evidence.fit_centres(rows, clusters, jax.random.fold_in(key, 1))
            labels = np.asarray(evidence.nearest_centre(jnp.asarray(x), centres))
            ratios = evidence.frame_clusters(labels[fitted], grid, clusters)
            framing = ratios > evidence._FRAME_RATIO
            if framing[labels[fitted]].mean() <= 0.5:
                valid = ~framing[labels]
        return projection, x, valid, grid, fitted

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def cues(self, name, scale, components, clusters, frame, seed, fitted_on, tau, nearest):
        """Cue → (n, N)."""
        projection, _, valid, grid, _ = self.prepared(
            name, scale, components, clusters, frame, seed, fitted_on
        )
        features = getattr(self.sets[name], scale)
        found = [
            _cues(
                jnp.asarray(one), projection, jnp.asarray(kept), grid=grid, tau=tau, nearest=nearest
            )
            for one, kept in zip(features, valid, strict=True)
        ]
        return {cue: np.stack([np.asarray(one[cue]) for one in found]) for cue in CUES}

    def margins(self, name: str, chosen: Choices, seed: int, scale: str = "fine") -> np.ndarray:
        """(n, h, w) of a set, above 0 is foreground."""
        shared = (name, scale, chosen.components, chosen.clusters, chosen.frame, seed)
        shared += (chosen.fitted_on,)
        _, x, valid, grid, fitted = self.prepared(*shared)
        cues = self.cues(*shared, chosen.tau, chosen.nearest)
        target = sum(cues[cue] for cue in chosen.cues)
        if chosen.whitened:
            x = x / (x[valid].std(0) + 1e-6)
        scores, threshold = _regress(x, valid, target, fitted, chosen)
        if chosen.head == "conv":
            scores = _train_convolutions(x, valid, scores - _own(scores, valid), grid, seed)
            threshold = float(
                evidence.otsu(jnp.asarray(scores[valid]), jnp.ones(valid.sum(), bool))
            )
        limits = {"own": _own(scores, valid), "set": np.full((len(x), 1), threshold)}
        limits["own"] = np.where(np.isfinite(limits["own"]), limits["own"], threshold)
        limits["both"] = (limits["own"] + limits["set"]) / 2
        found = np.where(valid, scores - limits[chosen.threshold], evidence._FRAME_SCORE)
        found = found.reshape(-1, *grid).astype(np.float32)
        if scale == "fine" and chosen.coarse:
            other = self.margins(name, chosen, seed, "coarse")
            other = np.stack([_enlarge(np.clip(one, -1, 1), grid) for one in other])
            found = (1 - chosen.coarse) * np.clip(found, -1, 1) + chosen.coarse * other
        if scale == "fine" and chosen.diffused:
            found = np.stack(
                [
                    np.asarray(_diffuse(jnp.asarray(rows), jnp.asarray(one), chosen.diffused))
                    for rows, one in zip(x, found, strict=True)
                ]
            )
        return found

    def score(self, name: str, chosen: Choices, seed: int) -> np.ndarray:
        """(n,) IoU of each image."""
        key = (name, chosen, seed)
        if key in self.scores:
            return self.scores[key]
        # A run that is killed goes on from what it has scored.
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        kept = None if self.cache is None else self.cache / f"scores-{digest}.npz"
        if kept is not None and kept.is_file():
            with np.load(kept) as file:
                self.scores[key], self.confidences[key] = file["scores"], file["confidences"]
        else:
            margins = np.clip(self.margins(name, chosen, seed), -1, 1)
            masks = np.stack([_enlarge(one, (SIDE, SIDE)) > 0 for one in margins])
            self.scores[key] = iou(masks, self.sets[name].truths)
            self.confidences[key] = np.array([contrast(one) for one in margins])
            if kept is not None:
                np.savez(kept, scores=self.scores[key], confidences=self.confidences[key])
        return self.scores[key]

    def mean(self, names, chosen: Choices) -> float:
        """Mean over sets of the mean over images and seeds."""
        scores = [self.score(name, chosen, seed).mean() for name in names for seed in self.seeds]
        return float(np.mean(scores))


def iou(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(n,) intersection over union; 1 where both are empty."""
    both = (masks & truths).sum((1, 2))
    either = (masks | truths).sum((1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def _enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _own(scores: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.asarray(evidence._otsu_rows(jnp.asarray(scores), jnp.asarray(valid)))[:, None]


def _regress(x, valid, target, fitted, chosen):
    """Scores (n, N) of all images and Otsu's threshold of those that were fitted."""
    kept = np.zeros_like(valid)
    kept[fitted] = valid[fitted]
    rows = x[kept]
    centre = rows.mean(0)
    rows = rows - centre
    gram = (rows.T @ rows).astype(np.float64)
    gram += np.eye(len(gram)) * (chosen.ridge * np.trace(gram) / len(gram) + 1e-9)
    for left in range(chosen.rounds, -1, -1):
        regressed = target[kept].astype(np.float64)
        weights = np.linalg.solve(gram, rows.T @ (regressed - regressed.mean()))
        weights = (weights / (np.std(rows @ weights) + 1e-9)).astype(np.float32)
        scores = (x - centre) @ weights
        threshold = float(evidence.otsu(jnp.asarray(scores[kept]), jnp.ones(len(rows), bool)))
        if left:
            own = _own(scores, valid)
            own = np.where(np.isfinite(own), own, threshold)
            target = scores > 0.5 * (threshold + own)
    return scores, threshold


@functools.partial(jax.jit, static_argnames="steps")
def _diffuse(x, margins, steps):
    """Random walk with weights exp(cosine / .1): like patches get like margins."""
    walk = jax.nn.softmax(x @ x.T / 0.1, -1)
    flat = jnp.clip(margins.ravel(), -1, 1)
    for _ in range(steps):
        flat = walk @ flat
    return flat.reshape(margins.shape)


def _train_convolutions(x, valid, margins, grid, seed, steps=300, hidden=32):
    """Scores (n, N) of unit variance: the mean of two convolutions trained on halves of the set."""
    import optax

    images = jnp.asarray(x.reshape(-1, *grid, x.shape[-1]))
    sure = np.where(valid, np.clip(margins, -1, 1), -1.0).reshape(-1, *grid)
    sure = jnp.asarray(np.nan_to_num(sure), jnp.float32)

    def apply(params, batch):
        shown = jax.lax.conv_general_dilated(
            batch, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(shown + params["b"]) @ params["v"] + params["c"]

    def loss(params, batch, goal):
        logits = apply(params, batch)
        return jnp.mean(jnp.abs(goal) * jnp.logaddexp(0, -jnp.sign(goal) * logits))

    optimiser = optax.adamw(3e-3, weight_decay=1e-2)

    @jax.jit
    def step(params, state, batch, goal):
        gradient = jax.grad(loss)(params, batch, goal)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    total = 0.0
    for half in (order[::2], order[1::2]):
        scale = np.sqrt(2 / (9 * x.shape[-1]))
        params = {
            "w": jnp.asarray(rng.normal(size=(3, 3, x.shape[-1], hidden)) * scale, jnp.float32),
            "b": jnp.zeros(hidden),
            "v": jnp.asarray(rng.normal(size=hidden) / np.sqrt(hidden), jnp.float32),
            "c": jnp.zeros(()),
        }
        state = optimiser.init(params)
        for _ in range(steps):
            drawn = rng.choice(half, 16)
            batch, goal = images[drawn], sure[drawn]
            if rng.random() < 0.5:
                batch, goal = batch[:, :, ::-1], goal[:, :, ::-1]
            params, state = step(params, state, batch, goal)
        total = total + np.concatenate(
            [np.asarray(apply(params, images[i : i + 16])) for i in range(0, len(images), 16)]
        )
    scores = np.asarray(total).reshape(valid.shape)
    return (scores / (scores[valid].std() + 1e-9)).astype(np.float32)


def _unlike(model: CollectiveModel, features: np.ndarray) -> bool:
    """Whether a model says that an image is unlike those that it was fitted on."""
    return float(evidence.distance(model.evidence, jnp.asarray(features))) > model.unlike


def probe(one: Set, seed: int) -> np.ndarray:
    """(n − 60,) IoU of a ridge regression on 60 labelled images, scored on the others."""
    order = np.random.default_rng(seed).permutation(len(one.fine))
    seen, new = order[:PROBE_IMAGES], order[PROBE_IMAGES:]
    x = one.fine.astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    height, width = one.grid
    small = np.stack([_enlarge(truth.astype(np.float32), one.grid) for truth in one.truths])
    rows = x[seen].reshape(-1, x.shape[-1])
    goal = small[seen].reshape(-1) - 0.5
    centre = rows.mean(0)
    gram = (rows - centre).T @ (rows - centre)
    gram += np.eye(len(gram)) * 1e-3 * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram, (rows - centre).T @ (goal - goal.mean()))
    found = ((x[new] - centre) @ weights + goal.mean()).reshape(-1, height, width)
    masks = np.stack([_enlarge(margin, (SIDE, SIDE)) > 0 for margin in found])
    return iou(masks, one.truths[new])


def interval(scores: np.ndarray) -> list[float]:
    """Bootstrap 95 % interval of the mean over images."""
    found = bootstrap((scores,), np.mean, n_resamples=2000, method="percentile", rng=0)
    return [round(float(side), 4) for side in found.confidence_interval]


def choose(bench: Bench, names: list[str]) -> tuple[str | None, Choices]:
    """The change that is best on some sets, if it gains more than noise does."""
    default = Choices()
    means = {
        label: bench.mean(names, dataclasses.replace(default, **change))
        for label, change in VARIANTS.items()
    }
    label = max(means, key=means.get)
    if means[label] < bench.mean(names, default) + NOISE:
        return None, default
    return label, dataclasses.replace(default, **VARIANTS[label])


def measure(bench: Bench, say: Callable[[str], None]) -> dict:
    """Every row of the table."""
    names = list(bench.sets)
    default = Choices()

    def row(chosen: Choices) -> dict:
        means = {}
        for name in names:
            found = [bench.score(name, chosen, seed) for seed in bench.seeds]
            means[name] = {
                "miou": round(float(np.mean(found)), 4),
                "interval": interval(np.mean(found, 0)),
                "confidence": round(
                    float(
                        np.mean(
                            [
                                spearmanr(bench.confidences[name, chosen, seed], one)[0]
                                for seed, one in zip(bench.seeds, found, strict=True)
                            ]
                        )
                    ),
                    3,
                ),
            }
        return means

    result: dict = {"default": row(default), "variants": {}, "sizes": {}, "left_out": {}}
    say(f"default {result['default']}")
    for label, change in VARIANTS.items():
        result["variants"][label] = row(dataclasses.replace(default, **change))
        gain = bench.mean(names, dataclasses.replace(default, **change)) - bench.mean(
            names, default
        )
        say(f"{label}: {gain:+.4f}")
    for count in SIZES:
        result["sizes"][str(count)] = row(dataclasses.replace(default, fitted_on=count))
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
        taken, chosen = choose(bench, [name for name in names if name != left])
        found = np.mean([bench.score(left, chosen, seed) for seed in bench.seeds], 0)
        result["left_out"][left] = {
            "change": taken,
            "miou": round(float(found.mean()), 4),
            "interval": interval(found),
            "default": result["default"][left]["miou"],
        }
        say(f"without {left}: {taken} {found.mean():.4f}")
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


# ---------------------------------------------------------------- table


def table(result: dict) -> str:
    """What each choice is worth, what is chosen without a set, and how scores grow with the set."""
    names = list(result["images"])
    default = {name: one["miou"] for name, one in result["default"].items()}

    def mean(scores) -> float:
        return float(np.mean(list(scores)))

    def gains(scores: dict) -> list[str]:
        found = [scores[name]["miou"] - default[name] for name in names]
        return [f"{100 * gain:+.1f}" for gain in (mean(found), *found)]

    shown = {name: f"{100 * default[name]:.1f}" for name in names}
    lines = [["**as it is**", f"{100 * mean(default.values()):.1f}", *shown.values()]]
    order = sorted(
        result["variants"].items(),
        key=lambda item: -mean(one["miou"] for one in item[1].values()),
    )
    lines += [[label, *gains(scores)] for label, scores in order]
    choices = common.table(["mIoU, and what a change adds", "mean", *names], lines)
    rows = []
    for title, pick in (
        ("supervised probe, 60 labelled images", lambda name: result["probe"][name]["miou"]),
        ("as it is", default.get),
        ("chosen on the other four sets", lambda name: result["left_out"][name]["miou"]),
    ):
        scores = [pick(name) for name in names]
        rows.append([title, *(f"{100 * score:.1f}" for score in (mean(scores), *scores))])
    spans = [result["default"][name]["interval"] for name in names]
    rows.append(["95 % of as it is", "", *(f"{100 * a:.1f}–{100 * b:.1f}" for a, b in spans)])
    ranks = [result["default"][name]["confidence"] for name in names]
    rows.append(["confidence ρ of as it is", *(f"{rank:.2f}" for rank in (mean(ranks), *ranks))])
    said = [result["unlike"].get(name, float("nan")) for name in names]
    rows.append(["called unlike by the model that ships", "", *(f"{one:.0%}" for one in said)])
    left = common.table(["mIoU", "mean", *names], rows)
    taken = "; ".join(
        f"without {name}: {one['change'] or 'nothing'}" for name, one in result["left_out"].items()
    )
    sizes = [[f"{count} images", *gains(scores)] for count, scores in result["sizes"].items()]
    grown = common.table(["fitted on", "mean", *names], sizes)
    return "\n\n".join([left, f"The change that is chosen {taken}.", choices, grown])


if __name__ == "__main__":
    main()
