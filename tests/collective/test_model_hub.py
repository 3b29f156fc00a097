"""Models on the hub, from a stub of its client; no network."""

import dataclasses
import shutil

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.collective.steering import Steering
from unseg_jax.errors import WeightsError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of repositories that the hub's client reads and writes."""
    folder = tmp_path / "hub"

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            assert exist_ok
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / ".private").write_text(str(private))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    def download(name, file, *, revision=None, etag_timeout=None):
        if not (folder / name / file).is_file():
            raise FileNotFoundError(f"404: no {file} in {name}")
        return str(folder / name / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_model_is_pushed_with_its_card_and_read_back(
    store, model, photographs, tiny_weights, capsys
):
    assert model.push_to_hub("me/moths", private=True) == "hf:me/moths"
    assert (store / "me/moths/.private").read_text() == "True"
    card = (store / "me/moths/README.md").read_text()
    assert "fitted with unseg_jax on 4 images" in card
    assert "No labels were used" in card
    assert "--model hf:me/moths" in card
    taught = Steering(
        *map(np.float32, (np.zeros(51), np.zeros((1, 51)), np.zeros((1, 48)))), np.int32(1)
    )
    dataclasses.replace(model, steering=taught).push_to_hub("me/steered")
    card = (store / "me/steered/README.md").read_text()
    assert "steered by masks of 1 of the images" in card
    assert "No labels" not in card
    again = us.load_model("hf:me/moths", backbone=tiny_weights)
    for ours, theirs in zip(again.scorer, model.scorer, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    photo = store / "photo.png"
    Image.fromarray(photographs(1)[0]).save(photo)
    arguments = ["--backbone", str(tiny_weights), "--out", str(store / "out"), "--dry-run"]
    assert main.main(["segment", str(photo), "--model", "hf:me/moths", *arguments]) == 0
    assert "photo_mask.png" in capsys.readouterr().out


def test_what_is_not_there_is_named(store):
    with pytest.raises(WeightsError, match=r"hf:me/none cannot be fetched .*model\.safetensors"):
        us.load_model("hf:me/none")
    with pytest.raises(ValueError, match="not of the form hf:ORG/NAME"):
        us.load_model("hf:moths")
