"""Completion of commands and options by the shell."""

import pytest

from unseg_jax.cli import main


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")]
)
def test_commands_and_options_are_completed(shell, mark, monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert main.main(["--show-completion", shell]) == 0
    script = capsys.readouterr().out
    assert mark in script
    assert "_UNSEG_JAX_COMPLETE" in script

    def complete(*words):
        """What the shell is told after these words; the last one is being typed."""
        line = "unseg-jax " + " ".join(words)
        monkeypatch.setenv("_UNSEG_JAX_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        main.main([])
        return capsys.readouterr().out

    assert "segment" in complete("seg")
    assert "methods" not in complete("seg")
    assert "--min-area" in complete("segment", "--min")
