"""Images of several shapes in one call, each with its own grid (resize="keep")."""

import json

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.bench import Settings, run
from unseg_jax.cli import main
from unseg_jax.errors import ImageError
from unseg_jax.terminal.segment_command import Segment

pytestmark = pytest.mark.usefixtures("short_training")
SHAPES = ((30, 90), (48, 48), (30, 92))
GRIDS = ((2, 8), (4, 4), (2, 8))
KEPT = {"image_size": 32, "resize": "keep", "batch_size": 2}


def draw(shape, seed=0):
    """A bright ellipse on dark noise, (H, W, 3) uint8."""
    height, width = shape
    rows, columns = np.ogrid[:height, :width]
    inside = ((rows / height - 0.5) / 0.3) ** 2 + ((columns / width - 0.5) / 0.3) ** 2 < 1
    image = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    image[inside] += 150
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def images():
    return [draw(shape, seed) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return us.load_backbone(tiny_weights)


@pytest.fixture(scope="module")
def segmenter(backbone):
    return us.Segmenter("vit-kmeans", backbone=backbone, **KEPT)


@pytest.fixture(scope="module")
def found(segmenter, images):
    return segmenter(images)


def test_each_image_has_the_grid_of_its_shape_and_each_shape_one_program(segmenter, images, found):
    assert tuple(result.patch_labels.shape for result in found) == GRIDS
    assert tuple(result.mask.shape for result in found) == SHAPES
    for image, together in zip(images, found, strict=True):
        (alone,) = segmenter(image)
        np.testing.assert_array_equal(alone.labels, together.labels)
        assert alone.confidence == together.confidence
    assert segmenter.compilations == len(set(GRIDS))


def test_square_images_are_as_stretched_ones(backbone, images, found):
    stretched = us.Segmenter("vit-kmeans", backbone=backbone, image_size=32)
    np.testing.assert_array_equal(stretched(images[1])[0].labels, found[1].labels)


def test_batches_of_an_accelerator_give_the_same(segmenter, images, found):
    """There a batch is one program, so images are sorted by shape and batches padded."""
    batched = us.Segmenter("vit-kmeans", backbone=segmenter.backbone, batching="vmap", **KEPT)
    results = list(batched.stream([*images[:2], b"no image", *images[2:]]))
    assert isinstance(results.pop(2), ImageError)
    for one, other in zip(results, found, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
    # A batch of two for each shape, however many images it has.
    assert batched.compilations == len(set(GRIDS))


def check_features(segmenter, images, found):
    """With features, results are as without, and hold those that the backbone gives."""
    results = segmenter.but(with_features=True)(images)
    for image, one, other in zip(images, results, found, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        kept = segmenter.kept_features(segmenter.prepare(image)[None])[0]
        assert (other.patch_features, one.patch_features.dtype) == (None, np.float16)
        np.testing.assert_allclose(one.patch_features, kept, atol=0.01)


def test_results_hold_the_features_of_their_patches(segmenter, images, found):
    check_features(segmenter, images[:1], found[:1])


HEAD = {"branches": ((8,),), "mlp_width": 8}


def test_a_set_of_all_shapes_is_fitted(backbone, images, tmp_path):
    model = us.fit(images, backbone=backbone, steps=2, **KEPT, **HEAD)
    assert model.images == len(images)
    path = tmp_path / "model.safetensors"
    model.save(path)
    read = us.load_model(path, backbone=backbone)
    assert read.method.resize == "keep"
    for one, other, grid in zip(model.segment(images), read.segment(images), GRIDS, strict=True):
        assert one.patch_labels.shape == grid
        np.testing.assert_array_equal(one.mask, other.mask)
    check_features(model.segmenter(), images[:1], model.segment(images[:1]))


def test_shared_passes_take_all_shapes(backbone, images):
    small = {"epochs": 0, "passes": 1, "steps": 1, **KEPT, **HEAD}
    model = us.fit(images[:2], method="deepcut", backbone=backbone, **small)
    assert [found.patch_labels.shape for found in model.segment(images[:2])] == list(GRIDS[:2])


@pytest.fixture(scope="module")
def data(images, tmp_path_factory):
    """A data set of the images and their truths."""
    folder = tmp_path_factory.mktemp("data")
    for index, image in enumerate(images):
        for name, pixels in (("images", image), ("masks", truth(image) * np.uint8(255))):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def truth(image):
    return image[..., 0] > 100


def test_a_benchmark_run_keeps_shapes(data, images, found, tiny_weights, tmp_path):
    """A model of a set is fitted on images of all shapes."""
    settings = Settings(
        data=str(data),
        out=str(tmp_path),
        methods=("vit-kmeans", "collective"),
        backbone=str(tiny_weights),
        batch_size=2,
        overrides={"image_size": 32, "resize": "keep"},
    )
    summary = run(settings, quiet=True)
    assert all(one["failed"] == 0 for one in summary["methods"].values())
    records = list(map(json.loads, (tmp_path / "per_image.jsonl").read_text().splitlines()))
    assert len(records) == 2 * len(images)
    ious = {one["id"]: one["iou"] for one in records if one["method"] == "vit-kmeans"}
    for index, image in enumerate(images):
        assert ious[str(index)] == pytest.approx(us.metrics.iou(found[index].mask, truth(image)))


def test_the_default_model_is_kept_where_only_the_shape_is_chosen():
    asked = Segment(paths=[], overrides={"resize": "stretch"})
    asked.check()
    assert asked.choose().model is not None
    assert asked.choose().method.name == "collective"
    assert us.Segmenter(resize="stretch").method.name == "collective"


def test_the_command_line_takes_it(data, tiny_weights, tmp_path, capsys):
    arguments = ["segment", data / "images", "--method", "vit-kmeans", "--image-size", "32"]
    arguments += ["--backbone", tiny_weights, "--resize", "keep", "--out", tmp_path, "--quiet"]
    assert main.main(list(map(str, arguments))) == 0
    assert "in the image&#39;s own shape" in (tmp_path / "report.html").read_text()
    assert main.main(list(map(str, [*arguments, "--fit", "crop"]))) == 1  # the earlier name
    assert "--resize crop is not one of stretch, keep" in capsys.readouterr().err
