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
    (own_cache / "compiled" / "unseg_jax").mkdir(parents=True)
    (own_cache / "compiled" / "unseg_jax" / "89ab-cache").write_bytes(bytes(300))
    (own_cache / "compiled" / "jit_f-0123-cache").write_bytes(bytes(1000))
    (own_cache / "compiled" / "jit_g-4567-cache").write_bytes(bytes(500))
    (own_cache / "compiled" / "jit_g-4567-atime").write_bytes(bytes(8))
    (own_cache / "dinov2_vits14_focus.safetensors").write_bytes(bytes(4321))
    facts = json.loads(info(capsys, "--json"))
    assert facts["versions"]["unseg_jax"] == PROJECT["version"]
    assert facts["versions"]["jax"] == jax.__version__
    assert [device["id"] for device in facts["devices"]] == [d.id for d in jax.devices()]
    (weights,) = [w for w in facts["weights"] if w["name"] == "dinov2_vits14_focus"]
    assert (weights["bytes"], weights["verified"]) == (4321, True)
    assert facts["cache"]["compiled_programs"] == 3
    assert facts["cache"]["compiled_bytes"] == 1800
    assert facts["advice"] == []


def test_text_says_the_same_in_lines(capsys, own_cache, monkeypatch):
    monkeypatch.setattr(information, "missing_extras", lambda: {"onnx": [], "video": ["av"]})
    text = info(capsys)
    assert f"jax {jax.__version__}" in text
    assert "none yet: unseg-jax weights get auto" in text
    assert str(own_cache) in text
    assert "0 compiled programs, 0.0 MB" in text
    assert "onnx: installed" in text
    assert 'video: lacks av; pip install "unseg_jax[video]"' in text
    assert "advice" not in text


def test_weights_without_a_known_hash_are_marked(capsys, monkeypatch, tmp_path):
    from unseg_jax.backbones import weights

    (tmp_path / "some.safetensors").write_bytes(bytes(2_500_000))
    monkeypatch.setattr(
        weights,
        "cached_path",
        lambda name: tmp_path / "some.safetensors" if name == "dino_vitb8" else None,
    )
    assert "dino_vitb8 2.5 MB, hash unknown, not verified" in info(capsys)


def test_graphics_card_without_cuda_is_named_with_the_remedy(capsys, monkeypatch):
    monkeypatch.setattr(information, "has_nvidia_gpu", lambda: True)
    expected = 'GPU present, jax without CUDA: pip install "unseg_jax[cuda]"'
    assert expected in info(capsys).splitlines()[-1]
    # Nothing is said where jax uses the card.
    device = {"platform": "gpu", "kind": "NVIDIA", "id": 0}
    monkeypatch.setattr(information, "_devices", lambda: {"devices": [device]})
    text = info(capsys)
    assert expected not in text
    assert "gpu:0 NVIDIA" in text


def test_graphics_card_shows_by_its_driver(monkeypatch, tmp_path):
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
        "Provides-Extra: gpu",
        "Provides-Extra: old",
        "Provides-Extra: elsewhere",
        "Provides-Extra: full",
        "Provides-Extra: test",
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
    install(tmp_path, "under-test-plugin", "1.0")
    importlib.metadata.MetadataPathFinder.invalidate_caches()
    assert information.missing_extras("under-test")["gpu"] == []


def test_source_that_is_not_installed_has_unknown_extras(capsys, monkeypatch):
    assert information.missing_extras("under-test-nowhere") is None
    monkeypatch.setattr(information, "missing_extras", lambda: None)
    assert "extras    unknown" in info(capsys)


def test_every_developers_extra_is_one_of_the_project():
    assert set(PROJECT["optional-dependencies"]) >= information.DEVELOPERS
    assert unseg_jax.__version__ == PROJECT["version"]


def test_extra_for_graphics_cards_is_one_that_jax_has():
    (line,) = PROJECT["optional-dependencies"]["cuda"]
    needed = Requirement(line)
    provided = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert needed.name == "jax"
    assert needed.extras
    assert needed.extras <= set(provided)
