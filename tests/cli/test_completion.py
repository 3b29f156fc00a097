"""Completion of commands and options by the shell."""

import os
import subprocess
import sys

import pytest

from unseg_jax.cli import main


def complete(shell, monkeypatch, capsys, words):
    """What a shell is told after these words; the last one is being typed."""
    line = "unseg-jax " + " ".join(words)
    monkeypatch.setenv("_UNSEG_JAX_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    main.main([])
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_options_are_completed(shell, monkeypatch, capsys):
    assert "segment" in complete(shell, monkeypatch, capsys, ["seg"])
    assert "methods" not in complete(shell, monkeypatch, capsys, ["seg"])
    assert "--min-area" in complete(shell, monkeypatch, capsys, ["segment", "--min"])


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef")])
def test_scripts_for_shells_are_printed(shell, mark):
    command = [sys.executable, "-m", "unseg_jax.cli.main", "--show-completion", shell]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert mark in done.stdout
    assert "_UNSEG_JAX_COMPLETE" in done.stdout
