"""What the command line says, and how it is understood."""

import dataclasses
import inspect

import pytest

from unseg_jax.bench import Settings, run
from unseg_jax.bench.__main__ import _say, _split_foreground, bench
from unseg_jax.bench.run.settings import parse_shard, settings_from
from unseg_jax.registry import GROUPS, METHODS
from unseg_jax.terminal.console import say
from unseg_jax.terminal.shared_options import overrides_from, parse_size, parse_value

pytestmark = pytest.mark.quick


def settings(*methods, **overrides):
    return Settings("data", "out", methods=methods, overrides=overrides)


def test_methods_are_named_one_by_one_or_together():
    names = [method.name for method in settings("tokencut", "grid", "ncut-gcn").resolve_methods()]
    assert names == ["tokencut", *GROUPS["grid"]]
    assert len(GROUPS["grid"]) == 8
    assert [method.name for method in settings("all").resolve_methods()] == list(METHODS)
    for method in settings("deepcut", "unseggnet", epochs=3, image_size=(32, 48)).resolve_methods():
        assert (method.epochs, method.size) == (3, (32, 48))


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (settings("unsegnet").resolve_methods, "did you mean 'unseggnet'"),
        (settings().resolve_methods, "no method is named"),
        (Settings("d", "o", metrics=("object",)).check, "metrics 'object'; did you mean 'objects'"),
        *((lambda text=text: parse_size(text), "is not a size") for text in ("", "a", "1x2x3")),
        (lambda: parse_size("-5"), "is not a size"),
        *((lambda text=text: parse_shard(text), "must be I/N") for text in ("1/1", "4", "-1/2")),
        (lambda: parse_shard("a/b"), "must be I/N"),
        (lambda: overrides_from(["parts"]), "write FIELD=VALUE"),
        (lambda: run(Settings("d", "o", seed=2**63)), r"must be from 0 to 2\*\*63 - 1"),
        (lambda: run(Settings("d", "o", seed=-1)), r"must be from 0 to 2\*\*63 - 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(check, words):
    with pytest.raises(ValueError, match=words):
        check()


def test_values_are_understood():
    sizes = [parse_size(text) for text in ("224", "224x336", "224, 336")]
    assert sizes == [224, (224, 336), (224, 336)]
    assert [parse_shard(text) for text in ("0/1", "3/12")] == [(0, 1), (3, 12)]
    assert _split_foreground(["border"]) == ("border", None)
    assert _split_foreground(["1,3"]) == (None, (1, 3))
    assert _split_foreground(["1", "centre"]) == ("centre", (1,))
    assert _split_foreground([]) == (None, None)
    given = {"parts": 4, "log_bin": True, "branches": ((64, 64),), "loss": "cc"}
    assert overrides_from(["parts=4", "log_bin=True", "branches=((64, 64),)", "loss=cc"]) == given
    assert parse_value("1e-3") == 0.001


def test_options_of_the_command_line_become_settings():
    parameters = inspect.signature(bench).parameters
    flags = ("seeds", "distributed", "quiet")
    options = {name: one.default for name, one in parameters.items() if name not in flags}
    options |= {"data": "d", "out": "o"}
    assert settings_from(options) == Settings("d", "o")
    chosen = {"methods": "a, b", "shard": "1/3", "retry_failed": True, "num_clusters": 3}
    chosen |= {"image_size": "32x48", "set_field": ["parts=4"], "foreground": "border"}
    overrides = {"num_clusters": 3, "image_size": (32, 48), "parts": 4, "foreground": "border"}
    changes = {"resume": True, "retry_failed": True, "foreground_values": (1, 3)}
    expected = Settings("d", "o", ("a", "b"), shard=(1, 3), overrides=overrides, **changes)
    assert settings_from({**options, **chosen}, (1, 3)) == expected


def test_names_cannot_steer_the_terminal(capsys):
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
    words = "(settings: unseg_jax.bench.run.settings.Settings"
    assert str(inspect.signature(run)).startswith(words)
    # Each option is a field's, and each field but these two has an option.
    fields = dataclasses.fields(Settings)
    without = {field.name for field in fields if "option" not in field.metadata}
    assert without == {"foreground_values", "overrides"}
