"""The size of a pixel, from files that other programs write."""

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data.pixel_size import pixel_size

PIXELS = np.zeros((8, 9), np.uint8)


def test_microscopes_and_imagej(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.ome.tif"
    metadata = {"PhysicalSizeX": 325, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.65}
    tifffile.imwrite(path, PIXELS, ome=True, metadata=metadata)
    assert pixel_size(path) == pytest.approx((0.325, 0.65))
    path = tmp_path / "b.tif"
    options = {"imagej": True, "resolution": (4, 2)}
    tifffile.imwrite(path, PIXELS, metadata={"unit": "micron"}, **options)
    assert pixel_size(path) == pytest.approx((0.25, 0.5))
    tifffile.imwrite(path, PIXELS, metadata={"unit": "pixel"}, **options)
    assert pixel_size(path) is None


def test_a_resolution_per_centimetre_counts_and_one_per_inch_does_not(tmp_path):
    path = tmp_path / "a.tif"
    image = Image.fromarray(PIXELS)
    image.save(path, resolution_unit="cm", x_resolution=5000, y_resolution=2500)
    assert pixel_size(path) == pytest.approx((2, 4))
    image.save(path, resolution_unit="inch", x_resolution=72, y_resolution=72)
    assert pixel_size(path) is None
    for description in (
        "<OME this is no XML",
        '<!DOCTYPE a [<!ENTITY b "c">]><OME>&b;</OME>',
        '<OME xmlns="x"><Image><Pixels PhysicalSizeX="-1" PhysicalSizeY="1"/></Image></OME>',
        '<OME xmlns="x"><Image><Pixels SizeX="9"/></Image></OME>',
    ):
        image.save(path, description=description)
        assert pixel_size(path) is None
    image.save(tmp_path / "a.png", dpi=(300, 300))
    (tmp_path / "text.tif").write_text("no TIFF")
    for name in ("a.png", "missing.tif", "text.tif"):
        assert pixel_size(tmp_path / name) is None
