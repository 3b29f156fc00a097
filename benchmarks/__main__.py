"""`python -m benchmarks` lists the measurements; `python -m benchmarks NAME…|all` runs them."""

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_ALL = ("versus_reference", "optimisation", "vit", "scaling")


def available() -> dict[str, str]:
    """Name → first line of its docstring, of every script here."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        source = path.read_text()
        if '__name__ == "__main__"' in source and path.stem not in ("__main__", "workers"):
            found[path.stem] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    known = available()
    names = [argument for argument in arguments if not argument.startswith("-")]
    if not names or {"-h", "--help"} & set(arguments):
        print("usage: python -m benchmarks NAME [options of its own], or all [options]\n")
        for name, line in known.items():
            print(f"  {name:22s} {line}")
        print(f"\nall: {', '.join(_ALL)}, then the tables of the README")
        return 0
    first, *options = arguments
    if first != "all":
        if first not in known:
            print(f"no benchmark '{first}'; known are {', '.join(known)}.", file=sys.stderr)
            return 2
        return _run(first, options)
    shared = [option for option in options if option == "--quick"]
    if "--torch-python" in options:
        place = options.index("--torch-python")
        shared += options[place : place + 2]
    failed = [name for name in _ALL if _run(name, options if name == _ALL[0] else shared)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0 if "--quick" in options else _run("tables", [])


def _run(name: str, options: list[str]) -> int:
    return subprocess.call([sys.executable, str(FOLDER / f"{name}.py"), *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
