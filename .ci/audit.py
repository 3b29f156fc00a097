"""Asks for known vulnerabilities of the packages that are installed here.

    python .ci/audit.py

It fails if there are some. Where the advisories cannot be reached it says so and passes.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROBE = "numpy"
"""A package that has advisories for sure: without an answer for it there is none for any other."""


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.txt")
            probe.write_text(f"{PROBE}=={importlib.metadata.version(PROBE)}\n")
            # An index may serve packages without their advisories; all would be skipped then.
            checked(ask("--no-deps", "--disable-pip", "--requirement", str(probe)))
        found = ask("--skip-editable")
        answered = checked(found)
    except subprocess.TimeoutExpired:
        print("audit: the advisories did not answer within four minutes; nothing was checked")
        return 0
    except LookupError as error:
        print(f"audit: the advisories cannot be reached ({error}); nothing was checked")
        return 0
    bad = [
        f"{one['name']} {one['version']}: {weakness['id']}, fixed in "
        f"{', '.join(weakness['fix_versions']) or 'no version'}"
        for one in answered
        for weakness in one["vulns"]
    ]
    skipped = len(found) - len(answered)
    print("\n".join(bad) or f"audit: {len(answered)} packages, no known vulnerability")
    if skipped:
        print(f"audit: {skipped} packages could not be checked")
    return 1 if bad else 0


def ask(*arguments: str) -> list[dict[str, Any]]:
    """What pip-audit says of each package.

    Raises:
        LookupError: it says nothing; the reason is its last line.
        subprocess.TimeoutExpired: it is not done in four minutes.
    """
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", "10", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise LookupError(reason[0][:200]) from None


def checked(packages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose advisories were read.

    Raises:
        LookupError: there is none; the reason is that of the first.
    """
    answered = [package for package in packages if "vulns" in package]
    if not answered:
        reasons = [package.get("skip_reason", "no answer") for package in packages]
        raise LookupError(next(iter(reasons), "no package"))
    return answered


if __name__ == "__main__":
    raise SystemExit(main())
