"""Shared fixtures: where the golden values and the small data sets lie, and the real backbone."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Two threads a worker keep each other waiting: a fit of a small set takes twice the CPU time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported

import jax
import numpy as np
import pytest

from unseg_jax import programs, registry

SHARED_VARIABLE = "UNSEG_JAX_SHARED"

COMPILED = {
    "jax_compilation_cache_dir": str(Path(__file__).resolve().parents[1] / "build" / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
"""Keeps whatever XLA compiles, for all workers of a run, what they start, and the next run."""


def pytest_configure():
    # The same numbers on every machine; `tests/test_devices.py` says what "auto" is elsewhere.
    os.environ["UNSEG_JAX_DTYPE"] = "float32"
    for name, value in COMPILED.items():
        os.environ.setdefault(name.upper(), str(value))
        jax.config.update(name, type(value)(os.environ[name.upper()]))
    # In this process constants are patched, after which no program is named.
    programs.kept_in = lambda: None


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


@pytest.fixture(scope="session")
def python():
    """`python(code, *arguments, **variables)`: a new Python that has run the code to its end."""

    def run(code, *arguments, environment=os.environ, check=True, **variables):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0 or not check, done.stderr[-3000:]
        return done

    return run


_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
_CHROMIUM_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
_CHROMIUM_OPTIONS += ("--disable-background-networking", "--disable-component-update")
_CHROMIUM_OPTIONS += ("--disable-sync",)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of Playwright's; skips where none is installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next((path for name in _CHROMIUMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_url(browser):
    """Opens an address; a script error, or a request to any other place, fails the test."""
    contexts, errors, requests, opened = [], [], [], {"file:", "data:", "blob:"}

    def open_one(url: str, width=1280, height=900, scheme="light", timeout=60_000, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        context.set_default_timeout(timeout)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        opened.add(url)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        for page in context.pages:
            page.close(run_before_unload=True)  # so that a page can say that it is left
        context.close()
    assert not errors
    assert [url for url in requests if not url.startswith(tuple(opened))] == []


@pytest.fixture
def open_file(open_url):
    """Opens an HTML file, as `open_url` does."""
    return lambda path, *arguments, **options: open_url(path.as_uri(), *arguments, **options)


@pytest.fixture(scope="session")
def luminance():
    """`luminance(page, name)` of a colour that the page's style names, as WCAG has it."""

    def of(page, name):
        style = "getComputedStyle(document.documentElement)"
        text = page.evaluate(f"{style}.getPropertyValue('--{name}').trim()")
        srgb = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    return of


MANY_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Drops compiled programs after a module that leaves the process with many memory maps.

    XLA for CPU maps every compiled function. Linux allows a process 65,530 maps
    (vm.max_map_count), and LLVM crashes at the next: the whole suite needs more than that.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


def _tiny_vit(width: int = 48, patch: int = 8, blocks: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"norm1": (), "attn.qkv": (3, 1), "attn.proj": (1, 1), "norm2": ()}
    layers |= {"mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(blocks):
        for layer, factors in layers.items():
            weight = tuple(factor * width for factor in factors) or (width,)
            shapes[f"blocks.{block}.{layer}.weight"] = weight
            shapes[f"blocks.{block}.{layer}.bias"] = weight[:1]
    return {
        name: rng.normal(scale=0.2, size=shape).astype(np.float32) for name, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A random one-block ViT with patches of 8 pixels, as a file that `backbone=` takes."""
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(path, **_tiny_vit())
    return path


@pytest.fixture(scope="session")
def deep_weights(tmp_path_factory) -> Path:
    """The same with three blocks."""
    path = tmp_path_factory.mktemp("weights") / "deep.npz"
    np.savez(path, **_tiny_vit(blocks=3))
    return path


@pytest.fixture(scope="session")
def wide_weights(tmp_path_factory) -> Path:
    """The same of the width that the model which ships takes."""
    path = tmp_path_factory.mktemp("weights") / "wide.npz"
    np.savez(path, **_tiny_vit(384, 14))
    return path


@pytest.fixture(scope="module")
def small_images():
    """The methods by name, made small where nothing else is asked for: 112 pixels, one layer."""
    small = {
        name: dataclasses.replace(m, image_size=112, branches=(m.branches[0][:1],), arma_layers=1)
        for name, m in registry.METHODS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "METHODS", small)
        yield small


@pytest.fixture(scope="module")
def short_training():
    """Models of sets are hardly trained, for tests that need a model and not a good one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unseg_jax.collective.convolution._STEPS", 1)
        yield
