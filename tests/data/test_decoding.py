"""What may be opened, and what becomes one sentence instead: nothing hangs, nothing is guessed."""

import errno
import io
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data import decoding
from unseg_jax.data.decoding import Page, page_numbers
from unseg_jax.data.images import as_iterable, load_image, read_image
from unseg_jax.data.masks import load_mask
from unseg_jax.errors import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, kind, **options)
    return file.getvalue()


def sentence(load, source) -> str:
    """What loading a source says; one sentence that ends in one full stop."""
    with pytest.raises(ImageError) as caught:
        load(source)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_one_source_of_any_kind_is_one_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    with path.open("rb") as file:
        content = encoded()
        kinds = [content, bytearray(content), memoryview(content), file, io.BytesIO(content)]
        for source in [path, str(path), Image.open(path), RGB, *kinds]:
            (only,) = as_iterable(source)
            np.testing.assert_array_equal(load_image(only), RGB)
            # A set is read more than once while it is fitted.
            np.testing.assert_array_equal(load_image(only), RGB)
    assert list(as_iterable([path, RGB])) == [path, RGB]
    assert len(list(as_iterable(np.stack([RGB, RGB])))) == 2
    with pytest.raises(ImageError, match="of type int cannot be read"):
        as_iterable(7)


class DeviceTensor:
    """As PyTorch's tensors: NumPy may take it only once it is detached and on the host."""

    def __init__(self, array, ready=()):
        self.array, self.ready = array, ready
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def detach(self):
        return DeviceTensor(self.array, ("detached",))

    def cpu(self):
        return DeviceTensor(self.array, (*self.ready, "on the host"))

    def __array__(self, dtype=None, copy=None):
        if self.ready != ("detached", "on the host"):
            raise TypeError("it is on a device")
        return np.asarray(self.array, dtype)


def test_tensors_and_channels_first_are_taken():
    import jax.numpy as jnp

    first = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    for source in (first, jnp.asarray(first), jnp.asarray(RGB), DeviceTensor(first / 255)):
        (only,) = as_iterable(source)
        np.testing.assert_array_equal(load_image(only), RGB)
    for kind in (jnp.float16, jnp.bfloat16):
        rounded = load_image(jnp.asarray(RGB / 255, kind)).astype(int)
        np.testing.assert_allclose(rounded, RGB, atol=1)
    assert "transpose it so that its channels come last" in sentence(load_image, first[:2])
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(load_image(torch.tensor(first / 255, requires_grad=True)), RGB)


def test_a_url_is_called_one():
    for url in ("https://example.org/a.png", "s3://bucket/a.jpg"):
        assert "is a URL: download it first" in sentence(load_image, url)


def test_a_wholly_transparent_image_is_refused(tmp_path):
    clear = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    Image.fromarray(clear).save(tmp_path / "a.png")
    for source in (clear, tmp_path / "a.png", Image.fromarray(clear)):
        assert "is wholly transparent" in sentence(load_image, source)


def test_only_formats_that_pillow_decodes_itself_are_opened(tmp_path, monkeypatch):
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(script)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was run"))
    assert "is not an image that Pillow can read" in sentence(load_image, tmp_path / "a.png")
    assert "is not an image that Pillow can read" in sentence(load_image, script)


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_every_flipped_bit_of_a_png_is_noticed(load):
    content = encoded()
    rng = np.random.default_rng(1)
    for position in (*range(8, 60), *rng.integers(60, len(content), 60)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        message = sentence(load, bytes(damaged))
        assert "damaged" in message or "truncated" in message, position


def test_a_png_whose_end_is_zeros_or_missing_is_refused(tmp_path):
    content = encoded()
    keep = int(0.6 * len(content))
    for damaged in (content[:keep] + bytes(len(content) - keep), content[:keep], content[:-12]):
        (tmp_path / "a.png").write_bytes(damaged)
        message = sentence(load_image, tmp_path / "a.png")
        assert "a.png is" in message
        assert "copy or download it again" in message
    # What follows the last chunk is not part of the image.
    np.testing.assert_array_equal(load_image(content + b"appended"), RGB)


CODES = sorted(errno.errorcode)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(code, os.strerror(code)) for code in CODES),
        *(OSError("broken data stream"), ValueError("bad\nvalue"), MemoryError(), SyntaxError()),
        *(Image.DecompressionBombError("big"), IndexError("list"), RecursionError(), EOFError()),
    ],
    ids=lambda error: f"{type(error).__name__}-{getattr(error, 'errno', '')}",
)
def test_whatever_a_decoder_raises_is_one_sentence_about_its_image(tmp_path, monkeypatch, error):
    (tmp_path / "a.png").write_bytes(encoded())

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for load in (load_image, load_mask):
        assert str(tmp_path / "a.png") in sentence(load, tmp_path / "a.png")


@pytest.mark.parametrize("code", CODES)
def test_whatever_opening_raises_is_one_sentence(tmp_path, monkeypatch, code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fail)
    assert "gone.png" in sentence(load_image, tmp_path / "gone.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path in (tmp_path / "fifo.png", tmp_path / "socket.png", Path("/dev/zero")):
            said = []
            thread = threading.Thread(
                target=lambda path=path, said=said: said.append(sentence(load_image, path)),
                daemon=True,
            )
            thread.start()
            thread.join(20)
            assert not thread.is_alive(), "it hangs"
            assert "is not a regular file" in said[0]


def test_paths_that_lead_nowhere_are_one_sentence_each(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert "is a link that leads back to itself" in sentence(load_image, loop)
    assert "has a name that is too long" in sentence(load_image, tmp_path / ("n" * 300))
    assert "has a NUL character in its name" in sentence(load_image, str(tmp_path / "a\0b.png"))
    (tmp_path / "file").write_text("")
    assert "part of its path is a file" in sentence(load_image, tmp_path / "file" / "a.png")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has UTF-8 names only")
def test_names_that_are_not_utf8_are_read_and_escaped(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m.png"))
    path.write_bytes(encoded())
    np.testing.assert_array_equal(load_image(path), RGB)
    path.write_bytes(encoded()[:99])
    message = sentence(load_image, path)
    assert r"caf\udce9\x1b[31m.png is truncated" in message
    message.encode()


def moving(path: Path, count=3, **options) -> list[np.ndarray]:
    frames = [np.full((8, 9, 3), 60 * index, np.uint8) for index in range(count)]
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, **options)
    return frames


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_every_page_is_an_image(tmp_path, name):
    frames = moving(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert page_numbers(tmp_path / name) == (1, 2, 3)
    for number, frame in enumerate(frames, start=1):
        for found in (
            load_image(tmp_path / name, page=number),
            load_image(Page(tmp_path / name, number)),
        ):
            np.testing.assert_array_equal(found, frame)
    assert [str(page) for page in as_iterable(tmp_path / name)][2].endswith(f"{name} (page 3)")
    assert read_image(tmp_path / name).notes == ("the first of several pages was read.",)
    assert f"{name} (page 4) has no page 4" in sentence(load_image, Page(tmp_path / name, 4))


def test_previews_are_no_pages(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "one.tif")
    assert page_numbers(tmp_path / "one.tif") == ()
    images = [Image.fromarray(RGB), Image.fromarray(RGB[::2, ::2])]
    images[0].save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=images[1:])
    assert page_numbers(tmp_path / "camera.jpg") == ()
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "copies.tif") as writer:
        writer.write(RGB)
        writer.write(RGB[::2, ::2], subfiletype=1)
    with Image.open(tmp_path / "copies.tif") as image:
        assert image.n_frames == 2
    assert page_numbers(tmp_path / "copies.tif") == ()
    assert page_numbers(tmp_path / "missing.tif") == ()


def test_formats_are_those_of_this_pillow():
    assert {"PNG", "JPEG", "TIFF"} <= set(decoding._formats())
    assert not {"EPS", "WMF"} & set(decoding._formats())
