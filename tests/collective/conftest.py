"""Two backbones, made-up photographs, and a model of these, which the tests share."""

import numpy as np
import pytest

import unseg_jax as us


@pytest.fixture(scope="session")
def backbone(tiny_weights):
    return us.load_backbone(tiny_weights)


@pytest.fixture(scope="session")
def colours():
    """The colours of each patch of 14 pixels, as wide as the model that ships takes."""

    def patches(pixels):
        images, height, width, _ = pixels.shape
        grid = pixels.reshape(images, height // 14, 14, width // 14, 14, 3).swapaxes(2, 3)
        return grid.reshape(images, -1, 14 * 14 * 3)[..., :384] - 0.5

    return us.from_callable(patches, patch=14, width=384)


@pytest.fixture(scope="session")
def photographs():
    """`photographs(count, seed)`: each a bright square on a noisy ground."""

    def make(count=4, seed=1):
        rng = np.random.default_rng(seed)
        images = []
        for _ in range(count):
            image = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
            top, left = rng.integers(12, 30, 2)
            image[top : top + 24, left : left + 24] += np.uint8(180)
            images.append(image)
        return images

    return make


@pytest.fixture(scope="session")
def model(backbone, photographs):
    """Fitted on four photographs, with a graph head. Hardly trained, see `short_training`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unseg_jax.collective.convolution._STEPS", 1)
        return us.fit(
            photographs(), backbone=backbone, image_size=64, steps=3, branches=((8,), (8, 4))
        )
