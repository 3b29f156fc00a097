"""What all commands share: paths, progress, messages and errors of one line, exit codes."""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unseg_jax.errors import BenchError, InputError, Interrupted, printable

DEBUG_VARIABLE = "UNSEG_JAX_DEBUG"
"""Environment variable that shows where an error comes from."""


# Arguments of the library that are options of the same name; others have the one given here.
_OPTIONS = {
    name: name.replace("_", "-")
    for name in (
        *("backbone", "batch_size", "dtype", "epochs", "foreground", "image_size", "method"),
        *(
            "background",
            "canvas",
            "edges",
            "margin",
            "min_area",
            "out",
            "overwrite",
            "page",
            "pixel_size",
            "recursive",
            "resize",
            "scales",
            "seed",
            "stride",
            "tile",
        ),
        "void",
    )
} | {"file": "cutout-file", "num_clusters": "k", "value_range": "range", "workers": "jobs"}
_ARGUMENT = re.compile(
    rf"(?<![\w/.=-])({'|'.join(_OPTIONS)})=(True\b|'[^']*'|\([^()]*\)|(?:[^\s,;:()]*[^\s,;:().])?)"
)


def with_options(message: str) -> str:
    """A message of the library with its arguments as the options of the command line.

    >>> with_options("it is there: pass another out=, or overwrite=True.")
    'it is there: pass another --out, or --overwrite.'
    >>> with_options("name them, as in foreground=(1, 3).")
    'name them, as in --foreground 1,3.'
    """

    def option(match: re.Match[str]) -> str:
        value = match[2].strip("(),").replace(", ", ",")
        value = value.strip("'") if re.fullmatch(r"'[\w.-]*'", value) else value
        return f"--{_OPTIONS[match[1]]}" + (f" {value}" if value not in ("", "True") else "")

    return _ARGUMENT.sub(option, message)


def say(message: object) -> None:
    """One line on standard error."""
    line = printable(with_options(" ".join(str(message).split())))
    print(f"unseg-jax: {line}", file=sys.stderr, flush=True)


def expand(paths: Sequence[str]) -> list[str]:
    """Paths with patterns replaced by what they match, sorted, where no shell has done that.

    Raises:
        InputError: a pattern without a match, or not one path that exists.
    """
    expanded: list[str] = []
    for path in map(os.path.expanduser, paths):
        if os.path.lexists(path) or not glob.has_magic(path):
            expanded.append(path)
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"no file matches {path}: check the pattern.")
        expanded += matches
    if expanded and not any(map(os.path.lexists, expanded)):
        others = f" (and {len(expanded) - 1} more)" if len(expanded) > 1 else ""
        raise InputError(f"{expanded[0]}{others} was not found: check the path.")
    return expanded


@contextlib.contextmanager
def progress(
    total: int, quiet: bool, unit: str = "image", *, doing: str = "", leave: bool = True
) -> Iterator[Any]:
    """A progress bar on standard error, redrawn each second; nothing is shown if quiet.

    Args:
        total: how many there are.
        quiet: no bar.
        unit: of what.
        doing: a word before the bar, such as "fitting".
        leave: whether the finished bar stays; else what comes next takes its line.
    """
    from tqdm import tqdm

    with tqdm(
        total=total,
        unit=unit,
        desc=doing or None,
        leave=leave,
        file=sys.stderr,
        dynamic_ncols=True,
        disable=quiet,
    ) as bar:
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(1):
                bar.refresh()

        # The clock goes on where one step takes long.
        clock = threading.Thread(target=tick, daemon=True)
        if not quiet:
            clock.start()
        try:
            yield bar
        finally:
            ended.set()
            if not quiet:
                clock.join()


class _Spoken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command as Ctrl-C does."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a stopped command returns to the shell."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _stopped(stop: KeyboardInterrupt) -> int:
    say("stopped.")
    return exit_code(stop)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raises `Terminated` in the main thread at SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded(command: Callable[[], int | None]) -> int:
    """Runs a command so that what the library reports is shown, and errors are sentences.

    Returns:
        The exit code; see `main`.
    """
    tolerate_any_name()
    logger = logging.getLogger("unseg_jax")
    handler = _Spoken()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with _terminable():
            return command() or 0
    except SystemExit as exit:
        # Typer turns Ctrl-C into an exit of its own.
        stop = getattr(exit.__context__, "__cause__", None)
        return _stopped(stop) if isinstance(stop, KeyboardInterrupt) else int(exit.code or 0)
    except KeyboardInterrupt as stop:
        return _stopped(stop)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        say(explain(error))
        return exit_code(KeyboardInterrupt()) if isinstance(error, Interrupted) else 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def tolerate_any_name() -> None:
    """Lets standard output take every file name, whatever the terminal's encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def explain(error: Exception) -> str:
    """An error as one sentence for the user."""
    text = str(error).strip()
    if "RESOURCE_EXHAUSTED" in text:
        return "the device has no memory left; use a smaller --batch-size or --image-size."
    if isinstance(error, ValueError | ImportError | OSError | BenchError) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text or 'no message'} (a bug; set {DEBUG_VARIABLE}=1 to see where)"
