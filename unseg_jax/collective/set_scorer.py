"""What the images of a set have in common with being foreground: one scorer, no ground truth.

`fit_scorer` regresses the evidence of all images (`unseg_jax.collective.cues`) on their patch
features, and what is left learns from its own labels. What that linear scorer is sure of teaches a
small convolution (`unseg_jax.collective.convolution`). `score` is the mean of both on a new image,
with the image's own Otsu threshold.

The fit is one program. Its arrays hold the images of a set as rows of patches, whatever their
grids, and are padded to few sizes, so that it is seldom compiled.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones.grids import PARTS, enlarge, unpack_quarters
from unseg_jax.clustering.baselines import kmeans
from unseg_jax.clustering.graphs import normalise_rows
from unseg_jax.collective.convolution import Convolution, convolve, convolve_rows, draw, train
from unseg_jax.collective.cues import (
    CLEAR,
    SAMPLE,
    Projection,
    border_of,
    clearness,
    fit_projection,
    image_evidence,
    nearest_centre,
    neighbours,
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
_LEAST, _MULTIPLE = 8, 16  # images are padded to a power of two, and patches to a multiple


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
        threshold: () of the scores of the set.
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
    return margins_of(scorer, scores, valid), scores, valid


def margins_of(
    scorer: Scorer, scores: Float[Array, " m"], valid: Bool[Array, " m"]
) -> Float[Array, " m"]:
    """Margins of an image of its scores, and which of these are not of the frame; see `score`."""
    own = otsu(scores, valid)
    own = jnp.where(jnp.isfinite(own), own, scorer.threshold)
    return jnp.where(valid, scores - own, FRAME_SCORE)


def score_closer(
    scorer: Scorer, features: Float[Array, "n c"], grid: tuple[int, int]
) -> Float[Array, " m"]:
    """(4 N,) margins of an image seen at two sizes, for quarters of its patches; see `score`.

    Of 18 data sets that helps on those of small things and hurts on others.

    Args:
        scorer: of D features.
        features: of each patch, and from the fifth part on of its quarters, see
            `unseg_jax.backbones.grids.pack_quarters`.
        grid: (h, w) of the patches, static.
    """
    linear, convolved, valid = both_scores_closer(scorer, features, grid)
    return margins_of(scorer, 0.5 * (linear + convolved), valid)


def both_scores_closer(
    scorer: Scorer, features: Float[Array, "n c"], grid: tuple[int, int]
) -> tuple[Float[Array, " m"], Float[Array, " m"], Bool[Array, " m"]]:
    """(4 N,) `both_scores` of an image seen at two sizes: the mean of those of both."""
    width = features.shape[-1] // PARTS
    whole = both_scores(scorer, features[:, :width], grid)
    quarters, closer = unpack_quarters(features[:, width:], grid), (2 * grid[0], 2 * grid[1])
    near = both_scores(scorer, quarters, closer)
    linear, convolved = (0.5 * (enlarge(whole[at], grid) + near[at]) for at in range(2))
    return linear, convolved, enlarge(whole[2].astype(jnp.float32), grid) > 0.5


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


def fit_scorer(
    images: Sequence[Float[np.ndarray, "h w d"]],
    *,
    num_clusters: int = 16,
    components: int = 96,
    tiles: bool = False,
    key: Array,
) -> tuple[Scorer, list[dict[str, Any]]]:
    """Fits the scorer on the features of a set.

    Args:
        images: features of the patches of each, of any floating type and any grids.
        num_clusters: K clusters of the set, from which the frame is told.
        components: R principal components that are kept.
        tiles: whether images are tiles of larger ones, of which most may show no thing.
        key: of all samples.

    Returns:
        The scorer, and for each cluster what the vote saw: `cluster`, `share` of all patches,
        `border_ratio`, `score` (mean margin) and what it was found to be: `frame`, `foreground`
        or `background`.
    """
    seed = np.asarray(jax.random.bits(key, (2,), jnp.uint32))
    projection = fit_projection(images, components, np.random.default_rng(seed))
    grids = [image.shape[:2] for image in images]
    count = max(_LEAST, 1 << (len(images) - 1).bit_length())
    size = -(-max(h * w for h, w in grids) // _MULTIPLE) * _MULTIPLE
    width = projection.basis.shape[1]
    x, whole = (np.zeros((count, size, columns), np.float32) for columns in (width, width + 1))
    near, sizes = np.full((count, size, 9), size, np.int32), np.zeros(count, np.int32)
    tables = {grid: neighbours(grid, size) for grid in set(grids)}
    for at, (image, grid) in enumerate(zip(images, grids, strict=True)):
        sizes[at] = grid[0] * grid[1]
        padded = np.zeros((size, image.shape[-1]), image.dtype)
        padded[: sizes[at]] = image.reshape(sizes[at], -1)
        x[at], whole[at] = _project(padded, projection)
        near[at] = tables[grid]
    draws = draw(sizes, count * size, width, np.random.default_rng([*seed, 1]))
    options = {"num_clusters": num_clusters, "tiles": tiles}
    parts, clusters = _learn(x, whole, near, sizes, draws, key, **options)
    return Scorer(*projection, *parts), _describe(*map(np.asarray, clusters))


_project = jax.jit(project)


@functools.partial(jax.jit, static_argnames=("num_clusters", "tiles"))
def _learn(x, whole, near, sizes, draws, key, *, num_clusters, tiles):
    """What follows the projection in `Scorer`; and for each cluster its share of patches, how much
    more of the border it holds than of the image, its mean margin, and whether it is frame."""
    real = jnp.arange(x.shape[1]) < sizes[:, None]
    x = jnp.where(real[..., None], x, 0.0)
    centres = _centres(x, sizes, num_clusters, key)
    labels = jnp.where(real, nearest_centre(x, centres), num_clusters)

    def of_clusters(values):
        return jax.ops.segment_sum(values.ravel() * 1.0, labels.ravel(), num_clusters + 1)[:-1]

    members, held = of_clusters(real), of_clusters(jax.vmap(border_of)(real, near))
    shares = members / members.sum()
    # 1 is what a cluster would hold of the border if it lay there as all patches do.
    ratios = held / jnp.maximum(members, 1) / (held.sum() / members.sum())
    frame = ratios > FRAME_RATIO
    frame &= frame @ shares <= 0.5  # else nothing would be left to segment
    valid = real & ~jnp.append(frame, True)[labels]
    evidence = _each(image_evidence, sizes, whole, valid, near)
    weights, offset, linear, margins = _regress(uncentred(whole), valid, evidence, tiles)
    goals = jnp.where(valid, jnp.clip(margins, -1, 1), jnp.where(real, -1.0, 0.0))
    head, _ = train(x, near, goals, valid, draws)
    # Half precision keeps the file of a model small, and changes no mask.
    head = head._replace(kernel=head.kernel.astype(jnp.float16))
    convolved = _each(functools.partial(convolve_rows, head), sizes, x, near)
    scores = 0.5 * (linear + convolved)
    threshold, _ = _thresholds(scores, valid, tiles)
    above = of_clusters(jnp.where(real, scores - threshold, 0.0)) / jnp.maximum(members, 1)
    return (centres, frame, weights, offset, *head, threshold), (shares, ratios, above, frame)


def _each(function, sizes, *arrays):
    """A function of each image; padding is passed over, and stays 0."""

    def one(index, found):
        values = function(*(array[index] for array in arrays))
        return found.at[index].set(values.astype(jnp.float32))

    nothing = jnp.zeros(arrays[0].shape[:2], jnp.float32)
    return jax.lax.fori_loop(0, sizes.astype(bool).sum(), one, nothing)


def _centres(x, sizes, num_clusters, key) -> Float[Array, "k r"]:
    """k-means centres of a sample of the patches; fewer than K distinct ones leave centres of
    zero, which no patch is nearest to unless it is zero itself."""
    of_rows, of_means = jax.random.split(key)
    ends = jnp.cumsum(sizes)
    drawn = jax.random.uniform(of_rows, (min(SAMPLE, len(x) * x.shape[1]),)) * ends[-1]
    drawn = jnp.minimum(drawn.astype(jnp.int32), ends[-1] - 1)
    image = jnp.searchsorted(ends, drawn, side="right")
    rows = x[image, drawn - (ends - sizes)[image]]
    members = kmeans(rows, jnp.ones(len(rows), bool), num_clusters, of_means, 15, 1)
    return (members.T @ rows) / jnp.maximum(members.sum(0), 1.0)[:, None]


def _regress(x, valid, evidence, tiles):
    """Ridge regression of the evidence, then of the scorer's own labels.

    Returns:
        Weights and offset; the scores, and the margins over each image's threshold.
    """
    shape, x = valid.shape, x.reshape(-1, x.shape[-1])
    share = (valid / jnp.maximum(valid.sum(), 1)).ravel()
    centre = share @ x
    rows = jnp.where(valid.reshape(-1, 1), x - centre, 0.0)
    gram = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
    gram += jnp.eye(len(gram)) * (_RIDGE * jnp.trace(gram) / len(gram) + 1e-9)
    factor = jax.scipy.linalg.cho_factor(gram)

    def regress(target, _):
        wanted = jnp.where(valid, target - jnp.sum(share * target.ravel()), 0.0).ravel()
        weights = jax.scipy.linalg.cho_solve(factor, wanted @ rows)
        scores = (x - centre) @ weights
        scale = jnp.sqrt(jnp.sum(share * jnp.square(scores))) + 1e-9
        weights, scores = weights / scale, (scores / scale).reshape(shape)
        threshold, own = _thresholds(scores, valid, tiles)
        labels = (scores > 0.5 * (threshold + own)).astype(jnp.float32)
        return labels, (weights, scores, scores - own)

    _, found = jax.lax.scan(regress, evidence, length=_ROUNDS + 1)
    weights, scores, margins = (part[-1] for part in found)
    return weights, -centre @ weights, scores, margins


def _thresholds(scores, valid, tiles):
    """() the threshold of the set, and (I, 1) Otsu's of each image, or that of the set where
    nothing of it is valid. That of the set is the median of the images'. Otsu's of all patches
    would follow the few that are furthest out, such as a ruler in one of forty images. Of tiles
    only those count whose split is clear, since most may show no thing."""
    own = jax.vmap(otsu)(scores, valid)
    usable = jnp.isfinite(own)
    if tiles:
        clear = jax.vmap(clearness)(scores, valid, jnp.where(usable, own, 0.0))
        counted = usable & (clear >= CLEAR * jnp.max(jnp.where(usable, clear, 0.0)))
    else:
        counted = usable
    threshold = jnp.nanmedian(jnp.where(counted, own, jnp.nan))
    return threshold, jnp.where(usable, own, threshold)[:, None]


def _describe(shares, ratios, margins, frame) -> list[dict[str, Any]]:
    return [
        {
            "cluster": cluster,
            "share": round(float(shares[cluster]), 4),
            "border_ratio": round(float(ratios[cluster]), 3),
            "score": round(float(margins[cluster]), 3),
            "found": "frame"
            if frame[cluster]
            else "foreground"
            if margins[cluster] > 0
            else "background",
        }
        for cluster in range(len(frame))
    ]
