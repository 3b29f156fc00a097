"""Every format read back by a library that its users use."""

import dataclasses
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from scipy import ndimage

import unseg_jax as us
from unseg_jax.data.folders import ImageFile
from unseg_jax.data.pixel_size import parse_pixel_size, pixel_size
from unseg_jax.errors import InputError
from unseg_jax.export import drawing, formats
from unseg_jax.export.formats import (
    coco,
    cutout,
    geojson,
    imagej,
    label_studio,
    mask,
    npz,
    png,
    record_of,
    table,
    tiff,
    yolo,
)
from unseg_jax.export.formats.cutout import Cutout, arrange
from unseg_jax.export.measures import measure
from unseg_jax.export.records import Entry, Record, Run
from unseg_jax.export.report import _facts
from unseg_jax.postprocess import Object, bounding_box, upsample_labels

from .conftest import FROM_PYCOCOTOOLS, whole

RNG = np.random.default_rng(0)


def scene(size=(60, 80), scale=1, name="a.jpg"):
    """Three objects of two labels, two of which touch, one with a hole; at a scale."""
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.uint8)
    labels[(y - 20) ** 2 + (x - 20) ** 2 < 170] = 1
    labels[(y - 20) ** 2 + (x - 20) ** 2 < 20] = 0
    labels[35:55, 40:60] = 1
    labels[35:55, 60:72] = 2
    pixels = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    return us.Segmentation.of(
        labels > 0,
        labels,
        size=(size[0] * scale, size[1] * scale),
        confidence=0.8,
        evidence=np.where(labels > 0, 0.9, -0.7),
        pixels=pixels,
        method="deepcut",
        id=name,
    )


def records(scale=1):
    found = [scene(scale=scale, name="x/1.jpg"), scene(scale=scale, name="y/1.jpg")]
    return found, [record_of(f, f.id[0], f.id) for f in found]


@FROM_PYCOCOTOOLS
@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("file", coco.FILES)
def test_coco_is_read_by_pycocotools(tmp_path, scale, file):
    from pycocotools import mask as masks
    from pycocotools.coco import COCO

    found, kept = records(scale)
    (tmp_path / file).write_bytes(coco.encode_set(kept)[file])
    api = COCO(tmp_path / file)
    assert [image["file_name"] for image in api.imgs.values()] == ["x/1.jpg", "y/1.jpg"]
    assert [category["name"] for category in api.cats.values()] == ["part 1", "part 2"]
    for index, image in enumerate(api.imgs):
        annotations = api.loadAnns(api.getAnnIds(imgIds=[image]))
        assert len(annotations) == 3
        for item, annotation in zip(found[index].objects, annotations, strict=True):
            mask = whole(item, found[index].size)
            np.testing.assert_array_equal(api.annToMask(annotation) == 1, mask)
            if file == "coco.json":
                assert annotation["area"] == masks.area(annotation["segmentation"])
                assert annotation["bbox"] == masks.toBbox(annotation["segmentation"]).tolist()
            assert annotation["category_id"] == item.label
            assert annotation["score"] == pytest.approx(item.score, abs=1e-4)
            assert 0 < annotation["score"] <= 1
    empty = Record("a", "a.jpg", (4, 5), 0.0, 0.0, 0, ())
    (tmp_path / file).write_bytes(coco.encode_set([empty])[file])
    api = COCO(tmp_path / file)
    assert (len(api.imgs), len(api.anns), api.cats[1]["name"]) == (1, 0, "object")


@pytest.mark.parametrize("scale", [1, 3])
def test_tiff_is_read_by_tifffile(tmp_path, scale):
    import tifffile

    sizes = (0.32, 0.25) if scale == 3 else None
    found = dataclasses.replace(scene(scale=scale), pixel_size=sizes)
    (tmp_path / "a.tif").write_bytes(tiff.encode(found)["_objects.tif"])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        numbers, ours = file.asarray(), file.imagej_metadata
        assert (ours and ours["unit"]) == (sizes and "micron")
        resolution = file.pages[0].get_resolution("none") if sizes else ()
    assert resolution == pytest.approx([1 / size for size in sizes or ()])
    assert pixel_size(tmp_path / "a.tif") == (sizes and pytest.approx(sizes))
    assert (numbers.dtype, numbers.shape) == (np.uint16, found.size)
    for number, item in enumerate(found.objects, 1):
        np.testing.assert_array_equal(numbers == number, whole(item, found.size))


def test_arrays_tables_and_pictures_hold_what_was_found():
    (found, _), kept = records(scale=2)
    with np.load(io.BytesIO(npz.encode(found)[".npz"])) as archive:
        np.testing.assert_array_equal(archive["mask"], found.mask)
        np.testing.assert_array_equal(archive["labels"], found.labels)
        assert archive["labels"].dtype == np.uint8
        np.testing.assert_array_equal(archive["boxes"], [item.box for item in found.objects])
        np.testing.assert_array_equal(archive["areas"], [item.area for item in found.objects])
    frame = read_csv(table.encode_set(kept)["objects.csv"])
    assert list(frame.columns) == list(table.COLUMNS)
    assert frame["file"].tolist() == ["x/1.jpg"] * 3 + ["y/1.jpg"] * 3
    assert frame["id"].tolist() == [1, 2, 3] * 2
    rows = frame[["left", "top", "right", "bottom", "area"]].to_numpy()
    np.testing.assert_array_equal(rows[:3], [(*one.box, one.area) for one in found.objects])
    files = png.encode(found)
    read = {suffix: np.asarray(Image.open(io.BytesIO(data))) for suffix, data in files.items()}
    np.testing.assert_array_equal(read["_mask.png"], found.mask * np.uint8(255))
    np.testing.assert_array_equal(read["_labels.png"], found.labels)
    np.testing.assert_array_equal(read["_overlay.png"], found.overlay())
    assert mask.encode(found) == {"_mask.png": files["_mask.png"]}
    assert formats.check_formats(["mask", "png"]) == ("png",)
    assert formats.suffixes_of(["mask"]) == ("_mask.png",)
    found = scene()
    hard = cutout.encode(found, Cutout(edges="hard"))["_cutout.png"]
    rgba = np.asarray(Image.open(io.BytesIO(hard)))
    np.testing.assert_array_equal(rgba[..., 3], found.mask * np.uint8(255))
    np.testing.assert_array_equal(rgba[..., :3], found.pixels)
    soft = np.asarray(Image.open(io.BytesIO(cutout.encode(found)["_cutout.png"])))
    np.testing.assert_array_equal(soft, found.cutout())
    assert len(np.unique(soft[..., 3])) > 2


def test_cutouts_are_cropped_and_laid_on_a_canvas_or_another_image(tmp_path):
    rgba = np.zeros((30, 40, 4), np.uint8)
    rgba[10:14, 20:30] = (200, 100, 50, 255)
    rgba[10, 20, 3] = 128
    crop = arrange(rgba, Cutout(crop=True, margin=2))
    np.testing.assert_array_equal(crop, rgba[8:16, 18:32])
    np.testing.assert_array_equal(arrange(rgba, Cutout(crop=True, margin=99)), rgba)
    white = arrange(rgba, Cutout(crop=True, background="white"))
    assert white.shape == (4, 10, 3)
    np.testing.assert_array_equal(white[1:], np.full((3, 10, 3), (200, 100, 50)))
    np.testing.assert_allclose(white[0, 0], (227, 177, 152), atol=1)  # half of it shows white
    placed = arrange(rgba, Cutout(crop=True, canvas=(20, 10)))
    np.testing.assert_array_equal(placed[3:7, 5:15, 3], rgba[10:14, 20:30, 3])
    assert (np.count_nonzero(placed[..., 3]), placed.shape) == (40, (10, 20, 4))
    rgba[10, 20, 3] = 255
    small = arrange(rgba, Cutout(crop=True, canvas=(5, 20), background="#ff0000"))
    assert small.shape == (20, 5, 3)
    np.testing.assert_allclose(small[9:11], np.full((2, 5, 3), (200, 100, 50)), atol=2)
    assert (small[[0, -1]] == (255, 0, 0)).all()
    empty = np.zeros((3, 4, 4), np.uint8)
    np.testing.assert_array_equal(arrange(empty, Cutout(crop=True)), empty)
    path = tmp_path / "ground.png"
    halves = np.zeros((20, 60, 3), np.uint8)
    halves[:, :30], halves[:, 30:] = (0, 0, 250), (0, 250, 0)
    Image.fromarray(halves).save(path)
    rgba = np.zeros((30, 40, 4), np.uint8)
    rgba[10:20, 5:10] = (200, 100, 50, 255)
    placed = arrange(rgba, Cutout(background=str(path)))  # which covers it, cropped to its shape
    np.testing.assert_array_equal(placed[10:20, 5:10], np.full((10, 5, 3), (200, 100, 50)))
    np.testing.assert_array_equal(placed[:8, 2:18], np.full((8, 16, 3), (0, 0, 250)))
    np.testing.assert_array_equal(placed[:8, 22:38], np.full((8, 16, 3), (0, 250, 0)))
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"copy\.png"):
        Cutout(background=str(path.rename(tmp_path / "copy.png")))


def test_cutouts_that_cannot_be_are_refused():
    for fields, said in (
        ({"edges": "round"}, "edges='round' is not known: choose 'soft' or 'hard'"),
        ({"file": "jpg"}, "file='jpg' has no transparency: give background='white'"),
        ({"file": "gif"}, "file='gif' is not known: choose"),
        ({"margin": -1}, "margin=-1 must be at least 0"),
        ({"canvas": (0, 5)}, r"canvas=\(0, 5\) must be at least 1 by 1"),
        ({"background": "whitish"}, "background='whitish' is no colour and no file: give"),
    ):
        with pytest.raises(ValueError, match=said):
            Cutout(**fields)


def test_segmentation_enlarges_what_it_holds_and_keeps_the_largest():
    found = scene(scale=3)
    labels = upsample_labels(found.small_labels, (180, 240))
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.mask, labels > 0)
    assert (found.labels.dtype, found.small_labels.dtype) == (np.int32, np.uint8)
    left, top, right, bottom = found.box
    assert found.mask[top:bottom, left:right].any(0).all()
    assert repr(found) == "Segmentation(a.jpg: 240x180 pixels, object 23 %, confidence 0.80)"
    assert len(repr(found.objects)) < 300
    found = found.only_largest()
    (item,) = found.objects
    np.testing.assert_array_equal(found.mask, whole(item, found.size))
    assert found.box == item.box
    assert set(np.unique(found.labels)) == {0, item.label}


def test_several_small_objects_are_told_by_most_images():
    def run_of(*areas):
        records = [
            Record("a", "a", (100, 200), 0.1, 0.9, 1, tuple({"area": one} for one in found))
            for found in areas
        ]
        return Run(tuple(Entry(ImageFile(Path("a.png"), "a"), one) for one in records), 1.0, 0.0)

    many, large, few = (400,) * 5, (300, 300, 300, 3000), (400, 400)
    # A disc of 400 pixels is 22.6 long.
    assert run_of(many, many, large).small_length == 23
    assert run_of(many, (), ()).small_length == 23
    for others in ((large,), (few,), (few, few, many), (), ((),)):
        assert run_of(*others).small_length == 0
    assert run_of((1,) * 9).small_length == 1


@pytest.mark.parametrize("size", [(40, 50), (91, 133)])
def test_specks_are_in_nothing_that_is_written(size):
    rng = np.random.default_rng(5)
    labels = (rng.random((40, 50)) < 0.04).astype(np.uint8)
    labels[5:20, 5:20], labels[5:20, 20:30] = 1, 2
    pixels = rng.integers(0, 200, (40, 50, 3)).astype(np.uint8)
    found = us.Segmentation.of(labels > 0, labels, size=size, min_area=0.02, pixels=pixels)
    kept = np.zeros((40, 50), np.uint8)
    for number in (1, 2):
        pieces, _ = ndimage.label(labels == number)  # type: ignore[misc]
        kept[pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1] = number
    large = upsample_labels(kept, size)
    assert found.specks > 10
    assert found.coverage == (large > 0).mean()
    assert (found.box, len(found.objects)) == (bounding_box(large > 0), 2)
    np.testing.assert_array_equal(found.mask, large > 0)
    np.testing.assert_array_equal(found.labels, large)
    np.testing.assert_array_equal(found.overlay(), drawing.overlay(pixels, kept))
    np.testing.assert_array_equal(found.cutout(soft=False)[..., 3] > 0, kept > 0)
    total = found.mask.sum()
    record = record_of(found)
    assert record.specks == found.specks
    run = Run((Entry(ImageFile(Path("a.png"), "a"), record),), 1.0, 0.0)
    said = f"{found.specks} in 1 of 1 images; min_area=0 keeps them"
    assert dict(_facts(run, None))["Specks left out"] == run.specks == said
    assert sum(item["area"] for item in record.objects) == total
    assert sum(item.mask.sum() for item in record.restored()) == total
    features = json.loads(geojson.encode(found)[".geojson"])["features"]
    assert sum(feature["properties"]["area"] for feature in features) == total
    with np.load(io.BytesIO(npz.encode(found)[".npz"])) as archive:
        np.testing.assert_array_equal(archive["labels"], large)
    everything = dataclasses.replace(found, min_area=0.0)
    np.testing.assert_array_equal(everything.small_labels, labels)
    np.testing.assert_array_equal(dataclasses.replace(everything, min_area=1).mask, everything.mask)
    assert everything.specks == 0
    assert dataclasses.replace(found, min_area=size[0] * size[1]).box is None


def test_segmentation_saves_shows_and_plots_itself(tmp_path):
    found = scene()
    written = found.save(tmp_path / "new", ["csv", "png", "cutout"], pixel_size="500 nm/px")
    rows = pandas.read_csv(tmp_path / "new" / "objects.csv")
    assert rows.area_um2.tolist() == [item.area / 4 for item in found.objects]
    names = ["a_mask.png", "a_labels.png", "a_overlay.png", "a_cutout.png", *table.FILES]
    assert [path.name for path in written] == names
    assert all(path.is_file() for path in written)
    assert len(found.to_coco()["annotations"]) == 3
    shown = np.asarray(Image.open(io.BytesIO(found._repr_png_())))
    np.testing.assert_array_equal(shown, found.overlay())
    with pytest.raises(ValueError, match="no format 'geojsn'; did you mean 'geojson'"):
        found.save(tmp_path, ["geojsn"])
    bare = dataclasses.replace(found, pixels=None)
    assert bare._repr_png_() is None
    with pytest.raises(ValueError, match="pass image="):
        bare.overlay()
    assert bare.overlay(found.pixels).shape == (60, 80, 3)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    axes = found.plot()
    assert axes.get_title() == "a.jpg (3 objects)"
    axes.figure.savefig(tmp_path / "plot.png")


def test_shapes_carry_class_score_size_and_measurements():
    """That the polygons are right is shown in `test_polygons`."""
    pytest.importorskip("roifile")
    (found, _), kept = records()
    found = dataclasses.replace(found, pixel_size=(2.0, 2.0))
    frame = read_csv(table.encode_set([record_of(found, measured=True)])["objects.csv"])
    features = json.loads(geojson.encode(found)[".geojson"])["features"]
    lines = yolo.encode(found)[".txt"].decode().splitlines()
    tasks = json.loads(label_studio.encode_set(kept)["label_studio.json"])
    assert [task["data"]["image"] for task in tasks] == ["x/1.jpg", "y/1.jpg"]
    shapes = tasks[0]["predictions"][0]["result"]
    data = imagej.encode(found)["_rois.zip"]
    assert data == imagej.encode(found)["_rois.zip"]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    for number, (item, row) in enumerate(zip(found.objects, frame.itertuples(), strict=True)):
        score = pytest.approx(item.score, abs=1e-4)
        properties = features[number]["properties"]
        assert (properties["label"], properties["score"]) == (item.label, score)
        assert int(lines[number].split()[0]) == item.label - 1
        assert shapes[number]["score"] == score
        assert (shapes[number]["original_height"], shapes[number]["original_width"]) == found.size
        assert names[number] == f"{number + 1:04d}-{item.score:.2f}.roi"
        # What QuPath takes.
        assert properties["objectType"] == "detection"
        colour = properties["classification"]["color"]
        assert colour == drawing.palette(item.label + 1)[item.label].tolist()
        measured = properties["measurements"]
        assert all(isinstance(value, (int, float)) for value in measured.values())
        for name in ("area", "solidity", "intensity", "x", "area_um2"):
            assert measured[name] == pytest.approx(getattr(row, name))
        assert measured["area_um2"] == 4 * item.area


def test_every_format_says_which_files_it_writes_and_what_it_needs(monkeypatch):
    found, kept = scene(), [record_of(scene())]
    for name, module in formats.FORMATS.items():
        if hasattr(module, "encode"):
            assert tuple(module.encode(found)) == module.SUFFIXES, name
        else:
            assert tuple(module.encode_set(kept)) == module.FILES, name
    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(ImportError, match=r"unseg_jax\[imagej\]"):
        formats.check_formats(["png", "imagej"])


def read_csv(content):
    return pandas.read_csv(io.BytesIO(content))


@pytest.mark.parametrize("scale", [None, (0.5, 0.25), (0.5, 0.5)])
def test_measures_are_those_of_regionprops(scale):
    from skimage.measure import regionprops

    found = dataclasses.replace(scene(), pixel_size=scale)
    content = table.encode_set([record_of(found, measured=True)])
    frame, images = read_csv(content["objects.csv"]), read_csv(content["images.csv"])
    um2 = np.nan if scale is None else scale[0] * scale[1]
    um = 0.5 if scale == (0.5, 0.5) else np.nan
    for number, row in frame.iterrows():
        mask = whole(found.objects[number], found.size).astype(int)
        (region,) = regionprops(mask, intensity_image=found.pixels)
        assert (row.y, row.x) == pytest.approx(region.centroid, abs=1e-5)
        assert row.perimeter == pytest.approx(region.perimeter)
        for ours, theirs in (
            ("equivalent_diameter", "equivalent_diameter_area"),
            ("axis_major", "axis_major_length"),
            ("axis_minor", "axis_minor_length"),
            ("eccentricity", "eccentricity"),
            ("solidity", "solidity"),
        ):
            assert row[ours] == pytest.approx(region[theirs], abs=1e-5), ours
        assert row.circularity == pytest.approx(4 * np.pi * region.area / region.perimeter**2)
        edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
        assert row.touches_edge == any(edge.any() for edge in edges)
        assert tuple(row[["red", "green", "blue"]]) == pytest.approx(region.intensity_mean)
        sums = tuple(row[["red_sum", "green_sum", "blue_sum"]])
        assert sums == pytest.approx(found.pixels[mask > 0].sum(0), abs=0.01)
        assert row.intensity == pytest.approx(region.intensity_mean.mean())
        assert row.intensity_sum == pytest.approx(found.pixels[mask > 0].sum() / 3)
        assert row.area_um2 == pytest.approx(region.area * um2, nan_ok=True)
        diameter = 2 * np.sqrt(region.area * um2 / np.pi)
        assert row.equivalent_diameter_um == pytest.approx(diameter, nan_ok=True)
        for name in ("perimeter", "axis_major", "axis_minor"):
            assert row[f"{name}_um"] == pytest.approx(um * row[name], nan_ok=True)
    (image,) = images.itertuples()
    height, width = found.size
    assert (image.width, image.height, image.objects) == (width, height, len(frame))
    assert image.coverage == pytest.approx(found.mask.mean(), abs=1e-6)
    assert image.mean_area == pytest.approx(frame.area.mean(), abs=0.01)
    assert image.objects_per_megapixel == pytest.approx(len(frame) / width / height * 1e6)
    per_mm2 = len(frame) / (width * height * um2 * 1e-6)
    assert image.objects_per_mm2 == pytest.approx(per_mm2, nan_ok=True)
    assert image.mean_area_um2 == pytest.approx(frame.area.mean() * um2, abs=1e-4, nan_ok=True)
    nothing = Record("a", "a.png", (60, 80), 0.0, 0.0, 0, (), pixel_size=scale)
    (image,) = read_csv(table.encode_set([nothing])["images.csv"]).itertuples()
    density = np.nan if scale is None else 0.0
    assert image.objects_per_mm2 == pytest.approx(density, nan_ok=True)
    bare = read_csv(table.encode_set([record_of(found)])["objects.csv"])
    assert bare[["perimeter", "solidity"]].isna().all(axis=None)


def test_sizes_of_pixels_are_read_with_their_unit_or_refused():
    for text in (0.32, "0.32um", "0.32 µm/px", "320nm", "3.2e-4 mm"):
        assert parse_pixel_size(text) == pytest.approx((0.32, 0.32))
    said = r"is no size: give a number and a unit, such as 0\.32um"
    for text in ("um", "3 inch", "0um", "-1", "1e999", float("nan"), "0.3um/cm"):
        with pytest.raises(ValueError, match=said):
            parse_pixel_size(text)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (2, 2)])
def test_thin_objects_have_measures(shape):
    box = (4, 2, 4 + shape[1], 2 + shape[0])
    item = Object(np.ones(shape, bool), box, shape[0] * shape[1], 1, 1)
    found = measure(item, None, (2 + shape[0], 20))
    assert (found["touches_edge"], found["solidity"], found["red"]) == (1, 1, None)
    assert (found["circularity"] is None) == (shape == (1, 1))
    assert measure(item, None, (20, 20))["touches_edge"] == 0


def test_the_configuration_of_label_studio_fits_its_predictions():
    from xml.etree import ElementTree

    content = label_studio.encode_set(records()[1])
    view = ElementTree.fromstring(content["label_studio.xml"])
    names = {element.get("name"): element for element in view.iter() if element.get("name")}
    labels = {element.get("value") for element in view.iter("Label")}
    (task, *_) = json.loads(content["label_studio.json"])
    assert names["image"].get("value").removeprefix("$") in task["data"]
    for shape in task["predictions"][0]["result"]:
        control = names[shape["from_name"]]
        assert (control.tag.lower(), control.get("toName")) == (shape["type"], shape["to_name"])
        assert set(shape["value"][shape["type"]]) <= labels


def test_label_studios_own_schema_takes_configuration_and_predictions():
    # Not in the extra test: it needs an older NumPy.
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    content = label_studio.encode_set(records()[1])
    schema = interface.LabelInterface(content["label_studio.xml"].decode())
    schema.validate()
    for task in json.loads(content["label_studio.json"]):
        (prediction,) = task["predictions"]
        assert schema.validate_task({"data": task["data"]})
        assert schema.validate_prediction(prediction, return_errors=True) == []
        prediction["result"][0]["from_name"] = "another"
        assert not schema.validate_prediction(prediction)


def test_predictions_for_label_studio_are_read_back_as_examples(tmp_path):
    found, kept = records(scale=3)
    kept = [dataclasses.replace(one, file=f"my photos/{n}.jpg") for n, one in enumerate(kept)]
    path = tmp_path / "export.json"
    path.write_bytes(
        label_studio.encode_set(kept, "/data/local-files/?d=sets")["label_studio.json"]
    )
    images = [task["data"]["image"] for task in json.loads(path.read_bytes())]
    assert images == [f"/data/local-files/?d=sets/my%20photos/{n}.jpg" for n in range(2)]
    assert label_studio.is_export(path)
    paths = [Path("in/0.jpg"), Path("in/1.jpg"), Path("2.jpg")]
    masks = label_studio.read_label_studio(path, paths)
    assert [*masks] == paths[:2]
    for read, one in zip(masks.values(), found, strict=True):
        np.testing.assert_array_equal(read, one.mask)


# What `label_studio_sdk.converter.brush.mask2rle` makes of the stroke below.
BRUSH = [0, 0, 0, 192, 57, 27, 254, 67, 0, 194, 255, 243, 128, 97, 127, 252, 134, 0]


def test_brushes_and_boxes_of_label_studio_are_masks(tmp_path):
    stroke = np.zeros((6, 8), np.uint8)
    stroke[2:4, 1:7] = 255

    def shape(**value):
        return {"original_width": 8, "original_height": 6, "value": value}

    box = shape(x=25, y=0, width=50, height=100 / 3, rectanglelabels=["cell"])
    drawn = shape(format="rle", rle=BRUSH, brushlabels=["cell"])
    tasks = [
        {
            "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
            "annotations": [
                {"result": [drawn, box, {"value": {"choices": ["good"]}}]},
                {"was_cancelled": True, "result": [box]},
            ],
            "predictions": [{"result": [box]}],
        },
        {"data": {"image": "s3://bucket/b.png"}, "annotations": [{"result": []}]},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    (mask,) = label_studio.read_label_studio(path, ["x/a.png", "x/b.png"]).values()
    stroke[:2, 2:6] = 255
    np.testing.assert_array_equal(mask, stroke > 0)
    for content, images, said in (
        (tasks, ["c.png"], "which is none of the images"),
        (tasks[1:], ["b.png"], "has no task with a shape"),
        ([{"image": "a.png"}], ["a.png"], "no task with a shape"),
        ([{"data": 3, "predictions": [{"result": [box]}]}], [], "no JSON export of Label Studio"),
        (["a.png"], ["a.png"], "no JSON export of Label Studio"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=said):
            label_studio.read_label_studio(path, images)


@pytest.mark.parametrize(("file", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_cutouts_are_other_files_and_one_for_each_object(file, kind):
    found = scene()
    how = Cutout(edges="hard", background="white" if file == "jpg" else "", file=file)
    (suffix,) = how.suffixes
    content = cutout.encode(found, how)
    assert [*content] == [suffix] == [f"_cutout.{file}"]
    with Image.open(io.BytesIO(content[suffix])) as picture:
        assert (picture.format, picture.size) == (kind, (80, 60))
        assert picture.mode == ("RGB" if file == "jpg" else "RGBA")
    each = dataclasses.replace(how, each=True, margin=1)
    assert formats.suffixes_of(["mask", "cutout"], each) == ("_mask.png",)
    content = cutout.encode(found, each)
    assert [*content] == [f"_cutout_{number:03d}.{file}" for number in (1, 2, 3)]
    for item, data in zip(found.objects, content.values(), strict=True):
        left, top, right, bottom = item.box
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (right - left + 2, bottom - top + 2)
            if file == "png":
                alpha = np.asarray(picture)[1:-1, 1:-1, 3]
                np.testing.assert_array_equal(alpha > 0, item.mask)
