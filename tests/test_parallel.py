"""Several images at once: what comes out is what one call for all would give."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unseg_jax.parallel import map_images, takes_images_apart

BATCH = np.arange(5 * 3, dtype=np.float32).reshape(5, 3)


@jax.jit
def double(batch):
    values, offset, missing = batch
    assert missing is None
    return {"sum": values.sum(-1) + offset, "twice": (2 * values,)}


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_results_are_in_order(convert):
    assert takes_images_apart()
    offset = convert(np.array([1.0, 0.0, 5.0, 2.0, 7.0], np.float32))
    found = map_images(double, (convert(BATCH), offset, None))
    np.testing.assert_array_equal(found["sum"], BATCH.sum(-1) + offset)
    np.testing.assert_array_equal(found["twice"][0], 2 * BATCH)


def test_one_program_for_batches_of_all_sizes():
    shapes = []

    @jax.jit
    def program(values):
        shapes.append(values.shape)
        return values + 1

    for count in (5, 1, 3):
        np.testing.assert_array_equal(map_images(program, BATCH[:count]), BATCH[:count] + 1)
    assert shapes == [(1, 3)]


def test_inside_another_program_it_is_one_call():
    shapes = []

    def program(values):
        shapes.append(values.shape)
        return values + 1

    found = jax.jit(lambda values: map_images(program, values))(BATCH)
    np.testing.assert_array_equal(found, BATCH + 1)
    assert shapes == [(5, 3)]


def test_an_error_of_one_image_is_raised():
    def program(values):
        if values[0, 0] == 9:
            raise ValueError("no such image")
        return values

    with pytest.raises(ValueError, match="no such image"):
        map_images(program, BATCH)


def test_several_devices_get_the_batch_whole():
    code = (
        "import numpy as np\n"
        "from unseg_jax.parallel import map_images, takes_images_apart\n"
        "assert not takes_images_apart()\n"
        "print(map_images(lambda values: np.array(values.shape), np.ones((4, 2))))\n"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[4 2]", found.stderr
