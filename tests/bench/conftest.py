"""A small data set and a small random backbone, so that whole runs take seconds."""

import numpy as np
import pytest
from PIL import Image

WIDTH, HEADS, PATCH, BLOCKS = 48, 3, 8, 2
COUNT = 10


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A random ViT in the official layout, as a file that `--backbone` takes."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)

    def normal(*shape):
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    tensors = {
        "cls_token": normal(1, 1, WIDTH),
        "pos_embed": normal(1, 17, WIDTH),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": normal(WIDTH),
        "norm.weight": np.ones(WIDTH, np.float32),
        "norm.bias": np.zeros(WIDTH, np.float32),
    }
    for block in range(BLOCKS):
        shapes = {
            "norm1.weight": (WIDTH,),
            "norm1.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH),
            "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            "mlp.fc2.bias": (WIDTH,),
        }
        for name, shape in shapes.items():
            tensors[f"blocks.{block}.{name}"] = normal(*shape)
    path = tmp_path_factory.mktemp("weights") / "tiny_patch8.safetensors"
    save_file(tensors, path)
    return path


def draw(folder, count=COUNT, seed=0):
    """`folder/images` and `folder/masks`: bright ellipses on dark noise, of several sizes."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        height, width = 40 + 8 * (index % 3), 48
        y, x = np.mgrid[:height, :width]
        centre = (height * rng.uniform(0.4, 0.6), width * rng.uniform(0.4, 0.6))
        mask = ((y - centre[0]) / 12) ** 2 + ((x - centre[1]) / 14) ** 2 < 1
        image = rng.integers(0, 60, (height, width, 3))
        image[mask] += np.array([180, 120, 60])
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{index:03d}.png")
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(
            folder / "masks" / f"{index:03d}.png"
        )
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Ten image and mask pairs."""
    return draw(tmp_path_factory.mktemp("data") / "ellipses")


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """Sixty image and mask pairs: enough that a run has far to go when its first records appear."""
    return draw(tmp_path_factory.mktemp("data") / "many", 60)
