"""Runs an unmodified checkout of DeepCut (github.com/SAMPL-Weizmann/DeepCut) and times it.

Not a line of the checkout is changed. Its functions are wrapped at run time: a stage's time is
what lies between the wrapped calls, and the mask is taken from where the code would draw it.
"""

import contextlib
import functools
import importlib
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reference import standins

STAGES = ("load", "vit", "graph", "optimisation", "masks")


class Published:
    """The published DeepCut with the settings of its script.

    Args:
        checkout: folder of the repository.
        state: weights of the ViT under their official names.

    Attributes:
        standins: names of modules that stand-ins replace.
    """

    def __init__(self, checkout: Path, state: Mapping[str, np.ndarray]):
        if not (checkout / "segment.py").is_file():
            raise FileNotFoundError(f"{checkout} has no segment.py; give a checkout of DeepCut.")
        self.standins = standins.insert_missing()
        # It keeps files where it runs: initial parameters, and pictures on their way.
        self._folder = Path(tempfile.mkdtemp(prefix="deepcut-"))
        (self._folder / "tmp").mkdir()
        os.environ.setdefault("MPLBACKEND", "agg")
        sys.path.insert(0, str(checkout))
        try:
            self._segment = importlib.import_module("segment")
        finally:
            sys.path.remove(str(checkout))
        # `GNNpool` is imported when it is needed, by name.
        sys.path.append(str(checkout))
        self._weights = self._folder / "checkpoint.pth"
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in state.items()}
        torch.save({"student": tensors}, self._weights)
        self._events: list[tuple[str, float, float]] = []
        self._mask: np.ndarray | None = None
        self._features: np.ndarray | None = None
        self._wrap()

    def _wrap(self) -> None:
        util = self._segment.util
        for owner, name in (
            (util, "load_data_img"),
            (self._segment, "deep_features"),
            (util, "create_adj"),
            (util, "load_data"),
            (util, "graph_to_mask"),
        ):
            setattr(owner, name, self._timed(name, getattr(owner, name)))
        save = util.save_or_show

        @functools.wraps(save)
        def keep(pictures, *arguments):
            self._mask = np.asarray(pictures[1]) > 0.5

        util.save_or_show = keep
        extract = self._segment.deep_features

        @functools.wraps(extract)
        def substitute(*arguments, **settings):
            if self._features is not None:
                return self._features
            return extract(*arguments, **settings)

        self._segment.deep_features = substitute

    def _timed(self, name, function):
        @functools.wraps(function)
        def wrapped(*arguments, **settings):
            start = time.perf_counter()
            result = function(*arguments, **settings)
            self._events.append((name, start, time.perf_counter()))
            return result

        return wrapped

    def segment(
        self,
        image: Path,
        *,
        size: tuple[int, int],
        epochs: int,
        features: np.ndarray | None = None,
        seed: int = 0,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """One image through the published code.

        Args:
            image: a .png or .jpg file.
            size: (height, width) that it is resized to.
            epochs: optimisation steps.
            features: (N, D) float32 to use in the place of its ViT's.
            seed: of initial parameters and dropout.

        Returns:
            The mask (H, W) bool at the image's own size, and seconds by stage. Making the ViT and
            drawing pictures belong to no stage.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as inputs, _inside(self._folder):
            shutil.copy(image, Path(inputs) / image.name.lower())
            self._events.clear()
            self._mask, self._features = None, features
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._segment.GNN_seg(
                    mode=0,
                    cut=0,
                    alpha=3,
                    epoch=[epochs, 100, 10],
                    K=2,
                    pretrained_weights=str(self._weights),
                    in_dir=inputs,
                    out_dir=f"{inputs}/none/",
                    save=True,
                    cc=False,
                    bs=False,
                    log_bin=False,
                    res=size,
                    facet="key",
                    layer=11,
                    stride=8,
                    device="cpu",
                )
        assert self._mask is not None
        return self._mask, self._stages()

    def _stages(self) -> dict[str, float]:
        at = {name: (start, end) for name, start, end in self._events}
        vit = at.get("deep_features", (0.0, 0.0))
        return {
            "load": at["load_data_img"][1] - at["load_data_img"][0],
            "vit": vit[1] - vit[0],
            "graph": at["load_data"][1] - at["create_adj"][0],
            "optimisation": at["graph_to_mask"][0] - at["load_data"][1],
            "masks": at["graph_to_mask"][1] - at["graph_to_mask"][0],
        }

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def _inside(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
