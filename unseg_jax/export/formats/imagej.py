"""ImageJ and Fiji: a zip of ROIs, opened by the ROI Manager."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unseg_jax.export.formats.polygons import outlines

SUFFIXES = ("_rois.zip",)


def check() -> None:
    """Raises ImportError without the package roifile."""
    try:
        import roifile  # noqa: F401
    except ImportError:
        raise ImportError(
            'the format imagej needs the package roifile: pip install "unseg_jax[imagej]".'
        ) from None


def encode(found: Any) -> dict[str, bytes]:
    """Suffix → zip of a `Segmentation`: a polygon for each object, named by number and score; a
    composite selection where the object has holes."""

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, item in enumerate(found.objects, 1):
            name = f"{number:04d}-{item.score:.2f}"
            _add(archive, f"{name}.roi", _roi(outlines(item), name))
    return {SUFFIXES[0]: buffer.getvalue()}


def with_kinds(content: bytes, objects: Sequence[Mapping[str, Any]]) -> bytes:
    """The zip that `encode` gave, with the kinds of the objects as groups of ROIs."""
    from roifile import ImagejRoi

    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, item in zip(old.namelist(), objects, strict=True):
            roi = ImagejRoi.frombytes(old.read(name))
            roi.group = item["kind"]
            _add(archive, name, roi)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, roi: Any) -> None:
    entry = zipfile.ZipInfo(name)  # no time, so that equal runs give equal files
    archive.writestr(entry, roi.tobytes())


def _roi(rings: list[np.ndarray], name: str) -> Any:
    from roifile import ROI_TYPE, ImagejRoi

    outer = rings[0][:-1]
    if len(rings) == 1:
        return ImagejRoi.frompoints(outer, name=name)
    # A path of (0, x, y) to begin a ring, (1, x, y) to go on, and 4 to close it.
    path: list[float] = []
    for ring in rings:
        steps = np.insert(ring[:-1], 0, 1, axis=1)
        steps[0, 0] = 0
        path += [*steps.ravel().tolist(), 4]
    (left, top), (right, bottom) = outer.min(0).tolist(), outer.max(0).tolist()
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        name=name,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        shape_roi_size=len(path),
        multi_coordinates=np.array(path, np.float32),
    )
