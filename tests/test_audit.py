"""The audit of CI fails on known vulnerabilities, and says where it could not ask."""

import json
import runpy
import subprocess
import types
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / ".ci" / "audit.py"
FINE = {"name": "left", "version": "1.0", "vulns": []}
SKIPPED = {"name": "left", "skip_reason": "Dependency not found on PyPI: left (1.0)"}
WEAK = {**FINE, "vulns": [{"id": "CVE-1", "fix_versions": ["2.0"]}]}
UNFIXED = {**FINE, "vulns": [{"id": "CVE-1", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ([FINE], 0, ["1 packages, no known vulnerability"]),
        ([WEAK], 1, ["left 1.0: CVE-1, fixed in 2.0"]),
        ([UNFIXED], 1, ["fixed in no version"]),
        ("a\nno route to host\n", 0, ["cannot be reached (no route to host); nothing was checked"]),
        (subprocess.TimeoutExpired("pip_audit", 240), 0, ["nothing was checked"]),
        # Packages that were skipped do not count as checked.
        ([SKIPPED], 0, [f"cannot be reached ({SKIPPED['skip_reason']})", "nothing was checked"]),
        ([FINE, SKIPPED], 0, ["audit: 1 packages, no known", "audit: 1 packages could not be"]),
    ],
)
def test_weaknesses_fail_and_what_was_not_checked_is_said(monkeypatch, capsys, answer, code, said):
    def run(*args, **kwargs):
        if isinstance(answer, Exception):
            raise answer
        failed = isinstance(answer, str)
        printed = "" if failed else json.dumps({"dependencies": answer})
        return types.SimpleNamespace(stdout=printed, stderr=answer if failed else "")

    monkeypatch.setattr(subprocess, "run", run)
    assert runpy.run_path(str(PATH))["main"]() == code
    printed = capsys.readouterr().out
    assert all(words in printed for words in said)
