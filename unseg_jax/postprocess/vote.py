"""Which clusters are the object: from cluster labels to labels in which 0 is the background.

Pure JAX on one grid of patches; `jax.vmap` it over images. Every rule counts over the patches
that `mask` keeps, so that a padded grid gives what the bare one gives.
"""

import jax
import jax.numpy as jnp

RULES = ("corner", "border", "centre", "attention", "auto")
# Standard deviation of the centre weighting, as a fraction of the half side of the grid.
_CENTRE_WIDTH = 0.5
_EPSILON = 1e-6


def foreground_labels(
    labels: jax.Array,
    num_clusters: int,
    rule: str = "corner",
    *,
    assignments: jax.Array | None = None,
    class_attention: jax.Array | None = None,
    mask: jax.Array | None = None,
    quirks: str = "paper",
) -> jax.Array:
    """Renumbers the clusters so that 0 is the background and 1.. are parts of the object.

    Rules:

    * `corner`: with two clusters the published vote, labels are swapped if more than 2 of the
      4 corner patches have label 1 (DeepCut, `graph_to_mask`). With more, the cluster with most
      corners is the background; between equals, the one with more of the border.
    * `border`: the cluster that holds most of the border is the background (Deep Spectral
      Methods); between equals, the one with more of its own patches there.
    * `centre`: clusters nearer to the centre than the average patch, by a Gaussian weight, are
      the foreground.
    * `attention`: clusters that the class token attends to more than to the average patch are
      the foreground.
    * `auto`: geometric mean of what the cues say (centre, distance from the border and, if
      given, attention), each relative to the average patch; clusters above 1 are the foreground.

    With the last three, several clusters may be background. Apart from the published swap, which
    keeps the labels 0 and 1 as they are, foreground clusters are numbered by descending size
    and empty ones dropped. A single cluster that fills the image is background.

    Args:
        labels: (h, w) integers in [0, num_clusters).
        num_clusters: K; static.
        rule: one of `RULES`; static. The vote over a whole set (`set`) is not taken here.
        assignments: (h, w, K) or (h·w, K) soft assignments. If given, `border`, `centre`,
            `attention` and `auto` weigh patches by them instead of by the labels.
        class_attention: (h, w) or (h·w,) non-negative attention of the class token.
        mask: (h, w) bool, False at padding; None keeps all. Padding comes out as 0.
        quirks: "code" takes the published vote for any K: if the labels of the 4 corners sum to
            more than 2, labels 0 and 1 change places; the others stay.

    Returns:
        (h, w) int32, 0 = background.

    Raises:
        ValueError: an unknown rule, or `attention` without `class_attention`.
    """
    if rule not in RULES:
        raise ValueError(
            f"foreground rule '{rule}' cannot be voted on within one image; "
            f"use one of {', '.join(RULES)}."
        )
    if rule == "attention" and class_attention is None:
        raise ValueError(
            "foreground='attention' needs the class token's attention; "
            "pass class_attention, or use foreground='auto'."
        )
    labels = jnp.asarray(labels, jnp.int32)
    kept = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask, bool)
    corners, border = _corners(kept), border_of(kept).astype(jnp.float32)
    if rule == "corner" and (num_clusters == 2 or quirks == "code"):
        swap = 2 * jnp.sum(corners * labels) > jnp.sum(corners)
        swapped = jnp.where(labels < 2, 1 - labels, labels)
        return jnp.where(kept, jnp.where(swap, swapped, labels), 0)

    hard = jax.nn.one_hot(labels, num_clusters) * kept[..., None]
    sizes = jnp.sum(hard, (0, 1))
    soft = hard
    if assignments is not None:
        soft = assignments.reshape(*labels.shape, num_clusters) * kept[..., None]
    # A cluster that no patch has as its label may not become the background or the foreground.
    present = sizes > 0

    if rule in ("corner", "border"):
        weights = border if rule == "border" else corners
        votes = _share(hard if rule == "corner" else soft, weights)
        tie = _share(soft, border) if rule == "corner" else _mean(soft, border)
        background = _one_hot_argmax(votes, tie, present)
    elif rule == "centre":
        background = ~_above_average(_mean(soft, _centre(kept)), soft, sizes)
    elif rule == "attention":
        assert class_attention is not None
        attention = class_attention.reshape(labels.shape)
        background = ~_above_average(_mean(soft, attention), soft, sizes)
    else:
        cues = [_mean(soft, _centre(kept)), _mean(soft, 1.0 - border)]
        if class_attention is not None:
            cues.append(_mean(soft, class_attention.reshape(labels.shape)))
        background = ~_above_average(_combined(cues, soft), soft, sizes)
    return jnp.where(kept, _renumber(labels, background, sizes), 0)


def _corners(mask: jax.Array) -> jax.Array:
    """How many of the corners each patch is: 1 at the four corners of a grid, 2 at the ends of a
    single row or column, 4 for a single patch, as indexing the four corners would count."""
    padded = jnp.pad(mask, 1)
    above, below = ~padded[:-2, 1:-1], ~padded[2:, 1:-1]
    left, right = ~padded[1:-1, :-2], ~padded[1:-1, 2:]
    vertical = above.astype(jnp.int32) + below.astype(jnp.int32)
    return mask * vertical * (left.astype(jnp.int32) + right.astype(jnp.int32))


@jax.jit
def border_of(mask: jax.Array) -> jax.Array:
    """(h, w) bool: the outermost of the kept patches, beside another or at the edge of the grid."""
    padded = jnp.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _centre(mask: jax.Array) -> jax.Array:
    """A Gaussian around the middle of the kept patches."""

    def offsets(kept: jax.Array) -> jax.Array:
        positions = jnp.arange(kept.shape[0])
        first = jnp.min(jnp.where(kept, positions, kept.shape[0]))
        last = jnp.max(jnp.where(kept, positions, -1))
        return (2 * positions - first - last) / jnp.maximum(last - first + 1, 1)

    rows, columns = offsets(mask.any(1)), offsets(mask.any(0))
    distance = rows[:, None] ** 2 + columns[None, :] ** 2
    return jnp.exp(-distance / (2 * _CENTRE_WIDTH**2)) * mask


def _share(membership: jax.Array, weights: jax.Array) -> jax.Array:
    """(K,) what part of the weight lies in each cluster."""
    held = jnp.einsum("hwk,hw->k", membership, weights.astype(membership.dtype))
    return held / jnp.maximum(jnp.sum(weights), _EPSILON)


def _mean(membership: jax.Array, values: jax.Array) -> jax.Array:
    """(K,) mean of the values over each cluster."""
    held = jnp.einsum("hwk,hw->k", membership, values.astype(membership.dtype))
    return held / jnp.maximum(jnp.sum(membership, (0, 1)), _EPSILON)


def _one_hot_argmax(votes: jax.Array, tie: jax.Array, present: jax.Array) -> jax.Array:
    """(K,) True at the cluster with most votes; between equals, at the one with the larger tie."""
    votes = jnp.where(present, votes, -1.0)
    best = votes >= jnp.max(votes) - _EPSILON
    winner = jnp.argmax(jnp.where(best, tie, -1.0))
    return jnp.arange(votes.shape[0]) == winner


def _combined(cues: list[jax.Array], membership: jax.Array) -> jax.Array:
    """(K,) geometric mean of the cues, each divided by its average over the patches."""
    weights = jnp.sum(membership, (0, 1))
    total = jnp.maximum(jnp.sum(weights), _EPSILON)
    averages = [jnp.sum(weights * cue) / total for cue in cues]
    logs = [
        jnp.log(cue + _EPSILON) - jnp.log(average + _EPSILON)
        for cue, average in zip(cues, averages, strict=True)
    ]
    return jnp.exp(sum(logs[1:], logs[0]) / len(logs))


def _above_average(scores: jax.Array, membership: jax.Array, sizes: jax.Array) -> jax.Array:
    """(K,) True where the score exceeds that of the average patch; the best cluster always is,
    the worst never, so that two clusters always part."""
    weights = jnp.sum(membership, (0, 1))
    average = jnp.sum(weights * scores) / jnp.maximum(jnp.sum(weights), _EPSILON)
    lowest = jnp.min(jnp.where(sizes > 0, scores, jnp.inf))
    highest = jnp.max(jnp.where(sizes > 0, scores, -jnp.inf))
    return ((scores > average) | (scores >= highest)) & (scores > lowest)


def _renumber(labels: jax.Array, background: jax.Array, sizes: jax.Array) -> jax.Array:
    """Background clusters become 0, the others 1.. by descending size (ties by old number)."""
    order = jnp.argsort(jnp.where(background, jnp.inf, -sizes), stable=True)
    ranks = (
        jnp.zeros(sizes.shape[0], jnp.int32)
        .at[order]
        .set(jnp.arange(1, sizes.shape[0] + 1, dtype=jnp.int32))
    )
    return jnp.where(background, 0, ranks)[labels].astype(jnp.int32)
