"""Images that are in no folder yet: one on standard input, and those that arrive in a folder."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

from unseg_jax.errors import InputError
from unseg_jax.terminal import segment_command
from unseg_jax.terminal.console import say
from unseg_jax.terminal.segment_command import Segment
from unseg_jax.terminal.shared_options import parse_page

_SECONDS = 1.0
_FITTED = "is fitted on a set: fit a model first with `unseg-jax fit`, and pass it as --model."


def segment_stdin(asked: Segment) -> int:
    """Segments the image on standard input, and writes the first file of a format to standard
    output: the mask by default.

    Returns:
        0, or 1 if the image cannot be read.
    """
    from unseg_jax.data.folders import find_images
    from unseg_jax.export.folder import segment_files
    from unseg_jax.export.formats import files_of

    if asked.formats is None:
        asked = dataclasses.replace(asked, formats=["mask"])
    output = dataclasses.replace(asked.output, report=False)
    if len(output.formats) != 1:
        raise typer.BadParameter("standard output takes one file: give --format once.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stdin")
        path.write_bytes(sys.stdin.buffer.read())
        images = find_images([path], page=parse_page(asked.page))[:1]
        chosen = asked.choose()
        if chosen.fits:
            raise typer.BadParameter(f"{chosen.method.name} {_FITTED}")
        segmenter = segment_command.load_segmenter(asked, chosen, images, None, lambda model: None)
        (entry,) = segment_files(segmenter, images, Path(folder, "found"), output).entries
        if entry.error:
            say(entry.error.replace(str(path), "standard input"))
            return 1
        name = (*entry.files, *files_of(output.formats))[0]
        sys.stdout.buffer.write(Path(folder, "found", name).read_bytes())
    return 0


def watch_folder(asked: Segment) -> int:
    """Segments the images of a folder, then each that arrives, until it is stopped."""
    from unseg_jax.data.folders import list_images
    from unseg_jax.runs.stamps import stamp_source

    folder, chosen = Path(asked.paths[0]).expanduser(), asked.choose()
    if len(asked.paths) != 1 or not folder.is_dir():
        raise typer.BadParameter("--watch takes one folder.")
    if chosen.fits:
        raise typer.BadParameter(f"{chosen.method.name} {_FITTED}")
    loaded: list[Any] = []

    def load(*arguments: Any) -> Any:
        if not loaded:
            loaded.append(segment_command.load_segmenter(*arguments))
        return loaded[0]

    say(f"watching {folder}; Ctrl-C stops")
    before: dict[str, Any] = {}
    done: dict[str, Any] = {}
    while True:
        files = list_images(folder, recursive=asked.recursive, skip=asked.out).files
        states = {str(file): stamp_source(file) for file in files}
        now = {path: state for path, state in states.items() if state is not None}
        # One that is still being written is taken when it has stopped growing.
        new = [path for path in now if before.get(path) == now[path] != done.get(path)]
        if new:
            arrived = dataclasses.replace(asked, paths=new)
            try:
                segment_command.segment_images(arrived, chosen, load)
            except InputError as error:
                say(error)
        before, done = now, done | {path: now[path] for path in new}
        time.sleep(_SECONDS)
