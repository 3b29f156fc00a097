"""What the command line says, and how it is understood."""

import dataclasses
import inspect

import pytest

from unseg_jax.bench import Settings, run
from unseg_jax.bench.__main__ import _split_foreground, bench
from unseg_jax.bench.run.settings import parse_shard, settings_from
from unseg_jax.registry import GROUPS, METHODS
from unseg_jax.terminal.options import overrides_from, parse_size, parse_value

pytestmark = pytest.mark.quick


def settings(*methods, **overrides):
    return Settings("data", "out", methods=methods, overrides=overrides)


def test_methods_are_named_one_by_one_or_together():
    names = [method.name for method in settings("tokencut", "grid", "ncut-gcn").resolve_methods()]
    assert names == ["tokencut", *GROUPS["grid"]]
    assert len(GROUPS["grid"]) == 8
    assert [method.name for method in settings("all").resolve_methods()] == list(METHODS)
    with pytest.raises(ValueError, match="did you mean 'unseggnet'"):
        settings("unsegnet").resolve_methods()
    with pytest.raises(ValueError, match="no method is named"):
        settings().resolve_methods()
    with pytest.raises(ValueError, match="unknown metrics 'object'; did you mean 'objects'"):
        Settings("data", "out", metrics=("object",)).check()


def test_overrides_reach_every_method():
    for method in settings("deepcut", "unseggnet", epochs=3, image_size=(32, 48)).resolve_methods():
        assert method.epochs == 3
        assert method.size == (32, 48)


@pytest.mark.parametrize(
    ("text", "size"), [("224", 224), ("224x336", (224, 336)), ("224, 336", (224, 336))]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "1x2x3", "-5"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_shards():
    assert parse_shard("0/1") == (0, 1)
    assert parse_shard("3/12") == (3, 12)
    for text in ("1/1", "4", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="must be I/N"):
            parse_shard(text)


def test_foreground_is_a_rule_or_values_of_the_mask():
    assert _split_foreground(["border"]) == ("border", None)
    assert _split_foreground(["1,3"]) == (None, (1, 3))
    assert _split_foreground(["1", "centre"]) == ("centre", (1,))
    assert _split_foreground([]) == (None, None)


def test_any_field_can_be_set():
    assert overrides_from(["parts=4", "log_bin=True", "branches=((64, 64),)", "loss=cc"]) == {
        "parts": 4,
        "log_bin": True,
        "branches": ((64, 64),),
        "loss": "cc",
    }
    assert parse_value("1e-3") == 0.001
    with pytest.raises(ValueError, match="write FIELD=VALUE"):
        overrides_from(["parts"])


def test_options_of_the_command_line_become_settings():
    parameters = inspect.signature(bench).parameters
    options = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ("seeds", "distributed", "quiet")
    }
    options |= {"data": "d", "out": "o"}
    assert settings_from(options) == Settings("d", "o")
    chosen = {"methods": "a, b", "shard": "1/3", "retry_failed": True, "num_clusters": 3}
    chosen |= {"image_size": "32x48", "set_field": ["parts=4"], "foreground": "border"}
    found = settings_from({**options, **chosen}, (1, 3))
    assert found == Settings(
        "d",
        "o",
        ("a", "b"),
        shard=(1, 3),
        resume=True,
        retry_failed=True,
        foreground_values=(1, 3),
        overrides={
            "num_clusters": 3,
            "image_size": (32, 48),
            "parts": 4,
            "foreground": "border",
        },
    )


def test_names_cannot_steer_the_terminal(capsys):
    from unseg_jax.bench.__main__ import _say
    from unseg_jax.terminal.console import say

    _say("a\x1b[2Jb\x07\nnext\u202e\udce9")
    say("a\x1b[2Jb")
    captured = capsys.readouterr()
    assert captured.out == "a\\x1b[2Jb\\x07\nnext\\u202e\\udce9\n"
    assert captured.err == "unseg-jax: a\\x1b[2Jb\n"


def test_signatures_can_be_read():
    shown = str(inspect.signature(Settings))
    assert shown.startswith("(data: str, out: str, methods: tuple[str, ...] = ('deepcut',), ")
    assert "batch_size: int = 8, seed: int = 0, " in shown
    assert "option" not in shown.lower()
    assert str(inspect.signature(run)).startswith(
        "(settings: unseg_jax.bench.run.settings.Settings"
    )
    # Each option is a field's, and each field but these two has an option.
    options = {field.name for field in dataclasses.fields(Settings) if "option" in field.metadata}
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names - options == {"foreground_values", "overrides"}
