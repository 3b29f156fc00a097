"""Deep images keep their contrast, one rule for files and arrays of every type."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data.images import load_image, measure_range, read_image
from unseg_jax.errors import ImageError

RNG = np.random.default_rng(0)
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
    picture = read_image(stored)
    assert picture.stretched == (low, high)
    assert f"values from {low:g} to {high:g} were stretched" in picture.notes[0]
    np.testing.assert_allclose(picture.pixels[..., 1], expected, atol=0.51)
    np.testing.assert_allclose(picture.pixels[..., 1].astype(int), EIGHT, atol=4)


@pytest.mark.parametrize("name", ["12 bits in uint16", "int32", "float 0..4095"])
def test_files_and_arrays_give_the_same(name, tmp_path):
    stored = STORED[name]
    Image.fromarray(stored).save(tmp_path / "a.tif")
    from_file, from_array = read_image(tmp_path / "a.tif"), read_image(stored)
    np.testing.assert_array_equal(from_file.pixels, from_array.pixels)
    assert from_file.stretched == from_array.stretched
    if stored.dtype == np.uint16:
        Image.fromarray(stored).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_image(tmp_path / "a.png"), from_array.pixels)


@pytest.mark.parametrize(
    "stored",
    [
        EIGHT,
        EIGHT // 5,
        EIGHT.astype(np.uint16) * 257,
        EIGHT / 255,
        (EIGHT / 255).astype(np.float32),
        EIGHT.astype(np.float32),
        EIGHT > 99,
    ],
    ids=["uint8", "dark uint8", "uint16", "float64", "float32", "float of 255", "bool"],
)
def test_a_picture_that_uses_its_range_is_not_stretched(stored):
    picture = read_image(stored)
    assert (picture.stretched, picture.notes) == (None, ())
    expected = np.where(stored, 255, 0) if stored.dtype == bool else EIGHT
    expected = stored if stored.dtype == np.uint8 else expected
    np.testing.assert_array_equal(picture.pixels, np.repeat(expected[..., None], 3, 2))


def test_a_range_can_be_fixed(tmp_path):
    stored = STORED["12 bits in uint16"]
    Image.fromarray(stored).save(tmp_path / "a.png")
    for source in (stored, tmp_path / "a.png"):
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
    for index, image in enumerate(stored):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    expected = (
        min(np.percentile(image, 0.1) for image in stored),
        max(np.percentile(image, 99.9) for image in stored),
    )
    assert measure_range([*paths, tmp_path / "missing.png"]) == expected
    assert measure_range(stored) == expected
    # Two of the three: the first and the last.
    assert measure_range(paths, sample=2)[1] == np.percentile(stored[2], 99.9)
    assert measure_range([EIGHT, EIGHT]) is None


def test_a_few_missing_values_are_filled_and_said(tmp_path):
    stored = STORED["float 0..4095"].copy()
    stored[:2, :5] = np.nan
    stored[5, 5] = np.inf
    Image.fromarray(stored).save(tmp_path / "a.tif")
    for source in (stored, tmp_path / "a.tif"):
        picture = read_image(source)
        assert picture.notes[0].startswith("11 values that are not finite were filled")
        median = np.median(stored[np.isfinite(stored)])
        low, high = picture.stretched
        assert picture.pixels[0, 0, 0] == np.rint((median - low) / (high - low) * 255)
    with pytest.raises(ImageError, match="holds no finite value"):
        load_image(np.full((4, 4), np.nan))
    stored[:60] = np.nan
    with pytest.raises(ImageError, match="fill them first"):
        load_image(stored)


def test_constants_and_rare_values_keep_their_place():
    assert (load_image(np.full((4, 4), 65535, np.uint16)) == 255).all()
    assert (load_image(np.full((4, 4), 300, np.uint16)) == 1).all()
    speck = np.zeros((100, 100), np.uint16)
    speck[3, 3] = 900  # one pixel of 10,000, beyond both percentiles
    assert load_image(speck).max() == 255


def test_channels_are_stretched_together_and_alpha_is_not():
    colours = np.dstack([SCENE * 100, SCENE * 50, SCENE * 0]).astype(np.uint16)
    pixels = load_image(colours)
    np.testing.assert_allclose(pixels[..., 1], pixels[..., 0] / 2, atol=3)
    assert not pixels[..., 2].any()
    alpha = np.full(SCENE.shape, 65535, np.uint16)
    np.testing.assert_array_equal(load_image(np.dstack([colours, alpha])), pixels)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["png", "tif", "deflated", "big-endian"])
def test_colours_of_16_bits_are_read_at_full_depth(tmp_path, kind, channels):
    stored = np.dstack([SCENE * 4095, SCENE[::-1] * 2000, SCENE * 0, SCENE * 0 + 65535])
    stored = stored.astype(np.uint16)[..., :channels]
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    if kind == "png":
        lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored)
        shape = (*SCENE.shape[::-1], 16, 2 if channels == 3 else 6, 0, 0, 0)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", *shape)), (b"IDAT", zlib.compress(lines))]
        content = b"\x89PNG\r\n\x1a\n"
        for name, body in (*chunks, (b"IEND", b"")):
            content += struct.pack(">I", len(body)) + name + body
            content += struct.pack(">I", zlib.crc32(name + body))
        path.write_bytes(content)
    else:
        tifffile = pytest.importorskip("tifffile")
        options = {"deflated": {"compression": "zlib"}, "big-endian": {"byteorder": ">"}}
        extra = {} if channels == 3 else {"extrasamples": ["unassalpha"]}
        tifffile.imwrite(path, stored, photometric="rgb", **extra, **options.get(kind, {}))
    found, expected = read_image(path), read_image(stored)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.stretched == expected.stretched
    assert found.stretched is not None
