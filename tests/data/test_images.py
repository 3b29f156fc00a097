"""Every kind of image file comes out as the upright RGB that a viewer would show."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from unseg_jax.data import load_image, load_mask, read_image, resize_image
from unseg_jax.errors import ImageError


@pytest.fixture
def rgb() -> np.ndarray:
    """A picture whose sides, corners and channels all differ."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_a_path_a_pil_image_an_array_bytes_and_a_file_give_the_same(tmp_path, rgb):
    path = saved(tmp_path / "a.png", Image.fromarray(rgb))
    with path.open("rb") as file:
        sources = [path, str(path), Image.fromarray(rgb), rgb, path.read_bytes(), file]
        for source in sources:
            pixels = load_image(source)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation_is_applied(tmp_path, rgb, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(rgb), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    picture = read_image(path)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.size == expected.shape[:2]


def test_exif_orientation_of_a_mask_is_applied(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = rgb[..., 0] > 127
    path = saved(tmp_path / "a.png", Image.fromarray(mask.astype(np.uint8) * 255), exif=exif)
    np.testing.assert_array_equal(load_mask(path), np.rot90(mask, -1))


def test_grey_becomes_three_equal_channels(tmp_path, rgb):
    grey = rgb[..., 0]
    path = saved(tmp_path / "a.png", Image.fromarray(grey))
    for source in (path, grey, grey[..., None]):
        np.testing.assert_array_equal(load_image(source), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_over_their_whole_range(tmp_path, suffix):
    deep = np.array([[0, 128, 257, 256 * 128], [65535, 65534, 514, 65535 - 257]], np.uint16)
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(deep))
    expected = np.rint(deep / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_image(path), np.stack([expected] * 3, axis=2))


def test_floats_are_fractions_or_grey_levels_or_are_stretched(tmp_path):
    for values, expected in (
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 100.0, 255.0]], [[0, 100, 255]]),
        ([[-10.0, 41.0, 90.0]], [[0, 130, 255]]),
    ):
        path = saved(tmp_path / "a.tif", Image.fromarray(np.array(values, np.float32)))
        np.testing.assert_array_equal(load_image(path)[..., 0], expected)


def test_transparency_is_composited_on_white(tmp_path, rgb):
    alpha = np.linspace(0, 255, rgb.shape[1]).astype(np.uint8)[None].repeat(len(rgb), axis=0)
    rgba = np.dstack([rgb, alpha])
    weight = alpha[..., None] / 255
    expected = rgb * weight + 255 * (1 - weight)
    path = saved(tmp_path / "a.png", Image.fromarray(rgba))
    for source in (path, rgba):
        np.testing.assert_allclose(load_image(source), expected, atol=1)
    grey = Image.fromarray(rgba).convert("LA")
    expected = np.asarray(grey)[..., :1] * weight + 255 * (1 - weight)
    path = saved(tmp_path / "la.png", grey)
    np.testing.assert_allclose(load_image(path), expected.repeat(3, axis=2), atol=1)


def test_palettes_with_and_without_transparency(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = np.array([[200, 30, 40], [0, 255, 0], [7, 8, 9]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    opaque = saved(tmp_path / "opaque.png", image)
    np.testing.assert_array_equal(load_image(opaque), palette[indices])
    clear = saved(tmp_path / "clear.png", image, transparency=1)
    palette[1] = 255
    np.testing.assert_array_equal(load_image(clear), palette[indices])


def test_cmyk_and_one_bit(tmp_path, rgb):
    cmyk = Image.fromarray(rgb).convert("CMYK")
    path = saved(tmp_path / "a.tif", cmyk)
    np.testing.assert_array_equal(load_image(path), np.asarray(cmyk.convert("RGB")))
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255
    path = saved(tmp_path / "cyan.jpg", Image.frombytes("CMYK", (16, 16), ink.tobytes()))
    cyan = np.broadcast_to([0, 255, 255], (16, 16, 3))
    np.testing.assert_allclose(load_image(path), cyan, atol=3)
    bits = rgb[..., 0] > 127
    path = saved(tmp_path / "b.png", Image.fromarray(bits))
    np.testing.assert_array_equal(load_image(path)[..., 1], bits * 255)


def test_draft_mode_decodes_less_and_reports_the_size_itself(tmp_path):
    rows, columns = np.mgrid[0:1200, 0:1600]
    smooth = np.dstack([rows // 5, columns // 7, (rows + columns) // 12]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path, size in (
        (saved(tmp_path / "a.jpg", Image.fromarray(smooth), quality=95), (1200, 1600)),
        (saved(tmp_path / "b.jpg", Image.fromarray(smooth), quality=95, exif=exif), (1600, 1200)),
    ):
        small, whole = read_image(path, at_least=(100, 100)), read_image(path)
        assert small.size == whole.size == whole.pixels.shape[:2] == size
        assert 200 <= min(small.pixels.shape[:2]) <= 400
        np.testing.assert_allclose(
            resize_image(small.pixels, (100, 100)).astype(int),
            resize_image(whole.pixels, (100, 100)),
            atol=4,
        )
    assert read_image(path, at_least=(700, 700)).pixels.shape == whole.pixels.shape
    opened = Image.open(path)
    assert load_image(opened, at_least=(100, 100)).shape == whole.pixels.shape
    opened.close()


def test_resizing_is_pillows_lanczos(rgb):
    expected = Image.fromarray(rgb).resize((20, 31), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize_image(rgb, (31, 20)), np.asarray(expected))
    assert resize_image(rgb, rgb.shape[:2]) is rgb


def damaged(tmp_path, kind):
    path = tmp_path / f"{kind}.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("this is no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "is truncated: copy or download it again"),
        ("text", "is not an image that Pillow can read: convert it to PNG or JPEG"),
        ("empty", "is empty"),
        ("missing", "was not found: check the path"),
        ("folder", "is a folder, not an image"),
    ],
)
@pytest.mark.parametrize("load", [load_image, load_mask])
def test_a_bad_file_is_named_in_one_sentence(tmp_path, kind, says, load):
    path = damaged(tmp_path, kind)
    with pytest.raises(ImageError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert says in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_truncated_png_is_named(tmp_path, rgb):
    path = saved(tmp_path / "a.png", Image.fromarray(rgb))
    for end in (60, 100):
        path.write_bytes(path.read_bytes()[:-end])
        with pytest.raises(ImageError, match=r"a\.png"):
            load_image(path)


def test_pillows_bomb_limit_is_kept(tmp_path, monkeypatch, rgb):
    path = saved(tmp_path / "a.png", Image.fromarray(rgb))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", rgb.shape[0] * rgb.shape[1] // 3)
    with pytest.raises(ImageError, match=r"a\.png is too large to decode safely"):
        load_image(path)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4, 3), np.complex64), "give bool, integers or floats"),
        (np.zeros((4, 4, 3), object), "give bool, integers or floats"),
        (np.zeros((7, 4, 4, 3), np.uint8), "transpose"),
        (np.zeros((0, 4, 3), np.uint8), "zero size"),
        (np.zeros((4, 4, 7), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
    ],
)
def test_a_bad_array_is_refused(array, says):
    with pytest.raises(ImageError, match=says):
        load_image(array)


def test_other_types_and_zero_size_pil_images_are_refused():
    with pytest.raises(ImageError, match="of type int cannot be read: give a path"):
        load_image(7)
    with pytest.raises(ImageError, match="zero size"):
        load_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="given as 4 bytes is not an image"):
        load_image(b"nope")


def test_a_record_is_named_in_its_errors():
    class Record:
        name = "record 7 of the set"

        def read(self):
            return BytesIO(b"no image").getvalue()

    with pytest.raises(ImageError, match="record 7 of the set is not an image"):
        load_image(Record())
