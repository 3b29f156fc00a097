"""`unseg-jax info`: what it says of versions, devices, caches, extras and graphics cards."""

import importlib.metadata
import json
import shutil
import tomllib
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement

import unseg_jax
from unseg_jax.backbones import weights
from unseg_jax.cli import information, main

pytestmark = pytest.mark.quick

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(information, "has_nvidia_gpu", lambda: False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


def info(capsys, *arguments):
    assert main.main(["info", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_json_holds_what_is_installed_and_cached(capsys, own_cache):
    compiled = own_cache / "compiled"
    (compiled / "unseg_jax").mkdir(parents=True)
    files = {"unseg_jax/89ab-cache": 300, "jit_f-0123-cache": 1000, "jit_g-4567-cache": 500}
    for name, size in {**files, "jit_g-4567-atime": 8}.items():
        (compiled / name).write_bytes(bytes(size))
    (own_cache / "dinov2_vits14_focus.safetensors").write_bytes(bytes(4321))
    facts = json.loads(info(capsys, "--json"))
    assert {"unseg_jax": PROJECT["version"], "jax": jax.__version__}.items() <= (
        facts["versions"].items()
    )
    assert [device["id"] for device in facts["devices"]] == [d.id for d in jax.devices()]
    (weights,) = [w for w in facts["weights"] if w["name"] == "dinov2_vits14_focus"]
    assert (weights["bytes"], weights["verified"]) == (4321, True)
    assert (facts["cache"]["compiled_programs"], facts["cache"]["compiled_bytes"]) == (3, 1800)
    assert facts["advice"] == []


def test_text_says_the_same_in_lines(capsys, own_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(information, "missing_extras", lambda: {"onnx": [], "video": ["av"]})
    text = info(capsys)
    for said in (
        f"jax {jax.__version__}",
        "none yet: unseg-jax weights get auto",
        str(own_cache),
        "0 compiled programs, 0.0 MB",
        "onnx: installed",
        'video: lacks av; pip install "unseg_jax[video]"',
    ):
        assert said in text
    assert "advice" not in text
    (some := tmp_path / "some.safetensors").write_bytes(bytes(2_500_000))
    monkeypatch.setattr(weights, "cached_path", {"dino_vitb8": some}.get)
    assert "dino_vitb8 2.5 MB, hash unknown, not verified" in info(capsys)
    monkeypatch.setattr(information, "missing_extras", lambda: None)
    assert "extras    unknown" in info(capsys)


def test_graphics_cards_show_by_their_driver_and_without_cuda_with_the_remedy(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(information, "has_nvidia_gpu", lambda: True)
    expected = 'GPU present, jax without CUDA: pip install "unseg_jax[cuda]"'
    assert expected in info(capsys).splitlines()[-1]
    # Nothing is said where jax uses the card.
    device = {"platform": "gpu", "kind": "NVIDIA", "id": 0}
    monkeypatch.setattr(information, "_devices", lambda: {"devices": [device]})
    text = info(capsys)
    assert (expected in text, "gpu:0 NVIDIA" in text) == (False, True)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    driver = tmp_path / "nvidia"
    assert not information.has_nvidia_gpu([str(driver)])
    driver.mkdir()
    assert information.has_nvidia_gpu([str(driver)])
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert information.has_nvidia_gpu([])


def install(folder, name, version, *lines):
    """Metadata of a package, as pip leaves them."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*head, *lines]) + "\n")


def test_missing_packages_of_extras_are_found_in_depth(monkeypatch, tmp_path):
    needs = [
        *(f"Provides-Extra: {extra}" for extra in ("gpu", "old", "elsewhere", "full", "test")),
        "Requires-Dist: under-test-core",
        'Requires-Dist: under-test-core[fast]>=1.0; extra == "gpu"',
        'Requires-Dist: under-test-core>=3; extra == "old"',
        'Requires-Dist: under-test-none; extra == "elsewhere" and python_version < "3"',
        'Requires-Dist: under-test[gpu]; extra == "full"',
        'Requires-Dist: under-test-none; extra == "test"',
    ]
    install(tmp_path, "under-test", "1.0", *needs)
    core = ["Provides-Extra: fast", 'Requires-Dist: under-test-plugin>=1; extra == "fast"']
    install(tmp_path, "under-test-core", "2.0", *core)
    monkeypatch.syspath_prepend(tmp_path)
    assert information.missing_extras("under-test") == {
        "elsewhere": [],
        "full": ["under-test-plugin"],
        "gpu": ["under-test-plugin"],
        "old": ["under-test-core"],
    }
    # In a folder that no cache knows.
    (tmp_path / "later").mkdir()
    install(tmp_path / "later", "under-test-plugin", "1.0")
    monkeypatch.syspath_prepend(tmp_path / "later")
    assert information.missing_extras("under-test")["gpu"] == []
    assert information.missing_extras("under-test-nowhere") is None


def test_extras_are_those_of_the_project_and_of_jax():
    assert set(PROJECT["optional-dependencies"]) >= information.DEVELOPERS
    assert unseg_jax.__version__ == PROJECT["version"]
    (line,) = PROJECT["optional-dependencies"]["cuda"]
    needed = Requirement(line)
    provided = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert needed.name == "jax"
    assert set() < needed.extras <= set(provided)
