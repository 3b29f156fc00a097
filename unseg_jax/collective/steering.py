"""A few marked images steer the scorer of a set.

With P the scorer's margins, clipped to ±1, and Q the centred features of patches, beside them the
scorer's two scores and 1, the steered margins are P + Qc, where c minimises

    mean over marked patches of v (y - P - Qc)² + μ · mean over all patches of (Qc)² + λτ|c|².

y goes from -1 to 1 with the share of a patch that is marked. The second term holds the images to
what was found without examples, so that a single one does no harm. v lets foreground and background
count alike; τ is the mean variance of a feature.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering.graphs import normalise_rows
from unseg_jax.collective import scoring
from unseg_jax.data.masks import read_mask
from unseg_jax.errors import closest

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unseg_jax.collective.scoring import Scorer
    from unseg_jax.data.images import Source
    from unseg_jax.data.reading import Reading
    from unseg_jax.data.truths import Truth

# Numbers of examples, and λ and μ that were measured with them; between them by logarithms.
_EXAMPLES, _LAMBDA, _MU = (1, 3, 10), (0.5, 0.3, 0.1), (0.1, 0.03, 0.03)
_SCORES = 0.2  # standard deviation of the two scores in Q
_OFFSET = 1e-3  # what stands for λτ in the column of ones
_RAREST = 0.02  # least share of the marked patches that v allows for


class Steering(NamedTuple):
    """What was learned from marked images.

    Attributes:
        coefficients: (D + 3,) of the features of length 1, the linear score, that of the
            convolution, and 1.
        examples: () number of marked images.
    """

    coefficients: Float[Array, " d+3"]
    examples: Any


def steer(
    scorer: Scorer, steering: Steering, features: Float[Array, "n d"], grid: tuple[int, int]
) -> Float[Array, " n"]:
    """(N,) margins of one image, above 0 is foreground; see `scoring.score`."""
    prior, columns = prior_and_columns(scorer, features, grid)
    return prior + columns @ steering.coefficients


def prior_and_columns(
    scorer: Scorer, features: Float[Array, "n d"], grid: tuple[int, int]
) -> tuple[Float[Array, " n"], Float[Array, "n d+3"]]:
    """The scorer's margins of one image, clipped to ±1; and what `Steering` has coefficients of."""
    prior = jnp.clip(scoring.score(scorer, features, grid)[0], -1, 1)
    linear, convolved, _ = scoring.both_scores(scorer, features, grid)
    rows = normalise_rows(features.astype(jnp.float32))
    columns = [rows, *(one[:, None] for one in (linear, convolved, jnp.ones_like(linear)))]
    return prior, jnp.concatenate(columns, -1)


def fit_steering(
    scorer: Scorer,
    batches: Iterable[tuple[Float[Array, "b n d"], tuple[int, int]]],
    marked: Sequence[tuple[Float[Array, "1 n d"], tuple[int, int], Truth]],
) -> Steering:
    """Learns from marked images.

    Args:
        scorer: that is steered.
        batches: features and grids of all images of the set.
        marked: features, grid and mask of each example.
    """
    gram, count = np.zeros(()), 0
    for features, grid in batches:
        for one in _columns_of(scorer, features, grid=grid)[1]:
            columns = np.asarray(one, np.float64)
            gram, count = gram + columns.T @ columns, count + len(columns)
    rows = []
    for features, grid, truth in marked:
        prior, columns = (np.asarray(part[0]) for part in _columns_of(scorer, features, grid=grid))
        rows.append((columns, prior, *patch_targets(truth, grid)))
    columns, prior, targets, known = map(np.concatenate, zip(*rows, strict=True))
    coefficients = solve(gram / count, columns, prior, targets, known, len(rows))
    return Steering(jnp.asarray(coefficients, jnp.float32), jnp.int32(len(rows)))


@functools.partial(jax.jit, static_argnames="grid")
def _columns_of(scorer, features, *, grid):
    return jax.vmap(lambda one: prior_and_columns(scorer, one, grid))(features)


def patch_targets(truth: Truth, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) targets from -1 (none of a patch is marked) to 1 (all), and (N,) its known share."""
    rows, columns = (_overlaps(*sides) for sides in zip(truth.shape, grid, strict=True))
    valid = np.ones(truth.shape) if truth.valid is None else truth.valid
    mask, known = (rows @ part.astype(np.float64) @ columns.T for part in (truth.mask, valid))
    return (2 * mask / np.maximum(known, 1e-9) - 1).ravel(), known.ravel()


def _overlaps(length: int, count: int) -> np.ndarray:
    """(count, length) the share that each pixel has in each of equal parts of a side."""
    edges = np.linspace(0, length, count + 1)[:, None]
    pixels = np.arange(length)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(shared, 0) * count / length


def solve(
    gram: np.ndarray,
    columns: np.ndarray,
    prior: np.ndarray,
    targets: np.ndarray,
    known: np.ndarray,
    examples: int,
) -> np.ndarray:
    """The coefficients (D + 3,), of columns as they are.

    Args:
        gram: (D + 3, D + 3) mean over all patches of the products of columns.
        columns, prior: (M, D + 3) and (M,) of the marked patches.
        targets, known: (M,) see `patch_targets`.
        examples: number of marked images.
    """
    lam, mu = (
        np.interp(np.log(examples), np.log(_EXAMPLES), np.log(values)) for values in (_LAMBDA, _MU)
    )
    width = len(gram) - 3
    scale, mean = np.ones(width + 3), gram[-1]
    scale[width:-1] = _SCORES / np.sqrt(np.diag(gram) - mean**2 + 1e-9)[width:-1]
    change = np.diag(scale)  # Q = columns @ change
    change[-1, :-1] = -mean[:-1] * scale[:-1]
    everywhere = change.T @ gram @ change
    ridge = np.full(width + 3, np.exp(lam) * np.trace(everywhere[:width, :width]) / width)
    ridge[-1] = _OFFSET
    share = np.clip(np.average(targets > 0, weights=known), _RAREST, 1 - _RAREST)
    weights = known * np.where(targets > 0, share, 1 - share) ** -0.5
    weights /= weights.sum()
    columns = columns @ change
    system = columns.T @ (weights[:, None] * columns) + np.exp(mu) * everywhere + np.diag(ridge)
    return change @ np.linalg.solve(system, columns.T @ (weights * (targets - prior)))


def read_examples(
    examples: Mapping[Any, Source], sources: Sequence[Source], reading: Reading
) -> dict[int, Truth]:
    """The masks of examples, by the index of their image in `sources`.

    Raises:
        ValueError: no examples, one that is no image of the set or has another size, or nothing
            but foreground or background in all of them.
        ImageError: an image or a mask that cannot be read.
    """
    places = {_place(source): index for index, source in enumerate(sources)}
    truths = {}
    for path, mask in examples.items():
        index = None if _place(path) is None else places.get(_place(path))
        if index is None:
            match = closest(str(path), [str(source) for source in sources if _place(source)])
            hint = f"did you mean {match}?" if match else "give the path of one that is fitted."
            raise ValueError(f"the example {path} is not among the images: {hint}")
        truth, size = read_mask(mask), reading.read(sources[index]).size
        if truth.shape != tuple(size):
            raise ValueError(
                f"the mask of {path} has {truth.shape[1]} × {truth.shape[0]} pixels and the image "
                f"{size[1]} × {size[0]}: give one of the image's size."
            )
        truths[index] = truth
    if not any(truth.mask.any() for truth in truths.values()):
        raise ValueError("no example marks any foreground: mark an object in at least one image.")
    if all(truth.known(truth.mask).all() for truth in truths.values()):
        raise ValueError("all examples are foreground all over: leave some background unmarked.")
    return truths


def _place(source: Any) -> tuple[Path, int | None] | None:
    """What tells a file, or a page of one, from others; None of what is no path."""
    if not isinstance(source, str | os.PathLike):
        return None
    return Path(source).expanduser().resolve(), getattr(source, "number", None)
