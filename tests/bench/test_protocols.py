"""What each protocol may see, and how masks are cropped and turned over."""

import numpy as np
import pytest

from unseg_jax.bench.score.image_records import SCORES, orient, score
from unseg_jax.bench.score.protocols import PROTOCOLS, crop_box, resolve_protocol
from unseg_jax.data import Truth
from unseg_jax.metrics import iou
from unseg_jax.segmenter import Segmentation

pytestmark = pytest.mark.quick

TRUTH = np.zeros((8, 8), bool)
TRUTH[2:6, 2:6] = True


def test_honest_neither_flips_nor_crops_nor_drops_and_papers_have_their_own_rules():
    honest = resolve_protocol("honest")
    assert (honest.flip, honest.crop, honest.count_failures) == (False, None, True)
    assert [p.name for p in PROTOCOLS.values() if p.family == "honest"] == ["honest"]
    assert resolve_protocol("unsegmedgat").crop == 20
    assert resolve_protocol("unsegmedgat").flip
    assert resolve_protocol("unseggnet").crop is None
    assert not resolve_protocol("deepcut").flip
    assert resolve_protocol("published").flip
    assert resolve_protocol("published").crop is None
    assert resolve_protocol("published", crop=True).crop == 20
    assert resolve_protocol("unsegmedgat", crop=False).crop is None
    assert resolve_protocol("published", crop=True).label == "published (crop + flip)"
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
    wrong = ~TRUTH
    wrong[0, 0] = False
    for flip, expected in ((True, 16 / 17), (False, 0)):
        mask, flipped = orient(wrong, Truth(TRUTH), flip)
        assert (flipped, iou(mask, TRUTH)) == (flip, expected)
    labels = (~TRUTH).astype(np.int32)
    found = Segmentation.of(~TRUTH, labels, confidence=1.0, method="deepcut", id="a")
    honest, published = (
        score(found, Truth(TRUTH), resolve_protocol(name)) for name in ("honest", "published")
    )
    good = ("iou", "dice", "pixel_accuracy", "corloc")
    assert [honest[name] for name in (*good, "mae")] == [0, 0, 0, 0, 1]
    assert [published[name] for name in (*good, "mae")] == [1, 1, 1, 1, 0]
    # Partitions have no sides.
    assert honest["nmi"] == published["nmi"] == 1
    assert set(SCORES) < set(honest)
