"""Pictures, run lengths and files that are written whole or not at all."""

import errno
import io
import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image
from skimage import color, segmentation

from unseg_jax import files
from unseg_jax.export import drawing, rle

from .conftest import FROM_PYCOCOTOOLS

pytestmark = pytest.mark.quick

DISC = (np.mgrid[:60, :80][0] - 30) ** 2 + (np.mgrid[:60, :80][1] - 41) ** 2 < 500
LABELS = np.where(DISC, 1, 0) + np.where(DISC & (np.arange(80) > 45), 1, 0)
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)


def colour_blind(colours: np.ndarray, kind: str) -> np.ndarray:
    """Colours as seen without one kind of cone (Machado et al., 2009), in linear RGB."""
    matrices = {
        "full": np.eye(3),
        "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }
    scaled = colours / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(matrices[kind]).T, 0, 1)
    return np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["full", "protan", "deutan", "tritan"])
def test_colours_can_be_told_apart(kind):
    lab = color.rgb2lab(colour_blind(drawing.palette(13).astype(float), kind)[None])[0]
    for one, other in itertools.combinations(lab, 2):
        assert np.linalg.norm(one - other) > 13


def test_colours_are_stable_and_distinct():
    many = drawing.palette(200)
    assert (many.shape, many.dtype) == ((200, 3), np.uint8)
    assert len(np.unique(many, axis=0)) == 200
    for count in (0, 1, 5, 12, 13, 14, 50):
        np.testing.assert_array_equal(drawing.palette(count), many[:count])
    np.testing.assert_array_equal(drawing.colour_labels(LABELS), many[LABELS])
    np.testing.assert_array_equal(drawing.colour_labels(DISC), many[DISC.astype(int)])
    with pytest.raises(ValueError, match="pass integers or bools"):
        drawing.colour_labels(LABELS.astype(float))


def test_overlay_dims_the_background_and_tints_the_object():
    kept = IMAGE.copy()
    drawn = drawing.overlay(IMAGE, DISC, dim=0.5, contour=False)
    np.testing.assert_array_equal(IMAGE, kept)
    np.testing.assert_array_equal(drawn[DISC], IMAGE[DISC])
    np.testing.assert_allclose(drawn[~DISC], IMAGE[~DISC] / 2, atol=0.51)
    # Nothing found: nothing is dimmed.
    np.testing.assert_array_equal(drawing.overlay(IMAGE, np.zeros_like(DISC)), IMAGE)
    tinted = drawing.overlay(IMAGE, LABELS, 0.25, dim=0, contour=False)
    np.testing.assert_array_equal(tinted[~DISC], IMAGE[~DISC])
    expected = 0.75 * IMAGE[30, 41] + 0.25 * drawing.palette(2)[1]
    np.testing.assert_allclose(tinted[30, 41], expected, atol=1)
    np.testing.assert_array_equal(drawing.overlay(IMAGE, LABELS, 0, dim=0, contour=False), IMAGE)


def test_overlay_draws_contours_in_two_tones():
    drawn = drawing.overlay(IMAGE, DISC, dim=0)
    row = np.flatnonzero(DISC[30])
    np.testing.assert_array_equal(drawn[30, row[0]], drawing.palette(2)[1])
    np.testing.assert_array_equal(drawn[30, row[0] - 1], [255, 255, 255])
    np.testing.assert_array_equal(drawn[30, row[0] - 3], IMAGE[30, row[0] - 3])
    # Parts are parted by their own colours, not by a light line.
    parted = drawing.overlay(IMAGE, LABELS)
    np.testing.assert_array_equal(parted[30, 45:47], drawing.palette(3)[[1, 2]])
    # Large images get wider lines.
    mask = np.zeros((40, 1280), bool)
    mask[:, 640:] = True
    drawn = drawing.overlay(np.zeros((40, 1280, 3), np.uint8), mask)
    assert set((drawn == 255).all(2).sum(1)) == {4}
    assert drawing.overlay(IMAGE[..., 0], DISC).shape == (60, 80, 3)
    with pytest.raises(ValueError, match="do not lie on"):
        drawing.overlay(IMAGE, DISC[:-1])
    with pytest.raises(ValueError, match="pass uint8"):
        drawing.overlay(IMAGE / 255, DISC)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 31)])
def test_boundaries_are_those_of_scikit_image(shape):
    labels = np.random.default_rng(3).integers(0, 3, shape)
    expected = segmentation.find_boundaries(labels, connectivity=1, mode="thick")
    np.testing.assert_array_equal(drawing.boundaries(labels), expected)


def test_box_is_drawn_within_its_own_pixels():
    black = np.zeros((40, 50, 3), np.uint8)
    drawn = drawing.draw_box(black, (10, 5, 30, 25), (255, 0, 0), width=2)
    # One dark pixel lies between the box's own edge and the coloured line.
    touched = np.argwhere(drawn.any(2))
    assert (*touched.min(0), *touched.max(0)) == (6, 11, 23, 28)
    assert drawn[6, 20].tolist() == [255, 0, 0]
    assert not drawn[10, 20].any()
    np.testing.assert_array_equal(drawing.draw_box(IMAGE, None), IMAGE)
    drawing.draw_box(IMAGE, (3, 3, 4, 4))
    drawing.draw_box(IMAGE, (0, 0, 80, 60))


def test_images_are_shrunk_to_the_longer_side_and_laid_on_a_contact_sheet():
    large = np.zeros((30, 4000, 3), np.uint8)
    assert drawing.shrink_image(large).shape == (12, 1600, 3)
    assert drawing.shrink_image(IMAGE) is IMAGE
    tall = np.full((100, 20, 3), 200, np.uint8)
    captions = ["a", "b" * 99, ""]
    sheet = drawing.contact_sheet([IMAGE, tall, DISC], 2, tile=(50, 60), captions=captions)
    assert sheet.shape == (2 * (50 + 6 + 16) + 6, 2 * (60 + 6) + 6, 3)
    # The tall one is as high as its tile and centred, 10 pixels wide.
    np.testing.assert_array_equal(sheet[6:56, 97:107], np.full((50, 10, 3), 200))
    assert (sheet[6:56, 73:95] == 255).all()
    assert drawing.contact_sheet([], 3).shape == (6, 3 * 326 + 6, 3)
    with pytest.raises(ValueError, match="1 captions do not fit 2 pictures"):
        drawing.contact_sheet([tall, tall], 2, captions=["a"])
    with pytest.raises(ValueError, match="at least 1 column"):
        drawing.contact_sheet([tall], 0)


def test_label_file_holds_labels_and_shows_colours():
    with Image.open(io.BytesIO(drawing.encode_labels(LABELS))) as picture:
        np.testing.assert_array_equal(np.array(picture), LABELS)
        np.testing.assert_array_equal(picture.convert("RGB"), drawing.colour_labels(LABELS))
    many = drawing.encode_labels(np.arange(300).reshape(1, 300))
    with Image.open(io.BytesIO(many)) as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("array", [DISC, IMAGE, IMAGE[..., 0], np.dstack([IMAGE, IMAGE[..., 0]])])
@pytest.mark.parametrize("rows", [7, 1024])
def test_png_round_trip(tmp_path, monkeypatch, array, rows):
    monkeypatch.setattr(files, "_ROWS", rows)
    path = tmp_path / "new" / "folder" / "picture.png"
    files.write_png(path, array)
    with Image.open(path) as picture:
        found = np.array(picture)
    np.testing.assert_array_equal(found, array * np.uint8(255) if array.dtype == bool else array)
    assert os.listdir(path.parent) == ["picture.png"]


def test_png_of_something_else(tmp_path):
    for array in (IMAGE / 255, IMAGE[:0]):
        with pytest.raises(ValueError, match="as PNG; pass a bool mask"):
            files.write_png(tmp_path / "a.png", array)
    with pytest.raises(ValueError, match="takes labels"):
        files.write_png(tmp_path / "a.png", np.array([[300]]), drawing.palette(301))
    assert os.listdir(tmp_path) == []


def test_files_take_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_refused_writes_say_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(files.WriteError, match=r"cannot write .*a.txt: .*choose another place"):
        files.write_text(tmp_path / "file" / "a.txt", "")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(files.WriteError, match="no space is left on the disk; free some") as caught:
        files.write_png(tmp_path / "b.png", DISC)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["file"]


RUNS = {
    "disc": DISC,
    "zeros": np.zeros((5, 6), bool),
    "ones": np.ones((5, 6), bool),
    "diagonal": np.eye(3, dtype=bool),
    "columns": np.array([[1, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 1]], bool),
    **{f"{share}": np.random.default_rng(1).random((131, 257)) < share for share in (1e-3, 0.3)},
}


@FROM_PYCOCOTOOLS
@pytest.mark.parametrize("name", RUNS)
def test_run_lengths_are_those_of_pycocotools(name):
    from pycocotools import mask as api

    mask = RUNS[name]
    expected = api.encode(np.asfortranarray(mask.astype(np.uint8)))
    encoded = rle.encode_rle(mask)
    assert encoded == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    for compressed in (True, False):
        again = json.loads(json.dumps(rle.encode_rle(mask, compressed=compressed)))
        np.testing.assert_array_equal(rle.decode_rle(again), mask)


def test_run_lengths_of_a_crop_are_those_of_the_whole():
    rng = np.random.default_rng(2)
    for box in ((3, 2, 9, 8), (0, 0, 12, 10), (0, 0, 5, 10), (4, 0, 12, 10), (11, 9, 12, 10)):
        left, top, right, bottom = box
        whole = np.zeros((10, 12), bool)
        crop = whole[top:bottom, left:right]
        crop[:] = rng.random(crop.shape) < 0.7
        assert rle.encode_rle(crop, box=box, size=(10, 12)) == rle.encode_rle(whole)
