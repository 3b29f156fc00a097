"""Every notebook runs from top to bottom, and its committed outputs are those of a whole run."""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import unseg_jax
from unseg_jax.backbones import WeightsError

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[1] / "notebooks"
# The longest first, as they run two at a time.
NAMES = ("methods", "quickstart", "folder", "features", "scores")
LARGEST = 500_000


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    """For each code cell the kinds of its outputs: MIME types, or names of streams.

    What a cell prints comes in one piece or in several, as it happens.
    """
    return [
        list(
            dict.fromkeys(
                tuple(sorted(output.get("data", {}))) or output.get("name") or output.output_type
                for output in cell.outputs
            )
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


# Over sockets in a folder: a free port may be another program's before the kernel has it.
RUN = """
import sys, jupyter_client, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
kernel = jupyter_client.AsyncKernelManager(kernel_name="python3", transport="ipc", ip=sys.argv[3])
nbclient.NotebookClient(notebook, km=kernel, timeout=600, startup_timeout=300).execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Name → future of the notebook, run anew. Compiling is most of it, and takes one core."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    try:
        unseg_jax.load_backbone()
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    folder = tmp_path_factory.mktemp("notebooks")

    def run(name):
        source, fresh = FOLDER / f"{name}.ipynb", folder / f"{name}.ipynb"
        # A process of its own: event loops of nbclient outlive their thread.
        # A short path, as that of a socket may have 107 bytes.
        with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
            command = [sys.executable, "-c", RUN, source, fresh, Path(sockets, "socket")]
            done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return nbformat.read(fresh, as_version=4)

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name) for name in NAMES}


def test_all_notebooks_are_here():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_small_and_complete(name):
    path, committed = FOLDER / f"{name}.ipynb", read(name)
    assert path.stat().st_size < LARGEST
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = [kind for cell in outputs(committed) for kind in cell]
    assert "stderr" not in kinds
    assert "error" not in kinds
    for private in (str(Path.home()), "/tmp/"):
        assert private not in path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_shows_what_is_committed(name, running):
    assert outputs(running[name].result()) == outputs(read(name))
