"""Kinds of objects: those of a set that look alike, told by the features under their masks.

NumPy, on the host. An object is described by the mean of its patch features. Within one object
features differ by place, edge and part, which tell no kind: directions that vary much there count
less, as in linear discriminant analysis. What is left is reduced to a few principal
directions and clustered by k-means. Every image counts the same, however many objects it has.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from unseg_jax.errors import InputError
from unseg_jax.postprocess import Object

Count = int | Literal["auto"]
MOST = 10
"""The most kinds that are chosen by stability."""
STABLE = 0.75
"""Mean agreement of two halves of the images below which no number of kinds is stable."""
_DIRECTIONS = 8
# Directions kept of how features differ within the objects of an image, and what is added to them.
_WITHIN, _RIDGE = 4, 0.1
_SAMPLE = 4096
_RESTARTS, _STEPS, _HALVINGS = 10, 100, 10


@dataclasses.dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of objects, and how to tell which an object is of.

    Attributes:
        mean: (D,) float32, of the descriptions of the objects of the set.
        basis: (D, R) float32, to whitened directions.
        centres: (K, R) float32.
        names: (K,) what each is called; kinds of one name are one kind.
        dropped: numbers, from 1, of the kinds whose objects are left out.
        counts: (K,) objects of each in the set; () where that is not known.
    """

    mean: np.ndarray
    basis: np.ndarray
    centres: np.ndarray
    names: tuple[str, ...]
    dropped: frozenset[int] = frozenset()
    counts: tuple[int, ...] = ()

    def number(self, descriptions: np.ndarray) -> list[int]:
        """The number of the kind, from 1, of each of some objects (n, D).

        Raises:
            InputError: features of another width.
        """
        if descriptions.shape[1] != len(self.mean):
            raise InputError(
                f"the kinds were found in features of {len(self.mean)} numbers, not of "
                f"{descriptions.shape[1]}: take the method and the backbone of the report."
            )
        rows = _unit((np.asarray(descriptions, np.float32) - self.mean) @ self.basis)
        nearest = _nearest(rows, self.centres).tolist()
        alike = [(name, at in self.dropped) for at, name in enumerate(self.names, 1)]
        return [alike.index(alike[at]) + 1 for at in nearest]

    @property
    def key(self) -> str:
        """Tells these kinds, and which are dropped, from others; names have no part in it."""
        return hashlib.sha256(f"{pack(self)}{sorted(self.dropped)}".encode()).hexdigest()[:12]


def describe(
    objects: Sequence[Object], features: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of the features of an image.

    Args:
        objects: of the image.
        features: (h, w, D) of its patches.
        size: (H, W) of the image.

    Returns:
        (n, D) float16, the mean feature under each mask; and (W, D) float16, the directions in
        which the features of an object vary most, each as long as its standard deviation.
    """
    means, scatter = [], np.zeros((features.shape[-1],) * 2, np.float32)
    for item in objects:
        left, top, right, bottom = item.box
        rows, down = _cells(top, bottom, features.shape[0], size[0])
        columns, across = _cells(left, right, features.shape[1], size[1])
        covered = np.add.reduceat(
            np.add.reduceat(item.mask, down, 0, np.float32), across, 1
        ).ravel()
        seen = features[np.ix_(rows, columns)].reshape(len(covered), -1)[covered > 0]
        shares = covered[covered > 0] / covered.sum()
        seen = seen.astype(np.float32)
        means.append(shares @ seen)
        apart = (seen - means[-1]) * np.sqrt(shares)[:, None]
        scatter += apart.T @ apart / len(objects)
    variances, directions = np.linalg.eigh(scatter)
    within = np.sqrt(np.maximum(variances, 0)) * directions
    means = np.reshape(means, (-1, features.shape[-1]))
    return means.astype(np.float16), within[:, -_WITHIN:].T.astype(np.float16)


def find_kinds(
    descriptions: np.ndarray,
    images: Sequence[Any],
    within: np.ndarray,
    count: Count = "auto",
    seed: int = 0,
) -> Kinds:
    """Clusters the objects of a set into kinds, the largest first.

    Args:
        descriptions: (n, D) of the objects, n ≥ 1; see `describe`.
        images: (n,) which image each object is in; the objects of an image share one vote.
        within: (m, D), how the features vary within objects, of all images.
        count: of kinds, at least 1, and fewer where there are fewer different objects; "auto" takes
            the number up to `MOST` on which two halves of the images agree best, or 1.
        seed: of the sample and the starts.
    """
    rng = np.random.default_rng(seed)
    rows = np.asarray(descriptions, np.float32)
    numbers = np.unique(np.asarray(images), return_inverse=True)[1]
    if len(rows) > _SAMPLE:
        chosen = rng.choice(len(rows), _SAMPLE, replace=False)
        rows, numbers = rows[chosen], numbers[chosen]
    mean = rows.mean(0)
    within = np.asarray(within, np.float32)
    variances, directions = np.linalg.eigh(within.T @ within)
    variances = np.maximum(variances, 0)
    basis = directions / np.sqrt(variances + _RIDGE * variances.mean() + 1e-9)
    basis = basis @ np.linalg.svd((rows - mean) @ basis, full_matrices=False)[2][:_DIRECTIONS].T
    rows, shares = _unit((rows - mean) @ basis), 1 / np.bincount(numbers)[numbers]
    if count == "auto":
        count = choose_count(rows, numbers, shares, rng)
    centres = _kmeans(rows, shares, count, rng)
    sizes = np.bincount(_nearest(rows, centres), minlength=len(centres))
    centres = centres[np.argsort(-sizes, kind="stable")]
    mean, basis, centres = (np.asarray(part, np.float32) for part in (mean, basis, centres))
    return Kinds(mean, basis, centres, _names(len(centres)))


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"kind {number}" for number in range(1, count + 1))


def choose_count(
    rows: np.ndarray, images: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> int:
    """The number of kinds that halves of the images agree on best; 1 if on none.

    Each half is clustered, and all objects are told apart by either; the adjusted Rand index says
    how alike that is, without what chance gives.

    Args:
        rows: (n, R).
        images: (n,) numbers from 0.
        shares: (n,) weights.
    """
    found = {1: STABLE}
    if len(rows) > _SAMPLE // 4:
        kept = rng.choice(len(rows), _SAMPLE // 4, replace=False)
        rows, images, shares = rows[kept], images[kept], shares[kept]
    for count in range(2, MOST + 1):
        agreements = []
        for _ in range(_HALVINGS):
            half = np.isin(images, rng.permutation(np.unique(images))[::2])
            if min(half.sum(), (~half).sum()) < 2 * count:
                break
            told = [
                _nearest(rows, _kmeans(rows[part], shares[part], count, rng))
                for part in (half, ~half)
            ]
            agreements.append(_agreement(told[0], told[1], shares))
        else:
            found[count] = float(np.mean(agreements))
    return max(found, key=found.__getitem__)


def pack(kinds: Kinds) -> dict[str, Any]:
    """How kinds are told apart, as JSON takes it."""
    parts = (kinds.mean, kinds.basis, kinds.centres)
    return {"shape": [*kinds.basis.shape, len(kinds.centres)], "values": encode(*parts)}


def unpack(content: Any) -> Kinds:
    """Kinds from what `pack` gave, with the names that they have at first.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    width, directions, count = content["shape"]
    values = decode(content["values"], np.float32)
    if min(width, directions, count) < 0 or not np.isfinite(values).all():
        raise ValueError
    parts = np.split(values, np.cumsum([width, width * directions]))
    shapes = ((width,), (width, directions), (count, directions))
    mean, basis, centres = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return Kinds(mean, basis, centres, _names(count))


def encode(*arrays: np.ndarray) -> str:
    """Arrays of one type as base64, little-endian."""
    return base64.b64encode(
        b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)
    ).decode()


def decode(text: str, dtype: Any = np.float16) -> np.ndarray:
    """(n,) from `encode`."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def _cells(start: int, stop: int, cells: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells of an axis that pixels lie in, and the first pixel of each, from `start`."""
    return np.unique(np.arange(start, stop) * cells // length, return_index=True)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _squares(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n, K) squared distances."""
    return np.square(rows).sum(1)[:, None] - 2 * rows @ centres.T + np.square(centres).sum(1)


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return _squares(rows, centres).argmin(1)


def _kmeans(
    rows: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """(K, R) centres of weighted k-means, the best of several starts by k-means++; K is less than
    `count` where fewer rows differ. SciPy's k-means has no weights."""
    best, least = rows[:1], np.inf
    for _ in range(_RESTARTS):
        centres = rows[rng.choice(len(rows), 1, p=weights / weights.sum())]
        while len(centres) < count:
            far = weights * np.maximum(_squares(rows, centres).min(1), 0)
            if far.max() <= 1e-6 * weights.max():
                break
            centres = np.vstack([centres, rows[rng.choice(len(rows), 1, p=far / far.sum())]])
        for _ in range(_STEPS):
            members = weights[:, None] * np.eye(len(centres))[_nearest(rows, centres)]
            held = members.sum(0)[:, None]
            moved = np.where(held > 0, members.T @ rows / np.maximum(held, 1e-12), centres)
            if np.allclose(moved, centres, atol=1e-6):
                break
            centres = moved
        cost = weights @ _squares(rows, centres).min(1)
        if cost < least:
            best, least = centres, cost
    return best


def _agreement(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    """The adjusted Rand index of two labellings, each object counted by its weight."""
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), weights / weights.sum())
    both = np.square(table).sum()
    one, other = np.square(table.sum(1)).sum(), np.square(table.sum(0)).sum()
    chance, most = one * other, (one + other) / 2
    return (both - chance) / (most - chance) if most > chance else 1.0
