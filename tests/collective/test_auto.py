"""The default: sets are fitted, few images get the model that ships; nothing depends on weights."""

import dataclasses
import logging

import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.collective import auto, scoring
from unseg_jax.collective.ready import READY_MODEL, load_ready
from unseg_jax.errors import WeightsError


def patches(pixels):
    """(B, H, W, 3) to the first 384 values of each 14-pixel patch, (B, N, 384)."""
    images, height, width, _ = pixels.shape
    grid = pixels.reshape(images, height // 14, 14, width // 14, 14, 3).swapaxes(2, 3)
    return grid.reshape(images, -1, 14 * 14 * 3)[..., :384] - 0.5


@pytest.fixture(scope="module")
def backbone():
    return us.from_callable(patches, patch=14, width=384)


def square(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(20, 60, (56, 70, 3))
    image[14:42, 20:50] += 150
    return image.astype(np.uint8)


def test_the_ready_model_is_small_and_whole(backbone, monkeypatch, tmp_path):
    assert READY_MODEL.stat().st_size < 300_000
    model = load_ready(backbone=backbone)
    assert model.method.name == "collective"
    assert model.images == 11
    assert model.head is None
    copy = tmp_path / "ready.safetensors"
    content = bytearray(READY_MODEL.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    monkeypatch.setattr("unseg_jax.collective.ready.READY_MODEL", copy)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_ready(backbone=backbone)


@pytest.mark.parametrize(("count", "fitted"), [(2, False), (auto.SET_SIZE, True)])
def test_the_number_of_images_decides(backbone, monkeypatch, caplog, count, fitted):
    calls = []
    real = auto.fit
    monkeypatch.setattr(auto, "fit", lambda *a, **k: calls.append(len(a[0])) or real(*a, **k))
    segmenter = us.Segmenter(backbone=backbone, batch_size=4)
    images = [square(seed) for seed in range(count)]
    with caplog.at_level(logging.INFO, logger="unseg_jax"):
        results = segmenter(images)
    assert calls == ([count] if fitted else [])
    assert len(results) == count
    assert all(result.mask.shape == (56, 70) for result in results)
    said = [message for message in caplog.messages if message.startswith("auto: ")]
    assert len(said) == 1
    assert ("enough to fit" in said[0]) == fitted


def test_settings_of_published_methods_take_deepcut(backbone):
    segmenter = us.Segmenter(backbone=backbone, image_size=56, epochs=2)
    assert segmenter.method.name == "deepcut"
    assert segmenter.method.epochs == 2


def test_what_is_unlike_the_fitted_images_is_said_and_not_trusted(backbone):
    model = dataclasses.replace(load_ready(backbone=backbone), unlike=None)
    image = square(0)
    features = backbone.features(backbone.params, image[None, :56, :70].astype(np.float32) / 255)
    rows = np.asarray(features[0])
    mean = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).mean(0)
    by_hand = np.linalg.norm(mean - np.asarray(model.evidence.mean))
    ours = float(scoring.distance(model.evidence, rows))
    assert ours == pytest.approx(by_hand, rel=1e-4)
    trusted = model.segment(image)[0]
    assert trusted.notes == ()
    doubted = dataclasses.replace(model, unlike=0.0).segment(image)[0]
    assert "unlike the images that this model was fitted on" in doubted.notes[0]
    assert doubted.confidence == min(trusted.confidence, 0.2)
    np.testing.assert_array_equal(doubted.mask, trusted.mask)
    far = dataclasses.replace(model, unlike=2.0).segment(image)[0]
    assert far.notes == ()
    assert far.confidence == trusted.confidence
