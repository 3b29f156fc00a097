"""Every published head against what its PyTorch code computed, number by number."""

import jax
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


@pytest.fixture(params=range(len(RUNS)), ids=[run[0] for run in RUNS])
def run(request, golden):
    stem, name, overrides, tolerance = RUNS[request.param]
    values = golden(stem)
    params = us.params_from_pytorch(_group(values, "init."), name)
    method = resolve(name, quirks="code", dropout=0.0, **overrides)
    # Of the runs with one kind of layer, one is taken as on a CPU and one as a batch on an
    # accelerator; every third run has the given affinity, the others our own.
    how = {"batching": ("loop", "vmap")[request.param % 2]}
    if request.param % 3 == 0:
        how["adjacency"] = values["w"][None]
    return values | {"steady": STEADY.get(stem), "how": how}, method, params, tolerance


def _group(values, prefix):
    return {name[len(prefix) :]: array for name, array in values.items() if name.startswith(prefix)}


def _assert_close(ours, theirs, tolerance, least=0.0):
    """Leaf by leaf, relative to a leaf's norm or to that share of the whole norm."""
    ours, theirs = jax.device_get((ours, theirs))
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(theirs)))
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        scale = max(np.linalg.norm(expected), least * whole)
        assert np.linalg.norm(found - expected) <= tolerance * scale, jax.tree_util.keystr(path)


def test_affinity_and_first_step(run):
    values, method, params, tolerance = run
    method = resolve(method, num_clusters=values["s_first"].shape[1])

    @jax.jit
    def step(params, features, adjacency):
        graph = graphs.build_graph(features, method, adjacency=adjacency)
        prepared = head.prepare_head(method, graph)

        def objective(params):
            assignments = head.assign(params, prepared, method)
            return parts.make_loss(method, graph)(assignments), assignments

        affinity = graphs.affinity(features, method)
        return affinity, *jax.value_and_grad(objective, has_aux=True)(params)

    affinity, (loss, assignments), gradient = step(params, values["x"], values["w"])
    np.testing.assert_allclose(affinity, values["w"], atol=2e-6 * np.abs(values["w"]).max())
    np.testing.assert_allclose(assignments, values["s_first"], atol=1e-5)
    np.testing.assert_allclose(loss, values["losses"][0], rtol=tolerance)
    # Parameters that the published code never uses have no gradient in the file.
    named = {name: np.zeros_like(array) for name, array in _group(values, "init.").items()}
    theirs = us.params_from_pytorch(named | _group(values, "grad0."), method)
    # The last bias's gradient is the difference of nearly equal sums over all nodes. That of
    # unseggnet_ncut_gcn_silu makes up 5e-4 of the gradient, and the file's own value is
    # 1e-3 off the one computed in float64. Leaves that make up less than a fiftieth of the
    # gradient are held to that fiftieth.
    _assert_close(gradient, theirs, 1e-4, least=0.02)


def test_run(run):
    values, method, params, tolerance = run
    batch = us.cluster(values["x"][None], method=method, params=params, **values["how"])
    result = jax.tree.map(lambda leaf: leaf[0], jax.device_get(batch))
    steady = values["steady"]
    np.testing.assert_allclose(result.losses[:steady], values["losses"][:steady], rtol=tolerance)
    assert np.sum(result.labels != values["labels"]) <= (1 if steady else 0)
    if not steady:
        np.testing.assert_allclose(result.assignments, values["s_last"], atol=2e-3)
        theirs = us.params_from_pytorch(_group(values, "final."), method)
        _assert_close(result.params, theirs, 1e-3)
