"""The convolution that a set trains: against SciPy, and on a set whose object one patch hides."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from unseg_jax.collective.convolution import Convolution, convolve, join, scores_of, train

GRID = (6, 8)


def _head(seed, hidden=3, width=4, side=3):
    rng = np.random.default_rng(seed)
    shapes = ((side, side, width, hidden), (hidden,), (hidden,), ())
    return Convolution(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


def _images(seed, count=2, width=4, grid=GRID):
    return np.random.default_rng(seed).normal(size=(count, *grid, width)).astype(np.float32)


def test_scores_are_those_of_scipy():
    head, image = _head(0), _images(1, 1)
    hidden = np.zeros((*GRID, 3))
    for unit in range(3):
        for channel in range(4):
            kernel = np.asarray(head.kernel)[:, :, channel, unit]
            hidden[..., unit] += correlate2d(image[0, ..., channel], kernel, "same")
    hidden = np.maximum(hidden + np.asarray(head.bias), 0)
    expected = hidden @ np.asarray(head.readout) + float(head.offset)
    np.testing.assert_allclose(convolve(head, jnp.asarray(image))[0], expected, atol=1e-4)


def test_joined_scores_are_the_scaled_sum():
    first, second, images = _head(0), _head(1), jnp.asarray(_images(2))
    expected = (convolve(first, images) + convolve(second, images)) / 2.5
    np.testing.assert_allclose(convolve(join(first, second, 2.5), images), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 16, 17])
def test_any_number_of_images_is_scored(count):
    head, images = _head(0), _images(3, count)
    (found,) = scores_of(head, [images])
    assert found.shape == (count, 48)
    np.testing.assert_allclose(
        found.reshape(count, *GRID), convolve(head, jnp.asarray(images)), atol=1e-5
    )


def _textures(seed, count=12, grid=GRID):
    """Object and ground hold the same patches: the object is where unlike ones are neighbours."""
    rng = np.random.default_rng(seed)
    images, truths = [], []
    for _ in range(count):
        rows, columns = np.indices(grid)
        sign = np.where(rows < grid[0] // 2, 1, -1)  # two flat grounds
        truth = np.zeros(grid, bool)
        left = rng.integers(1, 4)
        truth[1:5, left : left + 4] = True
        sign = np.where(truth, np.where((rows + columns) % 2, 1, -1), sign)
        image = sign[..., None] * np.eye(4)[0] + rng.normal(size=(*grid, 4)) / 10
        images.append(image.astype(np.float32))
        truths.append(truth)
    return np.array(images), np.array(truths)


def test_neighbours_tell_what_a_patch_alone_does_not():
    images, truths = _textures(0)
    goals = np.where(truths, 1.0, -1.0)
    right = {}
    for side in (1, 3):
        looks = list(
            train([images], [goals], [np.ones_like(truths)], np.random.default_rng(0), side=side)
        )
        assert len(looks) == 6
        agreement, head = max(looks, key=lambda look: look[0])
        assert 0 <= agreement <= 1
        new, new_truths = _textures(1)
        (scores,) = scores_of(head, [new])
        right[side] = ((scores > 0) == new_truths.reshape(12, -1)).mean()
        (seen,) = scores_of(head, [images])
        assert np.std(seen) == pytest.approx(1, abs=1e-3)
    assert right[3] > 0.9 > 0.8 > right[1]


def test_images_of_several_grids_and_of_one_image():
    parts = [_textures(0, 3), _textures(1, 1, (8, 8))]
    images, truths = zip(*parts, strict=True)
    goals = [np.where(truth, 1.0, -1.0) for truth in truths]
    valid = [np.ones_like(truth) for truth in truths]
    *_, (_, head) = train(images, goals, valid, np.random.default_rng(0))
    assert [part.shape for part in scores_of(head, images)] == [(3, 48), (1, 64)]
    one = [images[1]], [goals[1]], [valid[1]]
    *_, (agreement, head) = train(*one, np.random.default_rng(0))
    assert agreement > 0.9  # both learned the same image
    assert all(np.isfinite(part).all() for part in head)


def test_what_has_no_goal_teaches_nothing():
    """The same with whatever stands where the goal is 0, as long as no neighbour has one."""
    images, _ = _textures(0, 4)
    goals = np.zeros((4, *GRID))
    goals[:, :2, :4], goals[:, :2, 4:] = 1.0, -1.0
    other = images.copy()
    other[:, 4:] = 7.0
    heads = []
    for given in (images, other):
        valid = np.zeros((4, *GRID), bool)
        valid[:, :2] = True
        *_, (_, head) = train([given], [goals], [valid], np.random.default_rng(0))
        heads.append(head)
    for first, second in zip(*heads, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)
