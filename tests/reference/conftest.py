"""Graphs this small run faster on one thread, above all beside other tests."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(seed: int, nodes: int, width: int, centres: int = 4, spread: float = 2) -> np.ndarray:
    """Nodes around a few centres, in rows that say nothing of the centre."""
    generator = np.random.default_rng(seed)
    middles = spread * generator.standard_normal((centres, width))
    rows = middles[generator.integers(0, centres, nodes)]
    return (rows + generator.standard_normal((nodes, width))).astype(np.float32)


def part(values: dict, prefix: str) -> dict:
    """The entries whose names begin so, without that beginning."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
