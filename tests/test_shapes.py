"""The shapes that annotations promise, checked at run time on every call of a small run.

Annotations are only read by type checkers otherwise, so that importing the package does not pull
in jaxtyping. A process of its own switches them on before the first import.
"""

import pytest

PROGRAM = """
import typing
import beartype, flax.nnx, jax, jaxtyping, optax, PIL.Image, scipy.sparse
from jaxtyping import install_import_hook
typing.TYPE_CHECKING = True  # from here on: only the package itself is still to come
ROOMS = ["clustering", "pipeline"]
with install_import_hook([f"unseg_jax.{room}" for room in ROOMS], "beartype.beartype"):
    import numpy as np
    import unseg_jax as us
    from unseg_jax import layers, pipeline
    from unseg_jax.registry import resolve

rng = np.random.default_rng(0)
features = jax.numpy.asarray(rng.normal(size=(2, 9, 5)), "float32")
small = {"epochs": 2, "mlp_width": 4}
mask = jax.numpy.ones((2, 9), bool)
heads = {"deepcut-cc": ((6,),), "unsegarmanet": ((4,),), "unsegmedgat": ((4,), (6, 6))}
for method, widths in heads.items():  # traced alone: that is when annotations are checked
    given = {"method": method, "branches": widths, "record_every": 1, **small}
    jax.eval_shape(lambda x, mask: us.cluster(x, node_mask=mask, **given), features, mask)
us.cluster(features, method="vit-kmeans", node_mask=mask)
method = resolve("deepcut", **small)
jax.eval_shape(
    lambda x: pipeline.segment_features(x, jax.random.key(0), method=method, grid=(3, 3)), features
)
try:
    layers.gcn(layers.init_gcn(jax.random.key(0), 5, 4), features)
except Exception as error:
    print("refused:", type(error).__name__)
"""


def test_annotated_shapes_hold(python):
    pytest.importorskip("jaxtyping")
    pytest.importorskip("beartype")
    # The wrong rank is refused: the checks were on.
    assert "refused: TypeCheckError" in python(PROGRAM).stdout
