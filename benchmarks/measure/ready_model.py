"""Fits the model that ships with the library, on photographs that scikit-image ships.

    python -m benchmarks ready_model

It writes unseg_jax/collective/shipped.safetensors and prints the hash that
unseg_jax/collective/shipped.py records. The photographs are free to use; no mask is read.
"""

import dataclasses
import hashlib
from pathlib import Path

import skimage

from unseg_jax.collective.fitting import fit
from unseg_jax.collective.shipped import SHIPPED_MODEL
from unseg_jax.registry import resolve

PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


def main() -> None:
    folder = Path(skimage.__file__).parent / "data"
    # Squares of eleven photographs say as much, and what is unlike them was measured with these.
    images = [folder / name for name in PHOTOGRAPHS]
    model = fit(images, method="collective", steps=0, resize="stretch")
    if model.skipped:
        raise SystemExit("; ".join(model.skipped))
    dataclasses.replace(model, method=resolve("collective")).save(SHIPPED_MODEL)
    content = SHIPPED_MODEL.read_bytes()
    print(f"{SHIPPED_MODEL.name}: {len(content)} bytes, {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
