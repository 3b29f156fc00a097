"""A loss and a layer of the user's own wherever a method goes: images, files, runs, names."""

import dataclasses
import functools
import json
import pickle
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.bench import Settings
from unseg_jax.bench.run.settings import make_config
from unseg_jax.bench.run_folder import identity
from unseg_jax.cli.main import main
from unseg_jax.custom import has_name, name_of
from unseg_jax.method import plain_fields
from unseg_jax.registry import METHODS

SIZE = 64
SMALL = {"branches": ((8,),), "mlp_width": 8, "epochs": 4, "image_size": SIZE}


def colours(pixels):
    """Means and deviations of 16 x 16 patches."""
    batch, height, width, _ = pixels.shape
    patches = pixels.reshape(batch, height // 16, 16, width // 16, 16, 3)
    features = jnp.concatenate([patches.mean((2, 4)), patches.std((2, 4))], -1)
    return features.reshape(batch, -1, 6)


def cut(assignments, adjacency, *, mask, weight=0.0):
    return us.losses.ncut(assignments, adjacency, mask=mask) + weight * jnp.sum(assignments**2)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The named "gcn", written as a layer of one's own."""

    scale: float = 1.0

    def init(self, key, inputs, outputs):
        return us.layers.init_gcn(key, inputs, outputs)

    def prepare(self, graph):
        return us.graphs.gcn_propagation(graph.adjacency, graph.mask)

    def apply(self, params, x, prepared):
        return self.scale * us.layers.gcn(params, x, prepared)


class Plain:
    """An object with values, but without a name for them."""

    def __call__(self, assignments, adjacency, *, mask):
        return cut(assignments, adjacency, mask=mask)


OWN = us.Method("mine", loss=cut, layer=Convolution(), **SMALL)


@pytest.fixture(scope="module")
def backbone():
    return us.from_callable(colours, patch=16, width=6)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(40, 50, (3, SIZE, SIZE, 3), np.uint8)
    pixels[:, 16:48, 16:48] = (220, 90, 60)
    return pixels


@pytest.fixture(scope="module")
def segmenter(backbone):
    return us.Segmenter(OWN, backbone=backbone)


@pytest.fixture(scope="module")
def named(backbone, images):
    """What the named loss and layer give, which are the same functions."""
    return us.segment(images, us.Method("mine", **SMALL), backbone=backbone)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.patch_labels, other.patch_labels)
        np.testing.assert_allclose(one.losses, other.losses, atol=1e-5)


def test_images_are_segmented_as_by_the_named_ones(segmenter, images, named):
    assert_same(segmenter(images), named)
    assert_same(segmenter(images), named)
    assert segmenter.compilations == 1
    fields = {**SMALL, "loss": cut, "layer": Convolution(), "inner_activation": "elu"}
    method = us.Segmenter("deepcut", backbone=segmenter.backbone, **fields).method
    assert method.own_parts == OWN.own_parts
    # A loss that fails on an image alone is named.
    result = jax.device_get(segmenter.run(images))._replace(finite=np.zeros(3, bool))
    with pytest.raises(us.ImageError, match=r"look at the loss '.*cut' and the layer '.*Convolut"):
        segmenter.finish(result, 0, images[0])


def test_graphs_of_regions_and_second_stages(images, backbone):
    """Both are padded: a named loss must come out of them unchanged, pickled or not."""
    named, own = (us.Segmenter("slic-ncut", loss=loss, **SMALL) for loss in ("ncut", cut))
    again = pickle.loads(pickle.dumps(own))
    assert again.method == own.method
    assert_same(again(images[0]), named(images[0]))
    method = us.Method("parts", parts=2, parts_epochs=3, **SMALL)
    stages = [us.segment(images[0], method, backbone=backbone, loss=loss) for loss in ("ncut", cut)]
    assert_same(*stages)


def test_a_program_in_a_file_does_the_same(backbone, images, named, tmp_path):
    path = tmp_path / "own.jax"
    us.export_segment_fn(path, OWN, backbone, batch_size=3, platforms=["cpu"])
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    labels = [found.patch_labels for found in named]
    np.testing.assert_array_equal(program.call(images), labels)


def test_a_wrong_loss_is_refused_where_the_segmenter_is_made(backbone):
    wrong = {"loss": lambda assignments, adjacency, mask: assignments.sum(0)}
    for make in (us.Segmenter, us.make_segment_fn):
        with pytest.raises(ValueError, match=r"gives float32 of shape \(2,\), where one float32"):
            make(OWN, backbone=backbone, **wrong)
    with pytest.raises(ValueError, match=r"gives float32 of shape \(5,\), where one float32"):
        us.Segmenter("slic-ncut", **wrong)


def test_a_head_of_a_set_is_fitted_but_not_written(backbone, images, tmp_path):
    model = us.fit(images, method=OWN, backbone=backbone, passes=1, steps=1)
    assert all(found.losses.shape == (4,) for found in model.segment(images))
    with pytest.raises(ValueError, match=r"^loss='.*\.cut' is your own, and a file .*\.$"):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"layer='.*Convolution\(scale=1.0\)' is your own"):
        us.params_from_pytorch({}, OWN)


def test_names_say_where_a_part_is_written_and_what_it_was_made_with():
    here = __name__
    assert name_of(cut) == name_of(jax.jit(cut)) == f"{here}.cut"
    assert name_of(functools.partial(cut, weight=0.5)) == f"{here}.cut(weight=0.5)"
    assert name_of(Convolution(2.0)) == f"{here}.Convolution(scale=2.0)"
    assert name_of(Convolution().prepare) == f"{here}.Convolution(scale=1.0).prepare"
    assert name_of(Plain()) == f"<{here}.Plain>"
    nameless = [Plain(), lambda: 0, functools.partial(cut, weight=np.ones(2)), Plain().__call__]
    assert not any(map(has_name, nameless))
    assert all(map(has_name, [cut, Convolution(), functools.partial(cut, weight=(1, None))]))
    shown = repr(us.Method("mine", loss=cut, layer=Convolution(), tau=0.5))
    own = f"layer={here}.Convolution(scale=1.0), loss={here}.cut"
    assert shown == f"Method('mine', tau=0.5, {own})"
    for method in METHODS.values():
        assert eval(repr(method), {"Method": us.Method}) == method
    assert plain_fields(METHODS["deepcut"]) == dataclasses.asdict(METHODS["deepcut"])


def config(**overrides):
    settings = Settings("data", "out", methods=("deepcut",), overrides=overrides)
    settings.check()
    facts = {"dataset": "x", "notes": (), "backbone": "", "weights": ""}
    return make_config(settings, settings.resolve_methods(), ["a"], **facts)


def test_a_run_knows_a_loss_and_a_layer_by_their_names():
    loss, layer = f"{__name__}.cut(weight=0.5)", f"{__name__}.Convolution(scale=1.0)"
    own, again = (
        config(loss=functools.partial(cut, weight=0.5), layer=Convolution()) for _ in range(2)
    )
    ((row, method),) = json.loads(json.dumps(own))["methods"].items()
    assert (row, method["loss"], method["layer"]) == (f"deepcut+{loss}+{layer}", loss, layer)
    assert identity(own) == identity(again)
    others = [config(loss=cut, layer=Convolution()), config(loss=cut, layer=Convolution(2.0))]
    assert len({identity(one) for one in (own, *others)}) == 3
    for nameless in (lambda s, w, mask: s.sum(), Plain()):
        with pytest.raises(ValueError, match="has no name to know it by again: write it with def"):
            config(loss=nameless)
    with pytest.raises(ValueError, match="a file with a model holds names of this library's"):
        Settings("data", "out", methods=("collective",), overrides={"loss": cut}).check()


def test_the_command_line_imports_a_loss_and_a_layer(
    images, tmp_path, tiny_weights, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_parts.py").write_text(f"from {__name__} import Convolution, cut")
    truth = (images[0, ..., 0] > 100) * np.uint8(255)
    for kind, values in (("images", images[0]), ("masks", truth)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "data" / kind / "a.png")
    given = ["--method", "deepcut", "--backbone", str(tiny_weights), "--image-size", "48"]
    given += ["--epochs", "1", "--loss", "my_parts:cut", "--layer", "my_parts:Convolution"]
    assert main(["segment", "data/images", "--out", "found", *given]) == 0
    kept = json.loads((tmp_path / "found" / "unseg_jax.json").read_text())
    assert f"{__name__}.cut" in json.dumps(kept["settings"])
    assert main(["bench", "--data", "data", "--out", "run", *given, "--quiet"]) == 0
    (name,) = json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]
    assert name == f"deepcut+{__name__}.cut+{__name__}.Convolution(scale=1.0)"
    assert f"{name}  " in capsys.readouterr().out
    assert (tmp_path / "run" / "thumbnails" / name / "a.png").is_file()
    for wrong in ("my_parts:nothing", "no_such_module:cut"):
        assert main(["segment", "data/images", "--out", "other", "--loss", wrong]) != 0
        assert f"--loss {wrong} cannot be imported" in " ".join(capsys.readouterr().err.split())
