"""A small convolution that learns from what the linear scorer of a set is sure of.

The linear scorer reads one patch; a convolution reads its neighbours as well. Two of them are
trained, each on its half of the images, with mirrored images among them. Both soon learn what the
labels have in common, and later the errors of their own half; so training ends where the masks of
the two agree most. Their mean is one convolution with twice the hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering.optimiser import adamw, descend

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

HIDDEN = 32
"""Hidden units of one head; the joined head has twice as many."""
_STEPS = 300
_LOOKS = 50  # steps from one comparison of the two to the next
_BATCH = 8
_RATE = 3e-3
_DECAY = 1e-2
# Images that are scored in one call.
_SCORED = 16


class Convolution(NamedTuple):
    """One hidden layer over neighbouring patches.

    Attributes:
        kernel: (S, S, R, H) of the hidden layer, S × S patches around each.
        bias: (H,) of the hidden layer.
        readout: (H,) of the score.
        offset: () of the score.
    """

    kernel: Float[Array, "s s r h"]
    bias: Float[Array, " h"]
    readout: Float[Array, " h"]
    offset: Float[Array, ""]


def convolve(head: Convolution, x: Float[Array, "b h w r"]) -> Float[Array, "b h w"]:
    """Scores of patches; those beyond the grid count as zeros."""
    hidden = jax.lax.conv_general_dilated(
        x,
        head.kernel.astype(jnp.float32),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(hidden + head.bias) @ head.readout + head.offset


def join(first: Convolution, second: Convolution, scale: float) -> Convolution:
    """The head whose scores are the sum of those of two, divided by `scale`."""
    return Convolution(
        jnp.concatenate([first.kernel, second.kernel], -1),
        jnp.concatenate([first.bias, second.bias]),
        jnp.concatenate([first.readout, second.readout]) / scale,
        (first.offset + second.offset) / scale,
    )


def train(
    images: Sequence[Float[np.ndarray, "n h w r"]],
    goals: Sequence[Float[np.ndarray, "n h w"]],
    valid: Sequence[Bool[np.ndarray, "n h w"]],
    rng: np.random.Generator,
    *,
    side: int = 3,
) -> Iterator[tuple[float, Convolution]]:
    """Trains two heads on halves of a set; on the same image, if there is but one.

    The loss of a patch is logistic, and weighs as much as its goal is sure.

    Args:
        images: for each grid, patches of n images.
        goals: for each grid, −1 to 1: above 0 is foreground, and 0 says nothing.
        valid: for each grid, the patches over which the scores are brought to unit variance.
        rng: of the first parameters, the halves, the batches and the mirroring.
        side: S, patches of the kernel along each side.

    Yields:
        After every 50 of 300 steps how much the masks of the two agree (intersection over union),
        and their mean, with scores of unit variance.
    """
    heads = [_start(rng, side, images[0].shape[-1]) for _ in range(2)]
    optimiser = adamw(_RATE, _DECAY)
    states = [optimiser.init(head) for head in heads]
    orders = [rng.permutation(len(part)) for part in images]
    halves = [[order[::2] for order in orders], [order[1::2] for order in orders]]
    if not sum(map(len, halves[1])):
        halves[1] = halves[0]
    held = [jnp.asarray(part, jnp.float32) for part in images]
    aims = [jnp.asarray(part, jnp.float32) for part in goals]
    inside = np.concatenate([part.ravel() for part in valid])
    for number in range(1, _STEPS + 1):
        for place, half in enumerate(halves):
            grid = 0
            if len(images) > 1:
                # A batch is of one grid; each image is as likely as any other.
                sizes = np.array([len(part) for part in half])
                grid = int(rng.choice(len(images), p=sizes / sizes.sum()))
            drawn = rng.choice(half[grid], _BATCH)
            heads[place], states[place] = _step(
                heads[place],
                states[place],
                jnp.take(held[grid], drawn, 0),
                jnp.take(aims[grid], drawn, 0),
                rng.random() < 0.5,
            )
        if number % _LOOKS == 0:
            first, second = (
                np.concatenate([part.ravel() for part in scores_of(head, held)]) for head in heads
            )
            both, either = (first > 0) & (second > 0), (first > 0) | (second > 0)
            scale = float(np.std((first + second)[inside])) + 1e-9
            yield float(both.sum() / max(either.sum(), 1)), join(heads[0], heads[1], scale)


def _start(rng: np.random.Generator, side: int, width: int) -> Convolution:
    scale = np.sqrt(2 / (side**2 * width))
    kernel = rng.normal(size=(side, side, width, HIDDEN)) * scale
    readout = rng.normal(size=HIDDEN) / np.sqrt(HIDDEN)
    return Convolution(
        jnp.asarray(kernel, jnp.float32),
        jnp.zeros(HIDDEN, jnp.float32),
        jnp.asarray(readout, jnp.float32),
        jnp.zeros((), jnp.float32),
    )


@jax.jit
def _step(head, state, images, goals, mirrored):
    """One step of a head on a batch, mirrored or not."""
    images, goals = (jnp.where(mirrored, part[:, :, ::-1], part) for part in (images, goals))

    def objective(head):
        logits = convolve(head, images)
        return jnp.mean(jnp.abs(goals) * jnp.logaddexp(0.0, -jnp.sign(goals) * logits)), None

    head, state, _, _ = descend(objective, adamw(_RATE, _DECAY), head, state)
    return head, state


def scores_of(
    head: Convolution, images: Sequence[Float[Array | np.ndarray, "n h w r"]]
) -> list[Float[np.ndarray, "n p"]]:
    """Scores of the h·w patches of images of any number, for each grid."""
    found = []
    for part in images:
        scores = []
        for start in range(0, len(part), _SCORED):
            batch = jnp.asarray(part[start : start + _SCORED], jnp.float32)
            missing = _SCORED - len(batch)
            batch = jnp.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
            scores.append(np.asarray(_convolve(head, batch))[: _SCORED - missing])
        found.append(np.concatenate(scores).reshape(len(part), -1))
    return found


_convolve = jax.jit(convolve)
