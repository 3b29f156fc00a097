"""Attention in one kernel: a TPU's is run by Pallas' interpreter, both are lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from unseg_jax.backbones import attention
from unseg_jax.backbones.config import ViTConfig
from unseg_jax.backbones.vit import Block

CONFIG = ViTConfig(patch_size=8, width=128, depth=1, heads=2, grid=4)


@pytest.fixture(scope="module")
def block():
    return Block(CONFIG, nnx.Rngs(0))


def draw(tokens, dtype=jnp.bfloat16):
    values = np.random.default_rng(tokens).normal(size=(2, tokens, 3 * CONFIG.width))
    return jnp.asarray(values, dtype)


@pytest.fixture
def only(monkeypatch):
    """Says that a platform, and no other, is here."""
    asked = attention._cudnn_attends
    asked.cache_clear()
    yield lambda name: monkeypatch.setattr(attention, "_is_here", lambda platform: platform == name)
    asked.cache_clear()


# One part of the queries, and two of which the last is not full.
@pytest.mark.parametrize("tokens", [17, 300])
def test_on_a_tpu_it_is_the_attention_of_a_block(block, tokens):
    qkv = draw(tokens)
    expected = np.asarray(block._attend(qkv), np.float32)
    found = np.asarray(attention.attend_on_tpu(qkv, CONFIG.heads, interpret=True), np.float32)
    assert expected.std() > 0.05
    # The last of bfloat16's eight bits, where a sum over tokens was taken in another order.
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-4)


def test_on_a_gpu_it_is_the_attention_of_a_block(block):
    qkv = draw(17, jnp.float32)
    found = attention.attend_on_gpu(qkv, CONFIG.heads, implementation="xla")
    np.testing.assert_allclose(found, block._attend(qkv), atol=1e-5)


def test_where_a_tpu_takes_it(only, monkeypatch):
    qkv = draw(17)
    assert not attention.is_for_tpu(qkv, CONFIG.heads)
    only("tpu")
    assert attention.is_for_tpu(qkv, CONFIG.heads)
    assert not attention.is_for_tpu(draw(17, jnp.float32), CONFIG.heads)
    assert not attention.is_for_tpu(qkv[..., : 3 * 64], 1)
    # XLA cannot divide it, so that each device must have its own part.
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert not attention.is_for_tpu(qkv, CONFIG.heads)
    images = jax.sharding.PartitionSpec("images")
    seen = []

    def part(own):
        seen.append(attention.is_for_tpu(own, CONFIG.heads))
        return own

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("images",))
    jax.jit(jax.shard_map(part, mesh=mesh, in_specs=images, out_specs=images))(qkv)
    assert seen == [True]


def test_where_a_gpu_takes_it(only, monkeypatch):
    qkv = draw(17)
    assert not attention.is_for_gpu(qkv, CONFIG.heads)
    only("gpu")
    # cuDNN is not here.
    assert not attention.is_for_gpu(qkv, CONFIG.heads)
    monkeypatch.setattr(attention, "_cudnn_attends", lambda: True)
    assert attention.is_for_gpu(qkv, CONFIG.heads)
    assert not attention.is_for_gpu(draw(17, jnp.float32), CONFIG.heads)
    assert not attention.is_for_gpu(jnp.zeros((1, 4, 3 * 256), jnp.bfloat16), 1)


@pytest.mark.parametrize(
    ("here", "platform", "call"), [("tpu", "tpu", "tpu_custom_call"), ("gpu", "cuda", "cudnn$fmha")]
)
def test_a_program_holds_it_there_alone(block, only, monkeypatch, here, platform, call):
    only(here)
    # JAX would ask the device.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(block))
    form = nnx.graphdef(block)
    traced = jax.jit(lambda x: nnx.merge(form, low).attention(x)).trace(
        jnp.ones((2, 17, CONFIG.width), jnp.bfloat16)
    )
    assert call in traced.lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()
