"""AdamW against its equations in float64, and against PyTorch where that is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax.clustering.optimiser import adamw


def _gradients(steps, size):
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-6, 1, size)
    return (rng.standard_normal((steps, size)) * scales).astype(np.float32)


def _ours(start, gradients, rate, decay):
    optimiser = adamw(rate, decay)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimiser.update(gradient, state, params)
        return (params + updates, state), params

    (params, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), jnp.asarray(gradients))
    return np.asarray(params)


def _exact(start, gradients, rate, decay):
    params = start.astype(np.float64)
    mean, square = np.zeros_like(params), np.zeros_like(params)
    for count, gradient in enumerate(gradients.astype(np.float64), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        step = mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
        params = params - rate * (step + decay * params)
    return params


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_steps_are_exact_to_rounding(steps):
    start = np.zeros(400, np.float32)
    gradients = _gradients(steps, 400)
    found = _ours(start, gradients, 1e-3, 0.0)
    # `optax.adamw`, whose bias correction is rounded, is 6e-6 off at the first step.
    np.testing.assert_allclose(found, _exact(start, gradients, 1e-3, 0.0), rtol=1.5e-6, atol=2e-9)


def test_decay_may_differ_by_entry():
    start = np.linspace(-1, 1, 64).astype(np.float32)
    gradients = _gradients(10, 64)
    gradients[:, :8] = 0
    decay = np.where(np.arange(64) < 8, 0.0, 0.3).astype(np.float32)
    found = _ours(start, gradients, 1e-2, jnp.asarray(decay))
    np.testing.assert_allclose(found, _exact(start, gradients, 1e-2, decay), rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(found[:8], start[:8])


@pytest.mark.pytorch
def test_against_pytorch():
    torch = pytest.importorskip("torch", reason="needs the 'reference' extra")
    start = np.linspace(-0.05, 0.05, 256).astype(np.float32)
    gradients = _gradients(50, 256)
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimiser = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.01)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        optimiser.step()
    found = _ours(start, gradients, 1e-3, 0.01)
    np.testing.assert_allclose(found, theirs.detach().numpy(), rtol=1e-6, atol=1e-7)
