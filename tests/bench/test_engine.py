"""Which backbone a run of several methods takes, and what learns from the whole set first."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.bench import run
from unseg_jax.bench.run import engine
from unseg_jax.collective import choosing, fitting
from unseg_jax.data.reading_options import Reading
from unseg_jax.registry import METHODS, resolve
from unseg_jax.segmenter.device import Device

pytestmark = pytest.mark.usefixtures("short_training")


def test_auto_follows_a_method_that_names_its_backbone(monkeypatch):
    monkeypatch.setattr(engine, "load_backbone", lambda name, dtype: name)

    def loaded(*methods):
        return engine._load(methods, "auto", "float32")

    deepcut, collective = METHODS["deepcut"], METHODS["collective"]
    assert loaded(deepcut) == loaded(deepcut, METHODS["tokencut"]) == "auto"
    assert loaded(deepcut, collective) == "dinov2_vits14_focus"
    with pytest.raises(ValueError, match="the methods have different backbones"):
        loaded(dataclasses.replace(deepcut, backbone="dino_vitb8"), collective)


@pytest.fixture
def worked(monkeypatch):
    """How often each image is decoded, and how many images the backbone encodes."""
    reads, encoded = Counter(), []
    read, encode = Reading.read, Device._keep

    def reading(self, source, *args):
        reads[source] += 1
        return read(self, source, *args)

    def encoding(self, params, pixels):
        encoded.extend(pixels)
        return encode(self, params, pixels)

    monkeypatch.setattr(Reading, "read", reading)
    monkeypatch.setattr(Device, "_keep", encoding)
    return lambda: (set(reads.values()), len(encoded))


def test_a_set_is_learnt_once_and_resumed(
    settings, tiny_weights, records, tmp_path, monkeypatch, worked
):
    overrides = {"image_size": 64, "stride": 8, "resize": "stretch"}
    changes = {"methods": ("collective",), "limit": 3, "overrides": overrides}
    changes |= {"value_range": (0.0, 200.0), "record_every": 0}
    summary = run(settings(tmp_path / "run", **changes), quiet=True)
    assert summary["methods"]["collective"]["failed"] == 0
    assert worked() == ({1}, 3)
    # One range for the fit and for what is scored.
    file = tmp_path / "run" / "models" / "collective.safetensors"
    model = us.load_model(file, backbone=tiny_weights)
    assert model.reading.value_range == (0, 200)
    whole = records(tmp_path / "run")
    path = tmp_path / "run" / "per_image.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))

    monkeypatch.delattr(fitting, "fit_set")
    again = run(settings(tmp_path / "run", resume=True, **changes), quiet=True)
    # Without the features that the fit kept, the same.
    assert worked()[1] > 3
    assert records(tmp_path / "run") == whole
    miou = summary["methods"]["collective"]["miou"]
    assert again["methods"]["collective"]["miou"] == miou


def test_all_seeds_have_one_program_and_results_of_their_own(settings, tiny_weights, tmp_path):
    pixels = list(np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8))
    texts, found = [], []
    for seed in (0, 1):
        made = engine.Engine(settings(tmp_path, seed=seed))
        made.compile()
        text = made._assign["vit-kmeans"].as_text()
        # But for the lines of code that it was made by.
        texts.append(re.sub(r"metadata=\{.*?\}|^(\d+ .*)?\n", "", text, flags=re.M))
        found.append(made.run({made.input_sizes[0]: pixels})["vit-kmeans"].result.labels)
        options = {"backbone": tiny_weights, "image_size": 48, "seed": seed}
        expected = us.Segmenter("vit-kmeans", epochs=4, **options).run(pixels)
        np.testing.assert_array_equal(found[-1], expected.labels)
    assert texts[0] == texts[1]
    assert not np.array_equal(*found)


@pytest.mark.parametrize("framed", [False, True])
def test_auto_is_decided_by_the_images(settings, tmp_path, monkeypatch, framed):
    chosen, saved = [], {}
    monkeypatch.setattr(choosing, "share_framed", lambda images: framed)
    monkeypatch.setattr(choosing, "load", lambda choice, *_, **__: chosen.append(choice))
    asked = settings(tmp_path, methods=("auto",), overrides={"resize": "stretch"})
    made = engine.Engine(asked)
    assert made.methods["auto"] == dataclasses.replace(made.methods["auto"], resize="stretch")
    made.fit([None] * 8, tmp_path, saved.__setitem__)
    (choice,) = chosen
    assert choice.fits == framed
    assert choice.explicit == ("resize",)
    assert saved == ({} if framed else {"auto.safetensors": choice.model.read_bytes()})
    deepcut = settings(tmp_path, methods=("auto",), overrides={"epochs": 1})
    (method,) = deepcut.resolve_methods()
    assert method == dataclasses.replace(resolve("deepcut", epochs=1), name="auto")
