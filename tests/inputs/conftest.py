"""A folder of everything that users have: every mode and format, and every kind of damage."""

import io
import os
import socket
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

SIZE = (32, 24)  # width, height
GOOD, BAD, EITHER = "good", "bad", "either"
"""A result; a sentence; one of the two, as for a byte that was flipped in a JPEG."""
LEFT_OUT = "left out"
"""No image by its name or its kind, so not taken at all."""


def photograph(seed=0, size=SIZE):
    """A bright square on noise, (H, W, 3) uint8."""
    pixels = np.random.default_rng(seed).integers(0, 70, (size[1], size[0], 3))
    pixels[size[1] // 4 : -size[1] // 4, size[0] // 4 : -size[0] // 4] += 150
    return pixels.astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png_of(width, height):
    """A PNG that is whole but for its pixels, so that only its header tells the size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


def _modes():
    """Name → (bytes, expectation): modes and formats of Pillow."""
    rgb = Image.fromarray(photograph())
    for mode in ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "I", "F", "I;16"):
        image = Image.fromarray(photograph()[..., 0].astype(np.uint16) * 200)
        image = image if mode == "I;16" else rgb.convert("LA" if mode == "PA" else mode)
        image = image.convert("PA") if mode == "PA" else image
        for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP"), ("webp", "WEBP")):
            try:
                yield f"mode-{mode.replace(';', '_')}.{suffix}", encoded(image, kind), GOOD
            except (OSError, ValueError):
                continue
    for mode in ("YCbCr", "LAB", "HSV"):
        try:
            yield f"mode-{mode}.tif", encoded(rgb.convert(mode), "TIFF"), EITHER
        except (OSError, ValueError, KeyError):
            continue
    for suffix, kind in (
        *(("jpg", "JPEG"), ("jpeg", "JPEG"), ("jfif", "JPEG"), ("gif", "GIF"), ("ppm", "PPM")),
        *(("jp2", "JPEG2000"), ("webp", "WEBP"), ("tiff", "TIFF"), ("apng", "PNG")),
    ):
        yield f"format.{suffix}", encoded(rgb, kind), GOOD
    if features.check("avif"):
        yield "format.avif", encoded(rgb, "AVIF"), GOOD
    for suffix, kind in (("ico", "ICO"), ("tga", "TGA"), ("pcx", "PCX"), ("eps", "EPS")):
        yield f"format.{suffix}", encoded(rgb, kind), LEFT_OUT
    yield "format.pgm", encoded(rgb.convert("L"), "PPM"), GOOD
    yield "format.pbm", encoded(rgb.convert("1"), "PPM"), GOOD
    yield "progressive.jpg", encoded(rgb, "JPEG", progressive=True), GOOD
    yield "interlaced-palette.png", encoded(rgb.quantize(7), "PNG"), GOOD
    yield "cmyk.jpg", encoded(rgb.convert("CMYK"), "JPEG"), GOOD  # with Adobe's marker
    yield "grey.jpg", encoded(rgb.convert("L"), "JPEG"), GOOD
    yield "lossless.webp", encoded(rgb, "WEBP", lossless=True), GOOD
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield f"{compression}.tif", encoded(rgb, "TIFF", compression=compression), GOOD


def _contents():
    rgb = Image.fromarray(photograph())
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"exif-{orientation}.jpg", encoded(rgb, "JPEG", exif=exif), GOOD
    yield "icc.jpg", encoded(rgb, "JPEG", icc_profile=b"no profile at all"), GOOD
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    yield "alpha-zero.png", encoded(clear, "PNG"), BAD
    yield "one-pixel.png", encoded(rgb.crop((0, 0, 1, 1)), "PNG"), GOOD
    yield "one-by-5000.png", encoded(rgb.resize((1, 5000)), "PNG"), EITHER
    for name, colour in (("black", 0), ("white", 255)):
        yield f"{name}.png", encoded(Image.new("RGB", SIZE, (colour,) * 3), "PNG"), GOOD
    values = photograph()[..., 0].astype(np.float32)
    yield "float.tif", encoded(Image.fromarray(values / 255), "TIFF"), GOOD
    values[0, 0] = np.nan
    yield "nan.tif", encoded(Image.fromarray(values), "TIFF"), EITHER
    yield "infinite.tif", encoded(Image.fromarray(np.full((24, 32), np.inf, "f")), "TIFF"), BAD
    deep = Image.fromarray(photograph()[..., 0].astype(np.uint16) * 16)
    yield "twelve-bits.png", encoded(deep, "PNG"), GOOD
    pages = [Image.fromarray(photograph(seed)) for seed in range(3)]
    for suffix, kind in (("tif", "TIFF"), ("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG")):
        data = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
        yield f"pages.{suffix}", data, GOOD


def _damage():
    rgb = Image.fromarray(photograph())
    jpeg, png = encoded(rgb, "JPEG"), encoded(rgb, "PNG")
    for tenth in (0, 1, 5, 9):
        yield f"cut-{tenth}.jpg", jpeg[: len(jpeg) * tenth // 10], EITHER if tenth == 9 else BAD
        yield f"cut-{tenth}.png", png[: len(png) * tenth // 10], BAD
    rng = np.random.default_rng(0)
    for number in range(8):
        for suffix, data, found in (("jpg", jpeg, EITHER), ("png", png, BAD)):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
            yield f"flip-{number:02d}.{suffix}", bytes(flipped), found
    yield "bomb.png", _png_of(60_000, 60_000), BAD
    yield "no-pixels.png", _png_of(32, 24), BAD
    yield "huge-side.png", _png_of(2**31 - 1, 1), BAD
    yield "text.png", b"this is text\n", BAD
    yield "script.png", b"<svg onload=alert(1)>", BAD
    yield "png-inside.jpg", png, GOOD
    yield "empty.png", b"", BAD
    yield "zeros.jpg", bytes(1000), BAD
    yield "postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", BAD


def _names():
    """Names that files have in the wild, each of a good image."""
    names = ["new\nline", 'quo"te', "quo'te", "-dash", "a b", "ünïcödé", "x" * 240, "%41", "a&b<i>"]
    names += ["tab\there", "$(id)", "{brace}", "semi;colon", "back\\slash", "star*?[x]", "名前"]
    yield from (f"{name}.png" for name in names)
    yield os.fsdecode(b"latin-\xe9.png")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder, and what is expected of each name in it."""
    folder = tmp_path_factory.mktemp("inputs")
    expected = {}
    for name, data, found in (*_modes(), *_contents(), *_damage()):
        (folder / name).write_bytes(data)
        expected[name] = found
    good = encoded(Image.fromarray(photograph()), "PNG")
    for name in _names():
        (folder / name).write_bytes(good)
        expected[name] = GOOD
    for name in ("Thumbs.db", "._x.jpg", ".hidden.png", "notes.txt", "no_suffix", "photo.HEIC"):
        (folder / name).write_bytes(good)
        expected[name] = LEFT_OUT
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        # The path of a socket has at most 108 bytes, so it is bound from within.
        before = os.getcwd()
        os.chdir(folder)
        server.bind("socket.png")
        os.chdir(before)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "circular.png").symlink_to(folder / "circular.png")
    expected |= dict.fromkeys(("fifo.png", "socket.png", "dangling.png", "circular.png"), BAD)
    (folder / "link.png").symlink_to(folder / "format.jpg")
    expected["link.png"] = LEFT_OUT  # the same image once more
    (folder / "folder.jpg").mkdir()
    expected["folder.jpg"] = LEFT_OUT
    assert sum(found != LEFT_OUT for found in expected.values()) >= 120
    assert sys.platform != "win32"
    return folder, expected
