"""How a batch is taken changes nothing: vmapped, in turn, or on threads."""

import functools

import jax
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.clustering import loop
from unseg_jax.registry import METHODS, resolve

NODES, WIDTH = 64, 16
# Each layer, loss and algorithm once.
KINDS = ("deepcut", "cc-gat", "unsegarmanet", "vit-kmeans", "deep-spectral", "tokencut")
KINDS += ("spectral-ncut",)


def small(name, **fields):
    branches = tuple((8,) * len(widths) for widths in METHODS[name].branches)
    # Colours need an image; the loop is the same on any affinity.
    affinity = "ncut" if METHODS[name].affinity == "colour" else None
    fields |= {"branches": branches, "affinity": affinity, "epochs": 4, "mlp_width": 8}
    return resolve(name, arma_layers=1, dropout=0.3, layer_dropout=0.3, **fields)


@pytest.fixture(scope="module")
def batch():
    """Three graphs of two groups each, of unlike sizes, with padding in the last."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(3, 2, WIDTH))
    owners = [np.arange(NODES) < share for share in (12, 32, 40)]
    features = [centre[owner.astype(int)] for centre, owner in zip(centres, owners, strict=True)]
    features = np.stack(features) + rng.normal(size=(3, NODES, WIDTH))
    mask = np.ones((3, NODES), bool)
    mask[2, 60:] = False
    return features.astype(np.float32), mask


@pytest.mark.parametrize("name", KINDS)
def test_vmapped_and_on_threads_is_in_turn(batch, name):
    features, mask = batch
    ways, record_every, method = ("loop", "vmap"), 0, small(name)
    if name == "deepcut":  # what threads do, and what is recorded, is the same for all
        ways, record_every, method = (*ways, "threads"), 2, small(name, quirks="code")
    in_turn, *others = (
        us.cluster(features, method=method, node_mask=mask, batching=how, record_every=record_every)
        for how in ways
    )
    for how, found in zip(ways[1:], others, strict=True):
        assert np.mean(np.asarray(in_turn.labels) == found.labels) >= 0.999
        # A vmapped product adds in another order; on threads each image has the same program.
        atol = 1e-4 if how == "vmap" else 0.0
        np.testing.assert_allclose(found.losses, in_turn.losses, rtol=1e-4, atol=atol)
        if record_every:
            np.testing.assert_array_equal(in_turn.history, found.history)
    if method.algorithm == "gnn":
        assert not np.array_equal(in_turn.losses[0], in_turn.losses[1])


def test_a_program_is_lowered_as_its_platform_likes(batch):
    """On a CPU host: a loop over the images for a CPU, none for accelerators."""
    features, mask = batch
    method = small("deep-spectral")

    @functools.cache
    def loops(how, platform):
        program = jax.jit(
            lambda features, mask: (
                loop.cluster_batch(
                    features, None, mask, None, jax.random.key(0), method=method, batching=how
                ).labels
            )
        )
        exported = jax.export.export(program, platforms=[platform])(features, mask)
        return exported.mlir_module().count("stablehlo.while")

    for platform, default in (("cpu", "loop"), ("cuda", "vmap"), ("tpu", "vmap")):
        # The generator of random numbers has loops of its own, which depend on the platform.
        assert loops("loop", platform) == loops("vmap", platform) + 1
        assert loops(None, platform) == loops(default, platform)
