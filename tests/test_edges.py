"""Inputs at the edge of what makes sense: a sentence early, or the right answer."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import unseg_jax as us
from unseg_jax import pipeline
from unseg_jax.collective import set_scorer, shared_head
from unseg_jax.registry import resolve

FEATURES = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
KINDS = ("deepcut", "unsegarmanet", "unsegmedgat", "vit-kmeans", "deep-spectral", "tokencut")
SMALL = {"epochs": 2, "mlp_width": 8, "branches": ((8,),)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"features": FEATURES[:0]}, r"shape \(0, 6\): at least one node"),
        ({"features": FEATURES * 1e30}, "left the range of float32 .the largest feature is"),
        ({"adjacency": np.full((12, 12), -1.0)}, "adjacency has negative entries .down to -1"),
        ({"affinity": "cc"}, "affinity='cc' has negative entries, which loss='ncut'"),
    ],
)
def test_cluster_says_what_is_wrong(arguments, said):
    with pytest.raises(ValueError, match=said):
        us.cluster(**({"features": FEATURES} | SMALL | arguments))


def test_parameters_that_are_not_finite_are_named():
    params = us.cluster(FEATURES, **SMALL).params
    params["mlp"][0]["bias"] = params["mlp"][0]["bias"].at[1].set(jnp.nan)
    with pytest.raises(ValueError, match="params hold 1 values that are not finite"):
        us.cluster(FEATURES, params=params, epochs=2)


def test_negative_affinities_are_for_correlation_clustering():
    signed = np.where(np.arange(12)[:, None] // 6 == np.arange(12) // 6, 1.0, -1.0)
    result = us.cluster(FEATURES, adjacency=signed, method="deepcut-cc", **SMALL)
    assert np.isfinite(result.losses).all()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_seeds_out_of_range(seed, tiny_weights):
    for call in (
        lambda: us.Segmenter("spectral-ncut", seed=seed),
        lambda: us.make_segment_fn("deepcut", tiny_weights, seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed={seed} must be a whole number from 0"):
            call()


def test_batches_of_nothing_and_models_of_no_clusters(tiny_weights):
    segmenter = us.Segmenter("deepcut", backbone=tiny_weights, image_size=32, **SMALL)
    assert segmenter([]) == []
    with pytest.raises(ValueError, match="no images to run"):
        segmenter.run([])
    fn, params = us.make_segment_fn("deepcut", tiny_weights, image_size=32, **SMALL)
    with pytest.raises(ValueError, match=r"pixels have shape \(0, 32, 32, 3\)"):
        fn(params, np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="num_clusters=0 must be at least 1"):
        us.fit(np.zeros((1, 32, 32, 3), np.uint8), backbone=tiny_weights, num_clusters=0)


@pytest.mark.parametrize("name", ["vit-kmeans", "spectral-ncut"])
def test_one_colour_gives_no_confidence_and_a_pickled_segmenter_the_same(name, tiny_weights):
    """Position embeddings and superpixels differ where the image does not."""
    segmenter = us.Segmenter(name, backbone=tiny_weights, image_size=32, seed=5)
    black, half = np.zeros((2, 40, 40, 3), np.uint8)
    half[:, 20:] = 255
    assert segmenter(black)[0].confidence == 0
    (before,) = segmenter(half)
    assert before.confidence == 1
    copy = pickle.loads(pickle.dumps(segmenter))
    np.testing.assert_array_equal(copy(half)[0].labels, before.labels)
    assert (copy.seed, copy.method) == (5, segmenter.method)
    assert jnp.array_equal(jax.random.key_data(copy.key), jax.random.key_data(segmenter.key))


def traced(function):
    """The same, but its results are zeros: their types are known without compiling it."""

    def call(*args, **static):
        found = jax.eval_shape(functools.partial(function, **static), *args)
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), found)

    return call


def test_nothing_changes_under_x64(tiny_weights, tmp_path, monkeypatch):
    for module, name in ((set_scorer, "_learn"), (shared_head, "distil")):
        monkeypatch.setattr(module, name, traced(getattr(module, name)))
    features = np.random.default_rng(0).normal(size=(2, 16, 6))
    path, options = tmp_path / "model.safetensors", {"backbone": tiny_weights, "image_size": 32}
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    with jax.enable_x64(True):
        assert jnp.zeros(1).dtype == jnp.float64
        for name in KINDS:
            result = jax.eval_shape(lambda x, name=name: us.cluster(x, method=name), features)
            assert result.assignments.dtype == result.losses.dtype == jnp.float32, name
            assert result.labels.dtype == jnp.int32, name
        model = us.fit([image, image[::-1]], steps=2, num_clusters=2, **options)
        model.save(path)
        types = {array.dtype.name for array in load_file(path).values()}
        assert types <= {"float32", "float16", "bool"}
        model = us.load_model(path, backbone=tiny_weights)
        assert [found.losses.dtype for found in model.segment([image])] == [np.float32]
        method = resolve("deepcut", image_size=32, parts=2, epochs=2)
        run = functools.partial(pipeline.segment_features, method=method, grid=(4, 4))
        (found, _) = jax.eval_shape(run, features, jax.random.key(0))
        assert found.labels.dtype == jnp.int32
