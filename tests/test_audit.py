"""The audit of CI fails on known vulnerabilities, and says where it could not ask."""

import importlib.util
import json
import subprocess
import types
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / ".ci" / "audit.py"


@pytest.fixture
def audit():
    specification = importlib.util.spec_from_file_location("audit", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("weaknesses", "code", "said"),
    [
        ([], 0, "1 packages, no known vulnerability"),
        ([{"id": "CVE-1", "fix_versions": ["2.0"]}], 1, "left 1.0: CVE-1, fixed in 2.0"),
        ([{"id": "CVE-1", "fix_versions": []}], 1, "fixed in no version"),
    ],
)
def test_weaknesses_fail(audit, monkeypatch, capsys, weaknesses, code, said):
    found = {"dependencies": [{"name": "left", "version": "1.0", "vulns": weaknesses}]}
    done = types.SimpleNamespace(stdout=json.dumps(found), stderr="")
    monkeypatch.setattr(audit.subprocess, "run", lambda *args, **kwargs: done)
    assert audit.main() == code
    assert said in capsys.readouterr().out


def test_what_was_not_checked_is_said(audit, monkeypatch, capsys):
    done = types.SimpleNamespace(stdout="", stderr="a\nno route to host\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *args, **kwargs: done)
    assert audit.main() == 0
    assert "cannot be reached (no route to host); nothing was checked" in capsys.readouterr().out

    def late(*args, **kwargs):
        raise subprocess.TimeoutExpired("pip_audit", 240)

    monkeypatch.setattr(audit.subprocess, "run", late)
    assert audit.main() == 0
    assert "nothing was checked" in capsys.readouterr().out


def test_packages_that_were_skipped_do_not_count_as_checked(audit, monkeypatch, capsys):
    skipped = {"name": "left", "skip_reason": "Dependency not found on PyPI: left (1.0)"}
    answers = [[skipped]]

    def answer(*args, **kwargs):
        found = {"dependencies": answers.pop(0)}
        return types.SimpleNamespace(stdout=json.dumps(found), stderr="No known vulnerabilities")

    monkeypatch.setattr(audit.subprocess, "run", answer)
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert "cannot be reached (Dependency not found on PyPI: left (1.0))" in said
    assert "nothing was checked" in said
    # Where some are answered, the others are counted.
    fine = {"name": "numpy", "version": "2.0", "vulns": []}
    answers += [[fine], [fine, skipped]]
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert "audit: 1 packages, no known vulnerability" in said
    assert "audit: 1 packages could not be checked" in said
