"""Makes the pictures of the method pages and of the gallery anew.

    python -m benchmarks pictures            # docs/images/{methods,gallery}, segment.webp
    python -m benchmarks pictures --check    # fails if what decides masks has changed since

Nothing is chosen: each picture shows what one call returns, whatever that is. pictures.json beside
them holds how well the masks fit outlines drawn by hand, and a hash of what decides the masks
(sources without comments, methods, weights), which a test compares with that of the working tree.
"""

import argparse
import ast
import hashlib
import io
import json
import platform
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageOps

from benchmarks.measure.common import ROOT
from unseg_jax.backbones.focus import TENSORS_SHA256
from unseg_jax.collective.shipped import SHIPPED_SHA256
from unseg_jax.registry import METHODS

IMAGES = ROOT / "docs" / "images"
RECORD = IMAGES / "pictures.json"
BACKBONE, STRIDE = "dinov2_vits14_focus", 14
"""As in the scores that the pages of methods show; `collective` has its own stride."""
FOUR = {
    "astronaut.png": "183,35 200,20 232,15 262,20 290,45 301,85 295,115 272,135 257,165 290,190 "
    "304,235 330,250 345,275 358,325 362,350 400,343 440,352 475,385 497,440 512,480 512,512 "
    "45,512 25,490 18,400 40,300 55,265 110,215 118,180 140,155 175,148 182,132 170,118 155,98 "
    "153,70 165,50",
    "chelsea.png": "40,0 398,0 375,40 357,75 362,120 355,165 335,195 312,225 314,255 300,280 "
    "305,300 0,300 0,128 10,125 30,110 32,40",
    "coffee.png": "175,75 185,50 215,30 255,20 300,18 345,27 380,47 397,70 410,66 424,72 423,88 "
    "415,108 445,140 470,185 479,230 468,290 440,330 400,360 350,380 290,389 230,378 170,350 "
    "120,310 90,270 76,220 80,170 100,130 140,93",
    "rocket.jpg": "311,148 316,132 323,127 330,132 334,148 335,250 333,405 310,405 310,250",
}
"""The photographs of every method, and outlines of astronaut, cat, cup with saucer, and rocket."""
THREE = ("coffee.png", "chelsea.png", "motorcycle_left.png")
LARGEST = 40_000

GALLERY = {
    "things": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
    "scenes": ("camera.png", "motorcycle_right.png", "clock_motion.png", "moon.png"),
    "many": ("coins.png", "circles", "touching", "hubble_deep_field.jpg"),
    "microscopy": ("ihc.png", "cell.png", "retina.jpg", "microaneurysms.png"),
    "flat": ("page.png", "text.png", "horse.png", "chessboard_GRAY.png"),
    "texture": ("brick.png", "grass.png", "gravel.png", "noise"),
}
"""Kind → photographs of scikit-image, and drawings of `draw`."""

_SOURCES = ("clustering", "collective", "postprocess", "pipeline.py", "export/drawing.py")


def inputs_digest() -> str:
    """SHA-256 of what decides the masks and how they are drawn."""
    digest = hashlib.sha256(f"{METHODS} {TENSORS_SHA256} {SHIPPED_SHA256}".encode())
    folder = ROOT / "unseg_jax"
    found = [path for name in _SOURCES for path in [folder / name, *(folder / name).rglob("*.py")]]
    for path in sorted({*found, Path(__file__)}):
        if path.is_file():
            digest.update(code_of(path.read_text()).encode())
    return digest.hexdigest()


def _python() -> str:
    """The version on which the text of parsed code depends."""
    return ".".join(platform.python_version_tuple()[:2])


def code_of(source: str) -> str:
    """The source without comments, docstrings and layout, which change no mask."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not _is_string(one)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_string(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def draw(name: str) -> np.ndarray:
    """One of the drawn pictures: apart, touching, or nothing at all."""
    if name == "noise":
        return np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    picture = Image.new("RGB", (640, 480), (205, 200, 190))
    pen = ImageDraw.Draw(picture)
    distance = 140 if name == "circles" else 84
    for row in range(3):
        for column in range(3):
            x, y = 320 + (column - 1) * distance, 240 + (row - 1) * distance
            pen.ellipse((x - 44, y - 44, x + 44, y + 44), (150, 50 + 30 * row, 40 + 40 * column))
    return np.asarray(picture)


def read(name: str) -> np.ndarray:
    path = Path(skimage.__file__).parent / "data" / name
    if not path.suffix:
        return draw(name)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def truth(name: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: within the outline that was drawn by hand on a photograph of `FOUR`."""
    points = [tuple(map(int, point.split(","))) for point in FOUR[name].split()]
    picture = Image.new("1", size[::-1])
    ImageDraw.Draw(picture).polygon(points, fill=1)
    return np.asarray(picture)


def save(overlays: list[np.ndarray], path: Path, tile: tuple[int, int], columns: int) -> None:
    """One WebP of all on a clear ground, at the highest quality that keeps it small."""
    gap, (width, height) = 6, tile
    rows = -(-len(overlays) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGBA", size)
    for index, pixels in enumerate(overlays):
        picture = ImageOps.contain(Image.fromarray(pixels), tile)
        left, top = index % columns * (width + gap), index // columns * (height + gap)
        sheet.paste(picture, (left + (width - picture.width) // 2, top))
    path.parent.mkdir(exist_ok=True)
    for quality in range(82, 20, -6):
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= LARGEST:
            break
    path.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="draw nothing; fail if stale")
    options = parser.parse_args()
    if options.check:
        record = json.loads(RECORD.read_text())
        if record["python"] != _python():
            print(f"Python {record['python']} made the hash; it cannot be compared here.")
        elif record["inputs"] != inputs_digest():
            raise SystemExit("the pictures are out of date; run python -m benchmarks pictures.")
        return

    import unseg_jax as us
    from unseg_jax.cache import enable_compilation_cache
    from unseg_jax.metrics import iou

    enable_compilation_cache()
    backbone = us.load_backbone(BACKBONE, dtype="float32")

    def found(names, method="auto", **settings):
        return us.segment([read(name) for name in names], method, backbone=backbone, **settings)

    ious = {}
    for name, method in METHODS.items():
        print(name, flush=True)
        own = name == "collective" or method.nodes != "patches"
        results = found(FOUR, name, **({} if own else {"stride": STRIDE}))
        ious[name] = {
            Path(file).stem: round(float(iou(one.mask, truth(file, one.size))), 3)
            for file, one in zip(FOUR, results, strict=True)
        }
        pictures = [one.overlay() for one in results]
        save(pictures, IMAGES / "methods" / f"{name}.webp", (320, 213), 2)
    for kind, names in GALLERY.items():
        print(kind, flush=True)
        pictures = [one.overlay() for one in found(names)]
        save(pictures, IMAGES / "gallery" / f"{kind}.webp", (320, 213), 2)
    save([one.overlay() for one in found(THREE)], IMAGES / "segment.webp", (320, 240), 3)
    record = {"python": _python(), "inputs": inputs_digest(), "ious": ious}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
