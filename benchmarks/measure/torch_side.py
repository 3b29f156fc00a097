"""What the PyTorch worker can be asked; see `benchmarks.measure.workers`."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import common
from benchmarks.measure.random_weights import random_state
from benchmarks.reference import pyg_heads, torch_dense, torch_vit

_state: dict[str, Any] = {}


def environment() -> dict[str, Any]:
    return {"versions": common.versions(), "threads": torch.get_num_threads()}


def peak_memory() -> float:
    return common.peak_memory_gib()


# ---------------------------------------------------------------- rates of the machine


def matmul_rate(size: int = 1536, bfloat16: bool = False) -> float:
    """Operations a second of a square product, the best of several."""
    kind = torch.bfloat16 if bfloat16 else torch.float32
    left, right = torch.randn(2, size, size).to(kind)
    times = [common.timed(lambda: left @ right) for _ in range(6)]
    return 2 * size**3 / min(times[1:])


def copy_rate(mebibytes: int = 256) -> float:
    """Bytes a second, read plus written, of a copy that no cache holds."""
    source = torch.ones(mebibytes * 2**18)
    target = torch.empty_like(source)
    times = [common.timed(lambda: target.copy_(source)) for _ in range(6)]
    return 2 * source.numel() * 4 / min(times[1:])


# ---------------------------------------------------------------- the ViT


def random_weights(out: str, seed: int = 0) -> None:
    np.savez(out, **random_state(seed))


def convert_checkpoint(path: str, out: str) -> None:
    """An official DINO .pth, in any of its forms, as plain arrays under official names."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    for part in ("student", "teacher"):
        if part in state:
            state = state[part]
            break
    known = torch_vit.VisionTransformer().state_dict()
    arrays = {}
    for name, value in state.items():
        name = name.removeprefix("module.").removeprefix("backbone.")
        if name in known:
            arrays[name] = value.float().numpy()
    if missing := known.keys() - arrays.keys():
        raise ValueError(f"{path} is not a DINO ViT-S/8: it lacks {sorted(missing)[:3]} ….")
    np.savez(out, **arrays)


def load_vit(weights: str) -> None:
    with np.load(weights) as archive:
        _state["weights"] = {name: archive[name] for name in archive.files}
    _state["vit"] = torch_vit.load(_state["weights"])


def time_vit(pixels: str, bfloat16: bool = False, compiled: bool = False) -> float:
    """Seconds of one pass over (B, H, W, 3) uint8."""
    batch = np.load(pixels)
    keys = _state["vit"].keys
    if compiled:
        keys = _state.setdefault("compiled_vit", torch.compile(keys, dynamic=False))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return common.timed(lambda: keys(torch_vit.normalise(batch)))


def save_features(pixels: str, out: str, bfloat16: bool = False) -> None:
    np.save(out, torch_vit.features(_state["vit"], np.load(pixels), bfloat16=bfloat16).numpy())


def export_onnx(out: str, height: int, width: int, batch: int) -> None:
    """Writes the ViT up to the keys of its last block as an ONNX graph of fixed shape."""

    class Keys(torch.nn.Module):
        def __init__(self, vit):
            super().__init__()
            self.vit = vit
            # The bicubic interpolation has no ONNX operator; its result is a constant here.
            table = vit.positions(height // vit.patch, width // vit.patch).detach()
            vit.positions = lambda *_: table

        def forward(self, pixels):
            return self.vit.keys(pixels)

    example = torch.zeros(batch, 3, height, width)
    vit = torch_vit.load(_state["weights"])
    torch.onnx.export(Keys(vit), (example,), out, dynamo=False, opset_version=17)


# ---------------------------------------------------------------- whole images


def _vote_and_enlarge(labels: np.ndarray, grid: tuple[int, int], size: tuple[int, int]):
    """DeepCut's mask: label 1, or 0 if three corners or more are 1; nearest neighbours."""
    patches = labels.reshape(grid)
    if patches[[0, 0, -1, -1], [0, -1, 0, -1]].sum() > 2:
        patches = 1 - patches
    rows = np.arange(size[0]) * grid[0] // size[0]
    columns = np.arange(size[1]) * grid[1] // size[1]
    return patches[rows[:, None], columns].astype(bool)


def segment_image(
    image: str,
    size: tuple[int, int],
    epochs: int,
    out: str,
    features: str | None = None,
    dense: bool = False,
    bfloat16: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """DeepCut (NCut, K = 2) on one image; writes the mask and returns seconds by stage.

    Args:
        image, size, epochs: as for `Published.segment`.
        out: .npy file for the mask.
        features: .npy file of (h, w, D) to use in the place of the ViT's.
        dense: optimise with `torch_dense` instead of message passing.
        bfloat16: run the ViT under autocast.
        seed: of initial parameters and dropout.
    """
    head = pyg_heads.HEADS["deepcut"]
    marks = [time.perf_counter()]
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    original = np.asarray(picture)
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    tensor = torch_vit.normalise(resized[None])
    marks.append(time.perf_counter())
    if features is None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            nodes = _state["vit"].keys(tensor)[0].numpy()
        grid = (size[0] // 8, size[1] // 8)
    else:
        stored = np.load(features)
        nodes, grid = stored.reshape(-1, stored.shape[-1]), stored.shape[:2]
    marks.append(time.perf_counter())
    key = ("state", nodes.shape[1], seed)
    if key not in _state:
        _state[key] = pyg_heads.initial_state(head, nodes.shape[1], seed=seed)
    weights = pyg_heads.affinity(nodes, head)
    torch.manual_seed(seed)
    if dense:
        adjacency = torch.from_numpy(weights)[None]
        constants = torch_dense.prepare(head, torch.from_numpy(nodes)[None], adjacency)
        marks.append(time.perf_counter())
        _, last = torch_dense.optimise(
            head,
            torch_dense.fuse(head, [_state[key]]),
            constants,
            epochs=epochs,
            learning_rate=head.learning_rate,
        )
        last = last[0]
    else:
        edge_index, edge_weight = pyg_heads.edges(weights)
        marks.append(time.perf_counter())
        model = _state.setdefault(("model", nodes.shape[1]), pyg_heads.build(head, _state[key]))
        _, _, last = pyg_heads.optimise(
            model,
            {name: torch.from_numpy(value) for name, value in _state[key].items()},
            torch.from_numpy(nodes),
            torch.from_numpy(weights),
            edge_index,
            edge_weight,
            epochs=epochs,
            learning_rate=head.learning_rate,
        )
    labels = last.argmax(dim=-1).numpy()
    marks.append(time.perf_counter())
    mask = _vote_and_enlarge(labels, grid, original.shape[:2])
    marks.append(time.perf_counter())
    np.save(out, mask)
    names = ("load", "vit", "graph", "optimisation", "masks")
    return {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}


def open_published(checkout: str) -> list[str]:
    """Imports the user's checkout of DeepCut; returns the modules that stand-ins replace."""
    from benchmarks.reference.published import Published

    _state["published"] = Published(Path(checkout), _state["weights"])
    return _state["published"].standins


def segment_published(
    image: str,
    size: tuple[int, int],
    epochs: int,
    out: str,
    features: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """As `segment_image`, by the published code; with features (h, w, D), size is ignored."""
    nodes = None
    if features is not None:
        stored = np.load(features)
        # The checkout reads the grid off the resized image, at stride 8.
        nodes, size = stored.reshape(-1, stored.shape[-1]), [8 * side for side in stored.shape[:2]]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        mask, stages = _state["published"].segment(
            Path(image), size=tuple(size), epochs=epochs, features=nodes, seed=seed
        )
    np.save(out, mask)
    return stages


def close() -> None:
    if "published" in _state:
        _state["published"].close()


# ---------------------------------------------------------------- heads alone


def prepare_head(
    name: str, nodes: int, width: int, batch: int, clusters: int | None, dropout: float | None
) -> dict[str, float]:
    """Makes the graphs that `time_head` works on; returns the share of pairs that are edges."""
    head = pyg_heads.HEADS[name]
    images = np.stack([common.clustered_features(nodes, width, seed) for seed in range(batch)])
    weights = np.stack([pyg_heads.affinity(image, head) for image in images])
    state = pyg_heads.initial_state(head, width, clusters)
    features, adjacency = torch.from_numpy(images), torch.from_numpy(weights)
    constants = torch_dense.prepare(head, features, adjacency)
    _state["head"] = (head, features, adjacency, constants, state, dropout)
    _state["warm"] = set()
    # Otherwise torch.compile gives up after a handful of heads and shapes.
    torch.compiler.reset()
    return {"edges": float((weights > 0).mean())}


def time_head(kind: str, epochs: int, batch: int) -> float:
    """Seconds an epoch and image of the optimisation alone.

    Args:
        kind: "pyg" (one image, message passing), "dense" or "compiled" (`batch` images at once).
        epochs: how many are timed.
        batch: images of those prepared that are optimised together.
    """
    head, features, adjacency, constants, state, dropout = _state["head"]
    torch.manual_seed(0)
    if kind == "pyg":
        edge_index, edge_weight = pyg_heads.edges(adjacency[0].numpy())
        model = pyg_heads.build(head, state, dropout)
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}

        def run():
            pyg_heads.optimise(
                model,
                tensors,
                features[0],
                adjacency[0],
                edge_index,
                edge_weight,
                epochs=epochs,
                learning_rate=head.learning_rate,
            )

        return common.timed(run) / epochs
    some = {name: value[:batch].contiguous() for name, value in constants.items()}
    parameters = torch_dense.fuse(head, [state] * batch)

    def run_dense(count=epochs):
        torch_dense.optimise(
            head,
            parameters,
            some,
            epochs=count,
            learning_rate=head.learning_rate,
            dropout=dropout,
            compiled=kind == "compiled",
        )

    if (kind, batch) not in _state["warm"]:
        run_dense(3)
        _state["warm"].add((kind, batch))
    return common.timed(run_dense) / (epochs * batch)


COMMANDS = {
    function.__name__: function
    for function in (
        environment,
        peak_memory,
        matmul_rate,
        copy_rate,
        random_weights,
        convert_checkpoint,
        load_vit,
        time_vit,
        save_features,
        export_onnx,
        segment_image,
        open_published,
        segment_published,
        close,
        prepare_head,
        time_head,
    )
}
