"""A small data set, a small random backbone, and one finished run, which all tests share."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from unseg_jax.bench import BenchError, Settings, run
from unseg_jax.bench.run import runner
from unseg_jax.bench.run.engine import Engine

# What differs from run to run.
TIMES = {"seconds", "shared_seconds", "run", "crc", "worker"}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Ten image and mask pairs: bright ellipses on dark noise, of several sizes."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "ellipses"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(10):
        height, width = 40 + 8 * (index % 3), 48
        y, x = np.mgrid[:height, :width]
        centre = (height * rng.uniform(0.4, 0.6), width * rng.uniform(0.4, 0.6))
        mask = ((y - centre[0]) / 12) ** 2 + ((x - centre[1]) / 14) ** 2 < 1
        image = rng.integers(0, 60, (height, width, 3))
        image[mask] += np.array([180, 120, 60])
        for kind, pixels in (("images", image), ("masks", mask * 255)):
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Runs that differ in their folders and images alone share one engine's programs."""
    engines, programs, compile = {}, {}, Engine.compile

    def engine_of(settings):
        methods = settings.resolve_methods()
        if any(method.learns_from_set or method.resize != "stretch" for method in methods):
            return Engine(settings)
        names = ("methods", "backbone", "seed", "dtype", "record_every", "overrides")
        key = repr([getattr(settings, name) for name in names])
        if key not in engines:
            engines[key] = Engine(settings)
            engines[key].key = key
        engine = copy.copy(engines[key])
        engine.batch_size = settings.batch_size
        return engine

    def compile_once(self, *progress):
        # On a CPU programs take one image, whatever the size of a batch is.
        key = getattr(self, "key", None)
        if key is None or key not in programs:
            self._groups, self._assign = copy.deepcopy(self._groups), {}
            compile(self, *progress)
            programs[key] = self._groups, self._assign, self.compile_seconds
        self._groups, self._assign, seconds = programs[key]
        self.compile_seconds = dict(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Engine", engine_of)
        patch.setattr(Engine, "compile", compile_once)
        yield


@pytest.fixture
def no_device(monkeypatch):
    """What the device finds is beside the point."""
    error = BenchError("got as far as the device.")
    monkeypatch.setattr(Engine, "compile", lambda *_: None)
    monkeypatch.setattr(Engine, "run", lambda *_: (_ for _ in ()).throw(error))


@pytest.fixture(scope="session")
def settings(data, tiny_weights):
    """`settings(out, **changes)`: of a run of one method on the small data set."""

    def make(out, *, data=data, **changes):
        given = {"methods": ("vit-kmeans",), "backbone": str(tiny_weights), "batch_size": 2}
        given |= {"record_every": 2, "overrides": {"image_size": 48, "epochs": 4}}
        return Settings(str(data), str(out), **given | changes)

    return make


@pytest.fixture(scope="session")
def records():
    """`records(out)`: by image and method, each once, without what differs from run to run."""

    def read(out, leave_out=frozenset(TIMES)):
        found = {}
        for line in (out / "per_image.jsonl").read_text().splitlines():
            record = json.loads(line)
            key = record["id"], record["method"]
            assert key not in found
            found[key] = {name: v for name, v in record.items() if name not in leave_out}
        return found

    return read


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
    """An undisturbed run of two methods, and its summary. Not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    both = settings(out, methods=("deepcut", "vit-kmeans"), batch_size=4, save_masks=True)
    return out, run(both, quiet=True)
