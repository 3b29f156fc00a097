"""Polygons of every format: valid by OGC, and the mask when they are filled, pixel for pixel."""

import io
import json
import zipfile

import numpy as np
import pytest
from scipy import ndimage
from shapely.geometry import Polygon
from skimage.draw import polygon2mask

import unseg_jax as us
from unseg_jax.export.formats import coco, geojson, imagej, label_studio, record_of, yolo
from unseg_jax.export.formats.polygons import outlines, single_ring
from unseg_jax.postprocess import Object

from .conftest import FROM_PYCOCOTOOLS, whole


def speckle(rng, y, x):
    return rng.random(y.shape) < rng.uniform(0.4, 0.95)


def necks(rng, y, x):
    blobs = ndimage.gaussian_filter(rng.normal(size=y.shape), 1.5) > 0
    return blobs | (y == rng.integers(len(y))) | (x == rng.integers(y.shape[1]))


def combs(rng, y, x):
    teeth = (x % rng.integers(2, 4) == 0) & (y > rng.integers(0, 4))
    return (teeth | (y == len(y) // 2)) ^ (rng.random(y.shape) < 0.05)


def rings(rng, y, x):
    radius = np.maximum(abs(y - len(y) // 2), abs(x - y.shape[1] // 2))
    leaks = rng.random(y.shape) < rng.uniform(0, 0.15)
    return (radius % 2 == rng.integers(2)) ^ leaks


def contacts(rng, y, x):
    """Squares that meet at corners, some of which are bridged."""
    return ((y // 2 + x // 2) % 2 == 0) | (rng.random(y.shape) < 0.3)


def edges(rng, y, x):
    mask = rng.random(y.shape) < 0.2
    mask[0], mask[-1], mask[:, 0], mask[:, -1] = rng.random((4, 1)) < 0.8
    return mask


def filled(*polygons, size):
    """Even-odd filling at the centres of pixels, by scikit-image."""
    inside = np.zeros(size, bool)
    for ring in polygons:
        inside ^= polygon2mask(size, np.asarray(ring, float)[:, ::-1] - 0.5)
    return inside


def found_in(mask, size=None, **fields):
    return us.Segmentation.of(mask, mask, size=size, confidence=0.5, min_area=0, **fields)


KINDS = [speckle, necks, combs, rings, contacts, edges]


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_are_valid_and_fill_the_mask(kind):
    rng = np.random.default_rng(len(kind.__name__))
    for number in range(100):
        y, x = np.mgrid[tuple(map(slice, rng.integers(1, 12, 2)))]
        mask = kind(rng, y, x)
        size = tuple(rng.integers(mask.shape, np.multiply(mask.shape, 2) + 1))
        found = found_in(mask, mask.shape if number % 2 else size)
        union = np.zeros(found.size, bool)
        features = json.loads(geojson.encode(found)[".geojson"])["features"]
        lines = yolo.encode(found)[".txt"].decode().splitlines()
        for item, feature, line in zip(found.objects, features, lines, strict=True):
            rings, expected = feature["geometry"]["coordinates"], whole(item, found.size)
            polygon = Polygon(rings[0], rings[1:])
            assert feature["geometry"]["type"] == "Polygon"
            assert polygon.is_valid
            assert polygon.exterior.is_ccw
            assert (polygon.area, polygon.bounds) == (item.area, item.box)
            np.testing.assert_array_equal(filled(*rings, size=found.size), expected)
            ring = np.array(line.split()[1:], float).reshape(-1, 2) * found.size[::-1]
            assert Polygon(ring).is_valid
            np.testing.assert_array_equal(filled(ring, size=found.size), expected)
            union |= expected
        np.testing.assert_array_equal(union, found.mask)


@FROM_PYCOCOTOOLS
@pytest.mark.parametrize("kind", KINDS)
def test_annotation_tools_read_back_the_mask(kind):
    pytest.importorskip("roifile")
    from pycocotools import mask as api
    from roifile import ImagejRoi

    rng = np.random.default_rng(len(kind.__name__))
    for _ in range(30):
        mask = kind(rng, *np.mgrid[:12, :13])
        found = found_in(mask, (29, 31), id="a.png")
        record = record_of(found)
        annotations = coco.dataset([record], polygons=True)["annotations"]
        (task,) = json.loads(label_studio.encode_set([record])["label_studio.json"])
        with zipfile.ZipFile(io.BytesIO(imagej.encode(found)["_rois.zip"])) as archive:
            rois = [ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
        shapes = task["predictions"][0]["result"]
        for item, annotation, drawn, roi in zip(
            found.objects, annotations, shapes, rois, strict=True
        ):
            expected = whole(item, found.size)
            (points,) = annotation["segmentation"]
            assert Polygon(np.reshape(points, (-1, 2))).is_valid
            (encoded,) = api.frPyObjects([points], *found.size)
            np.testing.assert_array_equal(api.decode(encoded) == 1, expected)
            assert annotation["area"] == item.area == api.area(encoded)
            ring = np.array(drawn["value"]["points"]) * found.size[::-1] / 100
            assert Polygon(ring).is_valid
            np.testing.assert_array_equal(filled(ring, size=found.size), expected)
            selected = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
            assert Polygon(selected[0], selected[1:]).is_valid
            np.testing.assert_array_equal(filled(*selected, size=found.size), expected)


def test_a_hole_that_leaks_at_a_corner_touches_the_outer_ring():
    mask = np.zeros((8, 8), bool)
    mask[1:7, 1:7] = True
    mask[2:6, 2:6] = mask[1, 1] = False
    (item,) = found_in(mask).objects
    outer, hole = outlines(item)
    assert Polygon(outer, [hole]).is_valid
    assert Polygon(single_ring(item)).is_valid
    assert [2, 2] in outer.tolist()
    assert [2, 2] in hole.tolist()


def test_thin_necks_of_large_objects_are_kept():
    """One pixel wide at the working size, and at 20,000 pixels."""
    y, x = np.mgrid[:40, :1600]
    mask = ((x < 300) | (x > 1200) | (y == 11)) & ~((y == 20) & (x == 100))
    (found,) = found_in(mask, (90, 2400)).objects
    rings = outlines(found)
    assert Polygon(rings[0], rings[1:]).area == found.area
    assert Polygon(single_ring(found)).is_valid
    wide = np.zeros((9, 20_000), bool)
    wide[:, :50] = wide[:, -50:] = wide[3] = True
    (outer,) = outlines(Object(wide, (0, 0, 20_000, 9), int(wide.sum()), 1.0, 1))
    assert Polygon(outer).is_valid
    assert Polygon(outer).area == wide.sum()


def test_every_hole_lies_inside_where_slits_share_an_edge():
    """Holes one above the other, whose slits end on the same side of the object."""
    mask = np.ones((60, 9), bool)
    mask[1:-1:2, 3:6] = False
    (item,) = found_in(mask).objects
    ring = single_ring(item)
    assert len(outlines(item)) == 30
    assert Polygon(ring).is_valid
    np.testing.assert_array_equal(filled(ring, size=mask.shape), mask)
