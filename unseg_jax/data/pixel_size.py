"""How large a pixel is, from the tags of a microscope's TIFF."""

from __future__ import annotations

import os
import re
from xml.etree import ElementTree

from PIL import Image

RESOLUTION_X, RESOLUTION_Y, UNIT, DESCRIPTION = 282, 283, 296, 270
# Micrometres in the units that TIFF, ImageJ and OME write.
_MICROMETRES = {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_MICROMETRES |= dict.fromkeys(("µm", "μm", "um", "micron", "microns", "\\u00b5m"), 1.0)


def parse_pixel_size(size: float | str) -> tuple[float, float]:
    """Width and height of a pixel in micrometres, as a user gives them.

    Args:
        size: of a side: a number of micrometres, or a string with a unit, such as "0.32um",
            "0.32 um/px", "320nm" or "0.00032 mm".

    Raises:
        ValueError: anything else.

    >>> parse_pixel_size("500 nm/px")
    (0.5, 0.5)
    """
    found = re.fullmatch(r"\s*([-+.\deE]+)\s*([^\W\d]*)(?:/px)?\s*", str(size))
    try:
        side = float(found[1]) * _MICROMETRES[found[2] or "um"] if found else 0.0
    except (KeyError, ValueError):
        side = 0.0
    if not 0 < side < float("inf"):
        raise ValueError(
            f"pixel_size='{size}' is no size: give a number and a unit, such as 0.32um or 320nm."
        )
    return side, side


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
    description = str(tags.get(DESCRIPTION, ""))
    if "<OME" in description:
        return _from_ome(description)
    try:
        across, down = float(tags[RESOLUTION_X]), float(tags[RESOLUTION_Y])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not (across > 0 and down > 0):
        return None
    unit = re.search(r"^unit=(.+)$", description, re.MULTILINE)
    if description.startswith("ImageJ") and unit:
        micrometres = _MICROMETRES.get(unit[1].strip())
    else:
        micrometres = _MICROMETRES["cm"] if tags.get(UNIT) == 3 else None
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
