"""The PyTorch side of `accelerator.py`: on a GPU where there is one."""

import statistics
from typing import Any

import numpy as np
import torch

from benchmarks.measure import common
from benchmarks.reference import pyg_heads, torch_dense, torch_vit

_device = "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if _device == "cuda":
        torch.cuda.synchronize()


def _median(function, repeats: int) -> float:
    def call():
        function()
        _wait()

    call()
    return statistics.median(common.timed(call) for _ in range(repeats))


def environment() -> dict[str, Any]:
    name = torch.cuda.get_device_name() if _device == "cuda" else "cpu"
    return {"versions": common.versions(), "device": name}


def vit(weights: str, size: int, batch: int, kind: str, repeats: int) -> float:
    """Seconds of one pass over a batch on the device; float32 products may use TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    with np.load(weights) as archive:
        model = torch_vit.load({name: archive[name] for name in archive.files}).to(_device)
    pixels = torch.randn(batch, 3, size, size, device=_device)
    half = kind == "bfloat16"
    with torch.inference_mode(), torch.autocast(_device, torch.bfloat16, enabled=half):
        return _median(lambda: model.keys(pixels), repeats)


def dense(name: str, nodes: int, width: int, batch: int, epochs: int, repeats: int) -> float:
    """Seconds of a loop over a batch of images at once."""
    head = pyg_heads.HEADS[name]
    images = np.stack([common.clustered_features(nodes, width, seed) for seed in range(batch)])
    weights = np.stack([pyg_heads.affinity(image, head) for image in images])
    state = pyg_heads.initial_state(head, width)
    features = torch.from_numpy(images).to(_device)
    adjacency = torch.from_numpy(weights).to(_device)

    def run():
        torch_dense.optimise(
            head,
            torch_dense.fuse(head, [state] * batch, _device),
            torch_dense.prepare(head, features, adjacency),
            epochs=epochs,
            learning_rate=head.learning_rate,
        )

    return _median(run, repeats)


COMMANDS = {function.__name__: function for function in (environment, vit, dense)}
