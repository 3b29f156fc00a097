"""What the onnxruntime worker can be asked; see `benchmarks.measure.workers`."""

from typing import Any

import numpy as np

from benchmarks.measure import common

_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
_STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
_state: dict[str, Any] = {}


def environment() -> dict[str, Any]:
    return {"versions": common.versions()}


def load_vit(path: str) -> None:
    import onnxruntime

    _state["session"] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def time_vit(pixels: str) -> float:
    """Seconds of one pass over (B, H, W, 3) uint8."""
    batch = np.load(pixels)
    session = _state["session"]
    name = session.get_inputs()[0].name

    def run():
        scaled = batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        session.run(None, {name: (scaled - _MEAN) / _STD})

    return common.timed(run)


COMMANDS = {function.__name__: function for function in (environment, load_vit, time_vit)}
