"""The loop as users meet it: shapes, masks, keys, edges. (Numbers are in test_golden.)"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.clustering import loop, parts
from unseg_jax.registry import list_methods, resolve

N, D = 14, 6
# A small head of each kind, so that each compiles in moments.
HEADS = {
    "gcn": {"branches": ((8, 8),), "layer": "gcn"},
    "gat": {"branches": ((8,), (8, 8)), "layer": "gat", "layer_dropout": 0.2},
    "arma": {"layer": "arma", "branches": ((8,),), "stacks": 2, "arma_layers": 3},
}
SMALL = {"mlp_width": 8, "epochs": 6, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def features():
    """Two far groups of nodes."""
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.normal(size=(2, D)) * 3, N // 2, axis=0)
    return (centres + rng.normal(size=(N, D))).astype(np.float32)


def small(name, **fields):
    return resolve("deepcut", **(HEADS[name] | SMALL | fields))


def first_step(features, method, mask=None):
    """Loss, assignments and gradients of the first step, from the same parameters every time."""
    graph = loop.graphs.build_graph(jnp.asarray(features), method, mask)
    prepared = loop.head.prepare_head(method, graph)
    loss_of = parts.make_loss(method, graph)
    params = loop.head.init_head(jax.random.key(0), method, D)

    def objective(params):
        assignments = loop.head.assign(params, prepared, method)
        return loss_of(assignments), assignments

    (loss, assignments), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    return loss, assignments, gradient


def assert_same_step(ours, theirs, order):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1][order], theirs[1], atol=1e-5)
    scale = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(theirs[2])))
    for one, other in zip(jax.tree.leaves(ours[2]), jax.tree.leaves(theirs[2]), strict=True):
        assert np.linalg.norm(one - other) <= 1e-4 * scale


@pytest.mark.parametrize("loss", ["ncut", "cc", "modularity"])
@pytest.mark.parametrize("name", HEADS)
def test_masked_is_compacted_and_order_means_nothing(features, name, loss):
    method = small(name, loss=loss, affinity="cc" if loss == "cc" else "ncut")
    plain = first_step(features, method)
    padded = np.concatenate([features, np.full((4, D), 7.0, np.float32)])
    masked = first_step(padded, method, jnp.arange(N + 4) < N)
    assert_same_step(masked, plain, np.arange(N))
    order = np.random.default_rng(4).permutation(N)
    assert_same_step(plain, first_step(features[order], method), order)


def test_a_masked_run_is_the_compacted_run(features):
    method = small("gcn", dropout=0.2, learning_rate=1e-3)
    padded = np.concatenate([features, np.full((4, D), 7.0, np.float32)])
    masked = us.cluster(padded, method=method, node_mask=np.arange(N + 4) < N)
    plain = us.cluster(features, method=method)
    np.testing.assert_allclose(masked.losses, plain.losses, rtol=1e-4)
    np.testing.assert_allclose(masked.assignments[:N], plain.assignments, atol=1e-4)
    assert not np.asarray(masked.assignments[N:]).any()


@pytest.mark.parametrize(
    ("name", "loss", "affinity"),
    [("gcn", "ncut", "ncut"), ("gat", "modularity", "cosine"), ("arma", "modularity", "dmon")],
)
def test_degenerate_graphs_stay_finite(name, loss, affinity):
    """All features equal, all zero, and a single node among padding."""
    method = small(name, loss=loss, affinity=affinity, num_clusters=3)
    batch = np.stack([np.ones((N, D)), np.zeros((N, D)), np.ones((N, D))]).astype(np.float32)
    mask = np.ones((3, N), bool)
    mask[2, 1:] = False
    result = us.cluster(batch, method=method, node_mask=mask)
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.assignments).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_one_node_without_padding():
    result = us.cluster(np.ones((1, D), np.float32), method=small("gcn"))
    assert np.isfinite(result.losses).all()
    assert np.isfinite(jax.tree.leaves(result.params)[0]).all()


def test_batch_is_each_graph_on_its_own(features):
    method = small("gcn")
    batch = np.stack([features, features[::-1] * 0.5])
    together = us.cluster(batch, method=method)
    for index in range(2):
        alone = us.cluster(batch[index], method=method)
        np.testing.assert_allclose(together.losses[index], alone.losses, rtol=1e-5)
        np.testing.assert_array_equal(together.labels[index], alone.labels)


def test_key_decides_everything(features):
    method = small("gcn", dropout=0.5)
    a, b = (us.cluster(features, method=method, key=jax.random.key(5)) for _ in range(2))
    np.testing.assert_array_equal(a.losses, b.losses)
    other = us.cluster(features, method=method, key=jax.random.key(6))
    assert not np.array_equal(a.losses, other.losses)


def test_parameters_may_be_shared_or_one_set_an_image(features):
    method = small("gcn", dropout=0.0)
    batch = np.stack([features, -features])
    first = us.cluster(batch, method=method)
    again = us.cluster(batch, method=method, params=first.params)
    for index in range(2):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], first.params)
        alone = us.cluster(batch[index], method=method, params=own)
        np.testing.assert_allclose(again.losses[index], alone.losses, rtol=1e-5)
    shared = us.cluster(batch, method=method, params=own)
    np.testing.assert_allclose(shared.losses[1], alone.losses, rtol=1e-5)


def test_recorded_labels_are_those_of_shorter_runs(features):
    method = small("gcn", epochs=7, dropout=0.2)
    result = us.cluster(features, method=method, record_every=3)
    # Epochs 0, 3, 6 and the last.
    assert result.history.shape == (4, N)
    assert result.losses.shape == (7,)
    shorter = us.cluster(features, method=method, epochs=3)
    np.testing.assert_array_equal(result.history[1], shorter.labels)
    np.testing.assert_array_equal(result.history[-1], result.labels)
    plain = us.cluster(features, method=method)
    np.testing.assert_allclose(result.losses, plain.losses, rtol=1e-5)


def test_two_groups_are_found(features):
    result = us.cluster(features, method="deepcut", epochs=60)
    labels = np.asarray(result.labels)
    assert len(set(labels[: N // 2])) == len(set(labels[N // 2 :])) == 1
    assert labels[0] != labels[-1]
    assert result.losses[-1] < result.losses[0]


def test_more_clusters_than_distinct_features():
    features = np.repeat(np.eye(2, D, dtype=np.float32), 5, axis=0)
    result = us.cluster(features, method=small("gcn", num_clusters=6, epochs=20))
    assert np.isfinite(result.losses).all()
    assert len(np.unique(result.labels)) <= 2


def test_a_key_may_be_traced_where_features_are_not(features):
    method = small("gcn", epochs=2)
    batch = jnp.stack([features, 2 * features])
    keys = jax.random.split(jax.random.key(3), 2)
    mapped = jax.vmap(lambda key: us.cluster(batch, method=method, key=key).losses)(keys)
    for key, losses in zip(keys, mapped, strict=True):
        expected = us.cluster(batch, method=method, key=key).losses
        np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_one_compilation_a_shape_and_method(features):
    method = small("gcn", epochs=3, mlp_width=5)
    before = loop._cluster_batch._cache_size()
    for scale in (1.0, 2.0, 3.0):
        us.cluster(features * scale, method=method, key=jax.random.key(int(scale)))
    assert loop._cluster_batch._cache_size() == before + 1


def test_knows_what_is_wrong(features):
    with pytest.raises(ValueError, match="did you mean 'deepcut'"):
        us.cluster(features, method="deepcat")
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        us.cluster(features, epoch=3)
    with pytest.raises(ValueError, match=r"adjacency has shape \(1, 3, 3\)"):
        us.cluster(features, adjacency=np.ones((3, 3)))
    with pytest.raises(ValueError, match="features have shape"):
        us.cluster(features[0])
    params = us.cluster(features, method=small("gcn")).params
    with pytest.raises(ValueError, match="params end in 2 clusters"):
        us.cluster(features, params=params, num_clusters=3)
    with pytest.raises(ValueError, match="affinity='x' is not one of"):
        us.cluster(features, affinity="x")
    with pytest.raises(ValueError, match="map='vamp' is not one of vmap, loop, threads"):
        us.cluster(features, map="vamp")


def test_cc_arma_does_not_exist():
    assert "cc-gat" in list_methods()
    assert "cc-arma" not in list_methods()


SHARDED = """
import jax, numpy as np
import unseg_jax as us
from jax.sharding import Mesh, PartitionSpec

features = np.random.default_rng(0).normal(size=(4, 24, 8)).astype(np.float32)
features[:, :12] += 1

def labels(features):
    found = us.cluster(features, epochs=10)
    return found.assignments, found.losses

mesh = Mesh(np.array(jax.devices()), ("images",))
split = PartitionSpec("images")
sharded = jax.shard_map(labels, mesh=mesh, in_specs=split, out_specs=split)
for one, other in zip(jax.jit(labels)(features), jax.jit(sharded)(features)):
    print(float(abs(one - other).max()))
"""


def test_the_users_own_shard_map_changes_nothing():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Each image must be optimised on its own gradient, not on the sum over the devices.
    assert max(map(float, done.stdout.split())) < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(features, value):
    bad = np.array(features)
    bad[2, 1] = value
    with pytest.raises(ValueError, match="features hold 1 values that are not finite"):
        us.cluster(bad, epochs=1)
    affinity = np.ones((N, N), np.float32)
    affinity[0, 1] = value
    with pytest.raises(ValueError, match="adjacency hold 1 values"):
        us.cluster(features, adjacency=affinity, epochs=1)
    # What padded nodes hold does not matter.
    mask = np.arange(N) != 2
    found = us.cluster(bad, node_mask=mask, epochs=1)
    assert np.isfinite(found.losses).all()
