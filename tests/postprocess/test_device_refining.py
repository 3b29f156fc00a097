"""Edges refined on the device, against the host's."""

import jax
import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from benchmarks.accelerators.compiled import random_scorer
from unseg_jax import segmenter as segmenters
from unseg_jax.collective.model import CollectiveModel
from unseg_jax.data.decoding import resize_image
from unseg_jax.postprocess import device_refining
from unseg_jax.postprocess.guided import interpolate
from unseg_jax.postprocess.margins import refine_margins, upsample_margins
from unseg_jax.registry import resolve

METHOD = resolve("collective")
SIDE = (256, 256)


@pytest.fixture(scope="module")
def blob():
    """An image of a disc, and margins on patches that are coarser than it."""
    row, column = np.mgrid[:300, :400]
    disc = (row - 140) ** 2 + (column - 210) ** 2 < 90**2
    image = np.where(disc[..., None], (190, 120, 40), (60, 90, 130))
    image = image + np.random.default_rng(0).normal(0, 6, image.shape)
    margins = Image.fromarray(disc.astype(np.float32)).resize((8, 8), Image.Resampling.BILINEAR)
    return image.clip(0, 255).astype(np.uint8), 2.5 * np.asarray(margins) - 1.2


@pytest.fixture(scope="module")
def on_device():
    return jax.jit(device_refining.refine_batch)


def test_it_is_the_host_filter(blob, on_device):
    image, margins = blob
    small = resize_image(image, SIDE)
    turned = small[::-1], margins[::-1]
    found = on_device(np.stack([small, turned[0]]), np.stack([margins, turned[1]]))
    for one, given in zip(found, ((small, margins), turned), strict=True):
        np.testing.assert_allclose(one, refine_margins(*given, METHOD), atol=2e-3)


def test_edges_hardly_move_with_what_the_backbone_takes(blob, on_device):
    image, margins = blob
    host = refine_margins(image, margins, METHOD) > 0
    found = on_device(resize_image(image, METHOD.size)[None], margins[None])[0] > 0
    assert 0.1 < host.mean() < 0.4
    assert (host != found).mean() < 0.002
    # Without the image they lie elsewhere.
    assert (host != (interpolate(margins, SIDE) > 0)).mean() > 0.005


def test_accelerators_refine_behind_the_scorer(blob, tiny_weights, monkeypatch):
    method = resolve("collective", image_size=64)
    assert not device_refining.refines_on_device(method)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        assert device_refining.refines_on_device(method)
        assert not device_refining.refines_on_device(resolve("collective", refine="bilateral"))

    backbone = us.load_backbone(tiny_weights)
    model = CollectiveModel(method, backbone, random_scorer(backbone.config.width), None, ())
    host = model.segmenter()
    images = [blob[0], blob[0][::-1]]
    pixels = [host.prepare(image) for image in images]
    assert host.run(pixels).refined is None
    monkeypatch.setattr(segmenters, "refines_on_device", lambda _: True)
    device = model.segmenter()
    found = device.run(pixels)
    assert found.refined.shape == (2, *SIDE)
    # Of kept features the pixels are not at hand.
    assert device.run(list(device.kept_features(np.stack(pixels)))).refined is None
    # The mask is that of the refined margins.
    (one,) = device(images[:1])
    expected = upsample_margins(np.asarray(found.refined[0]), images[0].shape[:2])
    np.testing.assert_array_equal(one.mask, expected)
    # 64 pixels are fewer than 256, so that edges differ.
    assert 0 < (host(images[:1])[0].mask != one.mask).mean() < 0.1
