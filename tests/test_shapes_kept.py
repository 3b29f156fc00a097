"""Images of several shapes in one call, each with its own grid (resize="keep")."""

import json

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.errors import ImageError
from unseg_jax.terminal.segmenting import Segment

pytestmark = pytest.mark.usefixtures("short_training")
SHAPES = ((48, 64), (30, 90), (48, 48), (48, 62))
GRIDS = ((3, 5), (2, 8), (4, 4), (3, 5))


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
    return us.Segmenter("vit-kmeans", backbone=backbone, image_size=32, resize="keep", batch_size=2)


@pytest.fixture(scope="module")
def found(segmenter, images):
    return segmenter(images)


def test_each_image_has_the_grid_of_its_shape(found):
    assert tuple(result.patch_labels.shape for result in found) == GRIDS
    assert tuple(result.mask.shape for result in found) == SHAPES


def test_they_are_as_each_alone(segmenter, images, found):
    for image, together in zip(images, found, strict=True):
        (alone,) = segmenter(image)
        np.testing.assert_array_equal(alone.labels, together.labels)
        assert alone.confidence == together.confidence


def test_a_program_is_compiled_for_each_shape_once(segmenter, images, found):
    assert segmenter.compilations == len(set(GRIDS))
    segmenter(images[::-1])
    assert segmenter.compilations == len(set(GRIDS))


def test_square_images_are_as_stretched_ones(backbone, images, found):
    stretched = us.Segmenter("vit-kmeans", backbone=backbone, image_size=32)
    np.testing.assert_array_equal(stretched(images[2])[0].labels, found[2].labels)


def test_batches_of_an_accelerator_give_the_same(backbone, images, found):
    """There a batch is one program, so images are sorted by shape and batches padded."""
    batched = us.Segmenter(
        "vit-kmeans", backbone=backbone, image_size=32, resize="keep", batch_size=2, batching="vmap"
    )
    results = list(batched.stream([*images[:3], b"no image", *images[3:]]))
    assert isinstance(results.pop(3), ImageError)
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
    check_features(segmenter, images, found)


HEAD = {"branches": ((8,),), "mlp_width": 8}


def test_a_set_of_all_shapes_is_fitted(backbone, images, tmp_path):
    options = {"image_size": 32, "resize": "keep", "batch_size": 3, **HEAD}
    model = us.fit(images * 2, backbone=backbone, steps=2, **options)
    assert model.images == 2 * len(images)
    path = tmp_path / "model.safetensors"
    model.save(path)
    read = us.load_model(path, backbone=backbone)
    assert read.method.resize == "keep"
    for one, other, grid in zip(model.segment(images), read.segment(images), GRIDS, strict=True):
        assert one.patch_labels.shape == grid
        np.testing.assert_array_equal(one.mask, other.mask)
    check_features(model.segmenter(), images, model.segment(images))


def test_shared_passes_take_all_shapes(backbone, images):
    options = {"image_size": 32, "stride": 8, "resize": "keep", "epochs": 0, **HEAD}
    model = us.fit(
        images[:2], method="unsegmedgat-c", backbone=backbone, passes=1, steps=1, **options
    )
    assert [found.patch_labels.shape for found in model.segment(images[:2])] == list(GRIDS[:2])


def test_a_benchmark_run_keeps_shapes(images, tiny_weights, tmp_path):
    from unseg_jax.bench import Settings, run

    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "data/images" / f"{index}.png")
        truth = (image[..., 0] > 100).astype(np.uint8) * 255
        Image.fromarray(truth).save(tmp_path / "data/masks" / f"{index}.png")
    scores = {}
    # A model of a set is fitted on images of all shapes; stretched they are as any others.
    for fit, methods in (("keep", ("vit-kmeans", "collective")), ("stretch", ("vit-kmeans",))):
        settings = Settings(
            data=str(tmp_path / "data"),
            out=str(tmp_path / fit),
            methods=methods,
            backbone=str(tiny_weights),
            batch_size=2,
            overrides={"image_size": 32, "resize": fit},
        )
        summary = run(settings, quiet=True)
        lines = (tmp_path / fit / "per_image.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == len(methods) * len(images)
        assert not any(record["error"] for record in records)
        assert all(one["failed"] == 0 for one in summary["methods"].values())
        scores[fit] = {one["id"]: one["iou"] for one in records if one["method"] == "vit-kmeans"}
    # The square image is the same either way.
    assert scores["keep"]["2"] == scores["stretch"]["2"]
    assert scores["keep"] != scores["stretch"]


def test_the_default_model_is_kept_where_only_the_shape_is_chosen():
    asked = Segment(paths=[], overrides={"resize": "stretch"})
    asked.check()
    assert asked.choose().model is not None
    assert asked.choose().method.name == "collective"
    assert us.Segmenter(resize="stretch").method.name == "collective"


def test_the_command_line_takes_it(images, tiny_weights, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "in" / f"{index}.png")
    arguments = ["--method", "vit-kmeans", "--backbone", tiny_weights, "--image-size", "32"]
    arguments += ["--resize", "keep", "--out", tmp_path / "out", "--quiet"]
    assert main.main(list(map(str, ["segment", tmp_path / "in", *arguments]))) == 0
    assert "in the image&#39;s own shape" in (tmp_path / "out/report.html").read_text()
    arguments += ["--fit", "crop"]  # the earlier name
    assert main.main(list(map(str, ["segment", tmp_path / "in", *arguments]))) == 1
    assert "--resize crop is not one of stretch, keep" in capsys.readouterr().err
