"""How large a pixel is, from the tags of a microscope's TIFF."""

from __future__ import annotations

import os
import re
from xml.etree import ElementTree

from PIL import Image

_RESOLUTION_X, _RESOLUTION_Y, _UNIT, _DESCRIPTION = 282, 283, 296, 270
# Micrometres in the units that TIFF, ImageJ and OME write.
_CENTIMETRE = 10_000.0
_MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "\\u00b5m"), 1.0),
    "nm": 1e-3,
    "mm": 1e3,
    "cm": _CENTIMETRE,
    "m": 1e6,
}


def pixel_size(path: str | os.PathLike) -> tuple[float, float] | None:
    """Width and height of a pixel in micrometres; None where the file does not say.

    Read are OME-XML (PhysicalSizeX), ImageJ's description ("unit=micron" with the resolution),
    and a resolution per centimetre. One per inch is not: cameras write 72 for no reason.
    """
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            tags = dict(image.tag_v2)  # type: ignore[attr-defined]
    except (OSError, SyntaxError, ValueError):
        return None
    description = str(tags.get(_DESCRIPTION, ""))
    if "<OME" in description:
        return _from_ome(description)
    try:
        across, down = float(tags[_RESOLUTION_X]), float(tags[_RESOLUTION_Y])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not (across > 0 and down > 0):
        return None
    unit = re.search(r"^unit=(.+)$", description, re.MULTILINE)
    if description.startswith("ImageJ") and unit:
        micrometres = _MICROMETRES.get(unit[1].strip())
    else:
        micrometres = _CENTIMETRE if tags.get(_UNIT) == 3 else None
    return None if micrometres is None else (micrometres / across, micrometres / down)


def _from_ome(description: str) -> tuple[float, float] | None:
    # An entity could expand without end; OME-XML has none.
    if "<!" in description.replace("<!--", ""):
        return None
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return None
    pixels = next((item for item in root.iter() if item.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    sides = []
    for axis in "XY":
        micrometres = _MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            side = float(pixels.get(f"PhysicalSize{axis}", "")) * (micrometres or 0)
        except ValueError:
            return None
        if not side > 0:
            return None
        sides.append(side)
    return sides[0], sides[1]
