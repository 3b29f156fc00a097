"""What all commands share: messages and errors of one line, exit codes, the compilation cache."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

DEBUG_VARIABLE = "UNSEG_JAX_DEBUG"
"""Environment variable that shows where an error comes from."""


def enable_compilation_cache() -> None:
    """Keeps compiled programs in our cache folder, so that a second run starts at once.

    A cache that the user chose, or forbade, with JAX's own settings is left as it is.
    """
    import jax

    from unseg_jax.backbones.files import cache_folder

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a cache that cannot be kept is no reason to fail
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_compilation_cache_max_size", 1_000_000_000)


def say(message: object) -> None:
    """One line on standard error."""
    print(f"unseg-jax: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


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
