"""A loss and a layer of the user's own: equal to the named ones where they should be, checked."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.clustering import head, loop, parts
from unseg_jax.clustering.probe import check_own_parts

NODES, WIDTH = 14, 6
SMALL = {"branches": ((8,),), "mlp_width": 8, "epochs": 6, "learning_rate": 0.01}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The named "gcn", written as a layer of one's own."""

    scale: float = 1.0

    def init(self, key, inputs, outputs):
        return us.layers.init_gcn(key, inputs, outputs)

    def prepare(self, graph):
        return us.graphs.gcn_propagation(graph.adjacency, graph.mask)

    def apply(self, params, x, prepared):
        return self.scale * us.layers.gcn(params, x, prepared)


def even(assignments, adjacency, *, mask, weight=3.0):
    """Normalised cut, and a term that is least where all clusters are equally large."""
    sizes = assignments.sum(0) / mask.sum()
    return us.losses.ncut(assignments, adjacency, mask=mask) + weight * jnp.sum(sizes**2)


@pytest.fixture(scope="module")
def batch():
    """Three graphs of two groups each, the second with padding whose features mean nothing."""
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.normal(size=(3, 2, WIDTH)) * 3, NODES // 2, axis=1)
    mask = np.ones((3, NODES), bool)
    mask[1, 10:] = False
    return (centres + rng.normal(size=(3, NODES, WIDTH))).astype(np.float32), mask


def run(batch, how=None, **fields):
    features, mask = batch
    method = us.Method("mine", **(SMALL | fields))
    return us.cluster(features, node_mask=mask, method=method, batching=how)


def test_a_name_is_short_for_a_loss_or_a_layer():
    """The names' own objects are what runs."""
    mine = functools.partial(us.Method, "mine")
    assert parts.loss_of(mine(loss="ncut")) is us.losses.ncut
    assert parts.loss_of(mine(loss="cc")) is us.losses.correlation_clustering
    modularity = parts.loss_of(mine(loss="modularity", collapse="clusters", quirks="code"))
    assert modularity.func is us.losses.modularity
    assert modularity.keywords == {"quirks": "code", "collapse": "clusters"}
    layer = parts.layer_of(mine(layer="gcn", normalise=False))
    assert layer == us.layers.GCN(normalise=False)
    layer = parts.layer_of(mine(layer="gat", heads=2, edge_features=False, layer_dropout=0.3))
    assert layer == us.layers.GAT(heads=2, edge_features=False, dropout=0.3)
    arma = {"stacks": 2, "arma_layers": 3, "arma_shared": True, "layer_dropout": 0.3}
    layer = parts.layer_of(mine(layer="arma", activation="silu", **arma))
    assert layer == us.layers.ARMA(2, 3, shared=True, activation="silu", dropout=0.3)


def test_a_layer_equal_to_gcn_is_gcn_and_vmapped_is_in_turn(batch):
    fields = {"branches": ((8, 8),), "dropout": 0.3, "layer_dropout": 0.3, "loss": even}
    named = run(batch, "loop", layer="gcn", **fields)
    own = run(batch, "vmap", layer=Convolution(), **fields)
    np.testing.assert_allclose(own.losses, named.losses, atol=1e-5)
    np.testing.assert_allclose(own.assignments, named.assignments, atol=1e-5)
    assert (named.losses[:, -1] < named.losses[:, 0] - 1e-3).all()
    compiled = loop._cluster_batch._cache_size()
    run(batch, "vmap", layer=Convolution(), **fields)
    assert loop._cluster_batch._cache_size() == compiled


@dataclasses.dataclass(frozen=True)
class Ready(Convolution):
    """The same with all optional members: ÂX prepared, activation and dropout in the layer."""

    seeds = 1
    activated = True
    unused = ("spare",)

    def init(self, key, inputs, outputs):
        return {**super().init(key, inputs, outputs), "spare": jnp.ones(3)}

    def prepare(self, graph):
        propagation = super().prepare(graph)
        return propagation, propagation @ graph.nodes

    def apply(self, params, x, prepared, seeds):
        x = jax.nn.silu(x)
        x = x if seeds is None else us.layers.dropout(x, 0.3, seeds[0])
        return super().apply(params, x, prepared[0])

    def apply_first(self, params, prepared, seeds):
        return self.scale * us.layers.gcn(params, prepared[1])


def test_optional_members_of_a_layer(batch):
    fields = SMALL | {"branches": ((8, 8),), "inner_activation": "silu"}
    fields |= {"weight_decay": 0.5, "dropout": 0.0}
    plain, ready = (us.Method("mine", layer=layer, **fields) for layer in (Convolution(), Ready()))
    features = batch[0][0]
    start = jax.jit(lambda: head.init_head(jax.random.key(0), ready, WIDTH))()
    one, other = (
        us.cluster(features, method=ready, params=start, key=jax.random.key(seed))
        for seed in (0, 1)
    )

    @jax.jit
    def passed(params):
        graph = us.graphs.build_graph(features, ready)
        return [head.assign(params, head.prepare_head(m, graph), m) for m in (plain, ready)]

    # Dropout in training alone: the first losses differ, and the last pass is without.
    assert abs(one.losses[0] - other.losses[0]) > 1e-4
    for assignments in passed(one.params):
        np.testing.assert_allclose(one.assignments, assignments, atol=1e-6)
    for layer in one.params["branches"][0]["layers"]:
        np.testing.assert_array_equal(layer["spare"], 1)
        assert np.abs(layer["kernel"]).max() > 0


def test_a_loss_is_given_the_degrees_that_it_asks_for_and_no_padded_node(batch):
    def with_degrees(assignments, adjacency, *, mask, degrees):
        return us.losses.ncut(assignments, adjacency, mask=mask, degrees=2 * degrees)

    def without(assignments, adjacency, *, mask):
        doubled = 2 * adjacency.sum(-1)
        return us.losses.ncut(assignments, adjacency, mask=mask, degrees=doubled)

    def summed(assignments, adjacency, mask):
        return us.losses.ncut(assignments, adjacency) + 0.01 * jnp.sum(assignments**2)

    @jax.jit
    def found(features, mask):
        graph = us.graphs.build_graph(features, us.Method("mine"), mask)
        methods = (us.Method("mine", loss=one) for one in (with_degrees, without, "ncut", summed))
        makers = [parts.make_loss(method, graph) for method in methods]
        return [jax.value_and_grad(maker)(jax.nn.softmax(graph.nodes[:, :2])) for maker in makers]

    features, mask = batch[0][1], batch[1][1]
    padded, compact = (
        jax.device_get(found(features[kept], mask[kept])) for kept in (mask | True, mask)
    )
    assert padded[0][0] == pytest.approx(padded[1][0], rel=1e-6)
    assert padded[0][0] != pytest.approx(padded[2][0], rel=1e-3)
    for (value, gradient), (expected, slope) in zip(padded, compact, strict=True):
        assert value == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(gradient[mask], slope, atol=1e-5)
        assert not gradient[~mask].any()


def test_the_same_parts_make_one_method_and_others_another():
    def number(value):
        return lambda assignments, adjacency, mask: value * jnp.sum(adjacency @ assignments**2)

    losses = [number(-1.0), number(2.0)]
    assert len({us.Method("mine", loss=loss) for loss in (*losses, losses[0])}) == 2
    # Equal layers share a program, whichever object they are.
    assert len({us.Method("mine", layer=Convolution(scale)) for scale in (2.0, 2.0, 0.5)}) == 2


def half(assignments, adjacency, mask):
    return jnp.float16(0) * assignments.sum().astype(jnp.float16)


def of_logarithms(assignments, adjacency, mask):
    return -jnp.sum(assignments * jnp.log(adjacency.sum(-1))[:, None])


def of_a_root(assignments, adjacency, mask):
    return jnp.sqrt(jnp.sum((0 * assignments) ** 2))


def of_numpy(assignments, adjacency, mask):
    return np.linalg.norm(np.asarray(assignments))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda s, w, mask: s, r"<lambda>' gives float32 of shape \(14, 2\), where one float32"),
        (lambda s, w, mask: None, "gives a NoneType, where one float32 number is expected"),
        (lambda s, w, mask: 0.5, "gives a float, where one float32 number is expected"),
        (half, r"test_own.half' gives float16 of shape \(\)"),
        (lambda s, w: jnp.sum(s), r"cannot be traced .*'mask'\); it is called with \(assignments"),
        (of_numpy, "of_numpy' cannot be traced by JAX .*: take these, and write it with jax.numpy"),
        (of_logarithms, "value of the loss '.*of_logarithms' is not finite before the first step"),
        (of_a_root, "gradient of the loss '.*of_a_root' is not finite before the first step"),
    ],
)
def test_losses_that_cannot_be_are_refused_before_anything_runs(batch, loss, said):
    compiled = loop._cluster_batch._cache_size()
    with pytest.raises(ValueError, match=said) as caught:
        run(batch, loss=loss)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert loop._cluster_batch._cache_size() == compiled


class Wide(Convolution):
    def apply(self, params, x, prepared):
        return x


class Whole(Convolution):
    def init(self, key, inputs, outputs):
        return {"kernel": jnp.ones((inputs, outputs), jnp.int32)}


class Linen(Convolution):
    def init(self, key, x):
        return {}


class Divided(Convolution):
    def apply(self, params, x, prepared):
        return super().apply(params, x, prepared) / prepared.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Wide(), r"apply of the layer '.*Wide.*' gives float32 of shape \(14, 6\) for 14 nodes"),
        (Whole(), r"init of the layer '.*Whole.*' gives int32 of shape \(6, 8\) among the param"),
        (Linen(), r"init of the layer '.*Linen.*' cannot be traced .*\(key, inputs, outputs\)"),
        (Divided(), "value of the layer '.*Divided.*' is not finite before the first step"),
    ],
)
def test_layers_that_cannot_be_are_refused_before_anything_runs(batch, layer, said):
    with pytest.raises(ValueError, match=said) as caught:
        run(batch, layer=layer, branches=((8, 8),))
    assert str(caught.value).endswith(".")


def test_what_a_loss_gives_is_checked_under_a_transformation_too(batch):
    method = us.Method("mine", loss=lambda s, w, mask: s.sum(0), **SMALL)
    with pytest.raises(ValueError, match=r"gives float32 of shape \(2,\)"):
        jax.jit(lambda features: us.cluster(features, method=method).labels)(batch[0])


def test_a_loss_for_one_number_of_nodes_is_tried_with_that_number():
    far = jnp.arange(float(NODES))

    def near(assignments, adjacency, mask):
        return us.losses.ncut(assignments, adjacency, mask=mask) + 1e-3 * far @ assignments[:, 0]

    method = us.Method("mine", loss=near, **SMALL)
    check_own_parts(method, NODES, WIDTH)
    with pytest.raises(ValueError, match="near' cannot be traced by JAX"):
        check_own_parts(method, NODES + 1, WIDTH)


def test_a_result_that_leaves_the_range_names_the_loss():
    def fragile(assignments, adjacency, mask):
        # The nodes 0 and 1 of the graph that it is tried on are not linked.
        return jnp.sum(assignments**2) * jnp.where(adjacency[0, 1] > 0.5, jnp.inf, 1.0)

    with pytest.raises(ValueError, match=r"or look at the loss '.*fragile'\.$"):
        us.cluster(np.ones((NODES, WIDTH), np.float32), loss=fragile, **SMALL)


def test_methods_pickle_where_their_parts_do():
    method = us.Method("mine", loss=even, layer=Convolution(2.0), **SMALL)
    again = pickle.loads(pickle.dumps(method))
    assert again == method
    assert hash(again) == hash(method)
    check_own_parts(again, NODES, WIDTH)
