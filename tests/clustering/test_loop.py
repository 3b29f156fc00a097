"""The loop as users meet it: shapes, masks, keys, edges. (Numbers are in test_golden.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.clustering import loop
from unseg_jax.registry import resolve

N, D = 14, 6
SMALL = {"mlp_width": 8, "epochs": 7, "learning_rate": 0.01, "dropout": 0.0, "num_clusters": 3}
ARMA = {"layer": "arma", "stacks": 2, "arma_layers": 2}
# Each layer, loss and kind of affinity, small, so that each compiles in moments.
KINDS = [
    resolve("deepcut", **SMALL, branches=((8, 6),)),
    resolve("deepcut-cc", **SMALL, branches=((8,), (6,)), layer="gat", layer_dropout=0.2),
    resolve("unseggnet", **SMALL, branches=((8, 6),), **ARMA),
]
# Tests that could take any method take one of these two, so that few are compiled.
PLAIN = KINDS[0]
DROPPED = resolve(PLAIN, dropout=0.2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def features():
    """Two far groups of nodes."""
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.normal(size=(2, D)) * 3, N // 2, axis=0)
    return (centres + rng.normal(size=(N, D))).astype(np.float32)


def pad(features):
    """Four nodes more, whose features mean nothing, and the mask without them."""
    padded = np.concatenate([features, np.full((4, D), 7.0, np.float32)])
    return padded, np.arange(N + 4) < N


def degenerate():
    """All features equal, all zero, a single node among padding, and two distinct nodes."""
    two = np.repeat(np.eye(2, D), N // 2, axis=0)
    batch = np.stack([np.ones((N, D)), np.zeros((N, D)), np.ones((N, D)), two]).astype(np.float32)
    mask = np.ones((4, N), bool)
    mask[2, 1:] = False
    return batch, mask


def draw_params(method, *batch):
    """Parameters with leading axes, by NumPy, which compiles nothing."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda: loop.head.init_head(jax.random.key(0), method, D))
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.4, size=(*batch, *leaf.shape)).astype(np.float32), shapes
    )


@functools.partial(jax.jit, static_argnames="method")
def first_step(params, features, mask, method):
    """Loss, assignments and gradients."""
    graph = loop.graphs.build_graph(features, method, mask)
    objective = loop.make_objective(method, graph, loop.head.prepare_head(method, graph))
    return jax.value_and_grad(objective, has_aux=True)(params, jnp.zeros(0, jnp.uint32))


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


def assert_same_step(ours, theirs, order):
    ((loss, assignments), gradient), (expected, gradients) = jax.device_get((ours, theirs))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(assignments[order], expected[1], atol=1e-5)
    scale = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradients), strict=True):
        assert np.linalg.norm(one - other) <= 1e-4 * scale


@pytest.mark.parametrize("method", KINDS, ids=lambda method: method.layer)
def test_first_step(features, method):
    """Masked is compacted, order means nothing, and degenerate graphs stay finite."""
    step = functools.partial(first_step, draw_params(method), method=method)
    padded, mask = pad(features)
    masked = step(padded, mask)
    assert_same_step(masked, step(features, np.ones(N, bool)), np.arange(N))
    order = np.random.default_rng(4).permutation(N + 4)
    assert_same_step(step(padded[order], mask[order]), masked, np.argsort(order))
    for rows, real in zip(*degenerate(), strict=True):
        assert_finite(step(rows, real))


def test_one_node_without_padding():
    ones = np.ones((1, D), np.float32)
    assert_finite(first_step(draw_params(PLAIN), ones, np.ones(1, bool), PLAIN))


def test_runs_on_degenerate_graphs():
    batch, mask = degenerate()
    result = us.cluster(batch, method=DROPPED, node_mask=mask)
    assert_finite(result)
    assert len(np.unique(result.labels[3])) <= 2


def test_a_masked_run_is_the_compacted_run(features):
    padded, mask = pad(features)
    masked = us.cluster(padded, method=DROPPED, node_mask=mask)
    plain = us.cluster(features, method=DROPPED)
    np.testing.assert_allclose(masked.losses, plain.losses, rtol=1e-4)
    assignments = np.asarray(masked.assignments)
    np.testing.assert_allclose(assignments[:N], plain.assignments, atol=1e-4)
    assert not assignments[N:].any()


def test_key_decides_everything_and_compiles_nothing_anew(features):
    a = us.cluster(features, method=DROPPED, key=jax.random.key(5))
    before = loop._cluster_batch._cache_size()
    b = us.cluster(features, method=DROPPED, key=jax.random.key(5))
    np.testing.assert_array_equal(a.losses, b.losses)
    other = us.cluster(features, method=DROPPED, key=jax.random.key(6))
    assert not np.array_equal(a.losses, other.losses)
    us.cluster(2 * features, method=DROPPED)
    assert loop._cluster_batch._cache_size() == before


def test_a_batch_is_each_graph_on_its_own_and_parameters_are_where_it_starts(features):
    batch = np.stack([features, features[::-1] * 0.5])
    params = draw_params(PLAIN, 2)
    together = us.cluster(batch, method=PLAIN, params=params)
    for index, one in enumerate(batch):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], params)
        alone = us.cluster(one, method=PLAIN, params=own)
        np.testing.assert_allclose(together.losses[index], alone.losses, rtol=1e-5)
        np.testing.assert_array_equal(together.labels[index], alone.labels)
        (expected, _), _ = first_step(own, one, np.ones(N, bool), PLAIN)
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


def test_a_key_may_be_traced_where_features_are_not(features):
    batch = np.stack([features, 2 * features])
    keys = jax.random.split(jax.random.key(3), 2)
    mapped = jax.jit(jax.vmap(lambda key: us.cluster(batch, method=DROPPED, key=key).losses))(keys)
    for key, losses in zip(keys, mapped, strict=True):
        expected = us.cluster(batch, method=DROPPED, key=key).losses
        np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_knows_what_is_wrong(features):
    with pytest.raises(ValueError, match=r"adjacency has shape \(1, 3, 3\)"):
        us.cluster(features, adjacency=np.ones((3, 3)))
    with pytest.raises(ValueError, match="features have shape"):
        us.cluster(features[0])
    with pytest.raises(ValueError, match="params end in 3 clusters"):
        us.cluster(features, params=draw_params(PLAIN), num_clusters=2)
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
    assert_finite(found.losses)
