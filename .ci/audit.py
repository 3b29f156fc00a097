"""Asks for known vulnerabilities of the packages that are installed here.

    python .ci/audit.py

It fails if there are some. Where the advisories cannot be reached it says so and passes.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--skip-editable", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        print("audit: the advisories did not answer within four minutes; nothing was checked")
        return 0
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        print(f"audit: the advisories cannot be reached ({reason[0][:200]}); nothing was checked")
        return 0
    bad = [
        f"{one['name']} {one['version']}: {weakness['id']}, fixed in "
        f"{', '.join(weakness['fix_versions']) or 'no version'}"
        for one in found
        for weakness in one.get("vulns", ())
    ]
    print("\n".join(bad) or f"audit: {len(found)} packages, no known vulnerability")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
