"""Variants of the evidence of `collective` that benchmarks/quality.py tries, and their margins."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality_sets import Set
from unseg_jax.clustering.graphs import normalise_rows
from unseg_jax.collective import evidence, scoring
from unseg_jax.collective.convolution import scores_of, train
from unseg_jax.metrics.partitions import ari


@dataclasses.dataclass(frozen=True)
class Choices:
    """Every choice that is tried; the defaults are the linear scorer alone.

    Attributes:
        cues: whose sum is the evidence of an image; see `_cue`.
        tau: affinities below it are cut, "quantile" for the image's own .6 quantile.
        nearest: patches of the border that "apart" compares with.
        pieces: cuts of an image that "pieces" and "masks" make proposals by.
        frame: whether clusters along the border are taken away.
        clusters: of the set, from which frames are told; "stable" for the number on which the
            clusterings of two halves of the set agree most.
        features: arrays of `Set`, joined by "+".
        components: principal components that the scorer reads.
        centred: what the features that the linear scorer reads are centred by: "set", "image" or
            "nothing"; the other heads read them centred by the set.
        whitened: whether they are scaled to unit variance.
        ridge: of the regression, a share of the mean variance.
        rounds: in which the scorer learns from its own labels.
        threshold: "own" Otsu's of each image, "set" that of all scores, "both" their mean.
        head: "linear"; or "mlp" or "conv", with 32 hidden units on a patch or on 3 × 3 of them,
            trained on what the linear one is sure of, with flips, as the mean of two of them on
            halves of the set; see `unseg_jax.collective.convolution`.
        agreed: whether training ends where the two heads agree most.
        mixed: whether the linear scores are averaged with those of the heads.
        coarse: weight of the margins of the image at half its size.
        diffused: steps of a random walk on the image's graph that smooth the margins.
        refined: "none", or the filter that moves the margins' edges to those of the image.
        fitted_on: images that are fitted; None for all.
    """

    cues: tuple[str, ...] = ("unlike", "apart", "cut")
    tau: float | str = 0.2
    nearest: int = 5
    pieces: int = 3
    frame: bool = True
    clusters: int | str = 16
    features: str = "fine"
    components: int = 96
    centred: str = "set"
    whitened: bool = False
    ridge: float = 0.02
    rounds: int = 2
    threshold: str = "own"
    head: str = "linear"
    agreed: bool = False
    mixed: bool = False
    coarse: float = 0.0
    diffused: int = 0
    refined: str = "none"
    fitted_on: int | None = None

    @property
    def changed(self) -> dict:
        """The fields that differ from the default."""
        default = Choices()
        found = dataclasses.asdict(self)
        return {name: value for name, value in found.items() if value != getattr(default, name)}


_BOTH = {"head": "conv", "agreed": True, "mixed": True}
LIBRARY = {**_BOTH, "centred": "nothing"}
"""What the library does."""
VARIANTS: dict[str, dict] = {
    "the border alone: unlike": {"cues": ("unlike",)},
    "the border alone: apart": {"cues": ("apart",)},
    "the cut alone": {"cues": ("cut",)},
    "without unlike": {"cues": ("apart", "cut")},
    "without apart": {"cues": ("unlike", "cut")},
    "without the cut": {"cues": ("unlike", "apart")},
    "a second cut of what remains": {"cues": ("unlike", "apart", "cut", "again")},
    "object proposals of 3 cuts instead of the cut": {"cues": ("unlike", "apart", "pieces")},
    "object proposals of 8 cuts instead of the cut": {
        "cues": ("unlike", "apart", "pieces"),
        "pieces": 8,
    },
    "masks of 3 cuts instead of the cut": {"cues": ("unlike", "apart", "masks")},
    "masks of 3 cuts as well": {"cues": ("unlike", "apart", "cut", "masks")},
    "object proposals of 3 cuts as well": {"cues": ("unlike", "apart", "cut", "pieces")},
    "object proposals of 8 cuts as well": {
        "cues": ("unlike", "apart", "cut", "pieces"),
        "pieces": 8,
    },
    "a cut of features centred by the set": {"cues": ("unlike", "apart", "centred")},
    "a cut of features centred by the image": {"cues": ("unlike", "apart", "own")},
    "the distance from the centre as well": {"cues": ("unlike", "apart", "cut", "centre")},
    "the nearest border patch": {"nearest": 1},
    "20 nearest border patches": {"nearest": 20},
    "τ = 0": {"tau": 0.0},
    "τ = 0.4": {"tau": 0.4},
    "τ = .6 quantile of the image": {"tau": "quantile"},
    "no frame is taken away": {"frame": False},
    "8 clusters for the frame": {"clusters": 8},
    "32 clusters for the frame": {"clusters": 32},
    "clusters for the frame by stability": {"clusters": "stable"},
    "keys of the last block": {"features": "keys"},
    "tokens of block 9 of 12": {"features": "early"},
    "tokens and keys": {"features": "fine+keys"},
    "tokens and keys, whitened": {"features": "fine+keys", "whitened": True},
    "tokens of two blocks": {"features": "fine+early"},
    "tokens of two blocks, whitened": {"features": "fine+early", "whitened": True},
    "48 components": {"components": 48},
    "192 components": {"components": 192},
    "whitened components": {"whitened": True},
    "scored features centred by nothing": {"centred": "nothing"},
    "scored features centred by the image": {"centred": "image"},
    "ridge 0.002": {"ridge": 0.002},
    "ridge 0.2": {"ridge": 0.2},
    "no learning from its own labels": {"rounds": 0},
    "4 rounds of its own labels": {"rounds": 4},
    "one threshold for the set": {"threshold": "set"},
    "mean of both thresholds": {"threshold": "both"},
    "an MLP as the head": {"head": "mlp"},
    "an MLP as the head, stopped by agreement": {"head": "mlp", "agreed": True},
    "a convolution as the head": {"head": "conv"},
    "a convolution as the head, stopped by agreement": {"head": "conv", "agreed": True},
    "mean of such a convolution and the linear head": _BOTH,
    "mean of both heads, two scales": {**_BOTH, "coarse": 0.5},
    "mean of both heads, scored features centred by nothing": LIBRARY,
    "two scales, the coarse one half": {"coarse": 0.5},
    "margins smoothed on the graph, 1 step": {"diffused": 1},
    "margins smoothed on the graph, 3 steps": {"diffused": 3},
}
FURTHER: dict[str, dict] = {
    "two scales, the coarse one half": {**LIBRARY, "coarse": 0.5},
    "not stopped by agreement": {**LIBRARY, "agreed": False},
    "one threshold for the set": {**LIBRARY, "threshold": "set"},
}
"""What is tried on top of the library."""
EDGES: dict[str, dict] = {
    "edges by the guided filter, as in the library": {**LIBRARY, "refined": "guided"},
    "edges by the bilateral solver": {**LIBRARY, "refined": "bilateral"},
    "the linear scorer alone": {},
    "the linear scorer alone, edges by the guided filter": {"refined": "guided"},
}
"""What is done to the margins of the library after; no rival of the variants."""
SIZES = (12, 25, 50)
"""Sizes of the set that is fitted, to show how scores grow with it."""
STABLE = (8, 16, 32)
"""Numbers of clusters among which stability chooses."""


class Variants:
    """Margins of the sets, with everything computed once that several variants share."""

    def __init__(self, sets: dict[str, Set]):
        self.sets = sets

    @functools.lru_cache(maxsize=2)  # noqa: B019 - it lives as long as the program
    def features(self, name: str, kind: str) -> np.ndarray:
        """(n, N, D) features; of several kinds, each of length 1, side by side."""
        parts = [getattr(self.sets[name], part) for part in kind.split("+")]
        if len(parts) == 1:
            return parts[0]
        rows = [part.astype(np.float32) for part in parts]
        rows = [part / np.linalg.norm(part, axis=-1, keepdims=True) for part in rows]
        return np.concatenate(rows, -1).astype(np.float16)

    def grid(self, name: str, kind: str) -> tuple[int, int]:
        """Patches of such features, (h, w)."""
        return self.sets[name].coarse_grid if kind == "coarse" else self.sets[name].grid

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def projected(self, name, kind, components, seed, fitted_on):
        """Projection and coordinates of a set, and which images are fitted."""
        features = self.features(name, kind)
        rng = np.random.default_rng(_bits(seed))
        fitted = np.arange(len(features))
        if fitted_on is not None:
            fitted = np.random.default_rng(seed).permutation(len(features))[:fitted_on]
        projection = evidence.fit_projection([features[fitted]], components, rng)
        x = np.stack([np.asarray(_project(jnp.asarray(one), projection)) for one in features])
        return projection, x, fitted

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def valid(self, shared: tuple, clusters: int | str, frame: bool) -> np.ndarray:
        """(n, N) patches that are not frame; `shared` are the arguments of `projected`."""
        name, kind, _, seed, _ = shared
        _, x, fitted = self.projected(*shared)
        valid = np.ones(x.shape[:2], bool)
        if frame:
            key = jax.random.fold_in(jax.random.key(seed), 1)
            count = _stable_count(x[fitted], key) if clusters == "stable" else clusters
            centres = evidence.fit_centres(x[fitted].reshape(-1, x.shape[-1]), count, key)
            labels = np.asarray(evidence.nearest_centre(jnp.asarray(x), centres))
            ratios = evidence.frame_clusters([labels[fitted]], [self.grid(name, kind)], count)
            framing = ratios > scoring.FRAME_RATIO
            if framing[labels[fitted]].mean() <= 0.5:
                valid = ~framing[labels]
        return valid

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def cue(self, cue: str, shared: tuple, valid: bytes, **settings) -> np.ndarray:
        """(n, N) of one cue, with valid patches as bytes: many choices leave them as they are."""
        projection, x, _ = self.projected(*shared)
        kept = jnp.asarray(np.frombuffer(valid, bool).reshape(x.shape[:2]))
        settings |= {"cue": cue, "grid": self.grid(*shared[:2])}
        found = [
            _cue(jnp.asarray(one), projection, those, **settings)
            for one, those in zip(self.features(*shared[:2]), kept, strict=True)
        ]
        return np.stack([np.asarray(one) for one in found])

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def trained(self, name: str, linear: Choices, seed: int, head: str) -> dict[bool, np.ndarray]:
        """Scores (n, N) of heads that learn from linear ones: agreed or not → scores."""
        shared, valid = self._shared(name, linear, seed, linear.features)
        _, x, fitted = self.projected(*shared)
        margins = self.margins(name, linear, seed).reshape(valid.shape)
        return _train_heads(x, valid, margins, fitted, self.grid(*shared[:2]), seed, head)

    def _shared(self, name, chosen, seed, kind):
        shared = (name, kind, chosen.components, seed, chosen.fitted_on)
        return shared, self.valid(shared, chosen.clusters, chosen.frame)

    def margins(self, name: str, chosen: Choices, seed: int, kind: str = "") -> np.ndarray:
        """(n, h, w) of a set, above 0 is foreground."""
        kind = kind or chosen.features
        if kind == "coarse":
            chosen = dataclasses.replace(chosen, head="linear")
        shared, valid = self._shared(name, chosen, seed, kind)
        projection, x, fitted = self.projected(*shared)
        if chosen.head == "linear":
            packed = valid.tobytes()
            cues = [self.cue(cue, shared, packed, **_settings(cue, chosen)) for cue in chosen.cues]
            if chosen.centred != "set":
                pairs = zip(self.features(name, kind), jnp.asarray(valid), strict=True)
                found = [_recentred(jnp.asarray(one), projection, kept) for one, kept in pairs]
                x = np.stack([np.asarray(one[chosen.centred]) for one in found])
            if chosen.whitened:
                x = x / (x[valid].std(0) + 1e-6)
            scores, threshold = _regress(x, valid, sum(cues), fitted, chosen)
        else:
            plain = {"head": "linear", "agreed": False, "mixed": False}
            after = {"coarse": 0.0, "diffused": 0, "refined": "none"}
            linear = dataclasses.replace(chosen, **plain, **after)
            scores = self.trained(name, linear, seed, chosen.head)[chosen.agreed]
            if chosen.mixed:
                scores = (scores + self.margins(name, linear, seed).reshape(scores.shape)) / 2
            among = scores[fitted][valid[fitted]]
            threshold = float(evidence.otsu(jnp.asarray(among), jnp.ones(len(among), bool)))
        grid = self.grid(name, kind)
        limits = {"own": _own(scores, valid), "set": np.full((len(x), 1), threshold)}
        limits["own"] = np.where(np.isfinite(limits["own"]), limits["own"], threshold)
        limits["both"] = (limits["own"] + limits["set"]) / 2
        found = np.where(valid, scores - limits[chosen.threshold], scoring.FRAME_SCORE)
        found = found.reshape(-1, *grid).astype(np.float32)
        if kind == "coarse":
            return found
        if chosen.coarse:
            other = self.margins(name, chosen, seed, "coarse")
            other = np.stack([enlarge(np.clip(one, -1, 1), grid) for one in other])
            found = (1 - chosen.coarse) * np.clip(found, -1, 1) + chosen.coarse * other
        if chosen.diffused:
            pairs = zip(jnp.asarray(x), jnp.asarray(found), strict=True)
            found = np.stack([np.asarray(_diffuse(*pair, chosen.diffused)) for pair in pairs])
        return found


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, to (height, width)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


# ---------------------------------------------------------------- cues


def _settings(cue: str, chosen: Choices) -> dict:
    """The choices that a cue depends on, so that no other computes it anew."""
    if cue == "apart":
        return {"nearest": chosen.nearest}
    if cue in ("pieces", "masks"):
        return {"tau": chosen.tau, "pieces": chosen.pieces}
    return {"tau": chosen.tau} if cue in ("cut", "again", "centred", "own") else {}


@functools.partial(jax.jit, static_argnames=("cue", "grid", "tau", "nearest", "pieces"))
def _cue(features, projection, valid, *, cue, grid, tau=None, nearest=5, pieces=0):
    """(N,) of one image, standardised.

    "unlike" the border on average, "apart" from the nearest of it, and the "cut" are the library's.
    "again" cuts what the first cut left; "pieces" is how far from the border the pieces are that
    repeated cuts leave, and "masks" whether that is further than the image on average; "centred"
    and "own" cut features centred by the set and by the image;
    "centre" is the distance from the middle of the image.
    """
    x, whole = evidence.project(features, projection)
    border = evidence.border_of(valid.reshape(grid)).ravel()
    share = border.astype(jnp.float32) / jnp.maximum(border.sum(), 1)
    cosines = whole @ whole.T
    unlike = -(cosines @ share)

    def cut(similarity, kept):
        least = jnp.quantile(similarity[::4, ::4], 0.6) if tau == "quantile" else tau
        # `_normalised_cut` cuts below its own τ, so ours is moved there.
        moved = jnp.where(similarity < least, -1.0, jnp.maximum(similarity, evidence._TAU))
        start = jnp.where(kept, unlike, 0.0)
        return evidence._normalised_cut(moved, kept, share * kept, start)

    if cue == "unlike":
        found = unlike
    elif cue == "apart":
        found = -evidence.nearest_mean(cosines, border, nearest)
    elif cue == "cut":
        found = cut(cosines, valid)
    elif cue == "again":
        first = cut(cosines, valid)
        remaining = valid & ~(first > _mean(first, valid))
        second = cut(cosines, remaining)
        found = jnp.where(remaining, second, jnp.max(second))
    elif cue in ("pieces", "masks"):
        apart = -evidence.nearest_mean(cosines, border, nearest)
        far = evidence._standardise(unlike, valid) + evidence._standardise(apart, valid)
        found = _pieces(functools.partial(cut, cosines), far, valid, grid, pieces)
        if cue == "masks":
            found = jnp.where(found > 0, 1.0, 0.0)
    elif cue == "centred":
        found = cut(x @ x.T, valid)
    elif cue == "own":
        own = _recentred(features, projection, valid)["image"]
        found = cut(own @ own.T, valid)
    else:
        rows, columns = jnp.meshgrid(*(jnp.linspace(-1, 1, side) for side in grid), indexing="ij")
        found = -jnp.hypot(rows, columns).ravel()
    return evidence._standardise(found, valid)


def _mean(values, among):
    return jnp.sum(values * among) / jnp.maximum(among.sum(), 1)


def _pieces(cut, far, valid, grid, count):
    """Mean of `far` over each piece of an image: the object of each cut, as in MaskCut, and what
    all cuts leave."""

    def step(carry, _):
        remaining, found = carry
        vector = cut(remaining)
        above = remaining & (vector > _mean(vector, remaining))
        piece = _piece_of(above.reshape(grid), jnp.where(above, vector, -jnp.inf).argmax()).ravel()
        return (remaining & ~piece, jnp.where(piece, _mean(far, piece), found)), None

    start = (valid, jnp.zeros_like(far))
    (remaining, found), _ = jax.lax.scan(step, start, None, length=count)
    return jnp.where(remaining, _mean(far, remaining), found)


def _piece_of(mask, place):
    """The 4-connected piece of a mask (h, w) around a flat place, by growing it."""

    def grow(state):
        piece, _ = state
        padded = jnp.pad(piece, 1)
        grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        grown = (grown | piece) & mask
        return grown, (grown != piece).any()

    seed = (jnp.arange(mask.size) == place).reshape(mask.shape) & mask
    return jax.lax.while_loop(lambda state: state[1], grow, (seed, seed.any()))[0]


# ---------------------------------------------------------------- features and clusters


@jax.jit
def _project(features, projection):
    return evidence.project(features, projection)[0]


@jax.jit
def _recentred(features, projection, valid):
    """Coordinates of length 1 of an image, by what they are centred by."""
    plain = normalise_rows(features.astype(jnp.float32)) @ projection.basis
    mean = (plain * valid[:, None]).sum(0) / jnp.maximum(valid.sum(), 1)
    return {"nothing": normalise_rows(plain), "image": normalise_rows(plain - mean)}


def _stable_count(x: np.ndarray, key) -> int:
    """The number of clusters on which k-means of two halves of the images agree most (ARI)."""
    sample = jnp.asarray(x.reshape(-1, x.shape[-1])[::7])
    agreement = {}
    for count in STABLE:
        labels = []
        for half in (x[::2], x[1::2]):
            centres = evidence.fit_centres(half.reshape(-1, x.shape[-1]), count, key)
            labels.append(np.asarray(evidence.nearest_centre(sample, centres)))
        agreement[count] = ari(*labels)
    return max(agreement, key=agreement.__getitem__)


# ---------------------------------------------------------------- heads


def _bits(seed: int) -> np.ndarray:
    """Of the library's chance under `jax.random.key(seed)`."""
    return np.asarray(jax.random.bits(jax.random.key(seed), (2,), "uint32"))


def _own(scores: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.asarray(scoring.otsu_rows(jnp.asarray(scores), jnp.asarray(valid)))[:, None]


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
        regressed = target[kept].astype(np.float32)
        weights = np.linalg.solve(gram, rows.T @ (regressed - regressed.mean()))
        weights = weights.astype(np.float32)
        weights /= np.std(rows @ weights) + 1e-9
        scores = x @ weights - centre @ weights
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


def _train_heads(x, valid, margins, fitted, grid, seed, kind):
    """Scores (n, N) of unit variance: the mean of two heads trained on halves of what is fitted, at
    the end (False) and where their masks agreed most (True)."""
    sure = np.where(valid, np.clip(margins, -1, 1), -1.0)
    images, goals, inside = (one.reshape(-1, *grid, *one.shape[2:]) for one in (x, sure, valid))
    rng = np.random.default_rng([*_bits(seed), 1])
    side = {"mlp": 1, "conv": 3}[kind]
    looks = list(train([images[fitted]], [goals[fitted]], [inside[fitted]], rng, side=side))
    heads = {False: looks[-1][1], True: max(looks, key=lambda look: look[0])[1]}
    return {agreed: scores_of(head, [images])[0] for agreed, head in heads.items()}
