"""Moving pictures in and out: animated images and folders with Pillow, films with PyAV."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageSequence

from unseg_jax.data.decoding import Source, load_image
from unseg_jax.data.folders import IMAGE_SUFFIXES, list_images
from unseg_jax.errors import ImageError, InputError
from unseg_jax.files import atomic, write_png

if TYPE_CHECKING:
    from jaxtyping import UInt8

DEFAULT_RATE = 10.0
"""Frames a second where a source does not say."""

ANIMATIONS = (".gif", ".webp", ".apng")
"""Suffixes of the animated images that Pillow writes."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames that can be gone through more than once, decoded one at a time.

    Attributes:
        open: starts again from the first frame; gives (H, W, 3) uint8.
        rate: frames a second.
    """

    open: Callable[[], Iterator[UInt8[np.ndarray, "h w 3"]]]
    rate: float = DEFAULT_RATE

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        return self.open()


def open_frames(source: str | os.PathLike | Iterable[Source]) -> Frames:
    """Frames from a path or from images.

    Args:
        source: a folder of frames, in the order of the numbers in their names; an animated image
            (GIF, WebP, PNG, TIFF); any other file is opened as a film, with the extra `video`;
            or an iterable of images.

    Raises:
        ImageError: nothing is there, or it cannot be decoded (also later, while iterating).
        ImportError: a film, without the extra `video`.
    """
    if not isinstance(source, (str, os.PathLike)):
        return Frames(_decode_each(list(source)))
    path = Path(source)
    if path.is_dir():
        files = sorted(list_images(path).files, key=_by_number)
        if not files:
            raise ImageError(f"folder {path} holds no images: name a folder of frames or a film.")
        return Frames(_decode_each(files))
    if not path.exists():
        raise ImageError(f"film {path} was not found: check the path.")
    if path.suffix.lower() in (*IMAGE_SUFFIXES, *ANIMATIONS):
        return _open_animation(path)
    return _open_film(path)


def check_target(
    source: str | os.PathLike | Iterable[Source], out: str | os.PathLike, *, overwrite: bool = False
) -> None:
    """Refuses to write frames over their source, also through links, or over what is there.

    Args:
        source: as `open_frames` takes it.
        out: as `write_frames` takes it.
        overwrite: whether a file, or the frames in a folder, may be replaced.

    Raises:
        InputError: they are the same file or folder, or a frame lies where one will be written;
            `out` is there and is not to be replaced, or is a folder that holds something else.
    """
    target = Path(out)
    paths = [source] if isinstance(source, (str, os.PathLike)) else _paths_in(source)
    for path in paths:
        if _same(path, target) or _same(Path(path).parent, target):
            raise InputError(
                f"{target} is the source itself: choose another path for the result with out=."
            )
    there = any(target.iterdir()) if target.is_dir() else os.path.lexists(target)
    if there and not overwrite:
        raise InputError(
            f"{target} is there already: choose another path with out=, or overwrite=True "
            "to replace it."
        )
    if not target.suffix and target.is_dir():
        foreign = [path.name for path in target.iterdir() if not _FRAME.fullmatch(path.name)]
        if foreign:
            raise InputError(
                f"{target} holds other files, such as {min(foreign)}: choose a new folder for the "
                "frames with out=."
            )


_FRAME = re.compile(r"\d{5,}\.png")


def _paths_in(source: Any) -> list:
    """Paths among images given as a list; an iterator is not touched."""
    images = source if isinstance(source, (list, tuple)) else []
    return [image for image in images if isinstance(image, (str, os.PathLike))]


def _same(path: str | os.PathLike, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return False


def write_frames(
    path: str | os.PathLike, frames: Iterable[UInt8[np.ndarray, "h w 3"]], rate: float
) -> None:
    """Writes frames as an animated image, a film, or a folder of PNG files, by the suffix.

    Args:
        path: ending in .gif, .webp or .apng, in another suffix for a film (extra `video`), or
            without suffix for a folder of 00000.png, 00001.png, …, from which frames with higher
            numbers are removed.
        frames: all of one size, unless a folder is written; they are taken one at a time.
        rate: frames a second.

    Raises:
        ValueError: no frames, or frames of several sizes.
        WriteError: the operating system refused.
        ImportError: a film, without the extra `video`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not suffix:
        count = 0
        for count, frame in enumerate(frames, 1):
            write_png(path / f"{count - 1:05d}.png", frame)
        _remove_frames_from(path, count)
        return
    frames = _of_one_size(frames)
    with atomic(path) as partial:
        if suffix in ANIMATIONS:
            pictures = (Image.fromarray(frame) for frame in frames)
            kind = "PNG" if suffix == ".apng" else suffix[1:].upper()
            next(pictures).save(
                partial,
                format=kind,
                save_all=True,
                # Pillow goes through the frames of a GIF once, but through others twice.
                append_images=pictures if kind == "GIF" else list(pictures),
                duration=round(1000 / rate),
                loop=0,
            )
        else:
            _write_film(partial, frames, rate)


def _remove_frames_from(folder: Path, count: int) -> None:
    """Removes frames of an earlier, longer film, which `check_target` allowed to be replaced."""
    for path in folder.iterdir() if count else ():
        if _FRAME.fullmatch(path.name) and int(path.stem) >= count:
            path.unlink()


def _decode_each(images: list) -> Callable[[], Iterator[np.ndarray]]:
    """Decodes the images of a list in turn, each time that it is called."""
    return lambda: (load_image(image) for image in images)


def _by_number(path: Path) -> list:
    """Sorts frame9 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _open_animation(path: Path) -> Frames:
    def decode() -> Iterator[np.ndarray]:
        try:
            with Image.open(path) as animation:
                for frame in ImageSequence.Iterator(animation):
                    yield load_image(frame.copy())
        except (OSError, EOFError, SyntaxError) as error:
            raise ImageError(
                f"film {path} cannot be decoded: copy or download it again."
            ) from error

    durations = []
    try:
        with Image.open(path) as animation:
            for frame in ImageSequence.Iterator(animation):
                frame.load()
                durations.append(frame.info.get("duration", 0))
    except (OSError, EOFError, SyntaxError) as error:
        raise ImageError(f"film {path} cannot be decoded: copy or download it again.") from error
    total = sum(durations)
    return Frames(decode, 1000 * len(durations) / total if total else DEFAULT_RATE)


def _open_film(path: Path) -> Frames:
    imageio = _imageio()
    with _decoding(path):
        rate = imageio.immeta(path, plugin="pyav").get("fps") or DEFAULT_RATE
        turns = _quarter_turns(path)

    def decode() -> Iterator[np.ndarray]:
        with _decoding(path):
            for frame in imageio.imiter(path, plugin="pyav"):
                yield load_image(np.ascontiguousarray(np.rot90(frame, turns)))

    return Frames(decode, float(rate))


def _quarter_turns(path: Path) -> int:
    """How often to turn a film's frames by 90 degrees, counter-clockwise, to have them upright.

    Phones store films as the sensor lies, with a display matrix that says how they were held.
    """
    import av

    with av.open(str(path)) as film:
        first = next(film.decode(video=0), None)
    return round((first.rotation if first is not None else 0) / 90)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ImageError(
            f"film {path} cannot be decoded: convert it to MP4, or copy it again."
        ) from error


def _write_film(path: Path, frames: Iterable[np.ndarray], rate: float) -> None:
    imageio = _imageio()
    with imageio.imopen(path, "w", plugin="pyav") as film:
        codec = "libvpx-vp9" if path.suffix.lower() == ".webm" else "libx264"
        film.init_video_stream(codec, fps=round(rate) if rate >= 1 else 1)
        for frame in frames:
            # The usual chroma subsampling needs even sides.
            height, width = frame.shape[:2]
            film.write_frame(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge"))


def _of_one_size(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, after a look at the first; raises where one differs from it in size."""
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("there are no frames to write: name a source that holds some.")

    def checked() -> Iterator[np.ndarray]:
        for index, frame in enumerate(itertools.chain([first], iterator)):
            if frame.shape != first.shape:
                raise ValueError(
                    f"frame {index} has shape {frame.shape}, the first {first.shape}: "
                    "write to a folder, or resize the frames."
                )
            yield frame

    return checked()


def _imageio() -> Any:
    try:
        import av  # noqa: F401
        import imageio.v3
    except ImportError as error:
        raise ImportError(
            "films need the extra 'video': "
            'pip install "unseg_jax[video]", or use an animated '
            "GIF or WebP, or a folder of frames."
        ) from error
    return imageio.v3
