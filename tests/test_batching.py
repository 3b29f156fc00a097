"""Several images at once: what comes out is what one call for all would give."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax.batching import map_images, takes_images_apart

BATCH = np.arange(5 * 3, dtype=np.float32).reshape(5, 3)


@jax.jit
def double(factor, batch):
    values, offset, missing = batch
    assert missing is None
    return {"sum": values.sum(-1) + offset, "twice": (factor * values,)}


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_results_are_in_order(convert):
    assert takes_images_apart()
    offset = convert(np.array([1.0, 0.0, 5.0, 2.0, 7.0], np.float32))
    found = map_images(double, np.float32(2), (convert(BATCH), offset, None))
    np.testing.assert_array_equal(found["sum"], BATCH.sum(-1) + offset)
    np.testing.assert_array_equal(found["twice"][0], 2 * BATCH)
    assert map_images(double, np.float32(2), (BATCH[:0], BATCH[:0, 0], None))["sum"].shape == (0,)


def test_one_program_for_batches_of_all_sizes():
    shapes = []

    @jax.jit
    def program(more, values):
        shapes.append(values.shape)
        return values + more

    for count in (5, 1, 3):
        found = map_images(program, 1.0, BATCH[:count])
        np.testing.assert_array_equal(found, BATCH[:count] + 1)
    assert shapes == [(1, 3)]


@pytest.mark.parametrize("traced", ["shared", "batch"])
def test_under_a_transformation_it_is_one_call(traced):
    shapes = []

    def program(more, values):
        shapes.append(values.shape)
        return values + more

    if traced == "shared":
        found = jax.jit(lambda more: map_images(program, more, BATCH))(1.0)
    else:
        found = jax.jit(lambda values: map_images(program, 1.0, values))(BATCH)
    np.testing.assert_array_equal(found, BATCH + 1)
    assert shapes == [(5, 3)]


def test_an_error_of_one_image_is_raised():
    def program(_, values):
        if values[0, 0] == 9:
            raise ValueError("no such image")
        return values

    with pytest.raises(ValueError, match="no such image"):
        map_images(program, None, BATCH)


TWO_DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import unseg_jax as us
from unseg_jax.batching import by_shares, map_images, takes_images_apart

assert not takes_images_apart()
assert [*map_images(lambda _, values: np.array(values.shape), None, np.ones((4, 2)))] == [4, 2]
count = jax.jit(lambda batch: by_shares(lambda _, part: 0 * part + len(part), None, batch))
assert count(np.ones(4)).tolist() == [2] * 4 and count(np.ones(5)).tolist() == [5] * 5

small = {"branches": ((8,),), "mlp_width": 8, "epochs": 3}
options = {"backbone": us.load_backbone(sys.argv[1]), "image_size": 32, **small}
fn, params = us.make_segment_fn("deepcut", **options)
mesh = Mesh(np.array(jax.devices()), ("images",))
pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
images = PartitionSpec("images")
split = jax.device_put(pixels[:4], NamedSharding(mesh, images))
whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
compiled = fn.lower(whole, split).compile()
text = compiled.as_text()
assert "all-gather" not in text and "all-to-all" not in text, "gathered"
labels = compiled(whole, split)
assert labels.sharding.spec[0] == "images", labels.sharding
assert {part.data.shape for part in labels.addressable_shards} == {(2, 4, 4)}
# The check can fail: a loop over the images does gather them.
loop = jax.jit(lambda images: jax.lax.map(lambda image: image.sum(), images))
assert "all-gather" in loop.lower(split).compile().as_text()

# A segmenter takes batch_size images on each device, and finds what one image alone gives.
segmenter = us.Segmenter("deepcut", batch_size=2, **options)
assert segmenter.at_once == 4
found = segmenter.run(pixels[:4])
assert found.labels.sharding.num_devices == 2 and found.labels.sharding.spec[0] == "images"
alone = us.Segmenter("deepcut", batching="loop", **options)
assert alone.at_once == 8
for index, (many, one) in enumerate(zip(segmenter(pixels), alone(pixels), strict=True)):
    assert np.array_equal(many.labels, one.labels)
    assert index == 4 or np.array_equal(labels[index], one.patch_labels)

# Under the user's own shard_map each image is optimised on its own gradient, not on the sum over
# the devices.
features = np.random.default_rng(0).normal(size=(4, 24, 8)).astype(np.float32)
features[:, :12] += 1

def cluster(features):
    found = us.cluster(features, **small)
    return found.assignments, found.losses

sharded = jax.shard_map(cluster, mesh=mesh, in_specs=images, out_specs=images)
for one, other in zip(jax.jit(cluster)(features), jax.jit(sharded)(features)):
    assert float(abs(one - other).max()) < 1e-6
"""


def test_several_devices_share_a_batch_and_change_nothing(python, tiny_weights):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    python(TWO_DEVICES, tiny_weights, XLA_FLAGS=flags)
