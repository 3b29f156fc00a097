"""One pass: what a fit read and encoded of its images serves applying the model as well."""

import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.data.reading_options import Reading
from unseg_jax.registry import resolve
from unseg_jax.segmenter.decoded_cache import Decoded, DecodedCache
from unseg_jax.segmenter.device import Device

pytestmark = pytest.mark.usefixtures("short_training")
OF = resolve("collective").feature_key
OPTIONS = {"image_size": 56, "max_images": 4, "steps": 0}


@pytest.fixture
def paths(tmp_path):
    """Four images of two shapes."""
    found = []
    for seed, shape in enumerate([(56, 70), (56, 70), (70, 56), (56, 70)]):
        rng = np.random.default_rng(seed)
        image = rng.integers(20, 60, (*shape, 3))
        image[14:42, 20:50] += 150
        found.append(tmp_path / f"{seed}.png")
        Image.fromarray(image.astype(np.uint8)).save(found[-1])
    return found


@pytest.fixture
def counted(monkeypatch):
    """How often each file is read, and how many images the backbone encodes."""
    reads, encoded = Counter(), []
    read, encode = Reading.read, Device._keep

    def reading(self, source, *args, **kwargs):
        reads[os.path.basename(source)] += 1
        return read(self, source, *args, **kwargs)

    def encoding(self, params, pixels):
        encoded.append(len(pixels))
        return encode(self, params, pixels)

    monkeypatch.setattr(Reading, "read", reading)
    monkeypatch.setattr(Device, "_keep", encoding)
    return reads, encoded


def test_each_image_is_read_and_encoded_once(paths, colours, counted, monkeypatch):
    reads, encoded = counted
    options = {"backbone": colours, "batching": "loop", **OPTIONS}
    once = us.Segmenter("collective", **options)(paths)
    assert set(reads.values()) == {1}
    assert len(reads) == 4
    assert len(encoded) == 2  # one batch of each shape
    reads.clear(), encoded.clear()
    monkeypatch.setattr("unseg_jax.segmenter.decoded_cache.MEMORY", 0)
    monkeypatch.setattr("unseg_jax.segmenter.decoded_cache.DISK", 0)
    twice = us.Segmenter("collective", **options)(paths)
    assert set(reads.values()) == {2}
    assert len(encoded) == 4
    for one, other in zip(once, twice, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.evidence, other.evidence)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def _image(seed, side=16):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
    return Decoded(pixels, rng.normal(size=(4, 4, 8)).astype(np.float16), (side, side), ("seen",))


def test_what_memory_does_not_hold_is_in_a_file_and_what_that_does_not_is_read_again(paths):
    size = 16 * 16 * 3 + 4 * 4 * 8 * 2
    cache = DecodedCache(memory=size, disk=2 * size)
    for seed, path in enumerate(paths):
        cache.put(path, _image(seed), OF)
    for seed, path in enumerate(paths[:3]):
        found = cache.get(path, OF)
        for one, other in zip(found, _image(seed), strict=True):
            np.testing.assert_array_equal(one, other)
        assert not isinstance(found.prepared, np.memmap)
    assert cache.get(paths[3], OF) is None


def test_a_full_disk_and_a_file_that_changed_are_read_again(paths, monkeypatch):
    cache = DecodedCache(memory=10_000)
    cache.put(paths[0], _image(0), OF)
    paths[0].write_bytes(paths[0].read_bytes() + b" ")
    assert cache.get(paths[0], OF) is None

    def full(*args):
        raise OSError(28, "no space left")

    monkeypatch.setattr("unseg_jax.segmenter.decoded_cache.os.truncate", full)
    cache = DecodedCache(memory=0)
    cache.put(paths[1], _image(1), OF)
    assert cache.get(paths[1], OF) is None
    array = np.zeros((2, 2, 3), np.uint8)
    cache = DecodedCache()
    cache.put(array, _image(2), OF)
    assert cache.get(array, OF) is not None
    assert cache.get(array.copy(), OF) is None
