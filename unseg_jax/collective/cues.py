"""Foreground evidence from one unlabelled image, in the coordinates of its set.

Two things tell the object in an image of its own: it is unlike what touches the border, and it
falls apart from the rest in a normalised cut. Both err, but differently in every image, while
what the object looks like repeats over the set; `unseg_jax.collective.set_scorer` learns that.

1. `fit_projection`: features are normalised, centred by the set's mean and projected on their
   first principal components.
2. Clusters that lie almost only along the border (the black surround of an endoscope, a
   passe-partout) are a frame, not a background. They are taken away, and the border of an image is
   that of what remains.
3. `image_evidence`: unlikeness to the border as a whole, unlikeness to the nearest parts of the
   border, and the second eigenvector of the normalised cut, each standardised within its image.

Everything on arrays of one image here is pure JAX, to be vmapped.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering.graphs import normalise_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float, Int

# Affinities below τ become ε, as in TokenCut's graph.
_TAU = 0.2
_EPSILON = 1e-5
_POWER_STEPS = 12
_BINS = 64
SAMPLE = 16_384
"""Patches that statistics are taken from; more change nothing."""
# How many patches of the border a patch is compared with to be like some part of it.
_NEAREST = 5
_TINY = 1e-6
CLEAR = 0.5
"""Of several images or tiles, those whose split is at least this share as clear as the clearest
tell where to split; a half, which was set before anything was measured."""


class Projection(NamedTuple):
    """Principal components of a set's normalised features.

    Attributes:
        mean: (D,) mean of the normalised features.
        basis: (D, R) orthonormal principal directions.
        rest: () length of the part of the mean that lies outside the basis.
    """

    mean: Float[Array, " d"]
    basis: Float[Array, "d r"]
    rest: Float[Array, ""]


def fit_projection(
    images: Sequence[np.ndarray], components: int, rng: np.random.Generator
) -> Projection:
    """Mean and principal directions of a sample of patches.

    Args:
        images: (…, D) features of each image, of any floating type.
        components: R, cut to D.
        rng: chooses the sample.
    """
    width = images[0].shape[-1]
    parts = [image.reshape(-1, width) for image in images]
    ends = np.cumsum([len(part) for part in parts])
    chosen = np.sort(rng.choice(ends[-1], min(ends[-1], SAMPLE), replace=False))
    picked = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = ends - [len(part) for part in parts]
    rows = [part[at - start] for part, at, start in zip(parts, picked, starts, strict=True)]
    sample = np.concatenate(rows).astype(np.float32)
    sample /= np.maximum(np.linalg.norm(sample, axis=-1, keepdims=True), _TINY)
    mean = sample.mean(0, dtype=np.float64)
    centred = sample - mean.astype(np.float32)
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    basis = directions[:, ::-1][:, : min(components, width)]
    rest = np.sqrt(max(mean @ mean - np.sum((mean @ basis) ** 2), 0.0))
    return Projection(*(jnp.asarray(array, jnp.float32) for array in (mean, basis, rest)))


def project(
    features: Float[Array, "*b w"], projection: Projection
) -> tuple[Float[Array, "*b r"], Float[Array, "*b r+1"]]:
    """Coordinates of patches on the principal directions.

    Args:
        features: of which the first D are read; what follows is of other blocks.
        projection: of D features.

    Returns:
        Centred by the set and normalised, (…, R), which a convolution reads; and uncentred,
        (…, R+1) of length 1, whose products are the cosines between patches.
    """
    features = features[..., : len(projection.mean)]
    coordinates = normalise_rows(features.astype(jnp.float32)) @ projection.basis
    rest = jnp.broadcast_to(projection.rest, (*coordinates.shape[:-1], 1))
    whole = normalise_rows(jnp.concatenate([coordinates, rest], -1))
    return normalise_rows(coordinates - projection.mean @ projection.basis), whole


def neighbours(grid: tuple[int, int], size: int | None = None) -> Int[np.ndarray, "n 9"]:
    """The nine patches around and at each patch of a grid, row by row; `size` where none is.

    Args:
        grid: (h, w).
        size: rows of the table, of which those beyond h·w have no neighbours; None is h·w.

    >>> neighbours((1, 2)).tolist()
    [[2, 2, 2, 2, 0, 1, 2, 2, 2], [2, 2, 2, 0, 1, 2, 2, 2, 2]]
    """
    size = grid[0] * grid[1] if size is None else size
    table = np.full((size, 9), size, np.int32)
    rows, columns = np.indices(grid).reshape(2, -1)
    for place, (down, right) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1])
        table[: len(rows), place] = np.where(inside, row * grid[1] + column, size)
    return table


def border_of(valid: Bool[Array, " n"], near: Int[Array, "n 9"]) -> Bool[Array, " n"]:
    """Valid patches beside an invalid one or at the edge of the grid; `near` is of `neighbours`."""
    return valid & ~jnp.append(valid, False)[near[:, 1::2]].all(-1)


def nearest_centre(x: Float[Array, "*b r"], centres: Float[Array, "k r"]) -> Int[Array, "*b"]:
    """Index of the nearest centre of each row."""
    return jnp.argmax(x @ centres.T - 0.5 * jnp.sum(centres**2, -1), -1).astype(jnp.int32)


def image_evidence(
    whole: Float[Array, "n r"], valid: Bool[Array, " n"], near: Int[Array, "n 9"]
) -> Float[Array, " n"]:
    """Evidence for foreground from one image alone: the sum of `image_cues`."""
    unlike, apart, cut = image_cues(whole, valid, near)
    return unlike + apart + cut


def image_cues(
    whole: Float[Array, "n r"],
    valid: Bool[Array, " n"],
    near: Int[Array, "n 9"],
    nearest: int = _NEAREST,
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Three cues for foreground from one image alone, each standardised, 0 outside `valid`.

    Minus the mean cosine to all patches of the border; minus the mean cosine to the few of them
    that are most alike (a border of several parts, such as a near wall and a far wall, is like none
    of them on average); and the second eigenvector of D⁻¹W, W the cosines above τ, with the sign
    that puts the border below.

    Args:
        whole: uncentred patches of length 1, from `project`.
        valid: patches that are not frame.
        near: see `neighbours`.
        nearest: how many patches of the border are a few.
    """
    border = border_of(valid, near)
    share = border.astype(jnp.float32) / jnp.maximum(border.sum(), 1)
    cosines = jnp.matmul(whole, whole.T, precision=jax.lax.Precision.HIGHEST)
    unlike = -(cosines @ share)
    apart = -nearest_mean(cosines, border, nearest)
    cut = _normalised_cut(cosines, valid, share, unlike)
    return _standardise(unlike, valid), _standardise(apart, valid), _standardise(cut, valid)


def nearest_mean(
    cosines: Float[Array, "n n"], among: Bool[Array, " n"], count: int
) -> Float[Array, " n"]:
    """Mean of each patch's largest cosines to some of the patches.

    Args:
        cosines: between all patches, symmetric.
        among: the patches to compare with.
        count: how many of the largest are averaged; all where there are fewer.

    Returns:
        (N,) float32; 0 where `among` is empty.
    """
    if count == 1:
        largest = jnp.max(jnp.where(among, cosines, -jnp.inf), -1)
        return jnp.where(among.any(), largest, 0.0)
    places = jnp.nonzero(among, size=len(among))[0]

    def insert(at, largest):
        row, kept = cosines[places[at]], []
        for value in largest:
            kept.append(jnp.maximum(value, row))
            row = jnp.minimum(value, row)
        return kept

    # A border is a small part of the patches; `lax.top_k` of all takes fifteen times as long.
    nothing = [jnp.full(len(among), -jnp.inf)] * count
    largest = jnp.stack(jax.lax.fori_loop(0, among.sum(), insert, nothing))
    counted = jnp.isfinite(largest)
    total = jnp.where(counted, largest, 0.0).sum(0)
    return total / jnp.maximum(counted.sum(0), 1).astype(jnp.float32)


def _normalised_cut(cosines, valid, share, start):
    """The second eigenvector of D⁻¹W over valid patches, the border on its lower side."""
    weights = jnp.where(cosines < _TAU, _EPSILON, cosines)
    weights = jnp.where(valid[:, None] & valid, weights, 0.0)
    root = jnp.sqrt(jnp.maximum(weights.sum(-1), _EPSILON))
    walk = weights / root[:, None] / root
    first = jnp.where(valid, root, 0.0)
    first = first / jnp.maximum(jnp.linalg.norm(first), _TINY)

    def step(_, vector):
        vector = vector - first * (first @ vector)
        vector = walk @ vector
        return vector / jnp.maximum(jnp.linalg.norm(vector), _TINY)

    # Power iteration from another cue: of eigenvectors near to each other it finds the one that
    # has most to do with the border.
    vector = jax.lax.fori_loop(0, _POWER_STEPS, step, jnp.where(valid, start, 0.0)) / root
    mean = jnp.sum(vector * valid) / jnp.maximum(valid.sum(), 1)
    return jnp.where(share @ vector > mean, -vector, vector)


def _standardise(values, valid):
    count = jnp.maximum(valid.sum(), 1)
    mean = jnp.sum(values * valid) / count
    deviation = jnp.sqrt(jnp.sum(valid * (values - mean) ** 2) / count)
    return jnp.where(valid, (values - mean) / (deviation + _TINY), 0.0)


def correlation(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Pearson's, -1 to 1; 0 where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    return x @ y / jnp.maximum(jnp.linalg.norm(x) * jnp.linalg.norm(y), 1e-6)


def otsu(values: Float[Array, " n"], valid: Bool[Array, " n"]) -> Float[Array, ""]:
    """Otsu's threshold over 64 bins of the valid values; their value if all are equal, and
    infinity if none is valid."""
    low = jnp.min(jnp.where(valid, values, jnp.inf))
    high = jnp.max(jnp.where(valid, values, -jnp.inf))
    width = jnp.maximum(high - low, _TINY) / _BINS
    bins = jnp.clip(((values - low) / width).astype(jnp.int32), 0, _BINS - 1)
    # Cumulative sums in one go: a histogram by `.at[].add` takes longest to compile of all here.
    within = ((bins[:, None] <= jnp.arange(_BINS)) & valid[:, None]).astype(jnp.float32)
    below, moment = within.sum(0), (within * bins[:, None]).sum(0)
    total, whole = below[-1], moment[-1]
    apart = (whole * below - moment * total) ** 2 / jnp.maximum(below * (total - below), _TINY)
    # The middle of a stretch of equal values: any threshold in an empty gap is as good.
    best = apart >= jnp.max(apart) * (1 - 1e-6)
    place = jnp.sum(best * jnp.arange(_BINS, dtype=jnp.float32)) / jnp.maximum(best.sum(), 1)
    return jnp.where(valid.any(), low + (place + 1) * width, jnp.inf)


def clearness(
    values: Float[Array, " n"], valid: Bool[Array, " n"], threshold: Float[Array, ""]
) -> Float[Array, ""]:
    """The variance between the two sides of a threshold, which Otsu's has the largest of; 0 if one
    side is empty."""
    above = valid & (values > threshold)
    below = valid & ~above
    count = jnp.maximum(valid.sum(), 1)
    means = [jnp.sum(values * side) / jnp.maximum(side.sum(), 1) for side in (above, below)]
    return above.sum() * below.sum() / count**2 * (means[0] - means[1]) ** 2
