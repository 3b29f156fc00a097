"""From photographs to masks with the real backbone, on small grids."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

import unseg_jax as us
from unseg_jax import pipeline
from unseg_jax.registry import resolve

SMALL = {"image_size": 112, "epochs": 20}


def segment(features, name, **fields):
    """What the device gives for features on a grid of 6 x 6."""
    run = functools.partial(pipeline.segment_features, method=resolve(name, **fields), grid=(6, 6))
    return jax.device_get(jax.jit(run)(features, jax.random.key(0))[0])


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


def test_one_program_serves_batches_of_every_size(backbone, segmenter, found, images):
    alone = us.Segmenter("deepcut", backbone=backbone, batch_size=1, **SMALL)
    for one, other in zip(alone(images), found, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.losses, other.losses)
    # Of three images, two were a full batch and one a partial.
    assert alone.compilations == segmenter.compilations == 1
    with pytest.raises(ValueError, match="batch_size=0"):
        segmenter.but(batch_size=0)


def test_takes_paths_pictures_and_arrays_of_any_library(segmenter, found, images, tmp_path):
    path = tmp_path / "coffee.png"
    picture = Image.fromarray(images[1])
    picture.save(path)
    for source in (path, str(path), picture, jnp.asarray(images[1])):
        (result,) = segmenter(source)
        np.testing.assert_array_equal(result.mask, found[1].mask)
    assert segmenter(path)[0].id == str(path)
    grey = segmenter(images[1].mean(2).astype(np.uint8))
    assert grey[0].mask.shape == images[1].shape[:2]


def test_non_finite_features_are_an_error(backbone, segmenter, images):
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, backbone.params)
    bad = segmenter.but(backbone=dataclasses.replace(backbone, params=params))
    with pytest.raises(us.ImageError, match="not finite"):
        bad(images[0])
    assert bad.compilations == segmenter.compilations  # weights are arguments of one program


def test_refined_edges_follow_the_picture(segmenter, found, images):
    result = jax.device_get(segmenter.run([segmenter.prepare(images[1])]))
    for refine in ("bilateral", "guided"):
        method = dataclasses.replace(segmenter.method, refine=refine)
        refined = segmenter.but(method=method).finish(result, 0, images[1])
        assert 0.7 < us.metrics.iou(refined.mask, found[1].mask) < 1, refine
        np.testing.assert_array_equal(refined.mask, refined.labels > 0)


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
    epochs = {"epochs": 60, "parts_epochs": 60, "background_epochs": 20, "learning_rate": 0.01}
    result = segment(values, "deepcut", parts=2, background_parts=2, **epochs)
    for labels, foreground in zip(result.labels, result.foreground, strict=True):
        np.testing.assert_array_equal(foreground, kinds > 0)
        assert set(labels[kinds > 0]) == {1, 2}
        assert len(set(labels[kinds == 1])) == len(set(labels[kinds == 2])) == 1
        # Parts of the background are 0 and, if it was cut, 3.
        assert set(labels[kinds == 0]) <= {0, 3}


def test_clusters_are_numbered_by_size_and_empty_ones_dropped(features):
    result = segment(features[0], "deepcut-cc")
    for labels, count in zip(result.labels, result.num_clusters, strict=True):
        np.testing.assert_array_equal(np.unique(labels), np.arange(count))
        assert (np.diff(np.bincount(labels.ravel())[1:]) <= 0).all()


def test_tokencut_decides_its_own_foreground():
    """Its seed says which side is the object; no corner may overrule it."""
    corners = np.zeros((6, 6), bool)
    corners[::5, ::5] = True
    values = np.where(corners.reshape(1, -1, 1), 6, -6) * np.eye(4)[0]
    values = values + np.random.default_rng(0).normal(size=(1, 36, 4)) * 0.3
    result = segment(values.astype(np.float32), "tokencut")
    np.testing.assert_array_equal(result.foreground[0], corners)
