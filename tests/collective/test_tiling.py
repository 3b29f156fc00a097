"""Images in tiles: where these lie, how they are joined, and small objects that are found."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unseg_jax as us
from unseg_jax.collective.segmenter import SCORED
from unseg_jax.collective.tiling import (
    CLOSER,
    blend,
    choose_threshold,
    join,
    tile_boxes,
    tile_side,
)
from unseg_jax.errors import ImageError
from unseg_jax.registry import resolve

pytestmark = pytest.mark.usefixtures("short_training")


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 400))
def test_tiles_cover_the_image_and_overlap(height, width, side):
    boxes = tile_boxes(height, width, side)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (bottom - top, right - left) == (min(side, height), min(side, width))
        covered[top:bottom, left:right] = True
    assert covered.all()
    starts = sorted({box[0] for box in boxes})
    assert all(b - a <= 0.75 * side + 1 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equal_tiles_are_blended_without_a_seam(scale):
    boxes = tile_boxes(170, 230, 64)
    blended = blend([np.full((16, 16), 0.5, np.float32)] * len(boxes), boxes, (170, 230), scale)
    assert blended.shape == (round(170 * scale), round(230 * scale))
    np.testing.assert_allclose(blended, 0.5, rtol=1e-5)


def test_a_tile_is_blended_where_it_lies():
    boxes = tile_boxes(100, 175, 100)
    margins = [np.full((4, 4), -1.0, np.float32), np.full((4, 4), 1.0, np.float32)]
    blended = blend(margins, boxes, (100, 175), 1.0)
    np.testing.assert_array_equal(blended[:, :75], -1)
    np.testing.assert_array_equal(blended[:, 100:], 1)
    assert (np.diff(blended[50, 75:100]) > 0).all()


def test_features_of_tiles_lie_where_the_tiles_do():
    boxes = tile_boxes(64, 112, 64)
    cells = np.arange(8, dtype=np.float16) * 8 + 4
    tiles = [np.stack(np.meshgrid(cells + left, cells + top), -1) for left, top, *_ in boxes]
    joined = join(np.float16(tiles), boxes, (64, 112))
    expected = np.stack(np.meshgrid(np.arange(14) * 8 + 4, cells), -1)
    np.testing.assert_array_equal(joined, expected)


def test_the_threshold_is_that_of_tiles_with_an_object():
    infinite = float("inf")
    found = choose_threshold(np.array([0.1, 3.0, 3.2]), np.array([0.2, 2.0, 1.5]))
    assert found == pytest.approx(3.1)
    assert choose_threshold(np.array([infinite, 3.0]), np.array([9.0, 1.0])) == 3.0
    assert choose_threshold(np.array([infinite]), np.array([0.0])) == infinite


def slide(seed=0, size=(384, 512), count=12):
    """Noise with small bright squares on it."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 120, (*size, 3)).astype(np.uint8)
    for index in rng.permutation(48)[:count]:
        top, left = 64 * (index // 8) + 24, 64 * (index % 8) + 24
        image[top : top + 16, left : left + 16] = (230, 40, 40)
    return image


OPTIONS = {"image_size": 64, "steps": 0}


@pytest.mark.parametrize("side", [20, 60])
def test_little_in_a_large_image_is_said(model, side):
    from unseg_jax.collective.segmenter import SMALL_NOTE, MarginResult

    margins = np.full((1, 64, 64), -1.0, np.float32)
    margins[0, 2 : 2 + side // 4, 2 : 2 + side // 4] = 1.0
    result = MarginResult(margins, np.zeros((1, 0)), np.ones(1, bool), np.zeros(1))
    for size, said in (((256, 256), False), ((257, 300), side == 20)):
        found = model.segmenter().finish(result, 0, np.zeros((*size, 3), np.uint8))
        assert (SMALL_NOTE in found.notes) == said, (size, found.coverage)
        assert found.look_closer == ("tiles" if said else "")


def test_an_image_no_larger_than_a_tile_is_as_without(backbone):
    image = slide(1, (128, 128), 3)
    plain = us.fit([image] * 3, backbone=backbone, **OPTIONS)
    tiled = us.fit([image] * 3, backbone=backbone, tile=128, **OPTIONS)
    one, other = plain.segment(image)[0], tiled.segment(image)[0]
    assert (one.mask == other.mask).mean() > 0.99


def test_a_model_keeps_its_tiles_and_goes_on_after_a_bad_image(backbone, tmp_path):
    image = slide()
    options = {"tile": 128, "max_images": 8, **OPTIONS}
    us.fit([image], backbone=backbone, **options).save(tmp_path / "m.safetensors")
    model = us.load_model(tmp_path / "m.safetensors", backbone=backbone)
    assert model.method.tile == 128
    Image.fromarray(image).save(tmp_path / "a.png")
    first, bad, last = model.stream([tmp_path / "a.png", b"no image", image])
    assert isinstance(bad, ImageError)
    assert first.id == str(tmp_path / "a.png")
    np.testing.assert_array_equal(first.mask, last.mask)


def test_the_number_of_tiles_that_are_fitted_is_bounded(backbone, monkeypatch):
    from unseg_jax.segmenter import BatchSegmenter

    shapes = []
    features = BatchSegmenter.kept_features

    def counted(self, pixels):
        shapes.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(BatchSegmenter, "kept_features", counted)
    image = slide()
    us.fit([image] * 2, backbone=backbone, tile=64, max_images=8, batch_size=4, **OPTIONS)
    assert shapes == [4, 4]


def test_what_sees_whole_images_and_might_see_tiles(model, backbone):
    tiled = dataclasses.replace(model, method=resolve(model.method, tile=64))
    marked = model.refine([slide()], clicks={0: [(30, 30, True)]})
    may = [one.segmenter().may_tile for one in (model, tiled, marked)]
    assert may == [True, False, False]
    assert not us.Segmenter("deepcut", backbone=backbone).may_tile


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: us.Segmenter("deepcut", backbone=b, tile=64), "tile=64 .* of a whole set"),
        (lambda b: us.make_segment_fn("deepcut", b, tile=64), "tile=64 .* of a whole set"),
        (lambda b: us.fit([slide()], method="unsegmedgat-c", backbone=b, tile=64), "tile=64"),
        (lambda b: us.fit([slide()], backbone=b, tile=-1), "tile=-1 must be"),
    ],
)
def test_what_tiles_do_not_go_with(backbone, call, message):
    with pytest.raises(ValueError, match=message):
        call(backbone)


def test_epochs_do_not_go_with_tiles(model):
    tiled = dataclasses.replace(model, method=resolve(model.method, tile=64))
    with pytest.raises(ValueError, match="epochs=0"):
        tiled.segment(slide(), epochs=2)


@pytest.fixture
def all_is_small(monkeypatch):
    """Whatever is found in a large image counts as small, and tiles are of 128 pixels."""
    monkeypatch.setattr("unseg_jax.collective.segmenter._SMALL", 2.0)
    monkeypatch.setattr("unseg_jax.collective.tiling._UNASKED", 128)


def test_a_large_image_in_which_little_is_found_is_seen_in_tiles(model, all_is_small):
    large, small = slide(), slide(1, (128, 128), 3)
    file = io.BytesIO()
    Image.fromarray(large).save(file, "png")
    images = [small, large, file, small]
    whole = model.segment(images)
    tiled = dataclasses.replace(model, method=resolve(model.method, tile=128)).segment(large)[0]
    assert tiled.objects
    assert (tiled.mask != whole[1].mask).any()
    found = model.segmenter(closer=True)(images)
    assert [one.id for one in found] == ["0", "1", "2", "3"]
    for at, expected in enumerate([whole[0], tiled, tiled, whole[3]]):
        np.testing.assert_array_equal(found[at].mask, expected.mask)
        said = ["tiles of 128 pixels" in note for note in found[at].notes]
        assert any(said) == (at in (1, 2))


def test_what_tiles_do_not_show_is_kept_as_it_was(model, all_is_small, monkeypatch):
    from unseg_jax.collective import tiling

    image = slide()
    (whole,) = model.segment(image)
    nothing = dataclasses.replace(whole, raw_mask=np.zeros_like(whole.raw_mask))
    for outcome in (ImageError("it vanished."), nothing):
        seen = tiling.TILED._replace(stream=lambda *_, outcome=outcome: iter([outcome]))
        monkeypatch.setattr(tiling, "TILED", seen)
        (found,) = model.segmenter(closer=True)(image)
        assert found.look_closer == "tiles"
        np.testing.assert_array_equal(found.mask, whole.mask)


def test_tiles_of_an_image_are_few():
    for longest in (1600, 6144, 6145, 12_000, 100_000):
        side = tile_side(longest)
        assert len(tile_boxes(longest, longest, side)) <= 81
        assert side >= 1024


def test_the_default_alone_looks_closer():
    assert us.Segmenter().work.stream is CLOSER.stream
    assert us.Segmenter(tile=0).work.stream is SCORED.stream
