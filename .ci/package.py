"""Builds the package, installs it where nothing else is, and runs it there.

    python .ci/package.py [--out build/package]

The wheel is built from the sdist, so the sdist holds all that a build needs. The environment is a
new one, with the dependencies that the wheel declares and nothing else, and commands run in an
empty folder: nothing comes from the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "unseg_jax/py.typed",
    "unseg_jax/cli/scores.json",
    "unseg_jax/collective/shipped.safetensors",
    "unseg_jax/bench/report/templates/report.html",
    "unseg_jax/export/templates/segment.html",
)
KINDS = frozenset({".py", ".typed", ".json", ".safetensors", ".html", ".css", ".js", ".yaml"})
LARGEST = 1_000_000
"""Bytes that a wheel has at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "package")
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    wheel, sdist = build(out / "dist")
    check_wheel(wheel)
    check_sdist(sdist)
    uv("tool", "run", "twine", "check", "--strict", str(wheel), str(sdist))
    folder = install(wheel, out / "environment")
    run_there(folder, out / "empty")
    size = wheel.stat().st_size
    print(f"{wheel.name}, {size / 1e3:.0f} kB, runs where only its dependencies are")


def uv(*arguments: str, **options) -> None:
    """Runs uv, quietly; what it prints is shown if it fails."""
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    options["env"] = {**clean_environment(), "UV_PYTHON_DOWNLOADS": "never"}
    subprocess.run(command, check=True, **options)


def clean_environment() -> dict[str, str]:
    """The environment without what leads Python or a virtual environment elsewhere."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, the one built from the other."""
    uv("build", "--out-dir", str(folder), str(ROOT))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def check_wheel(wheel: Path) -> None:
    """Fails unless the wheel holds the package as it is committed, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    problems = [f"lacks {name}" for name in NEEDED if name not in names]
    problems += [f"holds {n}" for n in names if PurePosixPath(n).suffix not in KINDS]
    committed = files_of_package()
    problems += [f"lacks {name}" for name in committed - names]
    problems += [f"holds {name}, which is not committed" for name in names - committed]
    if wheel.stat().st_size > LARGEST:
        problems.append(f"has {wheel.stat().st_size:,} bytes, more than {LARGEST:,}")
    if problems:
        raise SystemExit(f"{wheel.name} " + "; ".join(sorted(set(problems))))


def files_of_package() -> set[str]:
    """Files of the package that git knows."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "unseg_jax"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def check_sdist(sdist: Path) -> None:
    """Fails unless the sdist holds what belongs to a source package, and nothing else."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {name for name in names if not name.startswith("unseg_jax/")}
    expected = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    # hatchling adds these two.
    if beside != expected | {"PKG-INFO", ".gitignore"}:
        raise SystemExit(f"{sdist.name} holds {sorted(beside)} beside the package")


def install(wheel: Path, environment: Path) -> Path:
    """Installs the wheel, as the README says, in a new environment; the folder of its programs."""
    uv("venv", "--python", sys.executable, str(environment))
    folder = environment / ("Scripts" if os.name == "nt" else "bin")
    uv("pip", "install", "--python", str(folder / "python"), f"{wheel}[onnx]")
    return folder


def run_there(folder: Path, empty: Path) -> None:
    """Runs commands in an empty folder, and looks at what they give."""
    empty.mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(folder / command[0]), *command[1:]],
            cwd=empty,
            env=clean_environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout

    ask = "import unseg_jax.demo; print(unseg_jax.__file__, *unseg_jax.demo.photographs(), sep='|')"
    place, photograph = run("python", "-c", ask).strip().split("|")[:2]
    assert Path(place).is_relative_to(folder.parent), place
    facts = json.loads(run("unseg-jax", "info", "--json"))
    assert facts["versions"]["unseg_jax"] in run("unseg-jax", "--version")
    assert facts["extras"]["onnx"] == [], facts["extras"]
    assert "--protocol" in run("unseg-jax", "bench", "--help")
    assert "deepcut" in run("unseg-jax", "methods")
    assert "1 of 1 images" in run("unseg-jax", "segment", photograph, "--out", "found")
    for kind in ("mask", "labels", "overlay"):
        (found,) = (empty / "found").glob(f"*_{kind}.png")
        assert found.stat().st_size > 0
    assert "<img" in (empty / "found" / "report.html").read_text("utf-8")


if __name__ == "__main__":
    main()
