"""The TPU's attention kernel, run by Pallas' interpreter and lowered for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unseg_jax.backbones import fused
from unseg_jax.backbones.config import ViTConfig
from unseg_jax.backbones.vit import Block

CONFIG = ViTConfig(patch_size=8, width=128, depth=1, heads=2, grid=4)


@pytest.fixture(scope="module")
def block():
    return Block(CONFIG, nnx.Rngs(0))


def draw(tokens, dtype=jnp.bfloat16):
    values = np.random.default_rng(tokens).normal(size=(2, tokens, 3 * CONFIG.width))
    return jnp.asarray(values, dtype)


@pytest.mark.parametrize("tokens", [17, 300], ids=["one part", "two parts"])
def test_it_is_the_attention_of_a_block(block, tokens):
    qkv = draw(tokens)
    expected = np.asarray(block._attend(qkv), np.float32)
    found = np.asarray(fused.attend(qkv, CONFIG.heads, interpret=True), np.float32)
    assert expected.std() > 0.05
    # The last of bfloat16's eight bits, where a sum over tokens was taken in another order.
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-4)


def test_where_it_is_taken(monkeypatch):
    qkv = draw(17)
    assert not fused.is_fused(qkv, CONFIG.heads)
    monkeypatch.setattr(fused, "_on_tpu", lambda: True)
    assert fused.is_fused(qkv, CONFIG.heads)
    assert not fused.is_fused(draw(17, jnp.float32), CONFIG.heads)
    assert not fused.is_fused(qkv[..., : 3 * 64], 1)
    # XLA cannot divide it, so that each device must have its own part.
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert not fused.is_fused(qkv, CONFIG.heads)
    images = jax.sharding.PartitionSpec("images")
    seen = []

    def part(own):
        seen.append(fused.is_fused(own, CONFIG.heads))
        return own

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("images",))
    jax.jit(jax.shard_map(part, mesh=mesh, in_specs=images, out_specs=images))(qkv)
    assert seen == [True]


def test_a_program_holds_it_on_a_tpu_alone(block, monkeypatch):
    monkeypatch.setattr(fused, "_on_tpu", lambda: True)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(block))
    form = nnx.graphdef(block)
    traced = jax.jit(lambda x: nnx.merge(form, low).attention(x)).trace(
        jnp.ones((2, 17, CONFIG.width), jnp.bfloat16)
    )
    texts = {at: traced.lower(lowering_platforms=(at,)).as_text() for at in ("tpu", "cpu")}
    assert "tpu_custom_call" in texts["tpu"]
    assert "custom_call" not in texts["cpu"]
