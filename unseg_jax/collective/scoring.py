"""What the images of a set have in common with being foreground: one scorer, no ground truth.

`fit_scorer` regresses the evidence of all images (`unseg_jax.collective.cues`) on their patch
features, and what is left learns from its own labels. What that linear scorer is sure of teaches a
small convolution (`unseg_jax.collective.convolution`). `score` is the mean of both on a new image,
with the image's own Otsu threshold.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering.graphs import normalise_rows
from unseg_jax.collective.convolution import Convolution, convolve, scores_of, train
from unseg_jax.collective.cues import (
    Projection,
    fit_centres,
    fit_projection,
    frame_clusters,
    image_evidence,
    nearest_centre,
    otsu,
    project,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float

# A cluster that holds more than this many times its fair share of the border is frame.
FRAME_RATIO = 2.5
FRAME_SCORE = -1.5
"""What a patch of the frame scores: surely background."""
_RIDGE = 0.02
_ROUNDS = 2


class Scorer(NamedTuple):
    """A fitted set of images: all that segmenting a new image needs.

    Attributes:
        mean, basis, rest: see `Projection`.
        centres: (K, R) of the set's clusters.
        frame: (K,) bool, clusters that frame the images.
        weights: (R,) of the linear scorer, which reads uncentred coordinates.
        offset: () of the linear scorer.
        kernel, bias, readout, shift: of the convolution, (3, 3, R, H) float16, (H,), (H,) and ();
            see `Convolution`. It reads coordinates centred by the set.
        threshold: () Otsu's threshold of the scores of the set.
    """

    mean: Float[Array, " d"]
    basis: Float[Array, "d r"]
    rest: Float[Array, ""]
    centres: Float[Array, "k r"]
    frame: Bool[Array, " k"]
    weights: Float[Array, " r"]
    offset: Float[Array, ""]
    kernel: Float[Array, "3 3 r h"]
    bias: Float[Array, " h"]
    readout: Float[Array, " h"]
    shift: Float[Array, ""]
    threshold: Float[Array, ""]

    @property
    def convolution(self) -> Convolution:
        """The scorer's convolution."""
        return Convolution(self.kernel, self.bias, self.readout, self.shift)

    @property
    def projection(self) -> Projection:
        """The scorer's own projection."""
        return Projection(self.mean, self.basis, self.rest)


def uncentred(whole: Float[Array, "*b r+1"]) -> Float[Array, "*b r"]:
    """Coordinates of length 1 on the principal directions, which the linear scorer reads.

    Args:
        whole: from `project`.
    """
    return normalise_rows(whole[..., :-1])


def score(
    scorer: Scorer, features: Float[Array, "n d"], grid: tuple[int, int]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Bool[Array, " n"]]:
    """The scorer on one image.

    Args:
        scorer: of the set.
        features: of the image.
        grid: (h, w), static.

    Returns:
        (N,) float32 margins: above 0 is foreground, −1.5 on the frame; (N,) raw scores, of about
        unit variance over the set; (N,) bool, patches that are not frame.
    """
    linear, convolved, valid = both_scores(scorer, features, grid)
    scores = 0.5 * (linear + convolved)
    own = otsu(scores, valid)
    own = jnp.where(jnp.isfinite(own), own, scorer.threshold)
    return jnp.where(valid, scores - own, FRAME_SCORE), scores, valid


def both_scores(
    scorer: Scorer, features: Float[Array, "n d"], grid: tuple[int, int]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Bool[Array, " n"]]:
    """Scores of the linear scorer and of the convolution, and patches that are not frame; see
    `score`."""
    x, whole = project(features, scorer.projection)
    valid = ~scorer.frame[nearest_centre(x, scorer.centres)]
    linear = uncentred(whole) @ scorer.weights + scorer.offset
    convolved = convolve(scorer.convolution, x.reshape(1, *grid, -1)).ravel()
    return linear, convolved, valid


def distance(scorer: Scorer, features: Float[Array, "n d"]) -> Float[Array, ""]:
    """How far an image's mean feature lies from the mean of the set, 0 to 2.

    Both are means of features of length 1. Images of the set's kind differ from one another in what
    they show, and so in their patches; their means stay near to each other.
    """
    return jnp.linalg.norm(normalise_rows(features.astype(jnp.float32)).mean(0) - scorer.mean)


def fit_scorer(
    features: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int]],
    *,
    num_clusters: int = 16,
    components: int = 96,
    key: Array,
) -> tuple[Scorer, list[dict[str, Any]]]:
    """Fits the scorer on the features of a set.

    Args:
        features: for each grid, (n, N, D) patch features of n images, of any floating type.
        grids: (h, w) of each, with h·w = N.
        num_clusters: K clusters of the set, from which the frame is told.
        components: R principal components that are kept.
        key: of the sample of patches and of the clusters.

    Returns:
        The scorer, and for each cluster what the vote saw: `cluster`, `share` of all patches,
        `border_ratio`, `score` (mean margin) and what it was found to be: `frame`, `foreground`
        or `background`.
    """
    seed = np.asarray(jax.random.bits(key, (2,), jnp.uint32))
    projection = fit_projection(features, components, np.random.default_rng(seed))
    projected = [[_project_one(jnp.asarray(one), projection) for one in part] for part in features]
    x, plain = ([np.stack([one[at] for one in part]) for part in projected] for at in range(2))
    centres = fit_centres(
        np.concatenate([part.reshape(-1, part.shape[-1]) for part in x]),
        num_clusters,
        jax.random.fold_in(key, 1),
    )
    labels = [np.asarray(nearest_centre(jnp.asarray(part), centres)) for part in x]
    ratios = frame_clusters(labels, grids, num_clusters)
    frame = ratios > FRAME_RATIO
    if np.concatenate([frame[part].ravel() for part in labels]).mean() > 0.5:
        frame = np.zeros_like(frame)  # nothing would be left to segment
    valid = [~frame[part] for part in labels]
    evidence = [
        np.stack(
            [
                _evidence_of(jnp.asarray(one), projection, jnp.asarray(kept), grid)
                for one, kept in zip(part, shown, strict=True)
            ]
        )
        for part, shown, grid in zip(features, valid, grids, strict=True)
    ]
    weights, offset, linear, margins = _regress(plain, valid, evidence)
    goals = [
        np.where(shown, np.clip(part, -1, 1), -1).astype(np.float32)
        for part, shown in zip(margins, valid, strict=True)
    ]
    images, goals, inside = (
        [part.reshape(-1, *grid, *part.shape[2:]) for part, grid in zip(parts, grids, strict=True)]
        for parts in (x, goals, valid)
    )
    looks = train(images, goals, inside, np.random.default_rng([*seed, 1]))
    _, head = max(looks, key=lambda look: look[0])
    # Half precision keeps the file of a model small, and changes no mask.
    head = head._replace(kernel=head.kernel.astype(jnp.float16))
    scores = [
        0.5 * (part + convolved)
        for part, convolved in zip(linear, scores_of(head, images), strict=True)
    ]
    threshold = _otsu_of(scores, valid)
    scorer = Scorer(
        *projection,
        centres=centres,
        frame=jnp.asarray(frame),
        weights=jnp.asarray(weights, jnp.float32),
        offset=jnp.asarray(offset, jnp.float32),
        kernel=head.kernel,
        bias=head.bias,
        readout=head.readout,
        shift=head.offset,
        threshold=jnp.asarray(threshold, jnp.float32),
    )
    above = np.concatenate([(part - threshold).ravel() for part in scores])
    return scorer, _describe(above, labels, ratios, frame)


@jax.jit
def _project_one(features, projection):
    x, whole = project(features, projection)
    return x, uncentred(whole)


@functools.partial(jax.jit, static_argnames="grid")
def _evidence_of(features, projection, valid, grid):
    return image_evidence(project(features, projection)[1], valid, grid)


otsu_rows = jax.jit(jax.vmap(otsu))


def _regress(x, valid, evidence):
    """Ridge regression of the evidence, then of the scorer's own labels.

    Returns:
        Weights and offset; for each grid the scores, and the margins over each image's threshold.
    """

    def valid_of(parts):
        return np.concatenate([part[kept] for part, kept in zip(parts, valid, strict=True)])

    rows = valid_of(x).astype(np.float32)
    centre = rows.mean(0)
    rows = rows - centre
    gram = (rows.T @ rows).astype(np.float64)
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-9)
    target = evidence
    for _ in range(_ROUNDS + 1):
        regressed = valid_of(target).astype(np.float64)
        weights = np.linalg.solve(gram, rows.T @ (regressed - regressed.mean()))
        deviation = np.std(rows @ weights) + 1e-9
        weights = (weights / deviation).astype(np.float32)
        scores = [(part - centre) @ weights for part in x]
        threshold = _otsu_of(scores, valid)
        limits = [
            np.asarray(otsu_rows(part, kept)) for part, kept in zip(scores, valid, strict=True)
        ]
        limits = [np.where(np.isfinite(own), own, threshold)[:, None] for own in limits]
        pairs = list(zip(scores, limits, strict=True))
        target = [part > 0.5 * (threshold + own) for part, own in pairs]
    return weights, -centre @ weights, scores, [part - own for part, own in pairs]


def _otsu_of(scores, valid):
    """Otsu's threshold of all valid patches of a set."""
    rows = np.concatenate([part[kept] for part, kept in zip(scores, valid, strict=True)])
    return float(otsu_rows(rows[None], np.ones((1, len(rows)), bool))[0])


def _describe(margins, labels, ratios, frame):
    labels = np.concatenate([part.ravel() for part in labels])
    entries = []
    for cluster in range(len(frame)):
        members = labels == cluster
        margin = float(margins[members].mean()) if members.any() else 0.0
        kind = "frame" if frame[cluster] else "foreground" if margin > 0 else "background"
        entries.append(
            {
                "cluster": cluster,
                "share": round(float(members.mean()), 4),
                "border_ratio": round(float(ratios[cluster]), 3),
                "score": round(margin, 3),
                "found": kind,
            }
        )
    return entries
