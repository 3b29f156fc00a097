"""AdamW as PyTorch computes it, and the one optimisation step that all training shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    import optax

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


class AdamWState(NamedTuple):
    """State of `adamw`.

    Attributes:
        count: () int32 steps taken.
        mean, square: running means of the gradient and of its square, shaped as the parameters.
    """

    count: jax.Array
    mean: Any
    square: Any


def adamw(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, ICLR 2019, Algorithm 2) with β .9 and .999 and ε 1e-8.

    `optax.adamw` computes 1 − βᵗ in float32, where .999ᵗ loses four digits in the first steps; a
    step is then up to 7e-6 too long. That is enough for a run to diverge from PyTorch's where an
    activation has a kink, so here the correction is exact to rounding.

    Args:
        learning_rate: step size, the same at every step.
        weight_decay: a number, or a tree shaped as the parameters with one entry per parameter.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamWState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        count = state.count + 1
        time = count.astype(jnp.float32)
        first = -jnp.expm1(time * math.log(_FIRST))
        second = -jnp.expm1(time * math.log(_SECOND))
        mean = jax.tree.map(lambda m, g: _FIRST * m + (1 - _FIRST) * g, state.mean, updates)
        square = jax.tree.map(
            lambda s, g: _SECOND * s + (1 - _SECOND) * jnp.square(g), state.square, updates
        )

        def change(m, s, p, decay):
            return -learning_rate * ((m / first) / (jnp.sqrt(s / second) + _EPSILON) + decay * p)

        if isinstance(weight_decay, (int, float)):
            steps = jax.tree.map(
                lambda m, s, p: change(m, s, p, weight_decay), mean, square, params
            )
        else:
            steps = jax.tree.map(change, mean, square, params, weight_decay)
        return steps, AdamWState(count, mean, square)

    import optax  # a quarter of a second, which only training takes

    return optax.GradientTransformation(init, update)


def descend(
    objective: Callable[..., tuple[jax.Array, Any]],
    optimiser: optax.GradientTransformation,
    params: Any,
    state: Any,
    *inputs: Any,
) -> tuple[Any, Any, jax.Array, Any]:
    """One optimisation step: loss, gradient, update.

    Args:
        objective: (params, *inputs) → (loss (), auxiliary tree); differentiated in params.
        optimiser: its `update` turns the gradient into steps.
        params: before the step.
        state: of the optimiser, from its `init` or from the step before.
        *inputs: passed on to the objective.

    Returns:
        Parameters and optimiser state after the step; loss and auxiliary tree before it.
    """
    import optax

    (loss, auxiliary), gradient = jax.value_and_grad(objective, has_aux=True)(params, *inputs)
    steps, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, steps), state, loss, auxiliary
