"""The loop as users meet it: shapes, masks, keys, edges. (Numbers are in test_golden.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.clustering import loop, parts
from unseg_jax.registry import resolve

N, D = 14, 6
# A small head of each kind, so that each compiles in moments.
HEADS = {
    "gcn": {"branches": ((8, 8),), "layer": "gcn"},
    "gat": {"branches": ((8,), (6,)), "layer": "gat", "layer_dropout": 0.2},
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


# Tests that could take any method take one of these two, so that few are compiled.
PLAIN = small("gcn", dropout=0.0)
DROPPED = small("gcn", dropout=0.2, learning_rate=1e-3, epochs=7)


@functools.partial(jax.jit, static_argnames="method")
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


@pytest.mark.parametrize(("name", "loss"), [("gcn", "ncut"), ("gat", "cc"), ("arma", "modularity")])
def test_masked_is_compacted_and_order_means_nothing(features, name, loss):
    method = small(name, loss=loss, affinity="cc" if loss == "cc" else "ncut")
    plain = first_step(features, method)
    padded = np.concatenate([features, np.full((4, D), 7.0, np.float32)])
    masked = first_step(padded, method, jnp.arange(N + 4) < N)
    assert_same_step(masked, plain, np.arange(N))
    order = np.random.default_rng(4).permutation(N)
    assert_same_step(plain, first_step(features[order], method), order)


def test_a_masked_run_is_the_compacted_run(features):
    padded = np.concatenate([features, np.full((4, D), 7.0, np.float32)])
    masked = us.cluster(padded, method=DROPPED, node_mask=np.arange(N + 4) < N)
    plain = us.cluster(features, method=DROPPED)
    np.testing.assert_allclose(masked.losses, plain.losses, rtol=1e-4)
    np.testing.assert_allclose(masked.assignments[:N], plain.assignments, atol=1e-4)
    assert not np.asarray(masked.assignments[N:]).any()


@pytest.mark.parametrize(
    ("name", "loss", "affinity"),
    [("gcn", "ncut", "ncut"), ("gat", "modularity", "cosine"), ("arma", "modularity", "dmon")],
)
def test_degenerate_graphs_stay_finite(name, loss, affinity):
    """All features equal, all zero, a single node among padding, and two distinct nodes."""
    method = small(name, loss=loss, affinity=affinity, num_clusters=3)
    two = np.repeat(np.eye(2, D), N // 2, axis=0)
    batch = np.stack([np.ones((N, D)), np.zeros((N, D)), np.ones((N, D)), two]).astype(np.float32)
    mask = np.ones((4, N), bool)
    mask[2, 1:] = False
    result = us.cluster(batch, method=method, node_mask=mask)
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.assignments).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    assert len(np.unique(result.labels[3])) <= 2


def test_one_node_without_padding():
    loss, _, gradient = first_step(np.ones((1, D), np.float32), PLAIN)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_key_decides_everything(features):
    a, b = (us.cluster(features, method=DROPPED, key=jax.random.key(5)) for _ in range(2))
    np.testing.assert_array_equal(a.losses, b.losses)
    other = us.cluster(features, method=DROPPED, key=jax.random.key(6))
    assert not np.array_equal(a.losses, other.losses)


def test_a_batch_is_each_graph_on_its_own_and_parameters_are_where_it_starts(features):
    batch = np.stack([features, features[::-1] * 0.5])
    first = us.cluster(batch, method=PLAIN)
    again = us.cluster(batch, method=PLAIN, params=first.params)
    for index in range(2):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], first.params)
        alone = us.cluster(batch[index], method=PLAIN, params=own)
        np.testing.assert_allclose(again.losses[index], alone.losses, rtol=1e-5)
        np.testing.assert_array_equal(again.labels[index], alone.labels)
        graph = us.graphs.build_graph(jnp.asarray(batch[index]), PLAIN)
        expected = us.losses.ncut(first.assignments[index], graph.adjacency, mask=graph.mask)
        np.testing.assert_allclose(alone.losses[0], expected, atol=1e-5)
    shared = us.cluster(batch, method=PLAIN, params=own)
    np.testing.assert_allclose(shared.losses[1], alone.losses, rtol=1e-5)


def test_recorded_labels_are_those_of_shorter_runs(features):
    result = us.cluster(features, method=DROPPED, record_every=3)
    # Epochs 0, 3, 6 and the last.
    assert result.history.shape == (4, N)
    assert result.losses.shape == (7,)
    shorter = us.cluster(features, method=DROPPED, epochs=3)
    np.testing.assert_array_equal(result.history[1], shorter.labels)
    np.testing.assert_array_equal(result.history[-1], result.labels)
    plain = us.cluster(features, method=DROPPED)
    np.testing.assert_allclose(result.losses, plain.losses, rtol=1e-5)


def test_two_groups_are_found(features):
    result = us.cluster(features, method="deepcut", epochs=60)
    labels = np.asarray(result.labels)
    assert len(set(labels[: N // 2])) == len(set(labels[N // 2 :])) == 1
    assert labels[0] != labels[-1]
    assert result.losses[-1] < result.losses[0]


def test_a_key_may_be_traced_where_features_are_not(features):
    batch = jnp.stack([features, 2 * features])
    keys = jax.random.split(jax.random.key(3), 2)
    mapped = jax.vmap(lambda key: us.cluster(batch, method=DROPPED, key=key).losses)(keys)
    for key, losses in zip(keys, mapped, strict=True):
        expected = us.cluster(batch, method=DROPPED, key=key).losses
        np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_one_compilation_a_shape_and_method(features):
    method = small("gcn", epochs=0, mlp_width=5)
    before = loop._cluster_batch._cache_size()
    for scale in (1.0, 2.0, 3.0):
        us.cluster(features * scale, method=method, key=jax.random.key(int(scale)))
    assert loop._cluster_batch._cache_size() == before + 1


def test_knows_what_is_wrong(features):
    with pytest.raises(ValueError, match=r"adjacency has shape \(1, 3, 3\)"):
        us.cluster(features, adjacency=np.ones((3, 3)))
    with pytest.raises(ValueError, match="features have shape"):
        us.cluster(features[0])
    params = us.cluster(features, method=PLAIN).params
    with pytest.raises(ValueError, match="params end in 2 clusters"):
        us.cluster(features, params=params, num_clusters=3)
    with pytest.raises(ValueError, match="batching='vamp' is not one of vmap, loop, threads"):
        us.cluster(features, batching="vamp")


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
    found = us.cluster(bad, node_mask=mask, method=DROPPED)
    assert np.isfinite(found.losses).all()
