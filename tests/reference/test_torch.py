"""The dense PyTorch writing against the PyG one, and the PyTorch ViT against golden values."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the 'reference' extra")
pytest.importorskip("torch_geometric", reason="needs the 'reference' extra")

import torch

from benchmarks.measure.random_weights import random_state
from benchmarks.reference import pyg_heads, torch_dense, torch_vit

from .conftest import features, part

pytestmark = pytest.mark.pytorch

NODES, WIDTH, EPOCHS = 40, 16, 6


def assert_dense_is_sparse(head, seeds):
    images = [features(seed, NODES, WIDTH, 3, 1) for seed in seeds]
    states = [pyg_heads.initial_state(head, WIDTH, seed=seed) for seed in seeds]
    weights = np.stack([pyg_heads.affinity(image, head) for image in images])
    options = {"epochs": EPOCHS, "dropout": 0.0}
    dense = torch_dense.run(np.stack(images), weights, head, states=states, **options)
    for index, (image, state) in enumerate(zip(images, states, strict=True)):
        sparse = pyg_heads.run(image, head, state=state, **options)
        np.testing.assert_allclose(dense.losses[index], sparse.losses, rtol=1e-4)
        assert np.mean(dense.labels[index] == sparse.labels) >= 0.97


@pytest.mark.parametrize("name", pyg_heads.HEADS)
def test_dense_heads_equal_message_passing(name):
    head = dataclasses.replace(pyg_heads.HEADS[name], learning_rate=1e-2)
    for edge_features in (False, True) if head.layer == "gat" else (False,):
        assert_dense_is_sparse(dataclasses.replace(head, edge_features=edge_features), (0, 1))


def test_two_gcn_layers():
    head = pyg_heads.HEADS["unseggnet"]
    assert_dense_is_sparse(dataclasses.replace(head, branches=((8, 8),), tau=0.2), (2,))


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (64, 40), (56, 72)])
def test_vit_keys(golden, size):
    values = golden("vit_tiny_patch8")
    prefix = f"{size[0]}x{size[1]}"
    model = torch_vit.load(
        part(values, "param."), patch=8, width=48, depth=3, heads=3, native_grid=4
    )
    with torch.inference_mode():
        keys = model.keys(torch.from_numpy(values[f"{prefix}.input"]))
    np.testing.assert_allclose(keys, values[f"{prefix}.s8.key"], atol=1e-4)


def test_bfloat16_is_close_to_float32():
    shape = {"patch": 8, "width": 48, "depth": 3, "heads": 3, "native_grid": 4}
    model = torch_vit.load(random_state(**shape), **shape)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    full = torch_vit.features(model, pixels)
    half = torch_vit.features(model, pixels, bfloat16=True)
    assert 0 < (full - half).abs().max() < 0.05 * full.abs().max()
