"""How modules of the library import one another: no circle, wherever an import stands."""

import ast
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

PACKAGE = Path(__file__).resolve().parents[1] / "unseg_jax"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: str, source: str, modules: set[str]) -> set[str]:
    """Modules of the library that a source imports, function-level imports among them; those for
    type checkers alone are none."""
    imported: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imported.add(inner if inner in modules else node.module)
    return (imported & modules) - {module}


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules along one circle of imports; empty if there is none."""
    state: dict[str, str] = {}
    path: list[str] = []

    def visit(module: str) -> list[str]:
        state[module] = "open"
        path.append(module)
        for target in sorted(imports[module]):
            if state.get(target) == "open":
                return [*path[path.index(target) :], target]
            if target not in state and (circle := visit(target)):
                return circle
        path.pop()
        state[module] = "done"
        return []

    for module in sorted(imports):
        if module not in state and (circle := visit(module)):
            return circle
    return []


def test_no_modules_import_one_another_in_a_circle():
    sources = {module_name(path): path.read_text() for path in PACKAGE.rglob("*.py")}
    # The package itself names its public parts, and is imported by nobody below.
    root = sources.pop("unseg_jax")
    assert "TYPE_CHECKING" in root
    modules = set(sources)
    imports = {name: imports_of(name, text, modules) for name, text in sources.items()}
    assert len(imports) > 50
    assert find_circle(imports) == []


@pytest.mark.parametrize(
    ("imports", "circle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
    ],
)
def test_a_circle_is_found(imports, circle):
    assert find_circle(imports) == circle


def by_name(source: str) -> set[str]:
    """How a source reaches modules that no import of it names."""
    ways = {"runpy", "importlib.import_module", "__import__", "sys.argv ="}
    found = set()
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        found |= {f"{ast.unparse(target).partition('[')[0]} =" for target in targets}
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.name for alias in node.names} | {getattr(node, "module", None)}
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found & ways


def test_the_command_line_is_the_top_floor_and_nothing_is_run_by_its_name():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert project["tool"]["importlinter"]["contracts"][0]["layers"][:2] == ["__main__", "cli"]
    found = {module_name(path): by_name(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert found.pop("unseg_jax") == {"importlib.import_module"}  # its names, when first used
    assert {name: ways for name, ways in found.items() if ways} == {}
    assert by_name("import runpy, sys\nsys.argv[1:] = []") == {"runpy", "sys.argv ="}
