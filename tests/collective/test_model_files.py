"""Damaged and hostile model files: read right, or refused in one sentence."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from unseg_jax.backbones.weights import MEASURED, SOURCES
from unseg_jax.collective.model import load_model
from unseg_jax.collective.model_file import method_from
from unseg_jax.errors import ImageError
from unseg_jax.registry import METHODS


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    """(metadata, tensors) of a model with a scorer and a head."""
    path = tmp_path_factory.mktemp("model") / "good.safetensors"
    model.save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(content[8 : 8 + length])["__metadata__"]
    return facts, load(content)


@pytest.fixture
def read(backbone, photographs):
    """Reads a model: the sentence that refuses it, or None after a good mask."""

    def run(path, applied=True):
        try:
            model = load_model(path, backbone=backbone)
            if not applied:
                return None
            (result,) = model.segment(photographs(1))
        except ValueError as error:
            text = str(error)
            assert "\n" not in text
            assert text.endswith("."), text
            assert len(text) < 1500
            return text
        assert result.mask.shape == (64, 64)
        assert np.isfinite(result.confidence)
        return None

    return run


@pytest.fixture
def outcome(read, tmp_path):
    """Writes a model and reads it."""

    def run(facts, tensors):
        path = tmp_path / "model.safetensors"
        contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
        path.write_bytes(save(contiguous, facts))
        return read(path)

    return run


def test_the_good_model_is_read_as_it_was(good, outcome):
    assert outcome(*good) is None


def test_models_at_other_epochs_run(good, outcome):
    facts, tensors = good
    assert outcome(with_field(facts, "epochs", 2), tensors) is None


def with_field(facts, name, value):
    fields = json.loads(facts["method"])
    fields[name] = value
    return {**facts, "method": json.dumps(fields)}


FIELDS = [
    ("epochs", None),
    ("epochs", -1),
    ("epochs", "9" * 20),
    ("epochs", True),
    ("layer", "transformer"),
    ("layer", ["gcn"]),
    ("image_size", 0),
    ("image_size", 10**9),
    ("image_size", [64, 64, 64]),
    ("image_size", 4),
    ("branches", []),
    ("branches", [[]]),
    ("branches", [[10**9]]),
    ("branches", [[8]] * 1000),
    ("branches", "((8,),)"),
    ("heads", 10**9),
    ("stacks", 0),
    ("arma_layers", 10**9),
    ("num_clusters", 10**9),
    ("dropout", 1.5),
    ("tau", float("nan")),
    ("alpha", float("inf")),
    ("alpha", 10**400),
    ("learning_rate", "fast"),
    ("learning_rate", {}),
    ("normalise", 1),
    ("facet", "keys"),
    ("block", 50),
    ("block", []),
    ("block", [-1, 0]),
    ("block", [-1, 50]),
    ("stride", 3),
    ("backbone", 7),
    ("backbone", "a\nb"),
    ("name", ""),
    ("name", "x" * 10_000),
    ("source", None),
    ("quirks", "none"),
    ("code_overrides", 3),
    ("code_overrides", [["epochs"]]),
    ("code_overrides", [["epochs", -3]]),
    ("code_overrides", [["self", 1]]),
    ("code_overrides", [["method", 1]]),
    ("refine", "sharper"),
    ("nodes", "voxels"),
    ("colour", "red"),
]


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_every_field_of_the_method_is_checked(good, outcome, name, value):
    facts, tensors = good
    assert outcome(with_field(facts, name, value), tensors) is not None


METADATA = {
    "no method": lambda f: {k: v for k, v in f.items() if k != "method"},
    "no foreground": lambda f: {k: v for k, v in f.items() if k != "foreground"},
    "no images": lambda f: {k: v for k, v in f.items() if k != "images"},
    "no backbone": lambda f: {k: v for k, v in f.items() if k != "backbone"},
    "another format": lambda f: {**f, "format": "unseg_jax collective model 9"},
    "nothing": lambda f: {},
    "no JSON": lambda f: {**f, "method": "{"},
    "a list": lambda f: {**f, "method": "[]"},
    "null": lambda f: {**f, "method": "null"},
    "nested": lambda f: {**f, "method": "[" * 100_000},
    "long": lambda f: {**f, "method": " " * 2_000_000},
    "minus images": lambda f: {**f, "images": "-3"},
    "images in words": lambda f: {**f, "images": "three"},
    "digits of another script": lambda f: {**f, "images": "٣"},
    "many images": lambda f: {**f, "images": "9" * 5000},
    "no clusters": lambda f: {**f, "foreground": "[]"},
    "clusters of numbers": lambda f: {**f, "foreground": "[1, 2]"},
    "a cluster without kind": lambda f: {**f, "foreground": '[{"cluster": 0}, {"cluster": 1}]'},
    "one cluster": lambda f: {**f, "foreground": json.dumps(json.loads(f["foreground"])[:1])},
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_does_not_fit_is_refused(good, outcome, case):
    facts, tensors = good
    assert outcome(METADATA[case](facts), tensors) is not None


def changes(name, array):
    spoiled = array.copy()
    if array.dtype != np.bool_:
        spoiled.reshape(-1)[:1] = np.nan
        yield {name: spoiled}
        yield {name: np.where(np.isnan(spoiled), np.inf, array).astype(np.float32)}
        yield {name: array.astype(np.complex64)}
    yield {name: array.astype(np.int32)}
    yield {name: array[None]}
    yield {name: array.reshape(-1)[:0]}
    yield {name: None}
    yield {name: None, name + "\nx": array}


def test_every_tensor_is_checked(good, outcome):
    """Each tensor in turn missing, renamed, of another shape or dtype, or not finite."""
    facts, tensors = good
    tried = 0
    for name, array in tensors.items():
        for change in changes(name, array):
            tampered = {k: v for k, v in {**tensors, **change}.items() if v is not None}
            assert outcome(facts, tampered) is not None, (name, change)
            tried += 1
    assert tried > 100


def test_double_precision_is_read_as_single(good, outcome):
    """As models hold it that were saved under JAX_ENABLE_X64 before it was cast."""
    facts, tensors = good
    double = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in tensors.items()}
    assert outcome(facts, double) is None


def test_tensors_of_unknown_names_are_refused(good, outcome):
    facts, tensors = good
    for name in ("other", "head/extra", "head/branches/0", "evidence/extra", "head", ""):
        assert outcome(facts, {**tensors, name: np.ones(2, np.float32)}) is not None
    assert outcome(facts, {}) is not None


def test_huge_weights_never_give_a_mask_out_of_nan(good, backbone, photographs, tmp_path):
    facts, tensors = good
    huge = {
        name: array if array.dtype == np.bool_ else np.full_like(array, np.finfo(array.dtype).max)
        for name, array in tensors.items()
    }
    path = tmp_path / "huge.safetensors"
    path.write_bytes(save(huge, facts))
    with pytest.raises(ImageError, match="not finite"):
        load_model(path, backbone=backbone).segment(photographs(1))


def test_files_cut_short_or_overwritten(good, read, tmp_path):
    facts, tensors = good
    content = save(tensors, facts)
    path = tmp_path / "model.safetensors"
    for share in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        assert read(path) is not None
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(content) - 8, 60):
        flipped = bytearray(content)
        flipped[place] ^= int(draw.integers(1, 256))
        path.write_bytes(flipped)
        read(path, applied=False)


def test_paths_that_hold_no_model(backbone, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    for path in (tmp_path, tmp_path / "none", tmp_path / "text.safetensors", "a\0b"):
        with pytest.raises(ValueError, match=r"cannot read the model .*\.$"):
            load_model(path, backbone=backbone)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_survives_json(name):
    fields = json.loads(json.dumps(dataclasses.asdict(METHODS[name])))
    assert method_from(fields) == METHODS[name]


def test_collective_names_the_backbone_that_it_was_measured_with():
    assert METHODS["collective"].backbone == MEASURED
    assert MEASURED in SOURCES
    assert {m.backbone for m in METHODS.values() if m.name != "collective"} == {"auto"}
