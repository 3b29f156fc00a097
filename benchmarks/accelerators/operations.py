"""Floating-point operations of a JAX program, counted from its jaxpr: products only.

A product of (a, b) and (b, c) is 2·a·b·c operations; the body of a scan counts as often as it
runs. Operations on single entries are not counted: the number is a lower bound.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass
class Operations:
    """Operations of products, by how exact they have to be.

    Attributes:
        default: at the platform's default precision: bfloat16 on a TPU, TF32 on an H100 where
            the arrays are float32.
        half: of bfloat16 arrays.
        exact: asked for in full float32; a TPU needs six passes for that.
        open_loops: loops whose trips the jaxpr does not say; each counts once.
    """

    default: float = 0.0
    half: float = 0.0
    exact: float = 0.0
    open_loops: int = 0

    @property
    def total(self) -> float:
        """All of them."""
        return self.default + self.half + self.exact

    def add(self, other: Operations, times: float = 1) -> None:
        """Adds others several times."""
        self.default += times * other.default
        self.half += times * other.half
        self.exact += times * other.exact
        self.open_loops += other.open_loops


def count_operations(jaxpr: Any) -> Operations:
    """Operations of one run of a jaxpr (closed or not); of a `cond` the dearest branch counts."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = Operations()
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            _add_product(total, equation, _dot(equation))
        elif name == "conv_general_dilated":
            _add_product(total, equation, _convolution(equation))
        elif name == "cond":
            branches = [count_operations(branch) for branch in parameters["branches"]]
            total.add(max(branches, key=lambda branch: branch.total))
        elif name == "scan":
            total.add(count_operations(parameters["jaxpr"]), parameters["length"])
        elif name == "pallas_call":
            steps = math.prod(parameters["grid_mapping"].grid)
            total.add(count_operations(parameters["jaxpr"]), steps)
        elif name == "dot_product_attention_fwd_wrapper":  # cuDNN's: QKᵀ and the product with V
            batch, tokens, heads, width = equation.invars[0].aval.shape
            others = equation.invars[1].aval.shape[1]
            _add_product(total, equation, 4.0 * batch * heads * tokens * others * width)
        elif name == "shard_map":  # the shapes in it are those of one device
            total.add(count_operations(parameters["jaxpr"]), parameters["mesh"].size)
        else:
            if name == "while":
                total.open_loops += 1
            for inner in _inner(parameters):
                total.add(count_operations(inner))
    return total


def _inner(parameters: dict[str, Any]):
    """Jaxprs among the parameters of an equation, but not rules of differentiation."""
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one


def _add_product(total: Operations, equation: Any, count: float) -> None:
    precision = equation.params.get("precision")
    sides = precision if isinstance(precision, tuple) else (precision,)
    if jax.lax.Precision.HIGHEST in sides:
        total.exact += count
    elif all(variable.aval.dtype.itemsize <= 2 for variable in equation.invars[:2]):
        total.half += count
    else:
        total.default += count


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    output_axis = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) / kernel[output_axis]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * per_output
