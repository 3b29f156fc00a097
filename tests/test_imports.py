"""What `import unseg_jax` pulls in, and what happens where a package is missing."""

import os
import pkgutil
import re
from pathlib import Path

import pytest

import unseg_jax

NOT_AT_IMPORT = [
    *("skimage", "scipy.sparse", "safetensors", "huggingface_hub", "typer", "tqdm", "jinja2"),
    *("matplotlib", "jraph", "onnx", "torch", "tensorflow_datasets", "tensorflow", "ray"),
    *("imageio", "av", "sklearn", "starlette", "uvicorn", "magicgui", "flax", "optax"),
]

# Stands in for a machine on which no extra is installed.
MISSING = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
EXTRAS = {"jraph", "tensorflow_datasets", "onnx", "torch", "ray", "imageio", "av", "matplotlib"}
EXTRAS |= {"starlette"}


def test_imports_pull_in_nothing_that_only_some_need(python):
    """The package alone waits for nothing; all of its names, and the command line, for little."""
    code = f"""
import sys
def show(names): print([name for name in names if name in sys.modules])
import unseg_jax.cli.main
show({[*(name for name in NOT_AT_IMPORT if name != "typer"), "jax", "numpy"]!r})
for name in list(sys.modules):
    if name.partition(".")[0] in ("unseg_jax", "typer"):
        del sys.modules[name]
import unseg_jax
show(["jax"])
names = [getattr(unseg_jax, name) for name in unseg_jax.__all__]
show({NOT_AT_IMPORT!r})
"""
    assert python(code).stdout == "[]\n[]\n[]\n"


def test_every_public_name_is_there_and_has_its_place_on_the_page_of_the_api():
    for name in unseg_jax.__all__:
        assert getattr(unseg_jax, name).__name__.rpartition(".")[2] == name
    assert set(unseg_jax.__all__) <= set(dir(unseg_jax))
    with pytest.raises(AttributeError, match="no attribute 'segmant'"):
        unseg_jax.segmant  # noqa: B018
    page = (Path(__file__).parents[1] / "docs/api.md").read_text()
    documented = {name.removeprefix("unseg_jax.") for name in re.findall(r"^::: (\S+)", page, re.M)}
    for name in documented:
        pkgutil.resolve_name(f"unseg_jax.{name}")
    # Of the metrics each module is a section; jraph is an extra.
    names = {"metrics" if "metrics." in name else name.rpartition(".")[2] for name in documented}
    assert names - {"jraph"} == set(unseg_jax.__all__)


# What needs an extra, and how the extra is named where it is missing.
CALLS = [
    ("from unseg_jax.interop.jraph import to_jraph\nto_jraph(graph)", "pip install jraph"),
    ("import unseg_jax.data as data\ndata.open_dataset('tfds:oxford_iiit_pet')", "unseg_jax[tfds]"),
    ("from unseg_jax.app.__main__ import serve\nserve()", "unseg_jax[app]"),
    ("unseg_jax.load_backbone('FOLDER/model.onnx')", "unseg_jax[onnx]"),
    ("unseg_jax.load_backbone('FOLDER/model.pth')", "unseg_jax[reference]"),
]


def test_core_works_without_extras_and_names_what_is_missing(python, tmp_path):
    for name in ("model.onnx", "model.pth"):
        (tmp_path / name).write_bytes(b"not read")
    code = MISSING.format(names=EXTRAS) + (
        "import numpy as np, unseg_jax\n"
        "features = np.random.default_rng(0).normal(size=(12, 6)).astype('float32')\n"
        "found = unseg_jax.cluster(features, epochs=2, branches=((8,),), mlp_width=8)\n"
        "print(found.labels.shape, len(unseg_jax.list_methods()) > 20)\n"
        "graph = unseg_jax.Graph(np.ones((2, 1)), np.ones((2, 2)), np.ones(2, bool))\n"
        f"for call in {[call for call, _ in CALLS]!r}:\n"
        "    try:\n"
        f"        exec(call.replace('FOLDER', {str(tmp_path)!r}))\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    worked, *said = python(code).stdout.splitlines()
    assert worked == "(12,) True"
    for (_, remedy), line in zip(CALLS, said, strict=True):
        assert remedy in line
        assert not line.startswith("ModuleNotFoundError"), line


def test_the_command_keeps_openblas_to_one_thread_before_numpy_is_imported(python):
    code = (
        "import os, sys, unseg_jax.cli.main; print(os.environ[sys.argv[1]], 'numpy' in sys.modules)"
    )
    name = "OPENBLAS_NUM_THREADS"
    others = {key: value for key, value in os.environ.items() if key != name}
    assert python(code, name, environment=others).stdout.split() == ["1", "False"]
    assert python(code, name, environment=others, **{name: "2"}).stdout.split() == ["2", "False"]
