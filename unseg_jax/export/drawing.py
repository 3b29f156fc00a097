"""Pictures of masks and parts: colours, overlays, boxes and contact sheets.

Pictures are RGB uint8 (H, W, 3); labels are integers (H, W), 0 = background; boxes are (left,
top, right, bottom), right and bottom exclusive.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unseg_jax.data.decoding import resize_image
from unseg_jax.files import encode_png

WORKING_SIDE = 1600
"""Pixels on the longer side that an image is kept and drawn at, unless all of it is asked for."""

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
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Labels or a mask (H, W) as a picture (H, W, 3) uint8 in the colours of `palette`."""
    labels = _as_labels(labels)
    return palette(int(labels.max(initial=0)) + 1)[labels]


def encode_labels(labels: np.ndarray) -> bytes:
    """Labels (H, W) as a PNG that holds the labels themselves and shows their colours.

    With more than 256 labels only the colours are written.
    """
    labels = _as_labels(labels)
    count = int(labels.max(initial=0)) + 1
    if count > 256:
        return encode_png(colour_labels(labels))
    return encode_png(labels, palette(count))


def shrink_image(pixels: np.ndarray, side: int = WORKING_SIDE) -> np.ndarray:
    """(h, w, 3) uint8 with at most `side` pixels on the longer side; unchanged if it fits."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    return resize_image(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))


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
    image: np.ndarray,
    labels: np.ndarray,
    tint: float | None = None,
    *,
    dim: float = 0.55,
    contour: bool = True,
    colours: np.ndarray | None = None,
) -> np.ndarray:
    """Shows what was found in an image: the background dimmed, every label outlined.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        labels: (H, W) integers, or a bool mask.
        tint: how much of the labels' colours the foreground takes, 0 to 1; None is 0 for one
            label and 0.35 for several.
        dim: how much darker the background is, 0 (as it is) to 1 (black); without foreground
            nothing is dimmed.
        contour: whether to draw the edges of the labels: a line in their colour, within a white
            one where the background begins.
        colours: (labels, 3) uint8; None takes those of `palette`.

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
    count = int(labels.max(initial=0)) + 1
    if count == 1:
        return image.copy()
    foreground, colours = labels > 0, palette(count) if colours is None else colours
    tint = (0.0 if count == 2 else 0.35) if tint is None else tint
    # Pillow mixes whole images several times faster than NumPy.
    picture = Image.fromarray(image)
    if tint:
        picture = Image.blend(picture, Image.fromarray(colours[labels]), tint)
    darker = Image.fromarray(image).point([round((1 - dim) * level) for level in range(256)] * 3)
    result = np.array(Image.composite(picture, darker, Image.fromarray(foreground)))
    if contour:
        inside, outside = _edges(labels, foreground, max(1, round(max(labels.shape) / 320)))
        result[outside] = 255
        result[inside] = colours[labels[inside]]
    return result


def _edges(labels: np.ndarray, foreground: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the foreground up to `width` from another label, and background ones as near to
    the foreground."""
    from scipy.ndimage import maximum_filter

    edge = boundaries(labels)
    near = maximum_filter(edge, 2 * width - 1) if width > 1 else edge
    return near & foreground, near & ~foreground


def boundaries(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: where labels (H, W) differ from one of the four neighbours."""
    edge = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    for side, differs in (
        (edge[1:], down),
        (edge[:-1], down),
        (edge[:, 1:], across),
        (edge[:, :-1], across),
    ):
        side |= differs
    return edge


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
