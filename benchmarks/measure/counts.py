"""Operations and bytes that one epoch of a head cannot do without, counted from its shapes.

A product of (a, b) and (b, c) is 2·a·b·c operations. Backward passes count two products for each
forward one, but one where the left side is a constant (the first layer's ÂX, ARMA's X). Operations
on single entries (activations, dropout, softmax, AdamW) are not counted, nor are N×N softmaxes:
the limit is a lower bound.

Bytes are those that must move if nothing stayed in the cache from one pass to the next: constants
read forward and backward, W read once, parameters and AdamW's two moments read and written.
"""

import dataclasses
from collections.abc import Sequence

FLOAT = 4
_MLP = 32
_STACKS, _ARMA_LAYERS = 2, 4


@dataclasses.dataclass(frozen=True)
class Count:
    """Floating-point operations and bytes of one epoch of one image."""

    operations: float
    bytes: float


def epoch(
    layer: str,
    nodes: int,
    width: int,
    clusters: int = 2,
    branches: Sequence[Sequence[int]] = ((64,),),
) -> Count:
    """The count of one epoch of a head over N nodes of D features.

    Args:
        layer: "gcn", "arma" (2 stacks of 4 layers) or "gat".
        nodes, width, clusters: N, D, K.
        branches: widths of the graph layers of each branch.
    """
    first = branches[0][-1]
    operations = 2.0 * nodes * nodes * clusters  # WS, once: W is symmetric
    parameters = 0.0
    square, constant = nodes * nodes, nodes * width
    moved = float(square)
    for number, widths in enumerate(branches):
        sizes = (width, *widths)
        for depth in range(len(widths)):
            inputs, outputs = sizes[depth : depth + 2]
            kernel = 2.0 * nodes * inputs * outputs
            if layer == "arma":
                across = _STACKS * outputs
                roots = 2.0 * nodes * inputs * across * _ARMA_LAYERS
                propagate = 2.0 * square * across
                mix = 2.0 * nodes * outputs * across
                operations += 2 * (roots + 2.0 * nodes * inputs * across)
                operations += (_ARMA_LAYERS - 1) * (2 * propagate + 3 * mix)
                parameters += (_ARMA_LAYERS + 1) * inputs * across
                parameters += (_ARMA_LAYERS - 1) * outputs * across
                moved += 4 * constant + 2 * (_ARMA_LAYERS - 1) * square
                continue
            operations += (2 if depth == 0 else 3) * kernel
            parameters += inputs * outputs
            moved += 2 * constant if depth == 0 else 0
            if layer == "gat":
                # α·H forward; αᵀ·G and G·Hᵀ backward. The N×N attention is kept in between.
                operations += 3 * 2.0 * square * outputs
                moved += 3 * square
            elif depth:
                operations += 2 * 2.0 * square * outputs
                moved += 2 * square
        if number:
            operations += 3 * 2.0 * nodes * widths[-1] * first
            parameters += widths[-1] * first
    operations += 3 * 2.0 * nodes * (first * _MLP + _MLP * clusters)
    parameters += first * _MLP + _MLP * clusters
    moved += 7 * parameters  # read: parameter, gradient, two moments; written: all but gradient
    return Count(operations, FLOAT * moved)


def vit(
    tokens: int, width: int = 384, depth: int = 12, patch: int = 8, keys_only: bool = True
) -> float:
    """Operations of one ViT pass over one image: `tokens` includes the class token.

    With `keys_only` the last block stops after its key projection.
    """
    blocks = depth - 1 if keys_only else depth
    products = 2.0 * tokens * width * (3 * width + width + 8 * width)
    attention = 2 * 2.0 * tokens * tokens * width
    last = 2.0 * tokens * width * width if keys_only else 0.0
    return blocks * (products + attention) + last + 2.0 * (tokens - 1) * width * 3 * patch * patch
