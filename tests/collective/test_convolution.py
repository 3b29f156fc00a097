"""The convolution that a set trains: against SciPy, and on a set whose object one patch hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from unseg_jax.collective.convolution import Convolution, convolve, convolve_rows, draw, join, train
from unseg_jax.collective.cues import neighbours

GRID = (6, 8)


def _head(seed, hidden=3, width=4):
    rng = np.random.default_rng(seed)
    shapes = ((3, 3, width, hidden), (hidden,), (hidden,), ())
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
    # The same on rows of patches, with some that are none.
    rows = np.pad(image.reshape(48, 4), ((0, 7), (0, 0)), constant_values=3.0)
    found = convolve_rows(head, jnp.asarray(rows), jnp.asarray(neighbours(GRID, 55)))
    np.testing.assert_allclose(found[:48].reshape(GRID), expected, atol=1e-4)


def test_joined_scores_are_the_scaled_sum():
    first, second, images = _head(0), _head(1), jnp.asarray(_images(2))
    expected = (convolve(first, images) + convolve(second, images)) / 2.5
    np.testing.assert_allclose(convolve(join(first, second, 2.5), images), expected, atol=1e-5)


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


def _train(parts, goals, valid=None, alone=False, size=64, count=13):
    """`train` on images of several grids: (n, h, w, 4) and (n, h, w) of each; padded with 7, and to
    13 images, so that it is compiled once."""
    images = [one for part in parts for one in part]
    goals = [one for part in goals for one in part]
    valid = [np.ones(one.shape, bool) for one in goals] if valid is None else list(valid)

    empty = count - len(images)

    def rows(arrays, width, filling):
        flat = [one.reshape(-1, *width) for one in arrays]
        pads = [(0, 0)] * len(width)
        flat = [np.pad(f, ((0, size - len(f)), *pads), constant_values=filling) for f in flat]
        return np.stack([*flat, *[np.full_like(flat[0], filling)] * empty])

    near = np.stack([neighbours(one.shape[:2], size) for one in images])
    if alone:
        near[..., [0, 1, 2, 3, 5, 6, 7, 8]] = size
    near = np.concatenate([near, *[near[:1]] * empty])
    sizes = np.array([one.size for one in goals] + [0] * empty, np.int32)
    arguments = rows(images, (4,), 7.0), near, rows(goals, (), 1.0), rows(valid, (), True)
    drawn = draw(sizes, near[..., 0].size, 4, np.random.default_rng(0))
    return jax.jit(train)(*arguments, drawn)


def test_neighbours_tell_what_a_patch_alone_does_not():
    images, truths = _textures(0)
    new, new_truths = _textures(1)
    right = {}
    for alone in (False, True):
        head, agreed = _train([images], [np.where(truths, 1.0, -1.0)], alone=alone)
        assert agreed.shape == (6,)
        assert ((agreed >= 0) & (agreed <= 1)).all()
        if alone:
            only = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
            head = head._replace(kernel=head.kernel * only)
        right[alone] = ((convolve(head, jnp.asarray(new)) > 0) == new_truths).mean()
        assert np.std(convolve(head, jnp.asarray(images))) == pytest.approx(1, abs=0.03)
    assert right[False] > 0.9 > 0.8 > right[True]


def test_images_of_several_grids_and_of_one_image():
    (images, truths), (other, its_truth) = _textures(0, 3), _textures(1, 1, (8, 8))
    goals = [np.where(truth, 1.0, -1.0) for truth in (truths, its_truth)]
    head, _ = _train([images, other], goals)
    new, new_truths = _textures(2, 6)
    assert ((convolve(head, jnp.asarray(new)) > 0) == new_truths).mean() > 0.8
    head, agreed = _train([other], goals[1:])
    assert agreed.max() > 0.9  # both learned the same image
    assert all(np.isfinite(part).all() for part in head)


def test_what_has_no_goal_teaches_nothing(monkeypatch):
    """The same with whatever stands where the goal is 0, as long as no neighbour has one."""
    monkeypatch.setattr("unseg_jax.collective.convolution._LOOKS", 1)  # none is chosen
    images, _ = _textures(0, 4)
    goals = np.zeros((4, *GRID))
    goals[:, :2, :4], goals[:, :2, 4:] = 1.0, -1.0
    other = images.copy()
    other[:, 4:] = 7.0
    valid = np.zeros((4, *GRID), bool)
    valid[:, :2] = True
    heads = [_train([given], [goals], valid)[0] for given in (images, other)]
    for first, second in zip(*heads, strict=True):
        if first.shape and first.shape[0] == 3:
            np.testing.assert_allclose(first, second, atol=1e-5)


def test_draws_come_from_halves_and_from_patches_that_are():
    sizes = np.array([5, 0, 3, 7, 0, 2], np.int32)
    drawn = draw(sizes, 16, 4, np.random.default_rng(0))
    image, patch = drawn.learned
    assert (patch < sizes[image]).all()
    assert set(image[0].flat).isdisjoint(set(image[1].flat))
    assert set(image.flat) == set(drawn.compared[0].flat) == {0, 2, 3, 5}
