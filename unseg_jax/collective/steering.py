"""A few marked images, or clicks and strokes on them, steer the scorer of a set.

With P the scorer's margins, clipped to ±1, and Q the centred features of patches, beside them the
scorer's two scores and 1, the steered margins are P + Qc, where c minimises

    mean over marked patches of v (y - P - Qc)² + μ · mean over all patches of (Qc)² + λτ|c|².

y goes from -1 to 1 with the share of a patch that is marked. The second term holds the images to
what was found without examples, so that a single one does little harm. v lets foreground and
background count alike; τ is the mean variance of a feature. With two examples or more, λ and μ are
divided by the strength that scores best on examples left out, which may be none at all.

Each marked image has a c of its own, of the examples like it; where all are alike, as in most sets,
these are equal. An image takes the c of the marked image that is most like it, and none if it is of
another kind than all of them, such as another stain.

The scorer reads the last block of the backbone alone, whose tokens tell things best without a mask.
What a mask marks may be told by texture or an edge as well, which earlier blocks still hold; so
masks teach from the tokens of three (`with_earlier_blocks`). On 18 data sets that raised the mean
IoU of other images by .009, .015 and .016 with 1, 3 and 10 examples; most of what a single one
gained came from a smaller μ, which was chosen on these sets.

Where what masks mark is small (`are_small`), all this is of the quarters of patches at twice the
size of the image, with features from there, and margins P and scores of both sizes. On the four of
18 data sets of such things, 1, 3 and 10 examples then scored .065, .110 and .107 more. Learning
from both sizes at once, or choosing one by examples left out, was no better.

Where masks teach, an image then teaches itself, twice: what is surely inside and outside of it, by
margins beyond ±.2, is an example as well, of little weight ρ. With H the matrix of the equations
that gave c, S the rows of Q that are sure, and v as above, the margins m₀ = P + Qc become m₀ + Qd,
where (H + ρ SᵀvS) d = ρ Sᵀv (sign m - m₀). On 18 data sets that raised the mean IoU of other images
by .013, .015 and .012 with 1, 3 and 10 examples, and no set lost more than .003, .001 and .012.

Clicks and strokes correct what masks have taught, in a second step of the same form with larger λ
and μ. Each marks the patches around it or under it, where the margin is to be at least .5, or at
most -.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unseg_jax.backbones.grids import PARTS, enlarge, unpack_quarters
from unseg_jax.clustering.graphs import normalise_rows
from unseg_jax.collective import set_scorer
from unseg_jax.collective.marks import Marked, Stroke, mark_shares, patch_targets
from unseg_jax.method import Method, override
from unseg_jax.postprocess.margins import upsample_margins
from unseg_jax.postprocess.objects import SMALL, piece_areas, typical_length

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unseg_jax.backbones import Backbone
    from unseg_jax.collective.set_scorer import Scorer
    from unseg_jax.data.truths import Truth

# Numbers of examples, and λ and μ that were measured with them; between them by logarithms.
_EXAMPLES, _LAMBDA, _MU = (1, 3, 10), (0.5, 0.3, 0.1), (0.02, 0.03, 0.03)
_DIRECTIONS = 384  # of features that are learned from
_SCORES = 0.2  # standard deviation of the two scores in Q
_OFFSET = 1e-3  # what stands for λτ in the column of ones
_RAREST = 0.02  # least share of the marked patches that v allows for
# Strengths, and folds of examples left out. The first of equal ones is taken: a weak one, where no
# example is like another. A single example counts in full; 0 leaves all as it is.
_STRENGTHS, _FOLDS = (0.3, 1.0, 3.0, 0.0), 5
# Distances of mean features within which examples count in full, and beyond which not at all. On
# 18 data sets that changed the mean IoU of other images by -.003 (1 example) and .000 (3 and 10);
# on the one of several stains an example of a rare stain costs .35 without, and nothing with it.
_NEAR, _FAR = 0.45, 0.6
# What views of an example weigh beside itself, see `unseg_jax.collective.example_views`. On 18 data
# sets they raised the mean IoU of other images by .011, .013 and .017 with 1, 3 and 10 examples.
_SEEN = 0.5
# How an image teaches itself: ρ, the margin from which a patch is sure, and how often. With ρ from
# .03 to .2 it gains as much within .003, and with a third round .001 more.
_ITSELF, _CERTAIN, _ROUNDS = 0.1, 0.2, 2
_FINER = 4  # cells of a side of a patch in which masks are compared
# Clicks: on 13 data sets, 1, 3 and 10 clicks on errors in one image raised the mean IoU of the
# others by .003, .007 and .009, and clicks on random places by .000, .001 and .001.
_CLICK, _CLICKS = 0.1, 0.3  # what one weighs, and all of an image, where a mask weighs 1
# Strokes, in the same way: 1, 2 and 6 on errors raised the others by .002, .003 and .013, and 98,
# 98 and 88 % of what was painted came out as painted. Taken for masks with the rest unknown, 1 and
# 2 lowered the others by .033 and .027.
_STROKE, _STROKES = 0.3, 1.0
TYPICAL = 0.6
"""What is taken for the quality of steering that no mask has shown."""
_SURE = 0.5  # margin that a click asks for
_HELD = 2.0  # λ and μ of clicks

# Words: so much of a cue of unit variance is added to the margins, as far as features tell it. On
# data sets of which a word is true that added .007 to the IoU of the shipped model (bright, dark,
# small), .003 (centre) or nothing (large), and no set lost more than .006.
_WORD, _WORD_LAMBDA = 0.1, 0.02
_TYPICAL = 0.05  # share of the image of a piece that is neither small nor large
LOOK_FOR = ("bright", "dark", "centre", "small", "large")
"""What `fit` can be told to look for."""
MAX_LOOKED_AT = 32
"""Images of a set from which a word is learned, at most."""

# Of a model whose images do not teach themselves.
_NOTHING: Any = tuple(np.zeros(shape, np.float32) for shape in ((0, 0), (0,), (0, 0)))


class Steering(NamedTuple):
    """What was learned from marked images.

    Attributes:
        everywhere: (W + 3,) coefficients, for all images, of the features of each block, of length
            1, the linear score, that of the convolution, and 1.
        like: (E, W + 3) those for images like each marked one, on top of it; of an image seen at
            two sizes, for quarters of patches.
        centres: (E, D) mean features of the marked images, of the block that the scorer reads.
        examples: () number of marked images; 0 where a word alone steers.
        quality: () mean IoU with the masks of examples, each by what the others taught, of a single
            one by the scorer as it was. `TYPICAL` where no mask is marked.
        basis, origin: (W + 3, R + 3), (R + 3,) what makes rows of Q, columns · basis - origin.
        held: (R + 3, R + 3) H, how firmly masks hold what an image teaches itself. All three are
            empty where it teaches nothing: no mask is marked, none that was left out was found
            better, or the model was saved by an earlier version.
    """

    everywhere: Float[Array, " w+3"]
    like: Float[Array, "e w+3"]
    centres: Float[Array, "e d"]
    examples: Any
    quality: Any = TYPICAL
    basis: Float[Array, "w+3 r"] = _NOTHING[0]
    origin: Float[Array, " r"] = _NOTHING[1]
    held: Float[Array, "r r"] = _NOTHING[2]


def with_earlier_blocks(method: Method, backbone: Backbone) -> Method:
    """The method with what masks teach from: beside its block, those at half and at three quarters
    of the way to it, where the backbone has any and the method takes plain features of one."""
    depth = backbone.config.depth
    count = method.blocks[0] % depth + 1
    earlier = sorted({count // 2 - 1, 3 * count // 4 - 1} - {-1, count - 1})
    if len(method.blocks) > 1 or method.log_bin or not earlier:
        return method
    return override(method, block=(*method.blocks, *earlier))


def to_be_taught(
    method: Method, backbone: Backbone, masks: Iterable[np.ndarray], choose: bool = True
) -> Method:
    """The method with all that masks (H, W) teach from: earlier blocks, and two sizes of the image
    where what they mark is small and the method can take them.

    Args:
        method, backbone: of the model.
        masks: of the examples.
        choose: whether two sizes are wanted where they help; False leaves the method's.
    """
    method = with_earlier_blocks(method, backbone)
    small = choose and method.takes_scales and are_small(masks)
    return override(method, scales=2) if small else method


def steer(
    scorer: Scorer, steering: Steering, features: Float[Array, "n w"], grid: tuple[int, int]
) -> Float[Array, " n"]:
    """(N,) margins of one image, above 0 is foreground; see `set_scorer.score`. Of an image seen at
    two sizes (4 N,), of a grid with twice as many a side."""
    width = len(steering.everywhere) - 3
    mean, prior, columns = _steered(scorer, steering.everywhere, features, grid, width)
    share, place = nearest(mean, steering.centres)
    margins = prior + columns @ (share * steering.like[place])
    if not steering.held.size:
        return margins
    rows = columns @ steering.basis - steering.origin
    return _taught_by_itself(margins, rows, steering.held, _ITSELF * share)


def _taught_by_itself(found, rows, held, weight):
    """Margins (N,) of an image with what its sure patches teach, see the module."""
    margins = found
    for _ in range(_ROUNDS):
        sides = jnp.stack([margins >= _CERTAIN, margins <= -_CERTAIN]).astype(jnp.float32)
        counts = sides.sum(1)
        inside = jnp.clip(counts[0] / jnp.maximum(counts.sum(), 1), _RAREST, 1 - _RAREST)
        factors = jnp.stack([inside, 1 - inside]) ** -0.5
        weights = weight * (factors / jnp.maximum(factors @ counts, 1)) @ sides
        gaps = weights * (jnp.sign(margins) - found)
        gram = jnp.matmul(rows.T * weights, rows, precision="highest")
        change = jax.scipy.linalg.solve(held + gram, rows.T @ gaps, assume_a="pos")
        margins = found + rows @ change
    return jnp.where(jnp.isfinite(margins), margins, found)


def nearest(mean: Any, centres: Any) -> tuple[Any, Any]:
    """How far an image of a mean feature (D,) is like the marked one (E, D) that is most like it,
    0 to 1, and which that is."""
    distances = jnp.linalg.norm(jnp.asarray(centres) - mean, axis=-1)
    return likeness(distances.min()), distances.argmin()


def likeness(distance: Any) -> Any:
    """1 where mean features are near to each other, 0 where they are far."""
    return jnp.clip((_FAR - distance) / (_FAR - _NEAR), 0, 1)


def prior_and_columns(
    scorer: Scorer, features: Float[Array, "n w"], grid: tuple[int, int]
) -> tuple[Float[Array, " n"], Float[Array, "n w+3"]]:
    """The scorer's margins of one image, clipped to ±1; and what `Steering` has coefficients of.

    Args:
        scorer: of D features.
        features: W, those of the scorer first, and as many of each other block.
        grid: (h, w), static.
    """
    prior = jnp.clip(set_scorer.score(scorer, features, grid)[0], -1, 1)
    linear, convolved, _ = set_scorer.both_scores(scorer, features, grid)
    return prior, _with_scores(_of_length_1(scorer, features), linear, convolved)


def _with_scores(rows, linear, convolved):
    ones = jnp.ones_like(linear)
    return jnp.concatenate([rows, *(one[:, None] for one in (linear, convolved, ones))], -1)


def _of_length_1(scorer, features):
    """Features of each block of length 1."""
    blocks = features.astype(jnp.float32).reshape(len(features), -1, len(scorer.mean))
    return normalise_rows(blocks).reshape(features.shape)


def _steered(scorer, everywhere, features, grid, width):
    """The mean feature of an image (D,); its margins with what steers all images, and what `like`
    has coefficients of, of patches or quarters of them."""
    prior, columns = prior_and_columns(scorer, features[:, :width], grid)
    mean, change = columns[:, : len(scorer.mean)].mean(0), columns @ everywhere
    if features.shape[-1] == width:
        return mean, prior + change, columns
    prior = jnp.clip(set_scorer.score_closer(scorer, features, grid), -1, 1)
    scores = set_scorer.both_scores_closer(scorer, features, grid)[:2]
    rows = _of_length_1(scorer, unpack_quarters(features[:, width:], grid))
    columns = _with_scores(rows, *scores)
    return mean, prior + enlarge(change, grid), columns


def are_small(masks: Iterable[np.ndarray]) -> bool:
    """Whether what is marked in masks (H, W) is small in half of them or more, see `SMALL`."""
    marked = [(piece_areas(mask), max(mask.shape)) for mask in masks if mask.any()]
    lengths = [typical_length(areas) / side for areas, side in marked]
    return bool(lengths) and float(np.median(lengths)) < SMALL


def fit_steering(
    scorer: Scorer,
    batches: Iterable[Float[np.ndarray, "b h w f"]],
    marked: Sequence[Marked],
    earlier: Steering | None = None,
    scales: int = 1,
) -> tuple[Steering, float]:
    """Learns from marked images, as strongly as scores best on examples that are left out.

    Args:
        scorer: that is steered.
        batches: features of images of the set, as `steer` takes them.
        marked: each marked image; its features and those of its views as `steer` takes them.
        earlier: what steers the scorer already, which is kept as part of its margins.
        scales: of the method that the features are of.

    Returns:
        What was learned; and the mean IoU with masks of examples, each by what the others taught
        (a single one by the scorer as it was; nan where no mask is marked).
    """
    width = marked[0].features.shape[-1] // (PARTS if scales > 1 else 1)
    everywhere, like = np.zeros(width + 3, np.float32), np.zeros((0, width + 3))
    centres = np.zeros((0, len(scorer.mean)))
    if earlier is not None:
        everywhere = np.asarray(earlier.everywhere)
        if earlier.examples:
            like, centres = np.asarray(earlier.like), np.asarray(earlier.centres)

    def columns_of(features):
        return tuple(map(np.asarray, _columns_of(scorer, everywhere, features)))

    def seen(features):
        mean, prior, columns = (part[0] for part in columns_of(features))
        mean, before = mean.astype(np.float64), np.zeros(width + 3)
        if len(centres):
            share, place = nearest(mean, centres)
            before = float(share) * like[int(place)]
        grid = scales * features.shape[1], scales * features.shape[2]
        return _Example(grid, mean, before, columns, prior + columns @ before)

    gram, count = np.zeros((), np.float64), 0
    for features in batches:
        for columns in columns_of(features)[2]:
            gram, count = gram + columns.T @ columns, count + len(columns)
    system = _System(gram / count)
    examples = []
    for one in marked:
        found = seen(one.features)
        if one.marks.truth is not None:
            views = ((seen(features), truth) for features, truth in one.views)
            found = _with_mask(system, found, one.marks.truth, views)
        examples.append(found)
    masked = [one for one in examples if one.fine is not None]
    strength, quality = _strength(system, masked, centres)
    like = np.stack([*like, *(one.before for one in examples)])
    centres = np.stack([*centres, *(one.mean for one in examples)])
    like = like + _taught(system, masked, centres, [strength])[strength]
    clicks = []
    for one, row, (_, marks, _) in zip(examples, like[-len(examples) :], marked, strict=True):
        margins = one.prior + one.columns @ (row - one.before)
        weights = [_STROKE if isinstance(mark, Stroke) else _CLICK for mark in marks.clicks]
        most = _STROKES if _STROKE in weights else _CLICKS
        for mark, weight in zip(marks.clicks, weights, strict=True):
            gaps = np.maximum(_SURE - margins, 0) if mark[2] else np.minimum(-_SURE - margins, 0)
            shares = weight * min(1, most / sum(weights)) * mark_shares(mark, marks.size, one.grid)
            clicks.append(_moments(system, one.columns, one.mean, gaps, shares))
    if clicks:
        like = like + _by_likeness(
            centres,
            clicks,
            lambda shares: system.solve(
                *_sum(clicks, shares / max(1, shares @ _weights(clicks))),
                _HELD,
                _HELD,
            ),
        )
    # Some twice, so that the program that applies it is compiled for few numbers of them.
    again = np.arange(1 << (len(centres) - 1).bit_length()) % len(centres)
    count = len(marked) + (0 if earlier is None else int(earlier.examples))
    known = quality
    if np.isnan(known):
        known = TYPICAL if earlier is None else earlier.quality
    held = _held(system, masked, strength, earlier)
    return _steering(everywhere, like[again], centres[again], count, known, held), quality


def _steering(
    everywhere: Any,
    like: Any,
    centres: Any,
    count: int,
    quality: Any = TYPICAL,
    held: Sequence[Any] = _NOTHING,
) -> Steering:
    parts = [jnp.asarray(one, jnp.float32) for one in (everywhere, like, centres, quality, *held)]
    return Steering._make((*parts[:3], jnp.int32(count), *parts[3:]))


class _System:
    """The normal equations of the module's objective in the columns of Q.

    Features are rotated to their principal directions, of which the last, if there are many, are
    left out: on 18 data sets that changed the mean IoU by less than .002.

    Attributes:
        directions: (W + 3, R + 3) of the columns, R of the features; the others stay.
        scale, mean: (R + 3,) of the columns that Q is made of.
        everywhere: (R + 3, R + 3) mean over all patches of the products of columns of Q.
    """

    def __init__(self, gram: np.ndarray):
        from scipy.linalg import eigh

        width = len(gram) - 3
        most = min(width, _DIRECTIONS)
        of_features = gram[:width, :width] - np.outer(gram[-1, :width], gram[-1, :width])
        self.directions = np.zeros((width + 3, most + 3))
        self.directions[:width, :most] = eigh(
            of_features, subset_by_index=(width - most, width - 1)
        )[1]
        self.directions[width:, most:] = np.eye(3)
        gram = self.directions.T @ gram @ self.directions
        self.mean, self.scale = gram[-1].copy(), np.ones(len(gram))
        variances = np.maximum(np.diag(gram) - self.mean**2, 0)
        self.scale[most:-1] = _SCORES / np.sqrt(variances + 1e-9)[most:-1]
        self.mean[-1] = 0  # the column of ones stays
        centred = gram - np.outer(gram[-1], self.mean) - np.outer(self.mean, gram[-1])
        centred += np.outer(self.mean, self.mean)
        self.everywhere = self.scale[:, None] * centred * self.scale
        self._ridge = np.trace(of_features) / width

    def of(self, columns: np.ndarray) -> np.ndarray:
        """(M, W + 3) columns as rows of Q."""
        return (columns @ self.directions - self.mean) * self.scale

    def solve(self, gram: np.ndarray, gaps: np.ndarray, lam: float, mu: float) -> np.ndarray:
        """The coefficients (W + 3,), of columns as they are.

        Args:
            gram, gaps: of the marked patches, QᵀVQ and QᵀV(y - P).
            lam, mu: λ and μ.
        """
        found = np.linalg.solve(self.matrix(gram, lam, mu), gaps) * self.scale
        found[-1] -= self.mean @ found
        return self.directions @ found

    def matrix(self, gram: np.ndarray, lam: float, mu: float) -> np.ndarray:
        """(R + 3, R + 3) of the normal equations; see `solve`."""
        ridge = np.full(len(gram), lam * self._ridge)
        ridge[-1] = _OFFSET
        return gram + mu * self.everywhere + np.diag(ridge)


class _Moments(NamedTuple):
    """Patches of a marked image: its mean feature, QᵀVQ, QᵀV(y - P), and the sum of V."""

    mean: np.ndarray
    gram: np.ndarray
    gaps: np.ndarray
    weight: float


def _moments(
    system: _System, columns: np.ndarray, mean: np.ndarray, gaps: np.ndarray, weights: np.ndarray
) -> _Moments:
    used = weights > 0
    rows = system.of(columns[used])
    weighted = rows * weights[used, None]
    return _Moments(mean, rows.T @ weighted, gaps[used] @ weighted, float(weights.sum()))


def _sum(parts: Sequence[_Moments], factors: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """The sums of moments, each times a factor."""
    pairs = [(factor, one) for factor, one in zip(factors, parts, strict=True) if factor]
    gram = sum((factor * one.gram for factor, one in pairs), 0 * parts[0].gram)
    return gram, sum((factor * one.gaps for factor, one in pairs), 0 * parts[0].gaps)


class _Example(NamedTuple):
    """A marked image on patches.

    Attributes:
        grid: (h, w).
        mean: (D,) feature of its patches.
        before: (W + 3,) what steered images like it before.
        columns, prior: of its patches or quarters of them, the prior with all that steered them
            before.
        sides: moments of the patches inside and outside of its mask; () without one.
        fine: targets and known shares on a finer grid, to compare what is found with; see
            `patch_targets`.
    """

    grid: tuple[int, int]
    mean: np.ndarray
    before: np.ndarray
    columns: np.ndarray
    prior: np.ndarray
    sides: tuple[_Moments, ...] = ()
    fine: tuple[np.ndarray, np.ndarray] | None = None


def _with_mask(
    system: _System,
    one: _Example,
    truth: Truth,
    views: Iterable[tuple[_Example, Truth]] = (),
) -> _Example:
    sides, seen = _sides(system, one, truth), [_sides(system, *view) for view in views]
    if seen:
        factors = [1 - _SEEN, *[_SEEN / len(seen)] * len(seen)]
        sides = tuple(
            _Moments(one.mean, *_sum(parts, factors), float(factors @ _weights(parts)))
            for parts in zip(sides, *seen, strict=True)
        )
    fine = patch_targets(truth, (_FINER * one.grid[0], _FINER * one.grid[1]))
    return one._replace(sides=sides, fine=fine)


def _weights(parts: Iterable[_Moments]) -> np.ndarray:
    return np.array([part.weight for part in parts])


def _sides(system: _System, one: _Example, truth: Truth) -> tuple[_Moments, ...]:
    targets, known = patch_targets(truth, one.grid)
    return tuple(
        _moments(system, one.columns, one.mean, targets - one.prior, known * side)
        for side in (targets > 0, targets <= 0)
    )


def _by_likeness(
    points: Iterable[np.ndarray],
    marked: Sequence[Any],
    learn: Callable[[np.ndarray], Any],
) -> Any:
    """What is learned for images of each mean feature (D,), of how far each of the marked ones,
    which have a `mean`, is like it."""
    found: dict[bytes, Any] = {}  # in most sets all marked images are alike
    rows = []
    means = np.stack([one.mean for one in marked])
    for point in points:
        distances = np.linalg.norm(means - point, axis=-1)
        shares = np.asarray(likeness(distances), np.float64).round(3)
        if (key := shares.tobytes()) not in found:
            found[key] = learn(shares)
        rows.append(found[key])
    return np.stack(rows)


def _taught(
    system: _System,
    examples: Sequence[_Example],
    points: np.ndarray,
    strengths: Sequence[float],
) -> dict[float, np.ndarray]:
    """(P, W + 3) what masks teach for images of each mean feature (D,), by the strength."""
    shape = len(points), len(system.directions)
    if not examples or not len(points):
        return dict.fromkeys(strengths, np.zeros(shape))

    def learn(shares):
        if not (equations := _together(examples, shares)):
            return np.zeros((len(strengths), shape[1]))
        gram, gaps, lam, mu = equations
        return np.stack(
            [
                system.solve(gram, gaps, lam / strength, mu / strength)
                if strength
                else np.zeros(shape[1])
                for strength in strengths
            ]
        )

    rows = _by_likeness(points, examples, learn)
    return {strength: rows[:, at] for at, strength in enumerate(strengths)}


def _together(
    examples: Sequence[_Example], shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """QᵀVQ, QᵀV(y - P), λ and μ of examples that count by shares (E,); None if nothing counts."""
    weights = [shares @ [one.sides[at].weight for one in examples] for at in range(2)]
    if not sum(weights):
        return None
    inside = np.clip(weights[0] / sum(weights), _RAREST, 1 - _RAREST)
    factors = np.array([inside, 1 - inside]) ** -0.5
    factors /= factors @ weights
    parts = [side for one in examples for side in one.sides]
    whole = np.mean([sum(side.weight for side in one.sides) for one in examples])
    count = np.log(max(1.0, sum(weights) / whole))
    lam, mu = (
        float(np.exp(np.interp(count, np.log(_EXAMPLES), np.log(values))))
        for values in (_LAMBDA, _MU)
    )
    return *_sum(parts, np.outer(shares, factors).ravel()), lam, mu


def _held(
    system: _System, examples: Sequence[_Example], strength: float, earlier: Steering | None
) -> Sequence[Any]:
    """`basis`, `origin` and `held` of `Steering`."""
    if not examples and earlier is not None:
        return earlier.basis, earlier.origin, earlier.held
    equations = _together(examples, np.ones(len(examples))) if strength else None
    if equations is None:
        return _NOTHING
    gram, _, lam, mu = equations
    held = system.matrix(gram, lam / strength, mu / strength)
    return system.directions * system.scale, system.mean * system.scale, held


def _strength(
    system: _System, examples: Sequence[_Example], centres: np.ndarray
) -> tuple[float, float]:
    """The strength that scores best on examples left out, and its mean IoU.

    Args:
        system: of the set.
        examples: with masks.
        centres: (C, D) mean features of images that were marked before.
    """
    if not examples:
        return 0.0, np.nan
    if len(examples) == 1:
        return 1.0, _agreement(examples[0], None)
    folds, scores = min(len(examples), _FOLDS), []
    for fold in range(folds):
        rest = [one for at, one in enumerate(examples) if at % folds != fold]
        points = np.stack([*centres, *(one.mean for one in rest)])
        taught = _taught(system, rest, points, _STRENGTHS)
        for one in examples[fold::folds]:
            share, place = nearest(one.mean, points)
            change = [float(share) * taught[strength][int(place)] for strength in _STRENGTHS]
            scores.append([_agreement(one, coefficients) for coefficients in change])
    qualities = np.mean(scores, 0)
    best = int(qualities.argmax())
    return _STRENGTHS[best], float(qualities[best])


def _agreement(one: _Example, coefficients: np.ndarray | None) -> float:
    """IoU of what is found in an example with its mask, after a change of the coefficients."""
    assert one.fine is not None
    targets, known = one.fine
    change = 0.0 if coefficients is None else one.columns @ coefficients
    margins = np.clip(one.prior + change, -1, 1).reshape(one.grid)
    mask = upsample_margins(margins, tuple(_FINER * side for side in one.grid)).ravel()
    either = known[mask | (targets > 0)].sum()
    return float(known[mask & (targets > 0)].sum() / either) if either else 1.0


def fit_word(
    scorer: Scorer,
    images: Iterable[tuple[Float[np.ndarray, "1 h w f"], np.ndarray]],
    word: str,
) -> Steering:
    """Learns from a word of `LOOK_FOR`, as a weak cue.

    Args:
        scorer: that is steered.
        images: features and pixels (H, W, 3) of images of the set.
        word: what things are more often than the rest of their images.
    """
    rows, cues = [], []
    for features, pixels in images:
        nothing = np.zeros(features.shape[-1] + 3, np.float32)
        _, prior, columns = (np.asarray(part[0]) for part in _columns_of(scorer, nothing, features))
        rows.append(columns.astype(np.float64))
        cues.append(_cue(word, prior.reshape(features.shape[1:3]), pixels).ravel())
    columns, gaps = np.concatenate(rows), _WORD * np.concatenate(cues)
    weights = np.full(len(gaps), 1 / len(gaps))
    gram = columns.T @ columns / len(columns)
    found = solve(gram, columns, gaps, weights, _WORD_LAMBDA, 0)
    return _steering(found, 0 * found[None], np.zeros((1, len(scorer.mean))), 0)


def _cue(word: str, prior: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(h, w) how far each patch is what the word says, about -2 to 2."""
    if word in ("small", "large"):
        from scipy.ndimage import label

        labels = np.zeros(prior.shape, np.int32)
        label(prior > 0, output=labels)
        shares = np.bincount(labels.ravel())[labels] / prior.size
        cue = np.clip(np.log(np.maximum(shares, 1e-3) / _TYPICAL), -1, 1) * (labels > 0)
        return cue if word == "large" else -cue
    height, width = prior.shape
    if word == "centre":
        rows, columns = np.ogrid[:height, :width]
        cue = -np.hypot((rows + 0.5) / height - 0.5, (columns + 0.5) / width - 0.5)
    else:
        grey = Image.fromarray(pixels).convert("L").resize((width, height), Image.Resampling.BOX)
        cue = np.asarray(grey, float) * (1 if word == "bright" else -1)
    return np.clip((cue - cue.mean()) / (cue.std() + 1e-6), -2, 2)


@jax.jit
def _columns_of(scorer, everywhere, features):
    """`_steered` of images (B, h, w, F)."""
    grid, rows = features.shape[1:3], features.reshape(len(features), -1, features.shape[-1])
    width = len(everywhere) - 3
    return jax.vmap(lambda one: _steered(scorer, everywhere, one, grid, width))(rows)


def solve(
    gram: np.ndarray,
    columns: np.ndarray,
    gaps: np.ndarray,
    weights: np.ndarray,
    lam: float,
    mu: float,
) -> np.ndarray:
    """The coefficients (W + 3,), of columns as they are.

    Args:
        gram: (W + 3, W + 3) mean over all patches of the products of columns.
        columns: (M, W + 3) of the marked patches.
        gaps, weights: (M,) y - P, and what each counts.
        lam, mu: λ and μ.
    """
    system = _System(gram)
    marked = _moments(system, columns, gram[-1], gaps, weights)
    return system.solve(marked.gram, marked.gaps, lam, mu)
