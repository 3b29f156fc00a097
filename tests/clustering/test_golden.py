"""Every published head against what its PyTorch code computed, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.clustering import graphs, head, parts
from unseg_jax.registry import resolve

pytestmark = pytest.mark.pytorch

# (file, method, what the run set beside the method's own fields, loss tolerance)
#
# unseggnet_ncut_gcn_silu is chaotic after its 35th epoch: the published code itself, fed the same
# edges in eight other orders, leaves the recorded losses by up to 2e-2 there, and in four of them
# ends with one node in the other cluster. Its losses are compared up to that epoch, and one node
# may differ at the end.
STEADY = {"unseggnet_ncut_gcn_silu": 35}
RUNS = [
    ("deepcut_ncut_k2", "deepcut", {"epochs": 10}, 1e-4),
    ("deepcut_ncut_k4", "deepcut", {"epochs": 100}, 1e-4),
    ("deepcut_cc_k10", "deepcut-cc", {"epochs": 20}, 1e-4),
    (
        "unseggnet_dmon_gcn_selu",
        "unseggnet",
        {"activation": "selu", "tau": 0.4, "epochs": 50},
        1e-4,
    ),
    (
        "unseggnet_ncut_gcn_silu",
        "unseggnet",
        {"affinity": "ncut", "loss": "ncut", "tau": 0.0, "epochs": 50},
        1e-4,
    ),
    ("unsegarmanet_dmon_arma_selu", "unsegarmanet", {"activation": "selu", "tau": 0.4}, 1e-4),
    (
        "unsegarmanet_ncut_arma_silu",
        "unsegarmanet",
        {"affinity": "ncut", "loss": "ncut", "tau": 0.0},
        1e-4,
    ),
    ("unsegmedgat_silu_gat", "unsegmedgat", {"epochs": 30}, 1e-3),
    ("unsegmedgat_silu_gat3", "unsegmedgat-isic", {"epochs": 30}, 1e-3),
]


@pytest.fixture(params=RUNS, ids=[run[0] for run in RUNS])
def run(request, golden):
    stem, name, overrides, tolerance = request.param
    values = golden(stem)
    initial = _group(values, "init.")
    params = us.params_from_pytorch(initial, name)
    method = resolve(name, quirks="code", dropout=0.0, **overrides)
    return values | {"steady": STEADY.get(stem)}, method, params, tolerance


def _group(values, prefix):
    return {name[len(prefix) :]: array for name, array in values.items() if name.startswith(prefix)}


def test_affinity(run):
    values, method, _, _ = run
    ours = graphs.affinity(jnp.asarray(values["x"]), method)
    np.testing.assert_allclose(ours, values["w"], atol=2e-6 * np.abs(values["w"]).max())


def test_first_step(run):
    values, method, params, tolerance = run
    method = resolve(method, num_clusters=values["s_first"].shape[1])

    @jax.jit
    def step(params, features, adjacency):
        graph = graphs.build_graph(features, method, adjacency=adjacency)
        prepared = head.prepare_head(method, graph)

        def objective(params):
            assignments = head.assign(params, prepared, method)
            return parts.make_loss(method, graph)(assignments), assignments

        return jax.value_and_grad(objective, has_aux=True)(params)

    (loss, assignments), gradient = step(params, values["x"], values["w"])
    np.testing.assert_allclose(assignments, values["s_first"], atol=1e-5)
    np.testing.assert_allclose(loss, values["losses"][0], rtol=tolerance)
    # Parameters that the published code never uses have no gradient in the file.
    named = {name: np.zeros_like(array) for name, array in _group(values, "init.").items()}
    theirs = us.params_from_pytorch(named | _group(values, "grad0."), method)
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(theirs)))
    for (path, ours), expected in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(theirs), strict=True
    ):
        # The last bias's gradient is the difference of nearly equal sums over all nodes. That of
        # unseggnet_ncut_gcn_silu makes up 5e-4 of the gradient, and the file's own value is
        # 1e-3 off the one computed in float64. Leaves that make up less than a fiftieth of the
        # gradient are held to that fiftieth.
        scale = max(np.linalg.norm(expected), 0.02 * whole)
        assert np.linalg.norm(ours - expected) <= 1e-4 * scale, jax.tree_util.keystr(path)


def _compare_run(result, values, tolerance):
    steady = values["steady"]
    np.testing.assert_allclose(result.losses[:steady], values["losses"][:steady], rtol=tolerance)
    differing = np.sum(np.asarray(result.labels) != values["labels"])
    assert differing <= (1 if steady else 0)


def test_run(run):
    values, method, params, tolerance = run
    result = us.cluster(values["x"], method=method, params=params, adjacency=values["w"])
    _compare_run(result, values, tolerance)
    if values["steady"]:
        return
    np.testing.assert_allclose(result.assignments, values["s_last"], atol=2e-3)
    theirs = us.params_from_pytorch(_group(values, "final."), method)
    for (path, ours), expected in zip(
        jax.tree_util.tree_leaves_with_path(result.params), jax.tree.leaves(theirs), strict=True
    ):
        error = np.linalg.norm(ours - expected)
        assert error <= 1e-3 * np.linalg.norm(expected), jax.tree_util.keystr(path)


def test_run_from_features_alone(run):
    """With our own affinity in place of the given one, and as a batch on an accelerator is run."""
    values, method, params, tolerance = run
    batch = us.cluster(values["x"][None], method=method, params=params, batching="vmap")
    _compare_run(jax.tree.map(lambda leaf: leaf[0], batch), values, tolerance)
