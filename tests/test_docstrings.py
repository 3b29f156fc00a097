"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import tempfile
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import unseg_jax as us

ROOT = Path(us.__file__).parents[1]
# Found by their text, so that no module with an example is left out.
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "unseg_jax").rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


def mean_colours(pixels):
    b, h, w, c = pixels.shape
    return pixels.reshape(b, h // 8, 8, w // 8, 8, c).mean((2, 4)).reshape(b, -1, c)


@pytest.fixture(scope="module")
def names():
    """What examples may use without saying where it is from."""
    photograph = np.random.default_rng(0).integers(0, 40, (48, 64, 3)).astype(np.uint8)
    photograph[12:36, 16:48] += 200
    backbone = us.from_callable(mean_colours, patch=8)
    modules = {"np": np, "jax": jax, "jnp": jnp, "us": us, "tempfile": tempfile}
    return modules | {"photograph": photograph, "backbone": backbone}


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name, names):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, extraglobs=names)
    assert attempted > 0
    assert failed == 0
