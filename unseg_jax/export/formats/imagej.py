"""ImageJ and Fiji: a zip of ROIs, opened by the ROI Manager."""

import io
import zipfile
from typing import Any

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
    """Suffix → zip of a `Segmentation`: a polygon for each object, named by number and score.

    A hole is not in it: an ImageJ polygon has one ring.
    """
    from roifile import ImagejRoi

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, item in enumerate(found.objects, 1):
            name = f"{number:04d}-{item.score:.2f}"
            roi = ImagejRoi.frompoints(outlines(item)[0][:-1].round(2), name=name)
            entry = zipfile.ZipInfo(f"{name}.roi")  # no time, so that equal runs give equal files
            archive.writestr(entry, roi.tobytes())
    return {SUFFIXES[0]: buffer.getvalue()}
