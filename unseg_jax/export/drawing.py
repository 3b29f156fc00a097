"""Pictures of masks and parts: colours, overlays, boxes and contact sheets.

Pictures are RGB uint8 (H, W, 3); labels are integers (H, W), 0 = background; boxes are (left,
top, right, bottom), right and bottom exclusive.
"""

import colorsys
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unseg_jax.export.coco import coco_annotations
from unseg_jax.files import write_json, write_png, write_text

__all__ = [
    "coco_annotations",
    "colour_labels",
    "contact_sheet",
    "draw_box",
    "overlay",
    "palette",
    "write_json",
    "write_labels",
    "write_png",
    "write_text",
]

# Okabe and Ito's colours for the colour-blind, then those of Tol's "muted" that stand apart.
# Blue comes first: few objects, and neither skin nor tissue, have that colour.
_CHOSEN = (
    (86, 180, 233),
    (230, 159, 0),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (136, 34, 85),
    (153, 153, 51),
    (51, 34, 136),
    (170, 220, 190),
    (120, 80, 40),
)
_GOLDEN = 0.6180339887498949
# Lightness and saturation of the further colours in turn, so that neighbours in hue differ.
_TONES = ((0.75, 0.55), (0.35, 0.75), (0.6, 0.9), (0.85, 0.4), (0.25, 0.6))


def palette(count: int) -> np.ndarray:
    """Colours of the labels 0..count−1; a label's colour does not depend on `count`.

    The background is black. The first twelve parts can be told apart with any of the common
    kinds of colour blindness; further ones take hues by the golden ratio.

    Returns:
        (count, 3) uint8.
    """
    colours = [(0, 0, 0), *_CHOSEN]
    for index in range(max(0, count - len(colours))):
        lightness, saturation = _TONES[index % len(_TONES)]
        red, green, blue = colorsys.hls_to_rgb((index * _GOLDEN) % 1, lightness, saturation)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(colours[:count], np.uint8).reshape(count, 3)


def _as_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not (labels.dtype == bool or np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype} cannot be drawn; "
            "pass integers or bools of shape (H, W)."
        )
    return labels.astype(np.int32)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Labels or a mask (H, W) as a picture (H, W, 3) uint8 in the colours of `palette`."""
    labels = _as_labels(labels)
    return palette(int(labels.max(initial=0)) + 1)[labels]


def write_labels(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Writes labels (H, W) as a PNG that holds the labels themselves and shows their colours.

    With more than 256 labels only the colours are written. Raises `WriteError`.
    """
    labels = _as_labels(labels)
    count = int(labels.max(initial=0)) + 1
    if count > 256:
        write_png(path, colour_labels(labels))
    else:
        write_png(path, labels, palette(count))


def _as_picture(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"an image of shape {image.shape} and type {image.dtype} cannot be drawn on; "
            "pass uint8 of shape (H, W, 3) or (H, W)."
        )
    return image


def overlay(
    image: np.ndarray, labels: np.ndarray, alpha: float = 0.45, *, contour: bool = True
) -> np.ndarray:
    """Tints the foreground of an image in the colours of its labels.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        labels: (H, W) integers, or a bool mask.
        alpha: how much of the tint, 0 to 1; the background is left as it is.
        contour: whether to draw the edges of the labels, in their colour within a light line
            that shows on dark images.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: sizes that differ, or an image or labels of another kind.
    """
    image, labels = _as_picture(image), _as_labels(labels)
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f"labels of {labels.shape} do not lie on an image of {image.shape[:2]}; resize them."
        )
    colours = palette(int(labels.max(initial=0)) + 1)[labels].astype(np.float32)
    tinted = image + np.float32(alpha) * (colours - image)
    result = np.where(labels[..., None] > 0, np.rint(tinted), image).astype(np.uint8)
    if contour:
        width = max(1, round(max(labels.shape) / 320))
        inside, outside = _edges(labels, width)
        result[outside] = 255
        result[inside] = colours[inside].astype(np.uint8)
    return result


def _edges(labels: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the foreground up to `width` from another label, and background ones up to
    half of that from the foreground."""

    def near(reach: int) -> np.ndarray:
        found = np.zeros(labels.shape, bool)
        for step in range(1, reach + 1):
            differs = labels[step:] != labels[:-step]
            found[step:] |= differs
            found[:-step] |= differs
            differs = labels[:, step:] != labels[:, :-step]
            found[:, step:] |= differs
            found[:, :-step] |= differs
        return found

    return near(width) & (labels > 0), near((width + 1) // 2) & (labels == 0)


def draw_box(
    image: np.ndarray,
    box: Sequence[int] | None,
    colour: Sequence[int] = (255, 255, 255),
    width: int | None = None,
) -> np.ndarray:
    """Draws a frame just within a box; a dark line on both sides makes it show everywhere.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        box: (left, top, right, bottom), or None to draw nothing.
        colour: RGB.
        width: of the line, in pixels; None takes 1/240 of the longer side, at least 2.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    picture = Image.fromarray(_as_picture(image).copy())
    if box is not None:
        left, top, right, bottom = (int(side) for side in box)
        width = width or max(2, round(max(picture.size) / 240))
        draw = ImageDraw.Draw(picture)
        inner = tuple(int(channel) for channel in colour)
        # Pillow's rectangle includes its last pixel, and refuses an end before the start.
        for inset, line, ink in ((0, width + 2, (0, 0, 0)), (1, width, inner)):
            first = (left + inset, top + inset)
            last = (right - 1 - inset, bottom - 1 - inset)
            if last[0] >= first[0] and last[1] >= first[1]:
                draw.rectangle((first, last), outline=ink, width=line)
    return np.array(picture)


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    *,
    tile: tuple[int, int] = (240, 320),
    captions: Sequence[str] | None = None,
    gap: int = 6,
) -> np.ndarray:
    """Sets pictures in rows, each fitted into a tile of one size.

    Args:
        images: uint8 (H, W, 3) or (H, W), or bool masks, of any sizes.
        columns: pictures a row.
        tile: (height, width) in pixels.
        captions: one line of text under each picture; too long a line is cut.
        gap: pixels between tiles.

    Returns:
        (rows·(height + gap) + gap, columns·(width + gap) + gap, 3) uint8 on white; captions add
        16 pixels a row.

    Raises:
        ValueError: no columns, or captions of another number than the pictures.
    """
    if columns < 1:
        raise ValueError(f"a contact sheet needs at least 1 column, not {columns}.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(
            f"{len(captions)} captions do not fit {len(images)} pictures; pass one for each."
        )
    height, width = tile
    line = 16 if captions is not None else 0
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for index, image in enumerate(images):
        image = np.asarray(image)
        if image.dtype == bool:
            image = image.astype(np.uint8) * np.uint8(255)
        picture = Image.fromarray(_as_picture(image))
        scale = min(width / picture.width, height / picture.height)
        fitted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(fitted, Image.Resampling.LANCZOS)
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + row * (height + line + gap)
        sheet.paste(picture, (left + (width - fitted[0]) // 2, top + (height - fitted[1]) // 2))
        if captions is not None:
            text = captions[index]
            while text and draw.textlength(text, font=font) > width:
                text = text[:-1]
            draw.text((left + 2, top + height + 1), text, fill=(40, 40, 40), font=font)
    return np.array(sheet)
