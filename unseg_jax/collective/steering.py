"""A few marked images, or clicks and strokes on them, steer the scorer of a set.

Masks teach by the equations of `unseg_jax.collective.equations`: y goes from -1 to 1 with the share
of a patch that is marked. The term of all patches holds the images to what was found without
examples, so that a single one does little harm. With two examples or more, λ and μ are divided by
the strength that scores best on examples left out, which may be none at all.

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

Where masks teach, an image then teaches itself, held by their equations; see
`unseg_jax.collective.self_teaching`. As far as it is unlike what is marked, it is held by what the
scorer itself is sure of, where that is known, and its margins are spread over its graph
(`unseg_jax.collective.spreading`). Margins that marks steer are not: on 18 data sets that changed
the mean IoU by .000, -.004 and -.006 with 1, 3 and 10 examples, as small things fade.

A single mask says what is wanted, but little on how to find it. Where it lies much as the scorer
alone would find it, and another image is found alike with and without it, that image keeps most of
what is found without (`_caution`).

Clicks and strokes correct what masks have taught, in a second step of the same form with larger λ
and μ. Each marks the patches around it or under it, where the margin is to be at least .5, or at
most -.5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones.grids import PARTS, enlarge
from unseg_jax.collective.cues import correlation
from unseg_jax.collective.equations import (
    Moments,
    System,
    moments,
    read_batch,
    read_patches,
    together,
    total,
)
from unseg_jax.collective.marks import Marked, Stroke, mark_shares, patch_targets
from unseg_jax.collective.self_teaching import Held, hold, rows_of, teach_itself
from unseg_jax.collective.spreading import spread
from unseg_jax.method import Method, override
from unseg_jax.postprocess.margins import upsample_margins
from unseg_jax.postprocess.objects import SMALL, piece_areas, typical_length

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unseg_jax.backbones import Backbone
    from unseg_jax.collective.equations import Sides
    from unseg_jax.collective.set_scorer import Scorer
    from unseg_jax.data.truths import Truth

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
# A single example of which the scorer alone finds the IoU `_FOUND`, nothing to all, makes images
# cautious: one whose margins with and without it correlate by `_ALIKE` keeps nothing to `_KEPT` of
# those without. On 18 data sets the worst lost .018 before and .009 with it, and the mean IoU of
# other images stayed within .001. An image this near to the example is the example.
_KEPT, _ALIKE, _FOUND, _SAME = 0.75, (0.6, 0.8), (0.3, 0.6), 0.02
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
        held: how firmly masks hold what an image teaches itself; None where it teaches nothing: no
            mask is marked, none that was left out was found better, or the model was saved by an
            earlier version.
        caution: () how far images that are found alike without marks keep that, 0 to 1; 0 with more
            than a single mask.
    """

    everywhere: Float[Array, " w+3"]
    like: Float[Array, "e w+3"]
    centres: Float[Array, "e d"]
    examples: Any
    quality: Any = TYPICAL
    held: Held | None = None
    caution: Any = 0.0


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
    """The method with all that marks and words teach from: earlier blocks, and two sizes of the
    image where what masks (H, W) mark is small and the method can take them.

    Args:
        method, backbone: of the model.
        masks: of the examples.
        choose: whether two sizes are wanted where they help; False leaves the method's.
    """
    method = with_earlier_blocks(method, backbone)
    small = choose and method.takes_scales and are_small(masks)
    return override(method, scales=2) if small else method


def steer(
    scorer: Scorer,
    steering: Steering,
    features: Float[Array, "n f"],
    grid: tuple[int, int],
    scales: int = 1,
    held: Held | None = None,
) -> Float[Array, " m"]:
    """(N,) margins of one image, above 0 is foreground; see `set_scorer.score`. Of an image seen at
    two sizes (4 N,), of a grid with twice as many a side.

    Args:
        scorer: that is steered.
        steering: from `fit_steering`.
        features: see `unseg_jax.collective.equations.read_patches`.
        grid: (h, w) of patches, static.
        scales: of the method that the features are of, static.
        held: to what the scorer itself is sure of; None where that is not known.
    """
    patches = read_patches(scorer, features, grid, scales)
    share, place = nearest(patches.mean, steering.centres)
    away = jnp.linalg.norm(steering.centres[place] - patches.mean)
    taught = steering.like[place]
    share = share * (taught != 0).any()  # marks may have taught nothing
    unmarked = _steered(patches, steering.everywhere, grid)
    margins = unmarked + patches.columns @ (share * taught)
    by_masks = 0.0 if steering.held is None else share
    found = margins
    for one, weight in ((steering.held, by_masks), (held, 1 - by_masks)):
        if one is not None:
            found = found + teach_itself(margins, patches.columns, one, weight) - margins
    if held is None:
        return found
    # As far as it is unlike what is marked, it is as the scorer alone finds it.
    rows = rows_of(patches.columns, held)
    found = jax.lax.cond(
        share < 1, lambda: found + (1 - share) * (spread(found, rows) - found), lambda: found
    )
    caution = jnp.where(away < _SAME, 0.0, steering.caution)

    def cautious():
        with_marks = jnp.clip(found, -1, 1)
        without = jnp.clip(spread(teach_itself(unmarked, patches.columns, held), rows), -1, 1)
        kept = caution * _KEPT * _ramp(correlation(with_marks, without), _ALIKE)
        return with_marks + kept * (without - with_marks)

    return jax.lax.cond(caution > 0, cautious, lambda: found)


def nearest(mean: Any, centres: Any) -> tuple[Any, Any]:
    """How far an image of a mean feature (D,) is like the marked one (E, D) that is most like it,
    0 to 1, and which that is."""
    distances = jnp.linalg.norm(jnp.asarray(centres) - mean, axis=-1)
    return likeness(distances.min()), distances.argmin()


def likeness(distance: Any) -> Any:
    """1 where mean features are near to each other, 0 where they are far."""
    return 1 - _ramp(distance, (_NEAR, _FAR))


def _ramp(value, ends):
    low, high = ends
    return jnp.clip((value - low) / (high - low), 0, 1)


def _steered(patches, everywhere, grid):
    """Margins (M,) with what steers all images."""
    change = patches.whole @ everywhere
    same = len(change) == len(patches.prior)
    return patches.prior + (change if same else enlarge(change, grid))


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
        return tuple(map(np.asarray, _columns_of(scorer, everywhere, features, scales)))

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
    system = System(gram / count)
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
            clicks.append(moments(system, one.columns, one.mean, gaps, shares))
    if clicks:
        like = like + _by_likeness(
            centres,
            clicks,
            lambda shares: system.solve(
                *total(clicks, shares / max(1, shares @ _weights(clicks))),
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
    caution = _caution(quality) if count == 1 and not clicks else 0.0
    found = plain_steering(everywhere, like[again], centres[again], count, known, held, caution)
    return found, quality


def plain_steering(
    everywhere: Any,
    like: Any,
    centres: Any,
    count: int,
    quality: Any = TYPICAL,
    held: Held | None = None,
    caution: float = 0.0,
) -> Steering:
    """A `Steering` of NumPy arrays and numbers, each put on the device in float32."""
    given = everywhere, like, centres, quality, caution
    parts = [jnp.asarray(one, jnp.float32) for one in given]
    return Steering._make((*parts[:3], jnp.int32(count), parts[3], held, parts[4]))


def steering_of(held: Held, width: int) -> Steering:
    """What a set taught, as what steers all images; `width` D of the scorer's features."""
    assert held.taught is not None
    basis, taught = np.asarray(held.basis, np.float64), np.asarray(held.taught, np.float64)
    everywhere = basis @ taught
    everywhere[-1] -= np.asarray(held.origin) @ taught
    return plain_steering(everywhere, 0 * everywhere[None], np.zeros((1, width)), 0)


def _caution(quality: float) -> float:
    """`caution` of `Steering`, of the IoU of a single example with what is found without it."""
    return float(_ramp(quality, _FOUND))


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
    sides: Any = ()
    fine: tuple[np.ndarray, np.ndarray] | None = None


def _weights(parts: Iterable[Moments]) -> np.ndarray:
    return np.array([part.weight for part in parts])


def _with_mask(
    system: System,
    one: _Example,
    truth: Truth,
    views: Iterable[tuple[_Example, Truth]] = (),
) -> _Example:
    sides, seen = _sides(system, one, truth), [_sides(system, *view) for view in views]
    if seen:
        factors = [1 - _SEEN, *[_SEEN / len(seen)] * len(seen)]
        sides = tuple(
            Moments(one.mean, *total(parts, factors), float(factors @ _weights(parts)))
            for parts in zip(sides, *seen, strict=True)
        )
    fine = patch_targets(truth, (_FINER * one.grid[0], _FINER * one.grid[1]))
    return one._replace(sides=sides, fine=fine)


def _sides(system: System, one: _Example, truth: Truth) -> Sides:
    targets, known = patch_targets(truth, one.grid)
    inside, outside = (
        moments(system, one.columns, one.mean, targets - one.prior, known * side)
        for side in (targets > 0, targets <= 0)
    )
    return inside, outside


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
    system: System,
    examples: Sequence[_Example],
    points: np.ndarray,
    strengths: Sequence[float],
) -> dict[float, np.ndarray]:
    """(P, W + 3) what masks teach for images of each mean feature (D,), by the strength."""
    shape = len(points), len(system.directions)
    if not examples or not len(points):
        return dict.fromkeys(strengths, np.zeros(shape))

    def learn(shares):
        if not (equations := together([one.sides for one in examples], shares)):
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


def _held(
    system: System, examples: Sequence[_Example], strength: float, earlier: Steering | None
) -> Held | None:
    """`held` of `Steering`."""
    if not examples:
        return None if earlier is None else earlier.held
    if not strength:
        return None
    equations = together([one.sides for one in examples], np.ones(len(examples)))
    if equations is None:
        return None
    gram, _, lam, mu = equations
    return hold(system, system.matrix(gram, lam / strength, mu / strength))


def _strength(
    system: System, examples: Sequence[_Example], centres: np.ndarray
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


@functools.partial(jax.jit, static_argnums=3)
def _columns_of(scorer, everywhere, features, scales):
    """Of images (B, h, w, F) the mean features, margins with what steers all, and columns."""
    patches, grid = read_batch(scorer, features, scales), features.shape[1:3]
    prior = jax.vmap(lambda one: _steered(one, everywhere, grid))(patches)
    return patches.mean, prior, patches.columns
