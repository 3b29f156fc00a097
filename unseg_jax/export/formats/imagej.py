"""ImageJ and Fiji: a zip of ROIs, opened by the ROI Manager."""

import io
import zipfile
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
            roi = _roi(outlines(item), name)
            entry = zipfile.ZipInfo(f"{name}.roi")  # no time, so that equal runs give equal files
            archive.writestr(entry, roi.tobytes())
    return {SUFFIXES[0]: buffer.getvalue()}


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
