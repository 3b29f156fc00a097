"""Two sides of a measurement in two processes, each with an interpreter and packages of its own.

The driver asks, a worker answers: one line of JSON each way, arrays in files. Only one worker
works at a time, the others sleep on their input, and no two libraries share a process, its
threads or its memory.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure.common import ROOT


class WorkerError(RuntimeError):
    """A worker could not start, or failed at what it was asked."""


class Worker:
    """A process that answers commands of a module with a `COMMANDS` table.

    Args:
        python: the interpreter.
        module: for example "benchmarks.measure.torch_side".
        environment: variables to set for it.
    """

    def __init__(self, python: str, module: str, environment: Mapping[str, str] | None = None):
        self.name = module.rpartition(".")[2]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
        try:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.measure.workers", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                cwd=tempfile.gettempdir(),
                env=settings,
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{python} cannot be run: {error.strerror}.") from error

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Asks for one command and waits for its answer.

        Raises:
            WorkerError: the command failed, or the process died; with the end of what it printed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([command, arguments], default=str) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} died at '{command}':\n{self._printed()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed at '{command}':\n{answer['error']}")
        return answer["value"]

    def _printed(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:]

    def close(self) -> None:
        """Ends the process: its input is closed, and it stops by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answers commands on standard input until it is closed.

    Whatever the commands print goes to standard error: standard output carries the answers.
    """
    from benchmarks.measure.common import _plain

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": commands[name](**arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()[-3000:]}
        answers.write(json.dumps(answer, default=_plain) + "\n")
        answers.flush()


def torch_python(given: str | None) -> str | None:
    """The interpreter of the PyTorch side: the one given, or this one if it has PyTorch.

    Raises:
        SystemExit: the one given lacks PyTorch or PyTorch Geometric.
    """
    # A path is taken from here: workers run elsewhere. A link stays, or its environment is lost.
    named = Path(given).expanduser() if given else Path(sys.executable)
    python = str(named.absolute() if len(named.parts) > 1 else named)
    check = [python, "-c", "import torch, torch_geometric"]
    try:
        found = subprocess.run(check, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SystemExit(f"{python} cannot be run: {error.strerror}.") from error
    if found.returncode == 0:
        return python
    if given:
        reason = found.stderr.strip().splitlines()[-1:] or ["it exits without a word"]
        raise SystemExit(
            f"{given} cannot import torch and torch_geometric ({reason[0]}); "
            'install "unseg_jax[reference]" there.'
        )
    return None


if __name__ == "__main__":
    import importlib

    serve(importlib.import_module(sys.argv[1]).COMMANDS)
