"""The equations that marked patches teach by: what is learned from, and what is minimised.

With P the scorer's margins, clipped to ±1, and Q the centred features of patches, beside them the
scorer's two scores and 1, margins become P + Qc, where c minimises

    mean over marked patches of v (y - P - Qc)² + μ · mean over all patches of (Qc)² + λτ|c|².

y is what margins are to be, v lets foreground and background count alike, and τ is the mean
variance of a feature. See `unseg_jax.collective.steering` for who marks patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones.grids import PARTS, unpack_quarters
from unseg_jax.clustering.graphs import normalise_rows
from unseg_jax.collective import set_scorer

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unseg_jax.collective.set_scorer import Scorer

# Numbers of examples, and λ and μ that were measured with them; between them by logarithms.
_EXAMPLES, _LAMBDA, _MU = (1, 3, 10), (0.5, 0.3, 0.1), (0.02, 0.03, 0.03)
_DIRECTIONS = 384  # of features that are learned from
_SCORES = 0.2  # standard deviation of the two scores in Q
_OFFSET = 1e-3  # what stands for λτ in the column of ones
RAREST = 0.02
"""Least share of the marked patches that v allows for."""


class Patches(NamedTuple):
    """An image as equations take it.

    Attributes:
        mean: (D,) feature of its patches.
        whole: (N, W + 3) columns of patches: features of each block, of length 1, the linear score,
            that of the convolution, and 1.
        prior: (M,) the scorer's margins, clipped to ±1; of an image seen at two sizes for quarters
            of patches, M = 4 N.
        columns: (M, W + 3) as `whole`, for what `prior` is for.
    """

    mean: Float[Array, " d"]
    whole: Float[Array, "n w+3"]
    prior: Float[Array, " m"]
    columns: Float[Array, "m w+3"]


def read_patches(
    scorer: Scorer, features: Float[Array, "n f"], grid: tuple[int, int], scales: int
) -> Patches:
    """An image as equations take it.

    Args:
        scorer: of D features.
        features: W, those of the scorer first, and as many of each other block; of an image seen
            at two sizes also those of quarters, see `unseg_jax.backbones.grids.pack_quarters`.
        grid: (h, w) of patches, static.
        scales: at how many sizes the image was seen, static.
    """
    width = features.shape[-1] // (PARTS if scales > 1 else 1)
    plain = features[:, :width]
    linear, convolved, valid = set_scorer.both_scores(scorer, plain, grid)
    columns = whole = _with_scores(_of_length_1(scorer, plain), linear, convolved)
    mean = whole[:, : len(scorer.mean)].mean(0)
    if scales > 1:
        linear, convolved, valid = set_scorer.both_scores_closer(scorer, features, grid)
        rows = _of_length_1(scorer, unpack_quarters(features[:, width:], grid))
        columns = _with_scores(rows, linear, convolved)
    prior = set_scorer.margins_of(scorer, 0.5 * (linear + convolved), valid)
    return Patches(mean, whole, jnp.clip(prior, -1, 1), columns)


@jax.jit(static_argnames="scales")
def read_batch(scorer: Scorer, features: Float[Array, "b h w f"], scales: int = 1) -> Patches:
    """`read_patches` of images (B, h, w, F)."""
    count, height, width, _ = features.shape
    grid, rows = (height, width), features.reshape(count, height * width, -1)
    return jax.vmap(lambda one: read_patches(scorer, one, grid, scales))(rows)


def _with_scores(rows, linear, convolved):
    ones = jnp.ones_like(linear)
    return jnp.concatenate([rows, *(one[:, None] for one in (linear, convolved, ones))], -1)


def _of_length_1(scorer, features):
    """Features of each block of length 1."""
    blocks = features.astype(jnp.float32).reshape(len(features), -1, len(scorer.mean))
    return normalise_rows(blocks).reshape(features.shape)


class System:
    """The normal equations of the module's objective in the columns of Q.

    Features are rotated to their principal directions, of which the last, if there are many, are
    left out: on 18 data sets that changed the mean IoU by less than .002.

    Attributes:
        directions: (W + 3, R + 3) of the columns, R of the features; the others stay.
        scale, mean: (R + 3,) of the columns that Q is made of.
        everywhere: (R + 3, R + 3) mean over all patches of the products of columns of Q.
    """

    def __init__(self, gram: np.ndarray, directions: int | None = None):
        """
        Args:
            gram: (W + 3, W + 3) mean over all patches of the products of columns.
            directions: R at most; None takes 384.
        """
        from scipy.linalg import eigh

        width = len(gram) - 3
        most = min(width, _DIRECTIONS if directions is None else directions)
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


class Moments(NamedTuple):
    """Patches of a marked image: its mean feature, QᵀVQ, QᵀV(y - P), and the sum of V."""

    mean: np.ndarray
    gram: np.ndarray
    gaps: np.ndarray
    weight: float


def moments(
    system: System, columns: np.ndarray, mean: np.ndarray, gaps: np.ndarray, weights: np.ndarray
) -> Moments:
    used = weights > 0
    rows = system.of(columns[used])
    weighted = rows * weights[used, None]
    return Moments(mean, rows.T @ weighted, gaps[used] @ weighted, float(weights.sum()))


def total(parts: Sequence[Moments], factors: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """The sums of moments, each times a factor."""
    pairs = [(factor, one) for factor, one in zip(factors, parts, strict=True) if factor]
    gram = sum((factor * one.gram for factor, one in pairs), 0 * parts[0].gram)
    return gram, sum((factor * one.gaps for factor, one in pairs), 0 * parts[0].gaps)


Sides = tuple[Moments, Moments]
"""Moments of the patches inside and outside of what is marked in an image."""


def together(
    examples: Sequence[Sides], shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """QᵀVQ, QᵀV(y - P), λ and μ of examples that count by shares (E,); None if nothing counts."""
    weights = [shares @ [one[at].weight for one in examples] for at in range(2)]
    if not sum(weights):
        return None
    inside = np.clip(weights[0] / sum(weights), RAREST, 1 - RAREST)
    factors = np.array([inside, 1 - inside]) ** -0.5
    factors /= factors @ weights
    parts = [side for one in examples for side in one]
    whole = np.mean([sum(side.weight for side in one) for one in examples])
    count = np.log(max(1.0, sum(weights) / whole))
    lam, mu = (
        float(np.exp(np.interp(count, np.log(_EXAMPLES), np.log(values))))
        for values in (_LAMBDA, _MU)
    )
    return *total(parts, np.outer(shares, factors).ravel()), lam, mu


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
    system = System(gram)
    marked = moments(system, columns, gram[-1], gaps, weights)
    return system.solve(marked.gram, marked.gaps, lam, mu)
