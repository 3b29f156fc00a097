"""Soft edges of cut-outs, on a disc whose alpha and colours are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from unseg_jax.postprocess.matting import cut_out, estimate_foreground, soft_alpha

ROWS, COLUMNS = np.mgrid[:96, :120]
COLOUR = np.array([200.0, 60.0, 30.0])


@pytest.fixture(scope="module")
def disc():
    """A soft red disc on blue noise: the image, its alpha, and a mask that is a pixel off."""
    noise = np.random.default_rng(0).normal(0, 12, (96, 120, 1))
    ground = np.array([20.0, 60.0, 180.0]) + noise
    alpha = gaussian_filter((np.hypot(ROWS - 48, COLUMNS - 60) < 30).astype(float), 1.5)
    image = alpha[..., None] * COLOUR + (1 - alpha[..., None]) * ground
    return np.rint(image).astype(np.uint8), alpha, np.hypot(ROWS - 48, COLUMNS - 60) < 31


def test_alpha_follows_the_edge_of_the_image(disc):
    image, alpha, mask = disc
    soft = soft_alpha(image, mask)
    edge = (alpha > 0.01) & (alpha < 0.99)
    error, hard = (np.abs(found - alpha)[edge].mean() for found in (soft, mask.astype(float)))
    assert error < 0.7 * hard
    far = np.abs(np.hypot(ROWS - 48, COLUMNS - 60) - 31) > 5
    np.testing.assert_array_equal(soft[far], mask[far])


def test_thin_straps_stay():
    strap = (np.abs(np.hypot(ROWS - 60, COLUMNS - 60) - 40) < 1) & (ROWS < 60)
    mask = strap | ((ROWS >= 60) & (ROWS < 90) & (np.abs(COLUMNS - 60) < 44))
    noise = np.random.default_rng(0).normal(0, 12, (96, 120, 1))
    image = np.where(mask[..., None], COLOUR, np.array([20.0, 60.0, 180.0]) + noise)
    soft = soft_alpha(image.round().astype(np.uint8), mask)
    assert soft[strap].min() > 0.8


def test_colours_of_the_background_are_taken_out(disc):
    image, alpha, _ = disc
    found = estimate_foreground(image, alpha)
    edge = (alpha > 0.2) & (alpha < 0.95)
    error, before = (np.abs(colours[edge] - COLOUR).mean() for colours in (found, image))
    assert error < before / 3
    np.testing.assert_array_equal(found[alpha == 1], image[alpha == 1])
    np.testing.assert_array_equal(found[alpha == 0], image[alpha == 0])


def test_a_cut_out_of_a_part_is_that_of_the_whole(disc):
    # Large enough that a part of it is looked at.
    image = np.pad(disc[0], ((160, 20), (0, 170), (0, 0)), mode="reflect")
    mask = np.pad(disc[2], ((160, 20), (0, 170)))
    found = cut_out(image, mask)
    alpha = soft_alpha(image, mask, band=3)
    # The filters' running sums round differently.
    np.testing.assert_allclose(found[..., 3], np.rint(alpha * 255), atol=1)
    np.testing.assert_allclose(found[..., :3], estimate_foreground(image, alpha), atol=1)
    assert np.count_nonzero((found[..., 3] > 0) & (found[..., 3] < 255)) > 100
    for value in (0, 1):
        found = cut_out(image, np.full(mask.shape, bool(value)))
        np.testing.assert_array_equal(found[..., 3], 255 * value)
        np.testing.assert_array_equal(found[..., :3], image)
