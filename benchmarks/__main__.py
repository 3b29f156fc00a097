"""`python -m benchmarks` lists the measurements; `python -m benchmarks NAME…|all` runs them."""

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_ROOMS = ("measure", "accelerators", "tables")
_ALL = ("versus_reference", "optimisation", "vit", "scaling")


def available() -> dict[str, tuple[str, str]]:
    """Name → module and first line of its docstring, of everything that can be run."""
    found = {}
    for path in sorted(path for room in _ROOMS for path in (FOLDER / room).glob("*.py")):
        source = path.read_text()
        if '__name__ == "__main__"' not in source or path.stem == "workers":
            continue
        parts = path.relative_to(FOLDER).with_suffix("").parts
        name = path.stem if path.stem != "__main__" else parts[0]
        line = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
        found[name] = (".".join(("benchmarks", *parts)), line)
    return found


def main(arguments: list[str]) -> int:
    known = available()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [its own options], or all [options]\n")
        for name, (_, line) in known.items():
            print(f"  {name:18s} {line}")
        print(f"\nall: {', '.join(_ALL)}, then the tables")
        return 0
    first, *options = arguments
    if first not in known and first != "all":
        print(f"no benchmark '{first}'; known are {', '.join(known)}.", file=sys.stderr)
        return 2

    def run(name: str, options: list[str]) -> int:
        command = [sys.executable, "-m", known[name][0], *options]
        return subprocess.call(command, cwd=FOLDER.parent)

    if first != "all":
        return run(first, options)
    shared = [option for option in options if option == "--quick"]
    if "--torch-python" in options:
        place = options.index("--torch-python")
        shared += options[place : place + 2]
    failed = [name for name in _ALL if run(name, options if name == _ALL[0] else shared)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0 if "--quick" in options else run("tables", [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
