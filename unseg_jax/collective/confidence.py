"""How likely a mask of the set's scorer is right: the confidence of `collective`.

What a scorer finds rests on what it learned from other images. What the image itself says, the
cues of `unseg_jax.collective.cues`, did not decide the mask, so their agreement with it is
evidence. The confidence is the logistic function of a weighted sum of four numbers:

* the correlation of the margins with how unlike each patch is to the border patch nearest to it;
* their correlation with the second eigenvector of the image's normalised cut;
* the image's own threshold of the scores: if low, even the best patches score little;
* how far margins inside and outside the mask are apart (`margin_confidence`).

It estimates the chance that the IoU with the truth is at least .5. A fit that has not joined the
model that ships hears a second opinion: its confidence is the geometric mean of its own chance and
that of the model that ships, on that model's mask, where both read the same features.

The weights were chosen, and the sums calibrated, on 18 data sets. Calibrated without each set in
turn, the chances tell masks with an IoU below .5 from others with an area under the curve of .80
with the shipped model and .82 with models that were fitted on the set. Where an image teaches
itself, the margins before are judged, as what it is sure of agrees with itself, right or wrong; and
the chance falls as far as the mask has changed since (`after_change`). A model that examples steer
has numbers of its own (`estimate_steered`), chosen and calibrated on 16 sets: .80, where the
numbers above have .65.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from unseg_jax.collective.cues import correlation, image_cues, neighbours, otsu, project
from unseg_jax.collective.set_scorer import score

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unseg_jax.collective.set_scorer import Scorer


class Weights(NamedTuple):
    """What each of the four numbers counts for, and the offset of their sum."""

    nearest: float
    cut: float
    threshold: float
    clearness: float
    offset: float


class SteeredWeights(NamedTuple):
    """What the four numbers of a steered model count for, and the offset of their sum."""

    quality: float
    nearest: float
    change: float
    threshold: float
    offset: float


SHIPPED = Weights(5.85, 0.0, 0.88, 0.0, -3.35)
"""Of the model that ships, whose images are not those that it was fitted on."""
FITTED = Weights(1.17, 2.35, 0.70, 4.69, -6.23)
"""Of a model that was fitted on a set, from these very cues."""
STEERED = SteeredWeights(2.60, 2.56, -2.36, 3.80, 0.35)
"""Of a model that examples steer."""


def estimate(
    weights: Weights,
    scorer: Scorer,
    features: Float[Array, "n d"],
    margins: Float[Array, " n"],
    grid: tuple[int, int],
) -> Float[Array, ""]:
    """The chance that the mask of an image is right; 0 where it is empty or the whole image.

    Args:
        weights: of the kind of model, static.
        scorer: of the set.
        features: (N, D) of the image.
        margins: (N,) what was found, above 0 is foreground.
        grid: (h, w), static.

    Returns:
        () float32 in [0, 1].
    """
    _, whole = project(features, scorer.projection)
    _, scores, valid = score(scorer, features, grid)
    _, apart, cut = image_cues(whole, valid, jnp.asarray(neighbours(grid)), nearest=1)
    margins = jnp.clip(margins, -1, 1)
    threshold = otsu(scores, valid)
    threshold = jnp.where(jnp.isfinite(threshold), threshold, scorer.threshold)
    numbers = correlation(apart, margins), correlation(cut, margins), threshold
    return _chance(weights, (*numbers, _clearness(margins), 1.0), margins)


def _chance(weights, numbers, margins):
    """The logistic function of a weighted sum; 0 for a mask that is empty or the whole image."""
    # What does not count is left out, so that XLA does not compute it.
    weighed = zip(weights, numbers, strict=True)
    chance = jax.nn.sigmoid(sum(weight * number for weight, number in weighed if weight))
    found = margins > 0
    return jnp.where(found.any() & ~found.all(), chance, 0.0)


def estimate_steered(
    scorer: Scorer,
    quality: Float[Array, ""],
    features: Float[Array, "n w"],
    margins: Float[Array, " n"],
    grid: tuple[int, int],
) -> Float[Array, ""]:
    """The chance that the mask of a steered model is right, see `estimate`.

    The four numbers are how well examples fit those that were left out; the correlation of the
    margins with how unlike each patch is to the border patch nearest to it, and with the margins
    before steering, of which examples should change something; and the image's own threshold of
    the margins, which is low where even the best patches are unlike what is marked.

    Args:
        scorer: of the set.
        quality: of `unseg_jax.collective.steering.Steering`.
        features: of the image.
        margins: (N,) what was found, above 0 is foreground.
        grid: (h, w), static.
    """
    _, whole = project(features, scorer.projection)
    before, _, valid = score(scorer, features, grid)
    apart = image_cues(whole, valid, jnp.asarray(neighbours(grid)), nearest=1)[1]
    margins = jnp.clip(margins, -1, 1)
    threshold = jnp.where(valid.any(), otsu(margins, valid), 0.0)
    alike = correlation(jnp.clip(before, -1, 1), margins)
    numbers = quality, correlation(apart, margins), alike, threshold, 1.0
    return _chance(STEERED, numbers, margins)


def second_opinion(
    chance: Float[Array, ""],
    scorer: Scorer,
    features: Float[Array, "n d"],
    grid: tuple[int, int],
) -> Float[Array, ""]:
    """The confidence of a fit: the geometric mean of its own chance and that of the model that
    ships, which tells images on which neither is to be trusted.

    Args:
        chance: from `estimate`, of the fit.
        scorer: of the model that ships, whose own mask is judged.
        features: of the image.
        grid: (h, w), static.
    """
    margins = score(scorer, features, grid)[0]
    return jnp.sqrt(chance * estimate(SHIPPED, scorer, features, margins, grid))


def after_change(
    chance: Float[Array, ""], before: Float[Array, " m"], after: Float[Array, " m"]
) -> Float[Array, ""]:
    """The chance that a mask is right that has changed since it was judged: times the square root
    of the IoU of both.

    Over 18 data sets that tells wrong masks as well as without (an area under the curve of .807),
    but not all of a mask may go, as in a picture of grass, and the chance stay.

    Args:
        chance: from `estimate`, of the margins before.
        before, after: (M,) margins, above 0 is foreground.
    """
    either = ((before > 0) | (after > 0)).sum()
    both = ((before > 0) & (after > 0)).sum()
    return chance * jnp.sqrt(both / jnp.maximum(either, 1))


def _clearness(margins):
    """`margin_confidence` of margins on patches."""
    inside = margins > 0
    sides = [jnp.sum(margins * side) / jnp.maximum(side.sum(), 1) for side in (inside, ~inside)]
    return (sides[0] - sides[1]) / 2
