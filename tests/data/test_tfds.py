"""A tiny TFDS data set, written with TFDS itself and read without TensorFlow."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest

from unseg_jax.data import DatasetError, MaskRule, load_image, load_mask, open_dataset, tfds

from .conftest import encoded

pytest.importorskip("array_record")


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)


def trimap(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(1, 4, (20 + index, 30)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of TFDS data sets: `oxford_iiit_pet` as it is, and `nested` of another shape."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny:
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(self.layout)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 3), "test": self._generate_examples(3, 8)}

        def _generate_examples(self, start, stop):
            for index in range(start, stop):
                # Files of encoded images: arrays would need TensorFlow to encode them.
                image = BytesIO(encoded(picture(index)))
                if self.name == "nested":
                    yield index, {"views": {"colour": image}, "truth": trimap(index)}
                else:
                    mask = BytesIO(encoded(trimap(index)))
                    yield index, {"image": image, "segmentation_mask": mask}

    folder = tmp_path_factory.mktemp("tfds")
    mask, image = (tfds.features.Image(shape=(None, None, channels)) for channels in (1, 3))
    truth = tfds.features.Tensor(shape=(None, 30), dtype=np.uint8)
    for name, layout in {
        "oxford_iiit_pet": {"image": image, "segmentation_mask": mask},
        "nested": {"views": {"colour": image}, "truth": truth},
    }.items():
        # Unregistered, so that reading finds the files and not these classes.
        with tfds.core.registered.skip_registration():
            bases = Tiny, tfds.core.GeneratorBasedBuilder
            builder = type("Tiny", bases, {"name": name, "layout": layout})
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def _data_dir(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))


def index_of(image: np.ndarray) -> int:
    """Which picture this is: TFDS shuffles records when it writes them."""
    return image.shape[0] - 20


def test_a_known_data_set_with_its_boundary_rule():
    dataset = open_dataset("tfds:oxford_iiit_pet")
    assert (len(dataset), dataset.scored) == (8, 8)
    assert [item.split for item in dataset.items] == ["test"] * 5 + ["train"] * 3
    assert len({item.id for item in dataset.items}) == 8
    assert "boundary, counted as foreground" in dataset.notes[0]
    seen = set()
    for item in dataset.items:
        pixels = load_image(item.image)
        index = index_of(pixels)
        seen.add(index)
        np.testing.assert_array_equal(pixels, picture(index))
        np.testing.assert_array_equal(load_mask(item.mask, dataset.rule), trimap(index) != 2)
    assert seen == set(range(8))


def test_splits_limits_and_foreground():
    test = open_dataset("tfds:oxford_iiit_pet:test")
    assert {item.split for item in test.items} == {"test"}
    assert len(test) == 5
    assert test.items == open_dataset("tfds:oxford_iiit_pet", split="test").items
    assert len(open_dataset("tfds:oxford_iiit_pet:1.0.0:train")) == 3
    assert len(open_dataset("tfds:oxford_iiit_pet:test[:2]")) == 2
    assert len(open_dataset("tfds:oxford_iiit_pet", limit=6)) == 6
    assert open_dataset("tfds:oxford_iiit_pet", foreground=(1,)).rule == MaskRule(values=(1,))


def test_mapped_nested_features():
    keys = {"image_key": "views/colour", "mask_key": "truth"}
    dataset = open_dataset("tfds:nested:train", **keys, foreground=(2,))
    for item in dataset.items:
        index = index_of(load_image(item.image))
        np.testing.assert_array_equal(load_mask(item.mask, dataset.rule), trimap(index) == 2)
    unscored = open_dataset("tfds:nested", image_key="views/colour")
    assert unscored.scored == 0
    assert "has no mask feature" in unscored.notes[0]


@pytest.mark.parametrize(
    ("spec", "keys", "says"),
    [
        ("tfds:nested", {}, "no feature 'image': name one of truth, views/colour"),
        ("tfds:nested", {"image_key": "truth", "mask_key": "x"}, "no feature 'x'"),
        ("tfds:oxford_iiit_pet:dev", {}, "no split 'dev': it has"),
        ("tfds:oxford_iiit_petz", {}, "TFDS knows no data set 'oxford_iiit_petz'"),
        ("tfds:a b", {}, "must read tfds:NAME"),
    ],
)
def test_what_is_not_there_is_said(spec, keys, says):
    with pytest.raises(DatasetError, match=says):
        open_dataset(spec, **keys)


def test_records_are_read_by_many_threads_and_travel_between_processes():
    items = open_dataset("tfds:oxford_iiit_pet").items
    with ThreadPoolExecutor(8) as pool:
        copies = pickle.loads(pickle.dumps(items)) * 5
        images = list(pool.map(lambda item: load_image(item.image), copies))
    for item, image in zip(items * 5, images, strict=True):
        np.testing.assert_array_equal(image, load_image(item.image))
    with pytest.raises(ValueError, match=r"tfds:oxford_iiit_pet:test\[0\]/segmentation_mask holds"):
        load_mask(items[0].mask)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    tfds._builder.cache_clear()
    with pytest.raises(DatasetError, match=r'pip install "unseg_jax\[tfds\]"'):
        open_dataset("tfds:mnist")


def test_records_that_cannot_be_read_are_refused_at_once(monkeypatch):
    for error, says in (
        (NotImplementedError(), "format without random access: prepare it again with file_format"),
        (OSError("torn"), r"/image cannot be read \(torn\): prepare the data set again"),
    ):

        def fail(record, error=error):
            raise error

        monkeypatch.setattr(tfds.Record, "read", fail)
        with pytest.raises(DatasetError, match=says):
            open_dataset("tfds:oxford_iiit_pet")
