"""A folder of everything that users have: every mode and format, and every kind of damage."""

import contextlib
import io
import os
import socket
import struct
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


def _formats():
    """Name, bytes and expectation of modes and formats of Pillow."""
    rgb = Image.fromarray(photograph())
    levels = rgb.convert("L")
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "I")}
    modes |= {"CMYK": rgb.convert("CMYK"), "F": rgb.convert("F"), "PA": rgb.convert("PA")}
    modes["I;16"] = Image.fromarray(photograph()[..., 0].astype(np.uint16) * 200)
    modes |= {mode: rgb.convert(mode) for mode in ("YCbCr", "LAB", "HSV")}
    for mode, image in modes.items():
        for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP"), ("webp", "WEBP")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                name, found = f"mode-{mode.replace(';', '_')}.{suffix}", encoded(image, kind)
                yield name, found, EITHER if mode in ("YCbCr", "LAB", "HSV") else GOOD
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "gif": "GIF", "ppm": "PPM"}
    kinds |= {"jp2": "JPEG2000", "webp": "WEBP", "tiff": "TIFF", "apng": "PNG"}
    kinds |= {"avif": "AVIF"} if features.check("avif") else {}
    for suffix, kind in kinds.items():
        yield f"format.{suffix}", encoded(rgb, kind), GOOD
    for suffix, kind in {"ico": "ICO", "tga": "TGA", "pcx": "PCX", "eps": "EPS"}.items():
        yield f"format.{suffix}", encoded(rgb, kind), LEFT_OUT
    for name, image, kind, options in (
        ("format.pgm", levels, "PPM", {}),
        ("format.pbm", rgb.convert("1"), "PPM", {}),
        ("progressive.jpg", rgb, "JPEG", {"progressive": True}),
        ("interlaced-palette.png", rgb.quantize(7), "PNG", {}),
        ("cmyk.jpg", rgb.convert("CMYK"), "JPEG", {}),  # with Adobe's marker
        ("grey.jpg", levels, "JPEG", {}),
        ("lossless.webp", rgb, "WEBP", {"lossless": True}),
        *(
            (f"{compression}.tif", rgb, "TIFF", {"compression": compression})
            for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")
        ),
        ("icc.jpg", rgb, "JPEG", {"icc_profile": b"no profile at all"}),
        ("one-pixel.png", rgb.crop((0, 0, 1, 1)), "PNG", {}),
        ("black.png", Image.new("RGB", SIZE), "PNG", {}),
        ("white.png", Image.new("RGB", SIZE, (255,) * 3), "PNG", {}),
        ("twelve-bits.png", Image.fromarray(photograph()[..., 0].astype("u2") * 16), "PNG", {}),
    ):
        yield name, encoded(image, kind, **options), GOOD
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"exif-{orientation}.jpg", encoded(rgb, "JPEG", exif=exif), GOOD
    pages = [Image.fromarray(photograph(seed)) for seed in range(3)]
    for suffix, kind in (("tif", "TIFF"), ("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG")):
        data = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
        yield f"pages.{suffix}", data, GOOD
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    yield "alpha-zero.png", encoded(clear, "PNG"), BAD
    yield "one-by-5000.png", encoded(rgb.resize((1, 5000)), "PNG"), EITHER
    values = photograph()[..., 0].astype(np.float32) / 255
    yield "float.tif", encoded(Image.fromarray(values), "TIFF"), GOOD
    values[0, 0] = np.nan
    yield "nan.tif", encoded(Image.fromarray(values), "TIFF"), EITHER
    yield "infinite.tif", encoded(Image.fromarray(np.full((24, 32), np.inf, "f")), "TIFF"), BAD


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
    yield "png-inside.jpg", png, GOOD
    for name, content in {
        "bomb.png": _png_of(60_000, 60_000),
        "no-pixels.png": _png_of(32, 24),
        "huge-side.png": _png_of(2**31 - 1, 1),
        "text.png": b"this is text\n",
        "script.png": b"<svg onload=alert(1)>",
        "empty.png": b"",
        "zeros.jpg": bytes(1000),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }.items():
        yield name, content, BAD


# Names that files have in the wild, each of a good image.
NAMES = ["new\nline", 'quo"te', "quo'te", "-dash", "a b", "ünïcödé", "x" * 240, "%41", "a&b<i>"]
NAMES += ["tab\there", "$(id)", "{brace}", "semi;colon", "back\\slash", "star*?[x]", "名前"]
NAMES += [os.fsdecode(b"latin-\xe9")]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder, and what is expected of each name in it."""
    folder = tmp_path_factory.mktemp("inputs")
    good = encoded(Image.fromarray(photograph()), "PNG")
    left_out = ("Thumbs.db", "._x.jpg", ".hidden.png", "notes.txt", "no_suffix", "photo.HEIC")
    files = [*_formats(), *_damage(), *((f"{name}.png", good, GOOD) for name in NAMES)]
    files += [(name, good, LEFT_OUT) for name in left_out]
    for name, data, _ in files:
        (folder / name).write_bytes(data)
    expected = {name: found for name, _, found in files}
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):
        server.bind("socket.png")  # from within, as its path has at most 108 bytes
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "circular.png").symlink_to(folder / "circular.png")
    expected |= dict.fromkeys(("fifo.png", "socket.png", "dangling.png", "circular.png"), BAD)
    (folder / "link.png").symlink_to(folder / "format.jpg")
    (folder / "folder.jpg").mkdir()
    # The link is the same image once more.
    expected |= dict.fromkeys(("link.png", "folder.jpg"), LEFT_OUT)
    assert sum(found != LEFT_OUT for found in expected.values()) >= 120
    return folder, expected
