"""Two sets of weights beside each other: the same, rounded, fine-tuned, unrelated."""

import numpy as np
import pytest

from unseg_jax.backbones import ViTConfig, WeightsError, compare_weights

pytestmark = pytest.mark.quick

SMALL = ViTConfig(patch_size=8, width=64, depth=2, heads=1, grid=3)


def with_noise(tensors, scale):
    draw = np.random.default_rng(9)
    return {
        name: (x + scale * x.std() * draw.normal(size=x.shape)).astype(np.float32)
        for name, x in tensors.items()
    }


@pytest.fixture
def compare(tmp_path, state_dict):
    first = state_dict(SMALL)
    np.savez(tmp_path / "a.npz", **first)

    def run(change):
        np.savez(tmp_path / "b.npz", **change(first))
        return compare_weights(tmp_path / "a.npz", tmp_path / "b.npz")

    return run


def test_verdicts(compare, state_dict):
    cases = {
        "are identical": lambda t: {f"module.{name}": x for name, x in t.items()},
        "the same up to rounding": lambda t: {k: x.astype(np.float16) for k, x in t.items()},
        "as if one was fine-tuned": lambda t: with_noise(t, 0.2),
        "as if trained independently": lambda t: state_dict(SMALL, seed=7),
    }
    for verdict, change in cases.items():
        comparison = compare(change)
        assert verdict in comparison.verdict
        assert comparison.verdict.endswith(".")
        # 12 parameters a block, and 6 outside.
        assert len(comparison.tensors) == 2 * 12 + 6


def test_one_tensor_that_differs_is_found(compare):
    def change(tensors):
        moved = tensors["blocks.1.attn.qkv.weight"].copy()
        moved[0, 0] += 2
        return {**tensors, "blocks.1.attn.qkv.weight": moved}

    comparison = compare(change)
    (changed,) = [tensor for tensor in comparison.tensors if tensor.max_difference]
    assert changed.name == "blocks.1.qkv.kernel"
    assert changed.max_difference == pytest.approx(2, rel=1e-6)
    assert 0.5 < changed.cosine < 1
    assert "1 of 30 parameters differ" in comparison.verdict


def test_another_grid_is_left_out(compare):
    comparison = compare(lambda t: {**t, "pos_embed": np.ones((1, 17, 64), np.float32)})
    assert "identical (1 parameters have other shapes" in comparison.verdict
    (left,) = [tensor for tensor in comparison.tensors if np.isnan(tensor.cosine)]
    assert left.shapes == ((10, 64), (17, 64))


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(ValueError, match="no backbone 'dino'"):
        compare_weights("dino", "dino")
    with pytest.raises(WeightsError, match="there is no weights file"):
        compare_weights(tmp_path / "a.npz", tmp_path / "b.npz")
