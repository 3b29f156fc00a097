"""What `import unseg_jax` pulls in, and what happens where a package is missing."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOT_AT_IMPORT = [
    *("skimage", "scipy.sparse", "safetensors", "huggingface_hub", "typer", "tqdm", "jinja2"),
    *("matplotlib", "jraph", "onnx", "torch", "tensorflow_datasets", "tensorflow", "ray"),
    *("imageio", "av", "sklearn", "starlette", "uvicorn", "magicgui"),
]

# Stands in for a machine on which the named packages are not installed.
BLOCK = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_pulls_in_nothing_heavy():
    code = (
        "import unseg_jax, sys\n"
        "names = [getattr(unseg_jax, name) for name in unseg_jax.__all__]\n"
        f"print([n for n in {NOT_AT_IMPORT!r} if n in sys.modules])"
    )
    assert python(code) == "[]"


def test_import_alone_waits_for_nothing():
    code = "import unseg_jax, sys; print([n for n in ('jax', 'flax', 'optax') if n in sys.modules])"
    assert python(code) == "[]"


def test_every_public_name_is_there():
    import unseg_jax

    assert set(unseg_jax.__all__) <= set(dir(unseg_jax))
    for name in unseg_jax.__all__:
        value = getattr(unseg_jax, name)
        assert getattr(value, "__name__", "").rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'segmant'"):
        unseg_jax.segmant  # noqa: B018


def test_the_page_of_the_api_documents_every_public_name():
    import unseg_jax

    page = (Path(__file__).parents[1] / "docs/api.md").read_text()
    documented = {name.removeprefix("unseg_jax.") for name in re.findall(r"^::: (\S+)", page, re.M)}
    for name in documented:
        pkgutil.resolve_name(f"unseg_jax.{name}")
    # Of the metrics each module is a section; jraph is an extra.
    names = {"metrics" if "metrics." in name else name.rpartition(".")[2] for name in documented}
    assert names - {"jraph"} == set(unseg_jax.__all__)


def test_command_line_starts_without_what_only_some_commands_need():
    names = [name for name in NOT_AT_IMPORT if name != "typer"]
    code = f"import unseg_jax.cli.main, sys; print([n for n in {names!r} if n in sys.modules])"
    assert python(code) == "[]"


def test_core_works_without_extras(tmp_path):
    names = ("jraph", "tensorflow_datasets", "onnx", "torch", "ray", "imageio", "av", "matplotlib")
    code = BLOCK.format(names=set(names)) + (
        "import numpy as np, unseg_jax\n"
        "features = np.random.default_rng(0).normal(size=(12, 4)).astype('float32')\n"
        "found = unseg_jax.cluster(features, epochs=1)\n"
        "print(found.labels.shape, len(unseg_jax.list_methods()) > 20)\n"
    )
    assert python(code) == "(12,) True"


@pytest.mark.parametrize(
    ("missing", "call", "remedy"),
    [
        (
            "jraph",
            "import numpy as np\n"
            "graph = unseg_jax.Graph(np.ones((2, 1)), np.ones((2, 2)), np.ones(2, bool))\n"
            "from unseg_jax.interop.jraph import to_jraph\n"
            "to_jraph(graph)",
            "pip install jraph",
        ),
        (
            "tensorflow_datasets",
            "from unseg_jax.data import open_dataset\nopen_dataset('tfds:oxford_iiit_pet')",
            "unseg_jax[tfds]",
        ),
        ("starlette", "from unseg_jax.app.__main__ import serve\nserve()", "unseg_jax[app]"),
        ("onnx", "unseg_jax.load_backbone('PATH')", "unseg_jax[onnx]"),
        ("torch", "unseg_jax.load_backbone('PATH')", "unseg_jax[reference]"),
    ],
    ids=["jraph", "tfds", "app", "onnx", "torch"],
)
def test_missing_package_is_named_with_its_extra(tmp_path, missing, call, remedy):
    path = tmp_path / {"onnx": "model.onnx", "torch": "model.pth"}.get(missing, "none")
    path.write_bytes(b"not read")
    code = BLOCK.format(names={missing}) + (
        "import unseg_jax\n"
        "try:\n"
        + "".join(f"    {line}\n" for line in call.replace("PATH", str(path)).splitlines())
        + "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    said = python(code)
    assert remedy in said
