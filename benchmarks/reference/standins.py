"""Minimal stand-ins for modules that the published code imports and this machine may lack.

The published files are run as they are; they import torchvision, OpenCV and numba for a handful
of functions. Where one of these is not installed, a module with those functions alone takes its
place while the published code runs. Each does what the original does on the arguments used there.
"""

import importlib.util
import sys
import types

import numpy as np
import torch
from PIL import Image

__all__ = ["insert_missing"]


def insert_missing() -> list[str]:
    """Puts stand-ins where a module is missing; returns the names of those."""
    made = {"torchvision": _torchvision, "cv2": _opencv, "numba": _numba}
    missing = [name for name in made if importlib.util.find_spec(name) is None]
    for name in missing:
        made[name]()
    return missing


def _torchvision() -> None:
    class InterpolationMode:
        LANCZOS = Image.Resampling.LANCZOS

    class Compose:
        def __init__(self, steps):
            self.steps = steps

        def __call__(self, value):
            for step in self.steps:
                value = step(value)
            return value

    class Resize:
        def __init__(self, size, interpolation):
            self.size, self.interpolation = size, interpolation

        def __call__(self, image):
            return image.resize((self.size[1], self.size[0]), self.interpolation)

    class ToTensor:
        def __call__(self, image):
            array = np.array(image, dtype=np.uint8, copy=True)
            return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)

    class Normalize:
        def __init__(self, mean, std):
            self.mean = torch.tensor(mean).view(-1, 1, 1)
            self.std = torch.tensor(std).view(-1, 1, 1)

        def __call__(self, tensor):
            return (tensor - self.mean) / self.std

    transforms = types.ModuleType("torchvision.transforms")
    for part in (InterpolationMode, Compose, Resize, ToTensor, Normalize):
        setattr(transforms, part.__name__, part)
    package = types.ModuleType("torchvision")
    package.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


def _opencv() -> None:
    def resize(array, size, interpolation):
        rows = np.arange(size[1]) * array.shape[0] // size[1]
        columns = np.arange(size[0]) * array.shape[1] // size[0]
        return array[rows[:, None], columns]

    module = types.ModuleType("cv2")
    module.resize, module.INTER_NEAREST = resize, 0  # type: ignore[attr-defined]
    sys.modules["cv2"] = module


def _numba() -> None:
    module = types.ModuleType("numba")
    # The one function that is compiled there is not called.
    module.njit = lambda *_, **__: lambda function: function  # type: ignore[attr-defined]
    sys.modules["numba"] = module
