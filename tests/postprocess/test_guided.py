"""The guided filter against its definition, window by window."""

import numpy as np
import pytest

from unseg_jax.postprocess.guided import guided_filter


def _by_definition(image, soft, radius, epsilon):
    """Eq. 19 to 21 of He, Sun and Tang with explicit windows and a 3×3 solve, in float64."""
    guide = np.pad(image / 255.0, ((radius,) * 2, (radius,) * 2, (0, 0)), "edge")
    target = np.pad(soft.astype(np.float64), radius, "edge")
    side = 2 * radius + 1
    height, width = soft.shape
    slope, offset = np.zeros((height, width, 3)), np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            colours = guide[row : row + side, column : column + side].reshape(-1, 3)
            values = target[row : row + side, column : column + side].ravel()
            mean = colours.mean(0)
            covariance = np.cov(colours.T, bias=True) + epsilon * np.eye(3)
            right = (colours * values[:, None]).mean(0) - mean * values.mean()
            slope[row, column] = np.linalg.solve(covariance, right)
            offset[row, column] = values.mean() - slope[row, column] @ mean

    def box(values):
        padded = np.pad(
            values, ((radius,) * 2, (radius,) * 2) + ((0, 0),) * (values.ndim - 2), "edge"
        )
        windows = [padded[i : i + height, j : j + width] for i in range(side) for j in range(side)]
        return np.mean(windows, 0)

    return (box(slope) * image / 255.0).sum(-1) + box(offset)


def test_against_the_definition():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (14, 17, 3)).astype(np.uint8)
    image[:, :6] //= 4
    soft = rng.normal(size=(14, 17)).astype(np.float32)
    for radius, epsilon in ((2, 1e-3), (3, 1e-2)):
        ours = guided_filter(image, soft, radius=radius, epsilon=epsilon)
        expected = _by_definition(image, soft, radius, epsilon)
        np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_a_constant_map_and_a_constant_image():
    flat = np.full((20, 20, 3), 90, np.uint8)
    noisy = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    constant = np.full((20, 20), 0.3, np.float32)
    for image in (flat, noisy):
        np.testing.assert_allclose(guided_filter(image, constant), constant, atol=1e-5)
    step = np.zeros((20, 20), np.float32)
    step[:, 10:] = 1
    # Without edges in the image the map is only averaged: monotone, between its own bounds.
    smooth = guided_filter(flat, step, radius=2)
    assert (np.diff(smooth, axis=1) >= -1e-6).all()
    assert smooth.min() >= -1e-6
    assert smooth.max() <= 1 + 1e-6


def test_what_it_refuses():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="resize"):
        guided_filter(image, np.zeros((4, 5)))
    with pytest.raises(ValueError, match="finite"):
        guided_filter(image, np.full((4, 4), np.nan))
