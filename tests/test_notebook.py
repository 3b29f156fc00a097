"""Every notebook runs from top to bottom, and its committed outputs are those of a whole run."""

import dataclasses
import re
from pathlib import Path
from types import ModuleType

import pytest

from unseg_jax.backbones import weights

nbformat = pytest.importorskip("nbformat")
interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
plt = pytest.importorskip("matplotlib.pyplot")

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def code_cells(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """The kinds of the committed outputs of a cell: MIME types, or names of streams."""
    return {
        tuple(sorted(output.get("data", {}))) or output.get("name") or output.output_type
        for output in cell.outputs
    }


class Shell(interactiveshell.InteractiveShell):
    def enable_gui(self, gui=None):
        """Figures are inline: there is no loop of windows to run."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory, wide_weights, small_images):
    """An IPython with matplotlib's inline figures in this process.

    A kernel for each notebook would import JAX and compile once more. The backbone "auto" is small,
    and all methods but that of sets have the head of one, so that it is compiled once.
    """
    find, deepcut = weights.find, small_images["deepcut"]
    others = set(small_images) - {"collective"}
    small_images.update({name: dataclasses.replace(deepcut, name=name) for name in others})
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("notebooks")
        patch.setenv("IPYTHONDIR", str(folder))
        patch.chdir(folder)
        patch.setattr("unseg_jax.backbones.find", lambda _: find(wide_weights))
        backend = plt.get_backend()
        shell = Shell.instance(user_module=ModuleType("__main__"))
        shell.history_manager.enabled = False
        shell.enable_matplotlib("inline")
        yield shell
        plt.switch_backend(backend)
        Shell.clear_instance()


def run(shell, cell):
    """Runs a cell, with few epochs, small images and plain edges; the kinds of its outputs."""
    from IPython.utils.capture import capture_output

    source = re.sub(r"(?i)(epochs ?= ?)\d+", r"\g<1>2", cell.source)
    source = re.sub(r"(image_size=)\d+", r"\g<1>112", source)
    source = source.replace('refine="bilateral"', 'refine="none"')
    # The trap first, or `run_cell` puts its own hook in the place of the one that captures.
    with shell.display_trap, capture_output() as captured:
        done = shell.run_cell(source, store_history=True)
    assert done.success, captured.stdout
    streams = {name for name in ("stdout", "stderr") if getattr(captured, name)}
    return streams | {tuple(sorted(output.data)) for output in captured.outputs}


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_small_and_complete(name):
    path, cells = FOLDER / f"{name}.ipynb", code_cells(name)
    assert path.stat().st_size < 500_000
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not {"stderr", "error"} & set().union(*map(kinds, cells))
    for private in (str(Path.home()), "/tmp/"):
        assert private not in path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_shows_what_is_committed(name, shell):
    shell.reset()
    for cell in code_cells(name):
        assert run(shell, cell) == kinds(cell), cell.source
