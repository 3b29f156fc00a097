"""How modules of the library import one another: no circle, wherever an import stands."""

import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

pytestmark = pytest.mark.quick
PACKAGE = Path(__file__).resolve().parents[1] / "unseg_jax"
BY_NAME = re.compile(r"\brunpy\b|\bimport_module\(|\b__import__\b|\bsys\.argv\b[^=\n]* = ")


def test_no_modules_import_one_another_in_a_circle():
    graph = grimp.build_graph("unseg_jax", exclude_type_checking_imports=True, cache_dir=None)
    # The package itself names its public parts, and is imported by nobody below.
    modules = graph.modules - {"unseg_jax"}
    imports = {name: graph.find_modules_directly_imported_by(name) for name in modules}
    assert "unseg_jax.cache" in imports["unseg_jax.app.__main__"]  # within a function
    TopologicalSorter(imports).prepare()  # raises the circle


def test_the_command_line_is_the_top_floor_and_nothing_is_run_by_its_name():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert project["tool"]["importlinter"]["contracts"][0]["layers"][:2] == ["__main__", "cli"]
    sources = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    found = [path for path, source in sources.items() if BY_NAME.search(source)]
    assert found == [PACKAGE / "__init__.py"]  # its names, when first used
    assert BY_NAME.search("sys.argv[1:] = []")


def test_what_needs_pytorch_is_marked_so_that_the_comparison_runs_it():
    files = Path(__file__).parent.rglob("test_*.py")
    sources = [text for path in files if 'importorskip("torch' in (text := path.read_text("utf-8"))]
    assert len(sources) > 5
    assert all("mark.pytorch" in text for text in sources)
