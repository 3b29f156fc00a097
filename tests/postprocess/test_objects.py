"""Objects of a mask against scikit-image's labels and region properties."""

import numpy as np
import pytest
from skimage import measure

from unseg_jax.postprocess import find_objects, upsample_labels
from unseg_jax.postprocess.objects import Object

pytestmark = pytest.mark.quick


def blobs(seed=0, shape=(70, 90)):
    """Labels of smooth random regions, 0..3."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=(4, *shape))
    return np.argmax(ndimage.gaussian_filter(noise, (0, 4, 4)), 0)


def place(found: Object, shape):
    whole = np.zeros(shape, bool)
    left, top, right, bottom = found.box
    whole[top:bottom, left:right] = found.mask
    return whole


@pytest.mark.parametrize("seed", range(3))
def test_objects_are_the_regions_of_scikit_image(seed):
    labels = blobs(seed)
    evidence = np.random.default_rng(seed).uniform(-1, 1, labels.shape).astype(np.float32)
    regions = measure.regionprops(measure.label(labels, connectivity=1), evidence)
    expected = {}
    for region in regions:
        top, left, bottom, right = region.bbox
        label = labels[tuple(region.coords[0])]
        expected[(left, top, right, bottom), int(label)] = region
    found = find_objects(labels > 0, labels, evidence=evidence, min_area=0)
    assert len(found) == len(regions) > 5
    assert [it.area for it in found] == sorted((r.area for r in regions), reverse=True)
    outside = evidence[labels == 0].mean()
    for it in found:
        region = expected[it.box, it.label]
        np.testing.assert_array_equal(it.mask, region.image)
        assert it.area == region.area
        score = (region.mean_intensity - outside) / 2
        assert it.score == pytest.approx(np.clip(score, 0, 1), abs=1e-5)


def test_specks_below_the_share_are_dropped():
    labels = blobs()
    everything = find_objects(labels > 0, labels, min_area=0)
    areas = np.array([it.area for it in everything])
    kept = find_objects(labels > 0, labels, min_area=np.median(areas) / labels.size)
    assert 1 < len(kept) == (areas >= np.median(areas)).sum() < len(everything)
    in_pixels = find_objects(labels > 0, labels, min_area=int(np.median(areas)))
    assert [it.box for it in in_pixels] == [it.box for it in kept]
    default = find_objects(labels > 0, labels)
    assert all(it.area >= 0.001 * labels.size for it in default)


def test_without_labels_touching_parts_are_one_object():
    labels = blobs()
    found = find_objects(labels > 0, min_area=0)
    assert len(found) == measure.label(labels > 0, connectivity=1).max()
    assert {it.label for it in found} == {1}


@pytest.mark.parametrize("size", [(211, 173), (70, 300), (700, 900), (41, 200), (30, 33)])
def test_enlarged_objects_are_those_of_the_enlarged_mask(size):
    labels = blobs(1)
    large = upsample_labels(labels, size)
    expected = find_objects(large > 0, large)
    found = find_objects(labels > 0, labels, size=size)
    assert len(found) == len(expected)
    for it, other in zip(found, expected, strict=True):
        assert (it.box, it.area, it.label) == (other.box, other.area, other.label)
        np.testing.assert_array_equal(it.mask, other.mask)
        assert place(it, size).sum() == it.area


def test_scores_without_evidence_and_of_whole_and_empty_masks():
    whole, evidence = np.ones((4, 5), bool), np.ones((2, 2))
    (found,) = find_objects(whole, evidence=evidence, confidence=0.0)
    assert (found.box, found.area, found.score) == ((0, 0, 5, 4), 20, 0.0)
    half = np.arange(5) > 2
    mask = np.broadcast_to(half, (4, 5))
    assert find_objects(mask, confidence=0.3)[0].score == 0.3
    certain = np.where(mask, 1.0, -1.0)
    assert find_objects(mask, evidence=certain)[0].score == pytest.approx(1)
    assert find_objects(~whole) == ()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit a mask"):
        find_objects(np.ones((4, 5), bool), np.ones((5, 4), int))
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"min_area={wrong} is no size"):
            find_objects(np.ones((4, 5), bool), min_area=wrong)
