"""A mask is read by what it stores, or refused: no truth is wrong in silence."""

import io

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data import fit_mask, load_mask, read_mask
from unseg_jax.data.truths import NONZERO, MaskRule, Truth, parse_values, parse_void
from unseg_jax.errors import ImageError

from .conftest import encoded

pytestmark = pytest.mark.quick

ROWS, COLUMNS = np.mgrid[:80, :100]
DISC = (ROWS - 40) ** 2 + (COLUMNS - 45) ** 2 < 25**2
RIM = ((ROWS - 40) ** 2 + (COLUMNS - 45) ** 2 < 29**2) & ~DISC


def grey(low, high, dtype=np.uint8) -> np.ndarray:
    return np.where(DISC, high, low).astype(dtype)


def colour(background, foreground) -> np.ndarray:
    return np.where(DISC[..., None], foreground, background).astype(np.uint8)


def palette(indices: np.ndarray, *colours) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


def refused(source, says, *rule):
    with pytest.raises(ImageError, match=says):
        load_mask(source, *rule)


TWO_VALUES = {
    **{
        f"{low}/{high}": encoded(grey(low, high))
        for low, high in ((0, 255), (0, 1), (0, 38), (0, 100), (16, 235))
    },
    "one bit": encoded(DISC),
    "16 bits 0/255": encoded(grey(0, 255, np.uint16)),
    "16 bits 0/65535": encoded(grey(0, 65535, np.uint16)),
    "16 bits 0/1": encoded(grey(0, 1, np.uint16)),
    "32 bits": encoded(grey(0, 70_000, np.int32), "TIFF"),
    "float": encoded(grey(0, 0.25, np.float32), "TIFF"),
    "red on black": encoded(colour((0, 0, 0), (255, 0, 0))),
    "blue on black": encoded(colour((0, 0, 0), (0, 0, 255))),
    "dark blue on black": encoded(colour((0, 0, 0), (0, 0, 9))),
    "white on transparent": encoded(colour((255,) * 3 + (0,), (255,) * 4)),
    "black on transparent": encoded(colour((0, 0, 0, 0), (0, 0, 0, 255))),
    "opaque alpha": encoded(colour((0, 0, 0, 255), (99, 99, 99, 255))),
    "grey with alpha": encoded(Image.fromarray(colour((9, 9, 9, 0), (9, 9, 9, 255))).convert("LA")),
    "palette": encoded(palette(grey(0, 1), (0, 0, 0), (128, 0, 0))),
    "palette, black last": encoded(palette(grey(1, 0), (255, 255, 255), (0, 0, 0))),
    "palette, clear index": encoded(palette(grey(1, 0), (9, 9, 9), (7, 7, 7)), transparency=1),
    "JPEG": encoded(grey(0, 255), "JPEG"),
    "JPEG, colours": encoded(colour((0, 0, 0), (0, 0, 255)), "JPEG", quality=95),
    "JPEG 0/100": encoded(grey(0, 100), "JPEG", quality=95),
    "GIF": encoded(grey(0, 255), "GIF"),
}


@pytest.mark.parametrize("name", TWO_VALUES)
def test_two_values_are_a_mask_however_they_are_stored(name):
    found = load_mask(TWO_VALUES[name])
    assert found.dtype == bool
    # JPEGs blur the border by a pixel.
    differs = np.count_nonzero(found != DISC)
    assert differs <= (40 if name.startswith("JPEG") else 0)


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 128, 255), (0, 38, 255), (1, 2), (5, 255)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_values_must_be_named(values, dtype):
    stored = np.array(values, dtype)[(COLUMNS // 9) % len(values)]
    for source in (stored, encoded(stored)):
        says = rf"holds {len(values)} values, {values[0]} .* %\).*foreground=.*\.$"
        refused(source, says)
        named = MaskRule(values=(values[1],))
        np.testing.assert_array_equal(load_mask(source, named), stored == values[1])


@pytest.mark.parametrize(("count", "dtype"), [(60, np.uint8), (189, np.uint8), (660, np.uint16)])
def test_instance_numbers_are_refused_and_taken_as_nonzero(count, dtype):
    inside = (ROWS % 4 > 0) & (COLUMNS % 3 > 0) & (COLUMNS < 99)
    numbers = (ROWS // 4) * 33 + COLUMNS // 3 + 1
    cells = np.where(inside & (numbers <= count), numbers, 0).astype(dtype)
    for source in (cells, encoded(cells), encoded(cells.astype(np.int32), "TIFF")):
        refused(source, f"holds {count + 1} values.*foreground='nonzero'")
        np.testing.assert_array_equal(load_mask(source, MaskRule(values=NONZERO)), cells > 0)


def test_255_is_void_beside_class_numbers():
    classes = np.where(DISC, 15, 0)
    classes[RIM] = 255
    for stored in (classes.astype(np.uint8), classes.astype(np.int32)):
        truth = read_mask(stored)
        np.testing.assert_array_equal(truth.mask, DISC)
        np.testing.assert_array_equal(truth.valid, ~RIM)
        assert (truth.foreground, truth.void) == ((15,), (255,))
        assert truth.void_share == pytest.approx(RIM.mean())
        assert truth.share == pytest.approx(DISC.sum() / (~RIM).sum())
    truth = read_mask(encoded(palette(classes, *[(index, 9, 0) for index in range(256)])))
    np.testing.assert_array_equal(truth.valid, ~RIM)


def test_255_is_void_only_where_class_numbers_say_so():
    stored = np.where(DISC, 255, 0).astype(np.uint8)
    assert read_mask(stored).valid is None
    # With class numbers named, 255 is none of them.
    named = read_mask(stored, MaskRule(values=(1,)))
    assert not named.mask.any()
    np.testing.assert_array_equal(named.valid, ~DISC)
    # An 8-bit instance mask may well have 255 objects.
    assert read_mask(stored, MaskRule(values=NONZERO)).valid is None
    stored[RIM] = 1
    kept = read_mask(stored, MaskRule(values=(255,)))
    assert kept.valid is None
    np.testing.assert_array_equal(kept.mask, DISC)
    refused(stored, "holds 3 values", MaskRule(void=()))
    assert read_mask(stored, MaskRule(void=(1,))).foreground == (255,)


def test_colours_are_named_as_such():
    stored = colour((0, 0, 0), (255, 0, 0))
    stored[RIM] = (0, 255, 0)
    refused(stored, r"#000000 .*#ff0000 .*#00ff00 ")
    np.testing.assert_array_equal(load_mask(stored, MaskRule(values=("#00ff00",))), RIM)
    refused(stored, "holds colours", MaskRule(values=(1,)))
    truth = read_mask(stored, MaskRule(void=("#00ff00",)))
    np.testing.assert_array_equal(truth.mask, DISC)
    np.testing.assert_array_equal(truth.valid, ~RIM)


@pytest.mark.parametrize("high", [255, 38])
def test_soft_edges_are_no_further_values(high):
    large = np.kron(DISC, np.ones((4, 4), bool))
    soft = Image.fromarray(large.astype(np.uint8) * np.uint8(high)).resize((75, 60), Image.BICUBIC)
    levels = np.asarray(soft)
    assert len(np.unique(levels)) > 5
    np.testing.assert_array_equal(load_mask(soft), levels > high / 2)
    red = np.dstack([levels, 0 * levels, 0 * levels])
    np.testing.assert_array_equal(load_mask(red), levels > high / 2)
    # What a JPEG leaves behind, saved as PNG.
    noisy = np.asarray(Image.open(io.BytesIO(TWO_VALUES["JPEG"])))
    assert np.count_nonzero(load_mask(noisy) != DISC) < 40


def test_what_is_no_mask_or_one_value():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    refused(ramp, "holds 256 values")
    large = encoded(np.kron(ramp, np.ones((8, 8), np.uint8)), "JPEG")
    refused(large, "do not gather around two")
    refused(encoded(grey(0, 3), "JPEG", quality=95), "keeps no class numbers")
    refused(TWO_VALUES["JPEG"], "cannot be named", MaskRule(values=(255,)))
    dark, middle = (encoded(np.full((16, 16), level, np.uint8), "JPEG") for level in (2, 128))
    assert not load_mask(dark).any()
    refused(middle, r"is grey \(128\) all over")
    assert not load_mask(np.zeros((4, 4), np.uint8)).any()
    for full in (np.full((4, 4), 255, np.uint8), np.full((4, 4), 7, np.uint16)):
        assert load_mask(full).all()
        refused(full, "void at every pixel", MaskRule(void=(7, 255)))


def test_thresholds_of_data_sets_stay(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = tmp_path / "a.png"
    Image.fromarray(levels).save(path)
    np.testing.assert_array_equal(load_mask(path, 127), levels >= 128)
    np.testing.assert_array_equal(load_mask(path, 199), levels >= 200)
    np.testing.assert_array_equal(load_mask(path, MaskRule(values=(255,))), levels == 255)
    for deep in (np.dstack([levels] * 3), levels.astype(np.uint16) * 257):
        Image.fromarray(deep).save(path)
        np.testing.assert_array_equal(load_mask(path, 127), levels >= 128)
    refused(np.array([[1, 2, 3]], np.uint8), r"class numbers up to 3.*foreground=\(1,\)", 127)
    assert str(MaskRule(threshold=199)) == "value > 199"
    assert str(MaskRule(values=(1, 3))) == "value in {1, 3}"
    assert str(MaskRule(values=(1, *range(128, 256)))) == "value in {1, 128-255}"


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_arrays_follow_the_same_rule(dtype):
    stored = DISC.astype(dtype)
    for source in (stored, stored[..., None], stored[None]):
        np.testing.assert_array_equal(load_mask(source), DISC)
    refused(np.zeros((2, 5, 7), dtype), "shape")
    refused(stored[:0], "zero size")
    refused(np.zeros((2, 2), np.complex64), "is of type complex64")
    refused(np.array([[0.0, np.nan]]), "not finite")
    np.testing.assert_array_equal(load_mask(stored.astype(np.float32) * 200, 127), DISC)


def test_masks_of_a_file_are_read_page_by_page(tmp_path):
    pages = [Image.fromarray(grey(0, value)) for value in (1, 2)]
    pages.append(Image.fromarray(np.zeros_like(grey(0, 1))))
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    found = [read_mask(tmp_path / "m.tif", page=number) for number in (1, 2, 3)]
    assert [truth.foreground for truth in found] == [(1,), (2,), ()]
    with pytest.raises(ImageError, match=r"m\.tif has no page 4"):
        read_mask(tmp_path / "m.tif", page=4)


def test_a_truth_of_another_size_is_fitted_and_flagged():
    mask = np.array([[True, False], [False, True]])
    truth = Truth(mask, valid=np.array([[True, True], [True, False]]))
    same, resized = fit_mask(truth, (2, 2))
    assert (same, resized) == (truth, False)
    larger, resized = fit_mask(truth, (4, 6))
    assert resized is True
    for small, large in ((truth.mask, larger.mask), (truth.valid, larger.valid)):
        np.testing.assert_array_equal(large, small.repeat(2, axis=0).repeat(3, axis=1))
    np.testing.assert_array_equal(
        larger.crop((3, 0, 6, 2)).mask, mask[:1, 1:].repeat(2, 0).repeat(3, 1)
    )
    with pytest.raises(ImageError, match="void at every pixel"):
        larger.crop((3, 2, 6, 4))


def test_values_on_the_command_line():
    known = {"1, 3": (1, 3), "0-2,#FF0000,transparent": (0, 1, 2, "#ff0000", "transparent")}
    known |= dict.fromkeys(("corner", "1,border", "3-1", "#ff00", "")) | {"nonzero": NONZERO}
    assert {text: parse_values(text) for text in known} == known
    assert (parse_void("255"), parse_void("none")) == ((255,), ())
    with pytest.raises(ValueError, match="void='rim'"):
        parse_void("rim")
