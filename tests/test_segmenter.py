"""From photographs to masks with the real backbone, on small grids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

import unseg_jax as us
from unseg_jax import pipeline

SMALL = {"image_size": 112, "epochs": 20}
segment_features = jax.jit(pipeline.segment_features, static_argnames=("method", "grid"))


@pytest.fixture(scope="session")
def backbone():
    return us.load_backbone("dinov2_vits14_focus")


@pytest.fixture(scope="session")
def images():
    return [photographs.astronaut(), photographs.coffee(), photographs.chelsea()]


@pytest.fixture(scope="module")
def segmenter(backbone):
    return us.Segmenter("deepcut", backbone=backbone, batch_size=2, **SMALL)


@pytest.fixture(scope="module")
def found(segmenter, images):
    return segmenter(images)


def test_finds_the_objects(found, images):
    """The astronaut, the cup with its saucer and the cat fill the middle of their pictures."""
    for result, image in zip(found, images, strict=True):
        height, width = image.shape[:2]
        assert result.mask.shape == result.labels.shape == (height, width)
        assert result.mask.dtype == bool
        assert result.labels.dtype == np.int32
        assert 0.2 < result.mask.mean() < 0.85
        middle = result.mask[height // 2 - 20 : height // 2 + 20, width // 2 - 20 : width // 2 + 20]
        assert middle.mean() > 0.9
        assert not result.mask[:10, :10].any()
        assert result.num_clusters == 2
        assert result.losses.shape == (20,)
        assert result.loss == result.losses[-1] < result.losses[0]
        assert 0 <= result.confidence <= 1
        assert (result.method, result.backbone) == ("deepcut", "dinov2_vits14_focus")
        left, top, right, bottom = result.box
        assert result.mask[top:bottom, left:right].sum() == result.mask.sum()
        assert result.mask[top].any()
        assert result.mask[:, right - 1].any()


def test_compiles_once_for_full_and_partial_batches(segmenter, found, images):
    assert len(found) == 3  # a full batch of two and a partial one
    assert segmenter.compilations == 1
    segmenter(images[:2])
    assert segmenter.compilations == 1


def test_batch_size_and_padding_change_nothing(backbone, found, images):
    alone = us.Segmenter("deepcut", backbone=backbone, batch_size=1, **SMALL)(images)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.losses, other.losses)


def test_pure_function_gives_the_same_labels(backbone, segmenter, found, images):
    fn, params = us.make_segment_fn("deepcut", backbone, **SMALL)
    pixels = np.stack([segmenter.prepare(image) for image in images[:2]])
    labels = fn(params, pixels)
    assert labels.shape == (2, 8, 8)
    for index in range(2):
        np.testing.assert_array_equal(labels[index], found[index].patch_labels)


def test_takes_paths_pictures_and_arrays(segmenter, found, images, tmp_path):
    path = tmp_path / "coffee.png"
    Image.fromarray(images[1]).save(path)
    for source in (path, str(path), Image.fromarray(images[1])):
        (result,) = segmenter(source)
        np.testing.assert_array_equal(result.mask, found[1].mask)
    assert segmenter(path)[0].id == str(path)
    grey = segmenter(images[1].mean(2).astype(np.uint8))
    assert grey[0].mask.shape == images[1].shape[:2]


def test_bad_images_do_not_stop_the_others(segmenter, found, images, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    results = list(segmenter.stream([images[0], broken, images[1]]))
    assert isinstance(results[1], us.ImageError)
    assert "broken.jpg" in str(results[1])
    np.testing.assert_array_equal(results[2].mask, found[1].mask)
    with pytest.raises(us.ImageError, match=r"broken\.jpg"):
        segmenter([images[0], broken])


def test_a_batch_of_no_images_is_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        us.Segmenter("deepcut", batch_size=0)


def test_non_finite_features_are_an_error(backbone, segmenter, images):
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, backbone.params)
    bad = segmenter.but(backbone=dataclasses.replace(backbone, params=params))
    with pytest.raises(us.ImageError, match="not finite"):
        bad(images[0])
    assert bad.compilations == segmenter.compilations  # weights are arguments of one program


@pytest.mark.parametrize("refine", ["bilateral", "guided"])
def test_refined_edges_follow_the_picture(backbone, found, images, refine):
    refined = us.Segmenter("deepcut", backbone=backbone, batch_size=2, refine=refine, **SMALL)
    (result,) = refined(images[1])
    overlap = us.metrics.iou(result.mask, found[1].mask)
    assert 0.7 < overlap < 1
    np.testing.assert_array_equal(result.mask, result.labels > 0)


def test_stride_is_fitted_unless_chosen(backbone):
    method = us.Segmenter("unseggnet", backbone=backbone).method
    assert method.stride == 7  # half of DINOv2's patch, as 4 is of DINO's
    with pytest.raises(ValueError, match="stride"):
        us.Segmenter("unseggnet", backbone=backbone, stride=4)(photographs.coffee())


@pytest.fixture(scope="module")
def features():
    """Two images of 6×6 nodes: background, and an object of two kinds in the middle."""
    rng = np.random.default_rng(0)
    kinds = np.zeros((6, 6), int)
    kinds[1:5, 1:3] = 1
    kinds[1:5, 3:5] = 2
    # The object's halves are nearer to each other than to the background.
    centres = np.array([[6, 0, 0, 0], [-6, 3, 0, 1], [-6, -3, 0, 1]], np.float32)
    noise = rng.normal(size=(2, 36, 4)) * 0.3
    return (centres[kinds.ravel()] + noise).astype(np.float32), kinds


def test_two_stages_cut_the_foreground_then_the_background(features):
    values, kinds = features
    method = pipeline.override(
        us.Segmenter("deepcut", backbone="dinov2_vits14_focus").method,
        epochs=60,
        parts=2,
        parts_epochs=60,
        background_parts=2,
        background_epochs=20,
        learning_rate=0.01,
    )
    result, _ = segment_features(values, jax.random.key(0), method=method, grid=(6, 6))
    for labels, foreground in zip(result.labels, result.foreground, strict=True):
        np.testing.assert_array_equal(foreground, kinds > 0)
        labels = np.asarray(labels)
        assert set(labels[kinds > 0]) == {1, 2}
        assert len(set(labels[kinds == 1])) == len(set(labels[kinds == 2])) == 1
        # Parts of the background are 0 and, if it was cut, 3.
        assert set(labels[kinds == 0]) <= {0, 3}


def test_clusters_are_numbered_by_size_and_empty_ones_dropped(features):
    values, _ = features
    method = us.Segmenter("deepcut-cc", backbone="dinov2_vits14_focus").method
    result, _ = segment_features(values, jax.random.key(0), method=method, grid=(6, 6))
    for labels, count in zip(result.labels, result.num_clusters, strict=True):
        labels = np.asarray(labels)
        numbers = np.unique(labels)
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
        assert len(numbers) == count
        sizes = np.bincount(labels.ravel())[1:]
        assert (np.diff(sizes) <= 0).all()


def test_tokencut_decides_its_own_foreground(backbone, images):
    """Its seed says which side is the object; no corner may overrule it."""
    (result,) = us.Segmenter("tokencut", backbone=backbone, image_size=112)(images[1])
    assert result.mask[180:220, 280:320].mean() > 0.9
    assert 0.1 < result.mask.mean() < 0.7


def test_one_array_of_any_library_is_one_image(segmenter, found, images):
    (result,) = segmenter(jnp.asarray(images[0]))
    np.testing.assert_array_equal(result.mask, found[0].mask)
