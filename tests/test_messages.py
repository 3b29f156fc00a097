"""Messages of the library speak of arguments; only the rooms of the command line of options."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unseg_jax
from unseg_jax.terminal.console import with_options

ROOT = Path(unseg_jax.__file__).parent
COMMANDS = {"app", "bench", "cli", "demo.py", "terminal"}
_LONE = re.compile(r"--[\w-]+(=\S*)?")
_OPTION = re.compile(r"(^|[\s(`'\"])--[a-z]")


def strings(tree):
    """The strings of a module but its docstrings, and but options that are handed to a program."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and id(node) not in documents and not _LONE.fullmatch(value):
            yield node.lineno, value


def test_messages_below_the_command_line_name_no_options():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in COMMANDS
        for line, text in strings(ast.parse(path.read_text("utf-8")))
        if _OPTION.search(text) and "\n" not in text  # a model card shows a command
    ]
    assert found == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("num_clusters=1 must be at least 2.", "--k 1 must be at least 2."),
        ("in foreground=('#ff0000',), or void=.", "in --foreground '#ff0000', or --void."),
        ("batch_size=0 must be at least 1.", "--batch-size 0 must be at least 1."),
        ("a/method=x/b.png and tau=5 and y.epochs=3", "a/method=x/b.png and tau=5 and y.epochs=3"),
    ],
)
def test_the_command_line_names_its_options(message, said):
    assert with_options(message) == said


def test_undefined_names_are_found():
    """The exception for jaxtyping is of its shapes alone."""
    code = "from jaxtyping import Array, Float\ndef f(x: Float[Arry, 'n d']) -> 'Nothing': ...\n"
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise"]
    command += ["--stdin-filename=unseg_jax/a.py", "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout.count("F821") == 2
