"""Two sets of weights beside each other: the same, rounded, fine-tuned, unrelated."""

import numpy as np
import pytest

from unseg_jax.backbones import ViTConfig, WeightsError, compare_weights

pytestmark = pytest.mark.quick

SMALL = ViTConfig(patch_size=8, width=64, depth=2, heads=1, grid=3)


@pytest.fixture
def compare(tmp_path, state_dict):
    first = state_dict(SMALL)
    np.savez(tmp_path / "a.npz", **first)

    def run(change):
        np.savez(tmp_path / "b.npz", **change(first))
        return compare_weights(tmp_path / "a.npz", tmp_path / "b.npz")

    return run


def test_verdicts(compare, state_dict):
    draw = np.random.default_rng(9)
    cases = {
        "are identical": lambda name, x: x,
        "the same up to rounding": lambda name, x: x.astype(np.float16),
        "as if one was fine-tuned": lambda name, x: x + 0.2 * x.std() * draw.normal(size=x.shape),
        "as if trained independently": lambda name, x: state_dict(SMALL, seed=7)[name],
    }
    for verdict, change in cases.items():
        comparison = compare(
            lambda t, change=change: {f"module.{name}": change(name, x) for name, x in t.items()}
        )
        assert verdict in comparison.verdict
        assert comparison.verdict.endswith(".")
        # 12 parameters a block, and 6 outside.
        assert len(comparison.tensors) == 2 * 12 + 6


def test_what_differs_is_named(compare):
    name = "blocks.1.attn.qkv.weight"
    one = np.pad([[2]], ((0, 191), (0, 63)))
    comparison = compare(lambda t: {**t, name: t[name] + one})
    (changed,) = [tensor for tensor in comparison.tensors if tensor.max_difference]
    assert changed.name == "blocks.1.qkv.kernel"
    assert changed.max_difference == pytest.approx(2, rel=1e-6)
    assert 0.5 < changed.cosine < 1
    assert "1 of 30 parameters differ" in comparison.verdict
    comparison = compare(lambda t: {**t, "pos_embed": np.ones((1, 17, 64), np.float32)})
    assert "identical (1 parameters have other shapes" in comparison.verdict
    (left,) = [tensor for tensor in comparison.tensors if np.isnan(tensor.cosine)]
    assert left.shapes == ((10, 64), (17, 64))


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(ValueError, match="no backbone 'dino'"):
        compare_weights("dino", "dino")
    with pytest.raises(WeightsError, match="there is no weights file"):
        compare_weights(tmp_path / "a.npz", tmp_path / "b.npz")
