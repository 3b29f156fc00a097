"""Every option of one entry point works at all of them, or is refused with the reason."""

import inspect

import jax
import numpy as np
import pytest

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.collective import fitting
from unseg_jax.data.reading import Reading

IMAGES = [np.zeros((16, 16, 3), np.uint8)] * 2
OPTIONS = {
    "batch_size": 2,
    "seed": 3,
    "dtype": "float32",
    "map": "loop",
    "value_range": (0.0, 4080.0),
    "workers": 1,
    "num_clusters": 2,
    "steps": 1,
    "passes": 1,
    "max_images": 2,
    "image_size": 16,
    "epochs": 1,
    "resize": "stretch",
    "refine": "none",
    "page": 1,
    "key": None,
    "on_image": print,
}
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


def test_commands_take_the_options_of_the_library():
    """As options of their own or as --set FIELD=VALUE; a batch is taken as suits the platform."""
    shared = {"backbone", "batch_size", "seed", "dtype", "value_range", "jobs", "settings"}
    for command in (main.segment, main.fit):
        assert shared <= set(inspect.signature(command).parameters)


@pytest.mark.parametrize("setting", ["map=loop", "page=2", "steps=1"])
def test_what_a_command_does_not_set_is_said(setting, tmp_path, capsys):
    arguments = ["segment", str(tmp_path), "--method", "deepcut", "--set", setting]
    assert main.main(arguments) == 1
    assert setting.partition("=")[0] in capsys.readouterr().err
