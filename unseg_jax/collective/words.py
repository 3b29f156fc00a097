"""Words that steer a scorer: what things are more often than the rest of their images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unseg_jax.collective.equations import read_batch, solve
from unseg_jax.collective.steering import Steering, plain_steering

if TYPE_CHECKING:
    from jaxtyping import Float

    from unseg_jax.collective.set_scorer import Scorer

# Words: so much of a cue of unit variance is added to the margins, as far as features tell it. On
# data sets of which a word is true that added .007 to the IoU of the shipped model (bright, dark,
# small), .003 (centre) or nothing (large), and no set lost more than .006.
_WORD, _WORD_LAMBDA = 0.1, 0.02
_TYPICAL = 0.05  # share of the image of a piece that is neither small nor large
LOOK_FOR = ("bright", "dark", "centre", "small", "large")
"""What `fit` can be told to look for."""
MAX_LOOKED_AT = 32
"""Images of a set from which a word is learned, at most."""


def fit_word(
    scorer: Scorer,
    images: Iterable[tuple[Float[np.ndarray, "1 h w f"], np.ndarray]],
    word: str,
) -> Steering:
    """Learns from a word of `LOOK_FOR`, as a weak cue.

    Args:
        scorer: that is steered.
        images: features and pixels (H, W, 3) of images of the set.
        word: what things are more often than the rest of their images.
    """
    rows, cues = [], []
    for features, pixels in images:
        patches = read_batch(scorer, features)
        prior, columns = (np.asarray(part[0]) for part in (patches.prior, patches.columns))
        rows.append(columns.astype(np.float64))
        cues.append(_cue(word, prior.reshape(features.shape[1:3]), pixels).ravel())
    columns, gaps = np.concatenate(rows), _WORD * np.concatenate(cues)
    weights = np.full(len(gaps), 1 / len(gaps))
    gram = columns.T @ columns / len(columns)
    found = solve(gram, columns, gaps, weights, _WORD_LAMBDA, 0)
    return plain_steering(found, 0 * found[None], np.zeros((1, len(scorer.mean))), 0)


def _cue(word: str, prior: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(h, w) how far each patch is what the word says, about -2 to 2."""
    if word in ("small", "large"):
        from scipy.ndimage import label

        labels = np.zeros(prior.shape, np.int32)
        label(prior > 0, output=labels)
        shares = np.bincount(labels.ravel())[labels] / prior.size
        cue = np.clip(np.log(np.maximum(shares, 1e-3) / _TYPICAL), -1, 1) * (labels > 0)
        return cue if word == "large" else -cue
    height, width = prior.shape
    if word == "centre":
        rows, columns = np.ogrid[:height, :width]
        cue = -np.hypot((rows + 0.5) / height - 0.5, (columns + 0.5) / width - 0.5)
    else:
        grey = Image.fromarray(pixels).convert("L").resize((width, height), Image.Resampling.BOX)
        cue = np.asarray(grey, float) * (1 if word == "bright" else -1)
    return np.clip((cue - cue.mean()) / (cue.std() + 1e-6), -2, 2)
