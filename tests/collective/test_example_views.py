"""Views of an example: what they show, what is read of them, and what they count."""

import dataclasses

import numpy as np
import pytest

from unseg_jax import fit
from unseg_jax.collective import equations, set_reader, steering
from unseg_jax.collective.example_views import VIEWS, View
from unseg_jax.collective.marks import Marks
from unseg_jax.collective.set_reader import SetReader
from unseg_jax.data.truths import Truth
from unseg_jax.segmenter.decoded_cache import DecodedCache

SETTINGS = {"image_size": 64}


@pytest.mark.parametrize(
    ("view", "seen"),
    [
        (View(False, 0, 1.0), [[1, 2, 3], [4, 5, 6]]),
        (View(True, 0, 1.0), [[3, 2, 1], [6, 5, 4]]),
        (View(False, 1, 1.0), [[3, 6], [2, 5], [1, 4]]),
        (View(False, 2, 1.0), [[6, 5, 4], [3, 2, 1]]),
        (View(True, 2, 1.0), [[4, 5, 6], [1, 2, 3]]),
        (View(True, 1, 1.0), [[1, 4], [2, 5], [3, 6]]),
    ],
)
def test_pixels_and_mask_are_turned_alike(view, seen):
    values = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(view.turned(values), seen)
    pixels = np.stack([values, values + 10, values + 20], -1)
    found = view.of_pixels(pixels)
    np.testing.assert_array_equal(found, np.stack([np.array(seen) + at for at in (0, 10, 20)], -1))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


def test_gamma_below_1_is_lighter():
    pixels = np.array([0, 64, 128, 255], np.uint8).reshape(1, 4, 1).repeat(3, -1)
    light, dark = (View(False, 0, gamma).of_pixels(pixels)[0, :, 0] for gamma in (0.5, 2.0))
    np.testing.assert_array_equal(light, [0, 128, 181, 255])
    np.testing.assert_array_equal(dark, [0, 16, 64, 255])


def test_no_view_is_the_image_itself_or_another_view():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    shown = [pixels.tobytes(), *(view.of_pixels(pixels).tobytes() for view in VIEWS)]
    assert len(set(shown)) == len(shown) == 4


def _squares(photographs):
    images = photographs(3)
    return images, np.array(images)[..., 0] > 120


def test_views_of_masks_are_read_once(model, photographs):
    images, masks = _squares(photographs)
    segmenter, kept = model.segmenter(epochs=0), DecodedCache()
    valid = np.arange(64) > np.full((64, 1), 9)
    truth = Truth(masks[1], valid)
    marks = {1: Marks((64, 64), truth), 2: Marks((64, 64), clicks=((3, 3, True),))}
    calls = []

    def record(pixels):
        calls.append(len(pixels))
        return segmenter.kept_features(pixels)

    recorded = dataclasses.replace(segmenter, kept=kept)
    object.__setattr__(recorded, "kept_features", record)
    reader = SetReader(recorded, images)
    first, second = reader.marked(marks)
    assert list(second.views) == []
    seen = list(first.views)
    assert len(seen) == len(VIEWS)
    for view, (features, turned) in zip(VIEWS, seen, strict=True):
        expected = segmenter.kept_features(view.of_pixels(images[1])[None])
        np.testing.assert_allclose(features, np.asarray(expected), atol=2e-3)
        np.testing.assert_array_equal(turned.mask, view.turned(masks[1]))
        np.testing.assert_array_equal(turned.valid, view.turned(valid))
    count = len(calls)
    again = list(reader.marked(marks)[0].views)
    assert len(calls) == count == 2 + len(VIEWS)
    for (features, _), (before, _) in zip(again, seen, strict=True):
        np.testing.assert_array_equal(features, before)
    np.testing.assert_array_equal(next(reader([1])), first.features)  # no view took its place


@pytest.mark.parametrize("whole", [False, True])
def test_pixels_of_views_are_those_of_the_image(model, photographs, monkeypatch, whole):
    """Kept where all of the pixels are, and read again where they are not."""
    images, masks = _squares(photographs)
    reader, decoded = SetReader(model.segmenter(epochs=0), images, whole=whole), []
    real = set_reader.decode
    monkeypatch.setattr(set_reader, "decode", lambda *given: decoded.append(1) or real(*given))
    (marked,) = reader.marked({0: Marks((64, 64), Truth(masks[0]))})
    assert len(list(marked.views)) == len(VIEWS)
    assert len(decoded) == (1 if whole else 2)


def test_views_count_as_much_as_the_image():
    """The solution is that of all patches in one, of weights by hand."""
    rng, grid, width = np.random.default_rng(0), (3, 4), 6
    gram = np.cov(rng.normal(size=(width, 40))) + np.eye(width)
    gram[-1] = gram[:, -1] = 0.1
    gram[-1, -1] = 1
    system = equations.System(gram)
    examples = []
    for _ in range(3):
        columns, prior = rng.normal(size=(12, width)), rng.normal(size=12)
        one = steering._Example(grid, np.zeros(2), np.zeros(width), columns, prior)
        examples.append((one, Truth(rng.random((6, 8)) > 0.6)))
    (one, truth), *views = examples
    taught = steering._with_mask(system, one, truth, views)
    shares, sums = (0.5, 0.25, 0.25), [0.0, 0.0]
    for side in range(2):
        gram, gaps, weight = 0.0, 0.0, 0.0
        for share, (seen, mask) in zip(shares, examples, strict=True):
            targets = 2 * mask.mask.reshape(3, 2, 4, 2).mean((1, 3)).ravel() - 1
            used = (targets > 0) if side == 0 else (targets <= 0)
            rows = system.of(seen.columns)[used]
            gram = gram + share * rows.T @ rows
            gaps = gaps + share * (targets - seen.prior)[used] @ rows
            weight += share * used.sum()
        np.testing.assert_allclose(taught.sides[side].gram, gram, atol=1e-9)
        np.testing.assert_allclose(taught.sides[side].gaps, gaps, atol=1e-9)
        assert taught.sides[side].weight == pytest.approx(weight)
        sums[side] = weight
    assert sum(sums) == pytest.approx(12)
    # What is found is compared with the mask of the image itself.
    np.testing.assert_array_equal(taught.fine[0] > 0, truth.mask.repeat(2, 0).repeat(2, 1).ravel())
    assert taught.columns is one.columns


def test_a_fit_and_a_refined_model_learn_from_views(backbone, photographs, monkeypatch):
    images, masks = _squares(photographs)
    mark = {0: masks[0]}
    steered = fit(images, backbone=backbone, examples=mark, **SETTINGS)
    plain = fit(images, backbone=backbone, steps=0, **SETTINGS)
    refined = plain.refine(images, examples=mark)
    np.testing.assert_allclose(steered.steering.like, refined.steering.like, atol=2e-3)
    monkeypatch.setattr(set_reader, "VIEWS", ())
    alone = plain.refine(images, examples=mark)
    assert np.abs(alone.steering.like - refined.steering.like).max() > 1e-2
    monkeypatch.undo()
    # The example is known again when it is seen otherwise.
    seen = [view.of_pixels(images[0]) for view in VIEWS]
    truths = np.stack([view.turned(masks[0]) for view in VIEWS]).repeat(4, 1).repeat(4, 2)
    wrong = [
        np.abs(np.stack([one.evidence for one in model.segment(seen)]) - (2.0 * truths - 1)).mean()
        for model in (alone, refined)
    ]
    assert wrong[1] < wrong[0]
