"""Programs for every platform, lowered on a CPU, and one that JAX alone runs."""

import re

import jax
import jax.export
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.registry import METHODS

SIDE = 32
PATCH_METHODS = [
    name for name, one in METHODS.items() if one.nodes == "patches" and one.foreground != "set"
]
# Each algorithm, layer, loss and rule of the foreground once.
KINDS = ("deepcut", "cc-gat", "unsegarmanet", "vit-kmeans", "deep-spectral", "tokencut")
for field in ("algorithm", "layer", "loss", "foreground"):
    parts = [{getattr(METHODS[name], field) for name in names} for names in (KINDS, PATCH_METHODS)]
    assert parts[0] == parts[1], field
# What JAX itself lowers an eigendecomposition to; nothing else may be of one platform only.
EIGENVALUES = {
    "cpu": {"lapack_ssyevd_ffi"},
    "cuda": {"cusolver_syevd_ffi"},
    "rocm": {"hipsolver_syevd_ffi"},
    "tpu": {"Eigh"},
}
SPECTRAL = {"deep-spectral", "tokencut"}


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return us.load_backbone(tiny_weights)


@pytest.mark.parametrize("name", KINDS)
def test_every_program_is_lowered_for_every_platform(backbone, name):
    fn, params = us.make_segment_fn(name, backbone, image_size=SIDE)
    pixels = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), np.uint8)
    platforms = ("cpu", "cuda", "rocm", "tpu")
    # One module with a branch for each platform; export refuses calls that are not stable.
    text = jax.export.export(fn, platforms=platforms)(params, pixels).mlir_module()
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert calls == (set.union(*EIGENVALUES.values()) if name in SPECTRAL else set())
    assert "callback" not in text
    assert "f64" not in text


def test_the_methods_that_are_left_out_say_why():
    left_out = set(METHODS) - set(PATCH_METHODS)
    assert left_out == {"collective", "slic-ncut", "pixel-ncut", "spectral-ncut"}
    for name in left_out:
        match = "fit it first" if name == "collective" else "cut on the host"
        with pytest.raises(ValueError, match=match):
            us.make_segment_fn(name)


SERVE = """
import sys
import jax, jax.export, numpy as np
with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
labels = jax.jit(program.call)(np.load(sys.argv[2]))
assert not [name for name in sys.modules if name.split(".")[0] in ("unseg_jax", "flax", "optax")]
np.save(sys.argv[3], labels)
"""


def test_an_exported_program_runs_without_this_library(backbone, python, tmp_path):
    path, inputs, outputs = (tmp_path / name for name in ("a.jax", "in.npy", "out.npy"))
    us.export_segment_fn(path, "vit-kmeans", backbone, batch_size=2, image_size=SIDE)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.save(inputs, pixels)
    python(SERVE, path, inputs, outputs)
    fn, params = us.make_segment_fn("vit-kmeans", backbone, image_size=SIDE)
    np.testing.assert_array_equal(np.load(outputs), fn(params, pixels))


def test_what_cannot_be_exported(backbone, tmp_path):
    for fields, said in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"platforms": ("cpu", "gpu")}, "cpu, cuda, tpu, rocm"),
        ({"platforms": ()}, "one or more"),
        ({"batching": "threads"}, "vmap, loop"),
    ):
        with pytest.raises(ValueError, match=said):
            us.export_segment_fn(tmp_path / "x", "deepcut", backbone, **fields)
    assert not list(tmp_path.iterdir())
