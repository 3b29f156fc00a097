"""Every kind of image comes out as the upright RGB of 8 bits that a viewer would show."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from unseg_jax.data import load_image, load_mask, measure_range, read_image, resize_image
from unseg_jax.errors import ImageError

from .conftest import encoded

# A picture whose sides, corners and channels all differ.
RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
RGB = RGB.repeat(8, axis=0).repeat(8, axis=1)


def grey(values) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, 2)


def test_resizing_is_pillows_lanczos():
    expected = Image.fromarray(RGB).resize((20, 31), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize_image(RGB, (31, 20)), np.asarray(expected))
    assert resize_image(RGB, RGB.shape[:2]) is RGB


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for content in (encoded(RGB, kind, exif=exif) for kind in ("PNG", "JPEG")):
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        picture = read_image(content)
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.size == expected.shape[:2]
    content = encoded(RGB[..., 0] > 127, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(load_mask(content), expected)


def test_transparency_is_composited_on_white():
    alpha = np.linspace(0, 255, RGB.shape[1]).astype(np.uint8)[None].repeat(len(RGB), axis=0)
    rgba = np.dstack([RGB, alpha])
    weight = alpha[..., None] / 255
    for source in (encoded(rgba), rgba):
        expected = RGB * weight + 255 * (1 - weight)
        np.testing.assert_allclose(load_image(source), expected, atol=1)
    image = Image.fromarray(rgba).convert("LA")
    expected = np.asarray(image)[..., 0] * weight[..., 0] + 255 * (1 - weight[..., 0])
    np.testing.assert_allclose(load_image(encoded(image)), grey(expected), atol=1)


def test_grey_palettes_cmyk_and_one_bit():
    levels = RGB[..., 0]
    for source in (encoded(levels), levels, levels[..., None]):
        np.testing.assert_array_equal(load_image(source), grey(levels))
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = np.array([[200, 30, 40], [0, 255, 0], [7, 8, 9]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(load_image(encoded(image)), palette[indices])
    palette[1] = 255
    np.testing.assert_array_equal(load_image(encoded(image, transparency=1)), palette[indices])
    cmyk = Image.fromarray(RGB).convert("CMYK")
    np.testing.assert_array_equal(load_image(encoded(cmyk, "TIFF")), cmyk.convert("RGB"))
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    expected = np.broadcast_to([0, 255, 255], (16, 16, 3))
    np.testing.assert_allclose(load_image(encoded(cyan, "JPEG")), expected, atol=3)
    np.testing.assert_array_equal(load_image(encoded(levels > 127)), grey((levels > 127) * 255))


def test_draft_mode_decodes_less_and_reports_the_size_itself(tmp_path):
    rows, columns = np.mgrid[0:1200, 0:1600]
    smooth = np.dstack([rows // 5, columns // 7, (rows + columns) // 12]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    for options, size in (({}, (1200, 1600)), ({"exif": exif}, (1600, 1200))):
        path.write_bytes(encoded(smooth, "JPEG", quality=95, **options))
        small, whole = read_image(path, at_least=(100, 100)), read_image(path)
        assert small.size == whole.size == whole.pixels.shape[:2] == size
        assert 200 <= min(small.pixels.shape[:2]) <= 400
        found, expected = (
            resize_image(picture.pixels, (100, 100)).astype(int) for picture in (small, whole)
        )
        np.testing.assert_allclose(found, expected, atol=4)
    assert read_image(path, at_least=(700, 700)).pixels.shape == whole.pixels.shape
    with Image.open(path) as opened:
        assert load_image(opened, at_least=(100, 100)).shape == whole.pixels.shape


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4, 3), np.complex64), "give bool, integers or floats"),
        (np.zeros((4, 4, 3), object), "give bool, integers or floats"),
        (np.zeros((7, 4, 4, 3), np.uint8), "transpose"),
        (np.zeros((0, 4, 3), np.uint8), "zero size"),
        (Image.new("RGB", (0, 5)), "zero size"),
        (np.zeros((4, 4, 7), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.full((4, 4), np.nan), "holds no finite value"),
        (np.where(np.arange(16).reshape(4, 4) < 9, np.nan, 1), "fill them first"),
        (np.dstack([RGB, np.zeros_like(RGB[..., 0])]), "is wholly transparent"),
        (7, "of type int cannot be read: give a path"),
        (b"nope", "given as 4 bytes is not an image"),
    ],
)
def test_what_is_no_image_is_refused(array, says):
    with pytest.raises(ImageError, match=says):
        load_image(array)


# A smooth scene in 0..1 with all the values in between.
SCENE = np.add.outer(np.sin(np.linspace(0, 3, 90)), np.cos(np.linspace(0, 5, 120)))
SCENE = (SCENE - SCENE.min()) / (SCENE.max() - SCENE.min())
EIGHT = np.rint(255 * SCENE).astype(np.uint8)
STORED = {
    "12 bits in uint16": (SCENE * 4095).astype(np.uint16),
    "1000..1400 in uint16": (1000 + SCENE * 400).astype(np.uint16),
    "int16": (-1024 + SCENE * 3000).astype(np.int16),
    "int32": (SCENE * 4095).astype(np.int32),
    "uint32": (7 * 10**6 + SCENE * 10**6).astype(np.uint32),
    "float 0..4095": (SCENE * 4095).astype(np.float32),
    "dim float 0..0.1": (SCENE / 10).astype(np.float32),
    "double": SCENE * 1e-6 - 5e-7,
}


@pytest.mark.parametrize("name", STORED)
def test_values_that_use_little_of_their_range_are_stretched_by_percentiles(name):
    stored = STORED[name]
    low, high = np.percentile(stored, (0.1, 99.9))
    expected = np.clip((stored.astype(float) - low) / (high - low), 0, 1) * 255
    kinds = {"uint16": ("TIFF", "PNG"), "int32": ("TIFF",), "float32": ("TIFF",)}
    files = [encoded(stored, kind) for kind in kinds.get(stored.dtype.name, ())]
    for picture in map(read_image, (stored, *files)):
        assert picture.stretched == (low, high)
        assert f"values from {low:g} to {high:g} were stretched" in picture.notes[0]
        np.testing.assert_allclose(picture.pixels[..., 1], expected, atol=0.51)
        np.testing.assert_allclose(picture.pixels[..., 1].astype(int), EIGHT, atol=4)


def test_a_picture_that_uses_its_range_is_not_stretched():
    for stored, expected in (
        (EIGHT, EIGHT),
        (EIGHT // 5, EIGHT // 5),
        (EIGHT.astype(np.uint16) * 257, EIGHT),
        (EIGHT / 255, EIGHT),
        (EIGHT.astype(np.float32), EIGHT),
        (EIGHT > 99, np.where(EIGHT > 99, 255, 0)),
        (np.full((4, 4), 65535, np.uint16), np.full((4, 4), 255)),
        (np.full((4, 4), 300, np.uint16), np.full((4, 4), 1)),
    ):
        picture = read_image(stored)
        assert (picture.stretched, picture.notes) == (None, ())
        np.testing.assert_array_equal(picture.pixels, grey(expected))


def test_a_range_can_be_fixed():
    stored = STORED["12 bits in uint16"]
    for source in (stored, encoded(stored)):
        picture = read_image(source, value_range=(0, 8190))
        assert picture.stretched == (0, 8190)
        np.testing.assert_allclose(picture.pixels[..., 0], stored * (255 / 8190), atol=0.51)
    clipped = load_image(stored, value_range=(1000, 2000))
    assert (clipped[stored <= 1000] == 0).all()
    assert (clipped[stored >= 2000] == 255).all()
    with pytest.raises(ValueError, match="low end below"):
        load_image(stored, value_range=(5, 5))


def test_the_range_of_a_set_covers_all_its_images(tmp_path):
    stored = [(SCENE * top).astype(np.uint16) for top in (1000, 4000, 2000)]
    files = [encoded(image) for image in stored]
    low = min(np.percentile(image, 0.1) for image in stored)
    high = max(np.percentile(image, 99.9) for image in stored)
    assert measure_range([*files, tmp_path / "missing.png"]) == (low, high)
    assert measure_range(stored) == (low, high)
    # Two of the three: the first and the last.
    assert measure_range(files, sample=2)[1] == np.percentile(stored[2], 99.9)
    assert measure_range([EIGHT, EIGHT, encoded(EIGHT)]) is None


def test_a_few_missing_values_are_filled_and_said():
    stored = STORED["float 0..4095"].copy()
    stored[:2, :5] = np.nan
    stored[5, 5] = np.inf
    for source in (stored, encoded(stored, "TIFF")):
        picture = read_image(source)
        assert picture.notes[0].startswith("11 values that are not finite were filled")
        median = np.median(stored[np.isfinite(stored)])
        low, high = picture.stretched
        assert picture.pixels[0, 0, 0] == np.rint((median - low) / (high - low) * 255)


def test_channels_are_stretched_together_and_alpha_is_not():
    speck = np.zeros((100, 100), np.uint16)
    speck[3, 3] = 900  # one pixel of 10,000, beyond both percentiles
    assert load_image(speck).max() == 255
    colours = np.dstack([SCENE * 100, SCENE * 50, SCENE * 0]).astype(np.uint16)
    pixels = load_image(colours)
    np.testing.assert_allclose(pixels[..., 1], pixels[..., 0] / 2, atol=3)
    assert not pixels[..., 2].any()
    for dtype, opaque in ((np.uint16, 65535), (np.float64, 1.0)):
        alpha = np.full(SCENE.shape, opaque, dtype)
        found = load_image(np.dstack([colours.astype(dtype), alpha]))
        np.testing.assert_array_equal(found, pixels)


def deep_png(stored: np.ndarray) -> bytes:
    """What Pillow does not write: a PNG of 16 bits per channel."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored)
    shape = (*stored.shape[1::-1], 16, 2 if stored.shape[2] == 3 else 6, 0, 0, 0)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", *shape), b"IDAT": zlib.compress(lines), b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks.items():
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    return content


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["png", "tif", "deflated", "big-endian"])
def test_colours_of_16_bits_are_read_at_full_depth(tmp_path, kind, channels):
    stored = np.dstack([SCENE * 4095, SCENE[::-1] * 2000, SCENE * 0, SCENE * 0 + 65535])
    stored = stored.astype(np.uint16)[..., :channels]
    path = tmp_path / "a.tif"
    if kind == "png":
        path.write_bytes(deep_png(stored))
    else:
        tifffile = pytest.importorskip("tifffile")
        options = {"deflated": {"compression": "zlib"}, "big-endian": {"byteorder": ">"}}
        extra = {} if channels == 3 else {"extrasamples": ["unassalpha"]}
        tifffile.imwrite(path, stored, photometric="rgb", **extra, **options.get(kind, {}))
    found, expected = read_image(path), read_image(stored)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.stretched == expected.stretched
    assert found.stretched is not None
