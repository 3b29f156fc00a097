"""Shared fixtures: where the golden values and the small data sets lie, and the real backbone."""

import os
from pathlib import Path

import numpy as np
import pytest

SHARED_VARIABLE = "UNSEG_JAX_SHARED"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `golden/` and `data/`; named by UNSEG_JAX_SHARED, else `../shared`."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get(SHARED_VARIABLE, default))
    if not (folder / "golden").is_dir():
        if SHARED_VARIABLE in os.environ:
            pytest.fail(f"{SHARED_VARIABLE} is set to {folder}, which has no folder golden.")
        pytest.skip(f"no golden values at {folder}; set {SHARED_VARIABLE} to the folder with them")
    return folder


@pytest.fixture(scope="session")
def golden(shared):
    """Loads one golden file by its stem as a dict of arrays."""

    def load(stem: str) -> dict[str, np.ndarray]:
        with np.load(shared / "golden" / f"{stem}.npz") as archive:
            return {name: archive[name] for name in archive.files}

    return load
