"""Collages with known objects, scores of what is found in them and MaskCut."""

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.measure import collages, objects
from benchmarks.measure.collages import Cutout
from benchmarks.measure.maskcut import fast_second_eigenvector, maskcut
from benchmarks.measure.objects import Found


def discs(count):
    """Cut-out discs, each of a colour of its own."""
    rows, columns = np.mgrid[:80, :80] - 39.5
    mask = np.hypot(rows, columns) < 40
    colours = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)], np.uint8)
    return [Cutout(np.broadcast_to(colours[i], (80, 80, 3)), mask, i) for i in range(count)]


def backgrounds():
    return [(9, np.full((*collages.SIZE, 3), 128, np.uint8))]


@pytest.mark.parametrize("touching", [False, True])
def test_objects_of_a_collage_touch_or_keep_apart(touching, monkeypatch):
    monkeypatch.setattr(collages, "SIDES", (0.2, 0.25))
    made = collages.build(discs(4), backgrounds(), 6, touching=touching, seed=3)
    assert [len(one.truths) for one in made] == [2, 3, 4, 2, 3, 4]
    for one in made:
        assert one.image.shape == (*collages.SIZE, 3)
        assert one.truths.sum(0).max() == 1
        together = one.truths.any(0)
        count = ndimage.label(together)[1]
        assert count == (1 if touching else len(one.truths))
        for truth in one.truths:
            # Inside, an object has its own colour; outside of all, there is the background.
            inside = ndimage.binary_erosion(truth, iterations=3)
            assert len(np.unique(one.image[inside], axis=0)) == 1
            distance = ndimage.distance_transform_edt(~truth)
            nearest = distance[together & ~truth].min()
            assert nearest <= 1 if touching else nearest > collages.GAP
        outside = ~ndimage.binary_dilation(together, iterations=3)
        assert (one.image[outside] == 128).all()


def test_collages_depend_on_the_seed_alone():
    first, again, other = (
        collages.build(discs(4), backgrounds(), 1, touching=False, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.truths.any(0), other.truths.any(0))


def test_only_whole_objects_are_cut_out():
    image = np.zeros((100, 100, 3), np.uint8)
    mask = np.zeros((100, 100), bool)
    mask[10:80, 20:60] = True
    cutout = collages.cut_out(image, mask, 7)
    assert (cutout.mask.shape, cutout.mask.all(), cutout.source) == ((70, 40), True, 7)
    assert collages.cut_out(image, np.roll(mask, -10, 0)) is None  # at the edge
    pieces = mask.copy()
    pieces[40:50] = False
    assert collages.cut_out(image, pieces) is None
    assert collages.cut_out(image, mask & (np.arange(100) < 40)[:, None]) is None  # small


def test_the_free_part_of_an_image_holds_no_object():
    mask = np.zeros((240, 240), bool)
    mask[:, 150:] = True
    left, top, right, bottom = collages.free_box(mask)
    assert (left, top, bottom) == (0, 0, 180)  # 140 wide, at least 3:4
    assert right == 140
    assert collages.free_box(np.ones((240, 240), bool)) is None


def squares(*places):
    masks = np.zeros((len(places), 20, 20), bool)
    for mask, (top, left, height, width) in zip(masks, places, strict=True):
        mask[top : top + height, left : left + width] = True
    return masks


def test_scores_written_out():
    truths = [squares((0, 0, 8, 8), (0, 12, 8, 8)), squares((5, 5, 10, 10))]
    # The first image: one exactly, one of which a quarter is found, one that is nothing.
    first = squares((0, 0, 8, 8), (0, 12, 4, 4), (12, 0, 4, 4))
    second = squares((5, 5, 10, 6))
    found = [
        [Found(mask, score) for mask, score in zip(first, (0.9, 0.8, 0.5), strict=True)],
        [Found(second[0], 0.7)],
    ]
    scores = objects.scores(truths, found)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["best_iou"] == pytest.approx((1 + 0.25 + 0.6) / 3)
    assert scores["false"] == pytest.approx(2 / 2)
    # In order: right, wrong, right, wrong; precision 1 at the first and 2/3 at the second.
    assert scores["ap50"] == pytest.approx((1 + 2 / 3) / 3)
    # An object that is found twice counts once, and the surer one is right.
    truth = squares((0, 0, 10, 10))
    twice = [Found(truth[0], 0.4), Found(squares((0, 0, 10, 8))[0], 0.6)]
    found_twice = {"recall": 1, "best_iou": 1, "false": 1, "ap50": 1}
    assert objects.scores([truth], [twice]) == found_twice
    nothing = {"recall": 0, "best_iou": 0, "false": 0, "ap50": 0}
    assert objects.scores([truth], [[]]) == nothing


def test_maskcut_finds_one_object_after_the_other():
    grid = (10, 10)
    kinds = np.zeros(grid, int)
    kinds[1:5, 1:5], kinds[6:9, 5:9] = 1, 2
    rng = np.random.default_rng(0)
    features = np.eye(8)[kinds.ravel()] + 0.05 * rng.standard_normal((100, 8))
    found = maskcut(features, grid, count=2)
    fast = maskcut(features, grid, count=2, eigenvector=fast_second_eigenvector)
    assert np.array_equal(found, fast)
    assert sorted(int(one.sum()) for one in found) == [12, 16]
    for one in found:
        assert len(np.unique(kinds[one])) == 1
