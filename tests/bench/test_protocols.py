"""What each protocol may see, and how masks are cropped and turned over."""

import numpy as np
import pytest

from unseg_jax.bench.score.protocols import PROTOCOLS, crop_box, resolve_protocol
from unseg_jax.bench.score.scoring import SCORES, orient, score
from unseg_jax.data import Truth
from unseg_jax.metrics import iou
from unseg_jax.segmenter import Segmentation

pytestmark = pytest.mark.quick


def segmentation(mask):
    return Segmentation.of(mask, mask.astype(np.int32), confidence=1.0, method="deepcut", id="a")


def test_honest_neither_flips_nor_crops_nor_drops():
    honest = resolve_protocol("honest")
    assert not honest.flip
    assert honest.crop is None
    assert honest.count_failures
    assert [p.name for p in PROTOCOLS.values() if p.family == "honest"] == ["honest"]


def test_papers_have_their_own_rules():
    assert resolve_protocol("unsegmedgat").crop == 20
    assert resolve_protocol("unsegmedgat").flip
    assert resolve_protocol("unseggnet").crop is None
    assert not resolve_protocol("deepcut").flip
    assert resolve_protocol("published").flip
    assert resolve_protocol("published").crop is None
    assert resolve_protocol("published", crop=True).crop == 20
    assert resolve_protocol("unsegmedgat", crop=False).crop is None
    assert resolve_protocol("published", crop=True).label == "published (crop + flip)"


def test_wrong_protocols_are_refused():
    with pytest.raises(ValueError, match="did you mean 'published'"):
        resolve_protocol("publishd")
    with pytest.raises(ValueError, match="not honest"):
        resolve_protocol("honest", crop=True)


def test_crop_keeps_a_margin_within_the_image():
    truth = np.zeros((100, 80), bool)
    truth[30:40, 5:60] = True
    assert crop_box(truth, 20) == (0, 10, 80, 60)
    truth[90, 70] = True
    assert crop_box(truth, 20) == (0, 10, 80, 100)
    assert crop_box(np.zeros((10, 12), bool), 20) == (0, 0, 12, 10)


def test_flip_scores_the_better_side():
    truth = np.zeros((8, 8), bool)
    truth[2:6, 2:6] = True
    wrong = ~truth
    wrong[0, 0] = False
    mask, flipped = orient(wrong, Truth(truth), True)
    assert flipped
    assert iou(mask, truth) == 16 / 17
    mask, flipped = orient(wrong, Truth(truth), False)
    assert not flipped
    assert iou(mask, truth) == 0


def test_scores_are_those_of_the_side_that_is_scored():
    truth = np.zeros((8, 8), bool)
    truth[2:6, 2:6] = True
    found = segmentation(~truth)
    honest = score(found, Truth(truth), resolve_protocol("honest"))
    published = score(found, Truth(truth), resolve_protocol("published"))
    assert honest["iou"] == honest["dice"] == honest["pixel_accuracy"] == 0
    assert honest["mae"] == 1
    assert honest["corloc"] == 0
    assert published["iou"] == published["dice"] == published["corloc"] == 1
    assert published["mae"] == 0
    # Partitions have no sides.
    assert honest["nmi"] == published["nmi"] == 1
    assert set(SCORES) < set(honest)
