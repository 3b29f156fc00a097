"""Opening: from a path or another source to an open file, which `decoding` and `masks` then read.

Only regular files are opened, only in the formats of `FORMATS`, and the checksums of a PNG are
compared first, which Pillow leaves out. Whatever goes wrong becomes one `ImageError` that names
the source and says what to do.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from unseg_jax.errors import ImageError, printable, why

Source = Any
"""What images and masks are read from: a path, a `Page` of a file, a PIL image, an array or
tensor, the bytes of an encoded image, an object whose `read()` gives such bytes or an array
(an open file, a record), or one of these in a row `{"image": …}` or a pair `(image, label)` of a
data set."""

FORMATS = (
    *("JPEG", "MPO", "PNG", "TIFF", "WEBP", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF"),
    "ICO",
)
"""Pillow's names of the formats that are opened; none of them runs another program."""
_PAGED = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")
_PAGED_SUFFIXES = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif")
_AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_REDUCED_PAGE = 254  # TIFF's NewSubfileType: a set lowest bit marks a smaller copy
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SCHEMES = ("http", "https", "ftp", "s3", "gs", "gcs", "az", "hf", "data", "file")
UNREADABLE = (
    "of type {} cannot be read: give a path, a PIL image, bytes, an open file, or an array "
    "(H, W, 3) or (H, W)."
)

_OPENING = {
    errno.ENOENT: "was not found: check the path",
    errno.ENOTDIR: "was not found, because part of its path is a file: check the path",
    errno.EACCES: "may not be read: check its permissions",
    errno.EPERM: "may not be read: check its permissions",
    errno.ELOOP: "is a link that leads back to itself: replace the link by its file",
    errno.ENAMETOOLONG: "has a name that is too long for the file system: shorten it",
    errno.ENXIO: "is not a regular file: leave it out",
    errno.EMFILE: "cannot be opened, because too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "cannot be opened, because too many files are open: close other programs",
    errno.ENOMEM: "does not fit into memory: reduce it first",
}


@dataclasses.dataclass(frozen=True)
class Page(os.PathLike):
    """One page of an image file with several (TIFF, GIF, WebP, APNG); a `Source`.

    Attributes:
        path: the file.
        number: of the page, from 1.
    """

    path: Path
    number: int

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return f"{self.path} (page {self.number})"


def describe(source: Source) -> str:
    """What messages call a source: its path, or what kind of thing it is."""
    if isinstance(source, str | os.PathLike):
        name = str(source)
    elif isinstance(source, np.ndarray):
        name = f"given as an array of shape {source.shape}"
    elif isinstance(source, bytes | bytearray | memoryview):
        name = f"given as {len(source)} bytes"
    elif isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"given as a PIL image {source.size}"
    else:
        name = getattr(source, "name", f"given as a {type(source).__name__}")
    return printable(str(name))


def unwrap(source: Source) -> Source:
    """The image in a row, as of Hugging Face or TensorFlow data sets, or in an (image, label) pair.

    >>> unwrap({"image": {"bytes": None, "path": "a.png"}, "label": 3})
    'a.png'
    """
    if isinstance(source, Mapping):
        if source.get("image") is not None:
            return unwrap(source["image"])
        found = source.get("bytes") or source.get("path")  # an image that is not decoded yet
        if found is None:
            keys = ", ".join(map(str, source)) or "no keys"
            raise ImageError(f"has {printable(keys)}: give the image in it, as in row['image'].")
        return found
    if isinstance(source, tuple):
        if not _is_pair(source):
            raise ImageError(f"holds {len(source)} values: give the image in it, as in item[0].")
        return source[0]
    return source


def _is_pair(source: Any) -> bool:
    """Whether this is (image, label): a second image is none."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    label = source[1]
    plain = label is None or isinstance(label, int | float | Mapping)
    return plain or getattr(label, "ndim", 2) < 2


def is_single(source: Any) -> bool:
    """Whether this is one source, and not an iterable of several; arrays are told by their axes."""
    kinds = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Mapping
    if isinstance(source, kinds) or _is_pair(source):
        return True
    return hasattr(source, "read") or hasattr(source, "convert")


def as_array(source: Source) -> np.ndarray | None:
    """The source as an array where it is one of any library (NumPy, JAX, PyTorch), else None."""
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, str | bytes | Image.Image) or not hasattr(source, "__array__"):
        return None
    try:
        if hasattr(source, "detach"):  # PyTorch's, which may live on a device
            source = source.detach().cpu()
        array = np.asarray(source)
        # NumPy has no name of its own for bfloat16 and its kind.
        return array if array.dtype.kind in "buif" else array.astype(np.float32)
    except Exception as error:
        raise ImageError(
            f"an image of type {type(source).__name__} cannot be made a NumPy array "
            f"({why(error)}): convert it first."
        ) from error


@contextlib.contextmanager
def opened(
    source: Source, kind: str, page: int | None = None
) -> Iterator[Image.Image | np.ndarray]:
    """A source as an array or an open image; any failure within is one `ImageError` that names it.

    Args:
        source: see `Source`; an image is closed afterwards unless it was the source.
        kind: "image" or "mask", for messages.
        page: from 1; of a file with several pages. None is that of a `Page`, else the first.
    """
    if isinstance(source, Page):
        page = source.number if page is None else page
    name = describe(source)
    try:
        source = unwrap(source)
        array = as_array(source)
        if array is None and hasattr(source, "read") and not isinstance(source, os.PathLike):
            if hasattr(source, "seek"):
                source.seek(0)  # it may have been read before
            source = source.read()
            array = as_array(source)
        with contextlib.ExitStack() as stack:
            image: Any = source
            if array is None and not isinstance(source, Image.Image):
                file = stack.enter_context(_open(source))
                check_png(file)
                image = stack.enter_context(Image.open(file, formats=_formats()))
                if page is not None:
                    _turn_to(image, page)
            size = image.size if array is None else array.shape
            if 0 in size:
                raise ImageError(f"has zero size {size}: leave it out.")
            yield image if array is None else array
    except ImageError as error:
        raise ImageError(f"{kind} {name} {error}") from error.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{kind} {name} is too large to decode safely (Pillow's limit is {limit:.0f} million "
            f"pixels, times two): reduce it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you "
            f"trust it."
        ) from None
    except MemoryError:
        raise ImageError(f"{kind} {name} does not fit into memory: reduce it first.") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        raise ImageError(f"{kind} {name} {_damage(error)}") from error


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says that it is looked at; decodes it."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def has_pages(image: Image.Image) -> bool:
    """Whether an open image has further pages that are images of their own."""
    return image.format in _PAGED and bool(getattr(image, "is_animated", False))


def page_numbers(path: str | os.PathLike) -> tuple[int, ...]:
    """The pages of an image file, from 1; empty if it is a single image or cannot be read.

    Smaller copies of a TIFF's pages are left out, and so are the previews in a camera's JPEG.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _PAGED_SUFFIXES:
        return ()
    try:
        with _open(path) as file:
            if suffix == ".png" and not _may_move(file):
                return ()
            image = Image.open(file, formats=_formats())
            if not has_pages(image):
                return ()
            pages = []
            for index in range(image.n_frames):  # type: ignore[attr-defined]
                if image.format == "TIFF":
                    image.seek(index)
                    if int(image.tag_v2.get(_REDUCED_PAGE, 0)) & 1:  # type: ignore[attr-defined]
                        continue
                pages.append(index + 1)
            return tuple(pages) if len(pages) > 1 else ()
    except Exception:  # what is wrong with it is said when it is decoded
        return ()


def _may_move(file: IO[bytes]) -> bool:
    """Whether a PNG may be an animation, by its first chunks: data sets hold many PNGs."""
    before, data, _ = file.read(1024).partition(b"IDAT")
    file.seek(0)
    return not data or b"acTL" in before


def check_png(file: IO[bytes]) -> None:
    """Compares the checksum (CRC-32) of every chunk of a PNG; other files pass unread."""
    kind = b""
    is_png = file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    while is_png and kind != b"IEND":
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        body, end, kind = file.read(length), file.read(4), head[4:]
        if len(body) < length or len(end) < 4:
            raise ImageError("is truncated: copy or download it again.")
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(end, "big"):
            raise ImageError(
                "is damaged, because a checksum in it does not match: copy or download it again."
            )
    file.seek(0)


def _open(source: Any) -> IO[bytes]:
    """The source as a file of bytes, without ever waiting for a FIFO or a device."""
    if isinstance(source, bytes | bytearray | memoryview):
        file, size = BytesIO(source), len(source)
    elif isinstance(source, str | os.PathLike):
        path = os.path.expanduser(source)
        scheme, separator, _ = path.partition("://")
        if separator and scheme.lower() in _SCHEMES:
            raise ImageError("is a URL: download it first, and give the path of the file.")
        if os.path.isdir(path):
            raise ImageError("is a folder, not an image: name the files in it.")
        try:
            handle = os.open(path, _AT_ONCE)
        except ValueError:
            raise ImageError("has a NUL character in its name: rename it.") from None
        except OSError as error:
            raise ImageError(_system(error)) from None
        file, status = os.fdopen(handle, "rb"), os.fstat(handle)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise ImageError("is not a regular file: leave it out.")
    else:
        raise ImageError(UNREADABLE.format(type(source).__name__))
    if not size:
        file.close()
        raise ImageError("is empty (0 bytes): copy or download it again.")
    return file


def _turn_to(image: Image.Image, page: int) -> None:
    try:
        image.seek(page - 1)
    except EOFError:
        raise ImageError(f"has no page {page}: name one that it has, from 1 on.") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.preinit()
    # `Image.init` would import all of the forty.
    from PIL import (  # noqa: F401  # noqa: F401
        IcoImagePlugin,
        Jpeg2KImagePlugin,
        MpoImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    with contextlib.suppress(ImportError):  # as of Pillow 11.3
        from PIL import AvifImagePlugin  # noqa: F401
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _system(error: OSError) -> str:
    """An error of the operating system in words; one sentence."""
    known = _OPENING.get(error.errno or 0)
    return f"{known or f'cannot be read ({why(error)}): try again, or copy it elsewhere'}."


def _damage(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image that Pillow can read: convert it to PNG or JPEG."
    if isinstance(error, OSError) and error.errno:
        return _system(error)
    if "truncated" in str(error).lower():
        return "is truncated: copy or download it again."
    return f"cannot be decoded ({why(error)}): copy or download it again, or convert it to PNG."
