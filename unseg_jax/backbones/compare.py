"""How far apart two sets of weights are, tensor by tensor: the same, fine-tuned, or unrelated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from unseg_jax.backbones.layouts import build_params
from unseg_jax.backbones.weights import find

# Half precision keeps 11 bits, bfloat16 8.
_ROUNDING = 2.0**-8
_RELATED = 0.5


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """One parameter of two models.

    Attributes:
        name: of the parameter, with its block.
        shapes: of both; the parameter is compared where they are equal.
        max_difference: largest absolute difference; NaN if the shapes differ.
        relative: that, over the largest absolute value of the first.
        cosine: of the two as vectors, -1 to 1; NaN if the shapes differ.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    max_difference: float
    relative: float
    cosine: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two sets of weights beside each other.

    Attributes:
        tensors: one entry per parameter and block that either has.
        verdict: one sentence.
    """

    tensors: tuple[TensorDifference, ...]
    verdict: str


def compare_weights(a: str | Path, b: str | Path) -> Comparison:
    """Compares two sets of weights of any known layouts, parameter by parameter.

    It tells whether one may have been fine-tuned from the other. It says nothing of which was
    first, or of what either was trained on.

    Args:
        a, b: names of `list_backbones()`, hf:ORG/NAME, or paths of weights files.

    Raises:
        ValueError: an unknown name.
        WeightsError: weights that cannot be fetched or read, or are of another architecture.
    """
    first, second = _parameters(a), _parameters(b)
    tensors = tuple(
        _difference(name, first.get(name), second.get(name))
        for name in sorted(first.keys() | second.keys(), key=_order)
    )
    return Comparison(tensors, _verdict(str(a), str(b), tensors))


def _parameters(name_or_path: str | Path) -> dict[str, np.ndarray]:
    """All parameters by name, those of the blocks one by one."""
    _, _, weights, config = find(name_or_path)
    params = build_params(weights.tensors, config, str(name_or_path))
    parameters = {}
    for name, leaf in params.items():
        if name.startswith("blocks."):
            for block, part in enumerate(np.asarray(leaf)):
                parameters[f"blocks.{block}.{name.removeprefix('blocks.')}"] = part
        else:
            parameters[name] = np.asarray(leaf)
    return parameters


def _order(name: str) -> tuple[tuple[int, str], ...]:
    """Blocks in order of their numbers, after what comes before them."""
    return tuple((int(part) if part.isdigit() else -1, part) for part in name.split("."))


def _difference(name: str, first: np.ndarray | None, second: np.ndarray | None) -> TensorDifference:
    shapes = tuple(() if array is None else array.shape for array in (first, second))
    if first is None or second is None or first.shape != second.shape:
        return TensorDifference(name, shapes, np.nan, np.nan, np.nan)
    x, y = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    largest, scale = float(np.abs(x - y).max()), float(np.abs(x).max())
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    cosine = 1.0 if largest == 0 else float(x @ y) / lengths if lengths else 0.0
    relative = largest / scale if scale else (np.inf if largest else 0.0)
    return TensorDifference(name, shapes, largest, relative, cosine)


def _verdict(a: str, b: str, tensors: tuple[TensorDifference, ...]) -> str:
    alike = [tensor for tensor in tensors if not np.isnan(tensor.cosine)]
    others = len(tensors) - len(alike)
    note = f" ({others} parameters have other shapes and were not compared)" if others else ""
    matrices = [tensor.cosine for tensor in alike if len(tensor.shapes[0]) > 1]
    if not matrices:
        return f"{a} and {b} are of different architectures{note}."
    median, changed = float(np.median(matrices)), sum(t.max_difference > 0 for t in alike)
    if not changed:
        return f"{a} and {b} are identical{note}."
    if all(tensor.relative <= _ROUNDING for tensor in alike):
        return f"{a} and {b} are the same up to rounding{note}."
    counted = f"{changed} of {len(alike)} parameters differ, median cosine {median:.3f}"
    if median >= _RELATED:
        return f"{a} and {b} are related, as if one was fine-tuned from the other: {counted}{note}."
    return f"{a} and {b} are unrelated, as if trained independently: {counted}{note}."
