"""Every option of one entry point works at all of them, or is refused with the reason."""

from pathlib import Path

import jax
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.collective import fitting
from unseg_jax.data.reading_options import Reading
from unseg_jax.terminal.segment_command import Segment
from unseg_jax.terminal.shared_options import command

IMAGES = [np.zeros((16, 16, 3), np.uint8)] * 2
OPTIONS = {"batch_size": 2, "seed": 3, "dtype": "float32", "batching": "loop", "workers": 1}
OPTIONS |= {"value_range": (0.0, 4080.0), "num_clusters": 2, "steps": 1, "passes": 1, "page": 1}
OPTIONS |= {"image_size": 16, "epochs": 1, "resize": "stretch", "refine": "none", "max_images": 2}
OPTIONS |= {"key": None, "on_image": print}
REFUSED = {
    "make_segment_fn": {
        *("batch_size", "value_range", "workers", "page"),
        *("steps", "passes", "max_images", "on_image", "key"),
    },
    "Segmenter": {"page", "key", "on_image"},
    "segment": {"page", "key", "on_image"},
    "fit": {"page"},
}


class Reached(Exception):
    """What a fit was asked for."""


@pytest.fixture(scope="module")
def backbone():
    return us.from_callable(lambda pixels: pixels[:, ::8, ::8].reshape(-1, 4, 3), patch=8, width=3)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", REFUSED)
def test_an_option_is_taken_or_refused_with_a_reason(name, option, backbone, monkeypatch):
    def record(sources, method, reading, **options):
        raise Reached(method, reading, options)

    monkeypatch.setattr(fitting, "fit_set", record)
    given = {"image_size": 16, option: OPTIONS[option]}
    if option == "key":
        given[option] = jax.random.key(1)
    calls = {
        "fit": lambda: us.fit(IMAGES, backbone=backbone, **given),
        "segment": lambda: us.segment(IMAGES, "collective", backbone=backbone, **given),
        "Segmenter": lambda: us.Segmenter("collective", backbone=backbone, **given)(IMAGES),
        "make_segment_fn": lambda: us.make_segment_fn("deepcut", backbone, **given),
    }
    if option in REFUSED[name]:
        with pytest.raises(ValueError, match=f"{option}= is no option here: "):
            calls[name]()
    elif name == "make_segment_fn":
        assert callable(calls[name]()[0])
    else:
        with pytest.raises(Reached) as caught:
            calls[name]()
        method, reading, options = caught.value.args
        if option in ("value_range", "workers"):
            assert reading == Reading(**{option: OPTIONS[option]})
        elif option == "dtype" and name != "fit":
            assert options["backbone"] is backbone  # the fit gets a backbone that is loaded
        elif option in options:
            assert options[option] is given[option] or options[option] == given[option]
        else:
            assert getattr(method, option) == OPTIONS[option]


def test_the_options_of_a_command_are_the_fields_of_a_dataclass():
    asked = []
    app = typer.Typer()
    app.command()(command(Segment, "epochs", "image_size")(lambda given: asked.append(given) or 3))
    words = "a.png b.png --out found -f csv -f mask --no-wait --epochs 4 --image-size 32x48"
    done = CliRunner().invoke(app, [*words.split(), "--set", "parts=2"])
    assert done.exit_code == 3, done.output
    assert asked.pop() == Segment(
        paths=["a.png", "b.png"],
        out=Path("found"),
        formats=["csv", "mask"],
        wait=False,
        overrides={"epochs": 4, "image_size": (32, 48), "parts": 2},
    )
    assert CliRunner().invoke(app, ["a.png"]).exit_code == 3
    assert asked.pop() == Segment(paths=["a.png"])
    for wrong in ("--set parts", "--image-size large", "--image-size 3x4x5", "--jobs 0"):
        assert CliRunner().invoke(app, ["a.png", *wrong.split()]).exit_code == 2
    assert asked == []


@pytest.mark.parametrize("setting", ["batching=loop", "page=2", "steps=1"])
def test_what_a_command_does_not_set_is_said(setting, tmp_path, capsys):
    arguments = ["segment", str(tmp_path), "--method", "deepcut", "--set", setting]
    assert main.main(arguments) == 1
    assert setting.partition("=")[0] in capsys.readouterr().err
