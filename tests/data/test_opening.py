"""What may be opened, and what becomes one sentence instead: nothing hangs, nothing is guessed."""

import errno
import io
import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data import load_image, load_mask, read_image
from unseg_jax.data.decoding import as_iterable
from unseg_jax.data.opening import Page, page_numbers
from unseg_jax.errors import ImageError

from .conftest import encoded

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PNG = encoded(RGB)


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
    path.write_bytes(PNG)
    with path.open("rb") as file, Image.open(path) as image:
        kinds = [PNG, bytearray(PNG), memoryview(PNG), file, io.BytesIO(PNG)]
        for source in [path, str(path), image, RGB, *kinds]:
            for _ in range(2):  # a set is read more than once while it is fitted
                (only,) = as_iterable(source)
                np.testing.assert_array_equal(load_image(only), RGB)
    assert list(as_iterable([path, RGB])) == [path, RGB]
    assert len(list(as_iterable(np.stack([RGB, RGB])))) == 2
    with pytest.raises(ImageError, match="of type int cannot be read"):
        as_iterable(7)


class DeviceTensor:
    """As PyTorch's tensors: NumPy may take it only once it is detached and on the host."""

    def __init__(self, array, *ready):
        self.array, self.ready = array, ready
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def detach(self):
        return DeviceTensor(self.array, "detached")

    def cpu(self):
        return DeviceTensor(self.array, *self.ready, "on the host")

    def __array__(self, dtype=None, copy=None):
        if self.ready != ("detached", "on the host"):
            raise TypeError("it is on a device")
        return np.asarray(self.array, dtype)


@pytest.mark.pytorch
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
    broken = DeviceTensor(first)
    broken.cpu = broken.detach = lambda: broken
    assert "cannot be made a NumPy array (it is on a device)" in sentence(load_image, broken)
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(load_image(torch.tensor(first / 255, requires_grad=True)), RGB)


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_every_flipped_bit_of_a_png_is_noticed(load):
    rng = np.random.default_rng(1)
    for position in (*range(8, 60), *rng.integers(60, len(PNG), 60)):
        damaged = bytearray(PNG)
        damaged[position] ^= 1 << int(rng.integers(8))
        message = sentence(load, bytes(damaged))
        assert "damaged" in message or "truncated" in message, position
    np.testing.assert_array_equal(load_image(PNG + b"appended"), RGB)


JPEG = encoded(RGB, "JPEG")
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_a_bad_file_is_named_in_one_sentence(tmp_path, monkeypatch, load):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was run"))
    path = tmp_path / "a.jpg"
    assert "was not found: check the path" in sentence(load, path)
    for content, says in (
        (PNG[: len(PNG) // 2] + bytes(len(PNG) // 2), "copy or download it again"),
        (PNG[: len(PNG) // 2], "is truncated: copy or download it again"),
        (PNG[:-12], "is truncated: copy or download it again"),
        (JPEG[: len(JPEG) // 2], "is truncated: copy or download it again"),
        (b"no image", "is not an image that Pillow can read: convert it to PNG or JPEG"),
        (SCRIPT, "is not an image that Pillow can read: convert it to PNG or JPEG"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        for source in (path, content):
            message = sentence(load, source)
            assert says in message
            assert source is content or str(path) in message
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.shape[0] * RGB.shape[1] // 3)
    assert "bytes is too large to decode safely" in sentence(load, PNG)


CODES = [OSError(code, os.strerror(code)) for code in sorted(errno.errorcode)]
OTHERS = [OSError("broken data stream"), ValueError("bad\nvalue"), MemoryError(), SyntaxError()]
OTHERS += [Image.DecompressionBombError("big"), IndexError("list"), RecursionError(), EOFError()]


def test_whatever_a_decoder_or_opening_raises_is_one_sentence(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for target, errors in (("PIL.ImageFile.ImageFile.load", CODES + OTHERS), ("os.open", CODES)):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            for error in errors:
                for load in (load_image, load_mask):
                    assert str(path) in sentence(load, path), error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path in (tmp_path / "fifo.png", tmp_path / "socket.png", Path("/dev/zero")):
            said = queue.Queue()
            threading.Thread(
                target=lambda path=path, said=said: said.put(sentence(load_image, path)),
                daemon=True,
            ).start()
            assert "is not a regular file" in said.get(timeout=20)  # or it hangs


def test_paths_that_lead_nowhere_are_one_sentence_each(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    (tmp_path / "file").write_text("")
    for path, says in (
        (loop, "is a link that leads back to itself"),
        (tmp_path, "is a folder, not an image"),
        (tmp_path / ("n" * 300), "has a name that is too long"),
        (str(tmp_path / "a\0b.png"), "has a NUL character in its name"),
        (tmp_path / "file" / "a.png", "part of its path is a file"),
        ("https://example.org/a.png", "is a URL: download it first"),
        ("s3://bucket/a.jpg", "is a URL: download it first"),
        (SimpleNamespace(name="record 7", read=lambda: b"no image"), "record 7 is not an image"),
    ):
        assert says in sentence(load_image, path)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has UTF-8 names only")
def test_names_that_are_not_utf8_are_read_and_escaped(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m.png"))
    path.write_bytes(PNG)
    np.testing.assert_array_equal(load_image(path), RGB)
    path.write_bytes(PNG[:99])
    message = sentence(load_image, path)
    assert r"caf\udce9\x1b[31m.png is truncated" in message
    message.encode()


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_every_page_is_an_image(tmp_path, name):
    path = tmp_path / name
    frames = [np.full((8, 9, 3), 60 * index, np.uint8) for index in range(3)]
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, lossless=True)
    assert page_numbers(path) == (1, 2, 3)
    for number, frame in enumerate(frames, start=1):
        np.testing.assert_array_equal(load_image(path, page=number), frame)
        np.testing.assert_array_equal(load_image(Page(path, number)), frame)
    assert [str(page) for page in as_iterable(path)][2].endswith(f"{name} (page 3)")
    assert read_image(path).notes == ("the first of several pages was read.",)
    for number in (0, 4):
        said = sentence(load_image, Page(path, number))
        assert f"{name} (page {number}) has no page {number}" in said


def test_previews_are_no_pages(tmp_path):
    small = Image.fromarray(RGB[::2, ::2])
    Image.fromarray(RGB).save(tmp_path / "one.tif")
    Image.fromarray(RGB).save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[small])
    for name in ("one.tif", "camera.jpg", "missing.tif"):
        assert page_numbers(tmp_path / name) == ()
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "copies.tif") as writer:
        writer.write(RGB)
        writer.write(RGB[::2, ::2], subfiletype=1)
    with Image.open(tmp_path / "copies.tif") as image:
        assert image.n_frames == 2
    assert page_numbers(tmp_path / "copies.tif") == ()
