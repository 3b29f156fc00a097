"""The demonstration behind `make demo`: photographs that scikit-image ships, cut into objects.

    unseg-jax demo [--out demo]

It downloads the weights of the backbone once, and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from unseg_jax.terminal.shared_options import expand_home, run_alone

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


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=expand_home, help="Folder for the results.")
    ] = Path("demo"),
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", callback=expand_home, help="Also write a contact sheet to this WebP file."
        ),
    ] = None,
) -> None:
    """Segment the photographs that ship with scikit-image."""
    from unseg_jax.cache import enable_compilation_cache
    from unseg_jax.terminal.segment_command import Segment, segment_images

    enable_compilation_cache()
    paths = [str(path) for path in photographs()]
    code = segment_images(Segment(paths=paths, out=out, formats=["png", "coco"], batch_size=4))
    print("for your own images: unseg-jax segment PATH...")
    if picture is not None:
        write_picture(out, picture)
        print(f"all of them in one picture: {picture}")
    raise typer.Exit(code)


def write_picture(out: Path, path: Path, columns: int = 4) -> None:
    """Writes a contact sheet of the overlays and part maps of a finished demonstration."""
    import io

    import numpy as np
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


if __name__ == "__main__":
    sys.exit(run_alone(demo, "python -m unseg_jax.demo"))
