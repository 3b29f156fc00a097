"""A small convolution that learns from what the linear scorer of a set is sure of.

The linear scorer reads one patch; a convolution reads its neighbours as well. Two of them are
trained, each on its half of the images, with mirrored patches among them. Both soon learn what the
labels have in common, and later the errors of their own half; so training ends where the masks of
the two agree most. Their mean is one convolution with twice the hidden units.

All of it is one `lax.scan` over patches that were drawn with their neighbours beforehand, so its
cost does not grow with the set, and images of all shapes are one array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.clustering.optimiser import adamw, descend

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

HIDDEN = 32
"""Hidden units of one head; the joined head has twice as many."""
_STEPS = 50
_LOOKS = 6  # times that the two are compared, each after so many steps
_BATCH, _BATCHES = 256, 16  # patches of a step, and how many of these are drawn for each head
_COMPARED = 8192
_RATE = 3e-3
_DECAY = 1e-2


class Convolution(NamedTuple):
    """One hidden layer over neighbouring patches.

    Attributes:
        kernel: (3, 3, R, H) of the hidden layer, the patches around each.
        bias: (H,) of the hidden layer.
        readout: (H,) of the score.
        offset: () of the score.
    """

    kernel: Float[Array, "3 3 r h"]
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


def convolve_rows(
    head: Convolution, x: Float[Array, "n r"], near: Int[Array, "n 9"]
) -> Float[Array, " n"]:
    """`convolve` of one image whose patches are rows; `near` is of `cues.neighbours`."""
    kernel = head.kernel.astype(jnp.float32)
    products = jnp.einsum("nr,yxrh->nyxh", x, kernel).reshape(len(x), 9, -1)
    products = jnp.pad(products, ((0, 1), (0, 0), (0, 0)))
    hidden = sum(products[near[:, place], place] for place in range(9))
    return jax.nn.relu(hidden + head.bias) @ head.readout + head.offset


def join(first: Convolution, second: Convolution, scale: float | Array) -> Convolution:
    """The head whose scores are the sum of those of two, divided by `scale`."""
    return Convolution(
        jnp.concatenate([first.kernel, second.kernel], -1),
        jnp.concatenate([first.bias, second.bias]),
        jnp.concatenate([first.readout, second.readout]) / scale,
        (first.offset + second.offset) / scale,
    )


class Draws(NamedTuple):
    """What is random in training two heads, drawn on the host.

    Attributes:
        heads: first parameters of both, stacked.
        learned: (2, …) image and patch of what each head learns from, batch by batch.
        compared: the same of the patches on which the two are compared.
        order: (looks, steps, 2) batch of each step and head.
        mirrored: (looks, steps, 2) bool.
    """

    heads: Convolution
    learned: tuple[Int[np.ndarray, "2 b n"], Int[np.ndarray, "2 b n"]]
    compared: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]
    order: Int[np.ndarray, "l s 2"]
    mirrored: Bool[np.ndarray, "l s 2"]


def draw(sizes: Int[np.ndarray, " i"], most: int, width: int, rng: np.random.Generator) -> Draws:
    """Draws the halves of a set, the patches of each, and the first parameters.

    Args:
        sizes: patches of each image; images of 0 are padding.
        most: patches that a batch has at most.
        width: R, coordinates of a patch.
        rng: of everything.
    """
    images = rng.permutation(np.flatnonzero(sizes))
    halves = images[::2], images[1::2] if len(images) > 1 else images

    def patches(among, *shape):
        image = rng.choice(among, shape)
        return image.astype(np.int32), (rng.random(shape) * sizes[image]).astype(np.int32)

    batch = _BATCHES, min(_BATCH, most)
    learned = [patches(half, *batch) for half in halves]
    kernel = rng.normal(size=(2, 3, 3, width, HIDDEN)) * np.sqrt(2 / (9 * width))
    readout = rng.normal(size=(2, HIDDEN)) / np.sqrt(HIDDEN)
    looks = _LOOKS, _STEPS, 2
    return Draws(
        Convolution(
            jnp.asarray(kernel, jnp.float32),
            jnp.zeros((2, HIDDEN), jnp.float32),
            jnp.asarray(readout, jnp.float32),
            jnp.zeros(2, jnp.float32),
        ),
        (np.stack([one[0] for one in learned]), np.stack([one[1] for one in learned])),
        patches(images, min(_COMPARED, _BATCHES * most)),
        rng.integers(0, _BATCHES, looks, np.int32),
        rng.random(looks) < 0.5,
    )


def train(
    x: Float[Array, "i n r"],
    near: Int[Array, "i n 9"],
    goals: Float[Array, "i n"],
    valid: Bool[Array, "i n"],
    draws: Draws,
) -> tuple[Convolution, Float[Array, " looks"]]:
    """Trains two heads on halves of a set; on the same image, if there is but one.

    The loss of a patch is logistic, and weighs as much as its goal is sure.

    Args:
        x: patches of all images.
        near: see `cues.neighbours`, for each image.
        goals: −1 to 1: above 0 is foreground, and 0 says nothing.
        valid: the patches over which the scores are brought to unit variance.
        draws: of `draw`, from the number of patches of each image, which are the first of its N.

    Returns:
        Of the heads after every 50 of 300 steps the mean of the two whose masks agree most, with
        scores of unit variance; and how much they agreed each time (intersection over union).
    """
    size, width = x.shape[1:]
    rows = jnp.pad(x, ((0, 0), (0, 1), (0, 0))).reshape(-1, width)

    def around(places):
        image, patch = places
        taken = rows[image[..., None] * (size + 1) + near[image, patch]]
        return taken.reshape(*image.shape, 9 * width)

    def scores(head, patches):
        hidden = patches @ head.kernel.reshape(9 * width, HIDDEN)
        return jax.nn.relu(hidden + head.bias) @ head.readout + head.offset

    def objective(head, patches, goals, mirrored):
        kernel = jnp.where(mirrored, head.kernel[:, ::-1], head.kernel)
        logits = scores(head._replace(kernel=kernel), patches)
        return jnp.mean(jnp.abs(goals) * jnp.logaddexp(0.0, -jnp.sign(goals) * logits)), None

    optimiser = adamw(_RATE, _DECAY)
    learned, wanted = around(draws.learned), goals[draws.learned]
    compared, inside = around(draws.compared), valid[draws.compared]

    @jax.vmap
    def of_head(pair, learned, wanted, batch, mirrored):
        inputs = learned[batch], wanted[batch], mirrored
        return descend(objective, optimiser, pair[0], pair[1], *inputs)[:2]

    def step(pairs, drawn):
        return of_head(pairs, learned, wanted, *drawn), None

    def train_and_look(carry, drawn):
        pairs, best, most = carry
        pairs, _ = jax.lax.scan(step, pairs, drawn)
        found = jax.vmap(scores, (0, None))(pairs[0], compared)
        both, either = (found > 0).all(0).sum(), (found > 0).any(0).sum()
        agreed = (both / jnp.maximum(either, 1)).astype(jnp.float32)
        total, held = found.sum(0), jnp.maximum(inside.sum(), 1)
        mean = jnp.sum(total * inside) / held
        scale = jnp.sqrt(jnp.sum(jnp.square(total - mean) * inside) / held) + 1e-9
        first, second = (jax.tree.map(lambda both, at=at: both[at], pairs[0]) for at in range(2))
        joined = join(first, second, scale)
        best = jax.tree.map(lambda new, old: jnp.where(agreed > most, new, old), joined, best)
        return (pairs, best, jnp.maximum(agreed, most)), agreed

    heads = draws.heads
    first, second = (jax.tree.map(lambda both, at=at: both[at], heads) for at in range(2))
    begun = (heads, jax.vmap(optimiser.init)(heads)), join(first, second, 1.0), jnp.float32(-1)
    (_, best, _), agreed = jax.lax.scan(train_and_look, begun, (draws.order, draws.mirrored))
    return best, agreed
