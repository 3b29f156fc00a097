"""The demonstration behind `make demo`: photographs that scikit-image ships, cut into objects.

    unseg-jax demo [--out demo]

Only the weights of the backbone are downloaded, once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "camera.png",
    "motorcycle_left.png",
    "retina.jpg",
    "ihc.png",
)
"""Photographs in scikit-image's own package folder, all free to use."""


def photographs() -> list[Path]:
    """The paths of `PHOTOGRAPHS` that the installed scikit-image holds."""
    from importlib.resources import files

    folder = Path(str(files("skimage"))) / "data"
    return [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]


def run(out: Path, picture: Path | None = None) -> int:
    """Segments the photographs into a folder, as `unseg-jax segment` does.

    Args:
        out: where masks, part maps, overlays, coco.json and report.html go.
        picture: also write one picture of all, a contact sheet in WebP.

    Returns:
        The exit code: 0 if all went well.
    """
    from unseg_jax.cache import enable_compilation_cache
    from unseg_jax.export.folder import Output
    from unseg_jax.terminal.segmenting import Choice, segment_paths

    enable_compilation_cache()
    choice = Choice(None, "auto", "auto", 0, 4, "auto", {})
    paths = [str(path) for path in photographs()]
    code = segment_paths(paths, out, choice, Output(("png", "coco")))
    print("for your own images: unseg-jax segment PATH...")
    if picture is not None:
        write_picture(out, picture)
        print(f"all of them in one picture: {picture}")
    return code


def write_picture(out: Path, path: Path, columns: int = 4) -> None:
    """Writes a contact sheet of the overlays and part maps of a finished demonstration."""
    import io

    from PIL import Image

    from unseg_jax.export.drawing import contact_sheet
    from unseg_jax.files import write_bytes

    stems = [Path(name).stem for name in PHOTOGRAPHS]
    stems = [stem for stem in stems if (out / f"{stem}_overlay.png").is_file()]
    pictures = []
    for start in range(0, len(stems), columns):
        row = stems[start : start + columns]
        for kind in ("overlay", "labels"):
            for stem in row:
                with Image.open(out / f"{stem}_{kind}.png") as image:
                    pictures.append(np.asarray(image.convert("RGB")))
    sheet = contact_sheet(pictures, columns, tile=(180, 240))
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=82, method=6)
    write_bytes(path, buffer.getvalue())


def main(arguments: list[str] | None = None) -> int:
    """Runs the demonstration from the command line; returns the exit code."""
    from unseg_jax.terminal.console import guarded

    parser = argparse.ArgumentParser(
        prog="unseg-jax demo",
        description="Segments the photographs that scikit-image ships.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument("--picture", type=Path, help="also write one picture of all, as WebP")
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options.out, options.picture))


if __name__ == "__main__":
    sys.exit(main())
