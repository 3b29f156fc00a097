"""The notebook runs from top to bottom, and its committed outputs are those of a whole run."""

from pathlib import Path

import pytest

import unseg_jax
from unseg_jax.backbones import WeightsError

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
LARGEST = 500_000


@pytest.fixture(scope="module")
def committed():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    """For each code cell the kinds of its outputs: MIME types, or names of streams."""
    return [
        [tuple(sorted(output.get("data", {}))) or output.get("name") for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_committed_outputs_are_small_and_complete(committed):
    assert NOTEBOOK.stat().st_size < LARGEST
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert str(Path.home()) not in NOTEBOOK.read_text()
    assert "stderr" not in [kind for cell in outputs(committed) for kind in cell]


def test_notebook_runs_and_shows_what_is_committed(committed):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    try:
        unseg_jax.load_backbone()
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    fresh = committed.copy()
    nbclient.NotebookClient(fresh, timeout=600, kernel_name="python3").execute()
    assert outputs(fresh) == outputs(committed)
