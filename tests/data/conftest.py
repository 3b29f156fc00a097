"""Small images in files and in memory."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def draw(path: Path, *values: int) -> Path:
    """A file with a page of one grey level for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in values or (255,)]
    several = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(path, **several)
    return path


def put(folder: Path, *names: str) -> None:
    """White images by these names."""
    for name in names:
        draw(folder / name)
