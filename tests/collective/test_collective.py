"""One model for a set: fitted, applied, saved, and read back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.collective.fitting import fit
from unseg_jax.collective.model import load_model
from unseg_jax.data.folders import find_images
from unseg_jax.export.folder import segment_files

pytestmark = pytest.mark.usefixtures("short_training")


def test_fit_and_segment(model, photographs):
    images = photographs(3, seed=2)  # not those that were fitted
    found = model.segment(images)
    for image, result in zip(images, found, strict=True):
        assert result.mask.shape == image.shape[:2]
        assert result.mask.dtype == bool
        assert 0 <= result.confidence <= 1
        assert result.losses.shape == (0,)
        assert result.method == "collective"
        np.testing.assert_array_equal(result.labels, result.mask)
    assert len(model.foreground) == 16
    assert model.images == 4
    # One image alone gives what it gives in a batch.
    np.testing.assert_array_equal(model.segment(images[1])[0].mask, found[1].mask)


def test_a_model_is_read_as_it_was_and_goes_on_from_the_shared_weights(
    model, photographs, tmp_path
):
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load_model(path, backbone=model.backbone)
    assert loaded.method == model.method
    assert loaded.foreground == model.foreground
    assert loaded.images == model.images
    images = photographs(2)
    for epochs in (0, 2):
        before, after = model.segment(images, epochs=epochs), loaded.segment(images, epochs=epochs)
        for first, second in zip(before, after, strict=True):
            assert first.losses.shape == (epochs,)
            assert np.isfinite(first.losses).all()
            np.testing.assert_array_equal(first.mask, second.mask)
            np.testing.assert_array_equal(first.losses, second.losses)
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_safetensors_with_json(model, tmp_path):
    """Read with the format's own layout: a length, a JSON header, numbers; no pickle."""
    path = tmp_path / "model.safetensors"
    model.save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = header["__metadata__"]
    assert json.loads(facts["method"])["name"] == "collective"
    assert json.loads(facts["foreground"]) == list(model.foreground)
    begin, end = header["evidence/weights"]["data_offsets"]
    stored = np.frombuffer(content[8 + length :][begin:end], np.float32)
    assert model.scorer is not None
    assert model.evidence is model.scorer  # the earlier name
    np.testing.assert_array_equal(stored, model.scorer.weights)


def test_loading_something_else(tmp_path):
    from safetensors.numpy import save_file

    text = tmp_path / "text.safetensors"
    text.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="cannot read the model"):
        load_model(text)
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, other)
    with pytest.raises(ValueError, match="not a model"):
        load_model(other)


class Source:
    """An image, and where it is noted that it was read."""

    def __init__(self, image, reads):
        self.image, self.reads = image, reads

    def read(self):
        self.reads.append(self)
        return self.image


@pytest.mark.parametrize("foreground", ["corner", "set"])
def test_shared_passes_of_a_published_method(backbone, photographs, tmp_path, foreground):
    """Which read each image once."""
    reads = []
    sources = [Source(image, reads) for image in photographs()]
    settings = {"image_size": 64, "stride": 8, "branches": ((8,),), "epochs": 2}
    model = fit(
        sources,
        method="unsegmedgat-c",
        backbone=backbone,
        passes=2,
        steps=2,
        batch_size=2,
        foreground=foreground,
        **settings,
    )
    assert sorted(map(sources.index, reads)) == [0, 1, 2, 3]
    assert model.scorer is None
    assert model.method.collective_epochs == 2
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load_model(path, backbone=model.backbone)
    found = model.segment(photographs(3))
    again = loaded.segment(photographs(3))
    for first, second in zip(found, again, strict=True):
        assert first.losses.shape == (2,)
        np.testing.assert_array_equal(first.mask, second.mask)
    # They go on from the shared head.
    other = dataclasses.replace(model, head=jax.tree.map(np.zeros_like, model.head))
    assert not np.array_equal(other.segment(photographs(1))[0].losses, found[0].losses)
    assert {entry["found"] for entry in model.foreground} == {"foreground", "background"}


def test_max_images_bounds_what_is_read(backbone, photographs):
    reads = []
    sources = [Source(photographs(1)[0], reads) for _ in range(9)]
    model = fit(sources, backbone=backbone, image_size=64, max_images=4, steps=0)
    assert len(reads) == model.images == 4
    with pytest.raises(ValueError, match="graph head"):
        model.segment(photographs(1), epochs=1)


def test_unreadable_images_are_left_out(backbone, photographs, tmp_path):
    for index, image in enumerate(photographs(3)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    model = fit(tmp_path, backbone=backbone, image_size=64, steps=0)
    assert model.images == 3
    assert len(model.skipped) == 1
    assert "broken.png" in model.skipped[0]
    with pytest.raises(us.ImageError, match="broken"):
        fit([tmp_path / "broken.png"], backbone=backbone, image_size=64)


def test_model_serves_where_a_segmenter_does(model, photographs, tmp_path):
    """Files in, masks and a report out, as for any method."""
    for index, image in enumerate(photographs(2)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    run = segment_files(model.segmenter(), find_images([tmp_path]), tmp_path / "out")
    assert len(run.done) == 2
    expected = model.segment(photographs(1))[0].mask
    written = np.asarray(Image.open(tmp_path / "out" / "0_mask.png")) > 127
    np.testing.assert_array_equal(written, expected)
    assert "collective" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tokencut"}, "no head"),
        ({"method": "slic-ncut"}, "no head"),
        ({"method": "colective"}, "did you mean 'collective'"),
        ({"max_images": 0}, "max_images"),
        ({"steps": -1}, "steps"),
    ],
)
def test_what_cannot_be_fitted(photographs, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(photographs(1), **arguments)
    with pytest.raises(ValueError, match="no images"):
        fit([])


def test_a_model_of_one_type_is_applied_in_the_other(model, photographs, tiny_weights):
    half = us.load_backbone(tiny_weights, dtype="bfloat16")
    other = fit(photographs(), backbone=half, image_size=64, steps=0)
    images = photographs(seed=2)
    found = [
        np.stack([one.mask for one in dataclasses.replace(fitted, backbone=used).segment(images)])
        for fitted in (model, other)
        for used in (model.backbone, half)
    ]
    assert 0.05 < found[0].mean() < 0.5
    for masks in found[1:]:
        assert (masks == found[0]).mean() > 0.99
