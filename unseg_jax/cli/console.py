"""What all commands share: messages and errors of one line, exit codes, the compilation cache."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from unseg_jax.errors import printable

DEBUG_VARIABLE = "UNSEG_JAX_DEBUG"
"""Environment variable that shows where an error comes from."""


def say(message: object) -> None:
    """One line on standard error."""
    line = printable(" ".join(str(message).split()))
    print(f"unseg-jax: {line}", file=sys.stderr, flush=True)


class _Spoken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def guarded(command: Callable[[], int | None]) -> int:
    """Runs a command so that what the library reports is shown, and errors are sentences.

    Returns:
        The exit code; see `main`.
    """
    logger = logging.getLogger("unseg_jax")
    handler = _Spoken()
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.INFO
    try:
        return command() or 0
    except SystemExit as exit:
        return int(exit.code or 0)
    except KeyboardInterrupt:
        say("stopped.")
        return 130
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        say(explain(error))
        return 1
    finally:
        logger.removeHandler(handler)
        logger.level = level


def explain(error: Exception) -> str:
    """An error as one sentence for the user."""
    text = str(error).strip()
    if "RESOURCE_EXHAUSTED" in text:
        return "the device has no memory left; use a smaller --batch-size or --image-size."
    if isinstance(error, ValueError | ImportError | OSError) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text or 'no message'} (a bug; set {DEBUG_VARIABLE}=1 to see where)"
