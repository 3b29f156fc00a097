"""Crowds of things that look alike are cut apart by their colours, and single things are not."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from skimage.morphology import convex_hull_image

import unseg_jax as us
from unseg_jax.postprocess import find_objects
from unseg_jax.postprocess.crowds import _merge_tree, _solidity, cut_crowd

SIZE = (160, 200)
COLOURS = st.sampled_from([(20, 200), (200, 60)])
rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]


def disc(row, column, radius):
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def crowd(pairs, radius=11, gap=3, colours=(20, 200), noise=3):
    """Pairs of discs with a gap, under a mask without necks: the convex hull of each pair. And the
    middle of each disc."""
    shown, mask, middles = np.zeros(SIZE, bool), np.zeros(SIZE, bool), []
    for pair in range(pairs):
        row, left = 20 + 40 * (pair // 3), 14 + 64 * (pair % 3)
        both = [(row, left), (row, left + 2 * radius + gap)]
        middles += both
        two = disc(*both[0], radius) | disc(*both[1], radius)
        shown |= two
        mask |= convex_hull_image(two)
    pixels = np.where(shown, colours[1], colours[0])[..., None] + np.zeros(3)
    pixels += np.random.default_rng(0).normal(0, noise, pixels.shape)
    return mask, np.clip(pixels, 0, 255).astype(np.uint8), middles


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 9), st.integers(9, 13), st.integers(2, 5), COLOURS, st.sampled_from([1, 3]))
def test_gaps_that_the_mask_bridges_are_seen(pairs, radius, gap, colours, scale):
    mask, pixels, middles = crowd(pairs, radius, gap, colours)
    mask, pixels = (array.repeat(scale, 0).repeat(scale, 1) for array in (mask, pixels))
    assert len(find_objects(mask, split="auto")) == pairs
    assert len(find_objects(mask, split="never", pixels=pixels)) == pairs
    found = find_objects(mask, split="auto", pixels=pixels)
    whole = np.zeros(mask.shape, int)
    for number, item in enumerate(found, 1):
        left, top, right, bottom = item.box
        whole[top:bottom, left:right][item.mask] += number
    np.testing.assert_array_equal(whole > 0, mask)
    ids = [whole[row * scale, column * scale] for row, column in middles]
    assert sorted(ids) == list(range(1, 2 * pairs + 1))


def test_few_things_are_no_crowd():
    mask, pixels, _ = crowd(3)
    assert len(find_objects(mask, split="auto", pixels=pixels)) == 3
    # Neither is one thing with stripes of the background's colour, nor are things of many sizes.
    one = np.zeros(SIZE, bool)
    one[20:140, 20:180] = True
    stripes = np.where(one & (columns // 8 % 3 > 0), 200, 20)[..., None].repeat(3, 2)
    stripes = stripes.astype(np.uint8)
    assert len(find_objects(one, split="auto", pixels=stripes)) == 1
    sizes = disc(70, 60, 55) | disc(80, 158, 40)
    for number in range(6):
        sizes |= disc(8, 8 + 30 * number, 4)
    numbers, _ = ndimage.label(sizes)  # type: ignore[misc]
    assert cut_crowd(numbers, np.uint8(200) * sizes[..., None].repeat(3, 2)) == {}


@pytest.mark.parametrize("mask", [np.zeros(SIZE, bool), np.ones(SIZE, bool), disc(50, 50, 3)])
@pytest.mark.parametrize("shade", [0, 255])
def test_what_tells_nothing_apart_is_left(mask, shade):
    pixels = np.full((*SIZE, 3), shade, np.uint8)
    assert len(find_objects(mask, split="auto", pixels=pixels, min_area=0)) == int(mask.any())


def test_what_is_left_stays_cut():
    mask, pixels, _ = crowd(4)
    found = us.Segmentation.of(mask, mask, pixels=pixels, split="auto", confidence=0.5)
    assert len(found.objects) == 8
    left = found.without(found.objects[:1])
    # Seven are no crowd, and one is none either.
    assert [item.box for item in left.objects] == [item.box for item in found.objects[1:]]
    assert [item.label for item in left.objects] == [1] * 7
    assert len(found.only_largest().objects) == 1
    assert len(dataclasses.replace(left, split="never").objects) == 4
    whole = dataclasses.replace(found, split="never")
    assert len(dataclasses.replace(whole.without([]), split="auto").objects) == 8
    # Pixels may be kept at another size than the mask's.
    large = dataclasses.replace(found, pixels=pixels.repeat(2, 0).repeat(2, 1))
    assert len(large.objects) == 8


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_solidity_counts_the_pixels_of_the_hull(seed):
    generator = np.random.default_rng(seed)
    part = ndimage.gaussian_filter(generator.normal(size=(20, 30)), 2) > 0.05
    part[10, 15] = True
    hull = convex_hull_image(part, offset_coordinates=False, include_borders=True)
    assert _solidity(part) == pytest.approx(part.sum() / hull.sum())


def test_basins_join_over_the_highest_saddle_first():
    generator = np.random.default_rng(1)
    relief = generator.normal(size=(12, 12))
    basins = np.kron(np.arange(1, 10).reshape(3, 3), np.ones((4, 4), int))
    lowest = np.full((9, 9), 100.0)  # no border
    np.fill_diagonal(lowest, 0)
    for row, column in np.ndindex(12, 12):
        for other in np.ndindex(12, 12):
            if max(abs(row - other[0]), abs(column - other[1])) == 1:
                pair = basins[row, column] - 1, basins[other] - 1
                if pair[0] != pair[1]:
                    height = 50 - min(relief[row, column], relief[other])
                    lowest[pair] = lowest[pair[::-1]] = min(lowest[pair], height)
    children, roots = _merge_tree(basins, 9, relief)
    expected = linkage(squareform(lowest), "single")[:, :2] + 1
    assert [set(pair) for pair in children.values()] == [set(pair) for pair in expected]
    assert list(children) == list(range(10, 18))
    assert roots == [17]
