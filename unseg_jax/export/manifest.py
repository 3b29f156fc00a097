"""What a run wrote into its folder, so that the next one can go on and replaces nothing else.

`unseg_jax.json` holds the settings, each image's source and files, and what was found. While a run
goes on it also lists the files that are planned, and each image that is done is a line of
`unseg_jax.journal`; the next run reads both, so a run may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unseg_jax.errors import InputError, WriteError
from unseg_jax.export.run import Record
from unseg_jax.files import sweep, write_json

MANIFEST, JOURNAL = "unseg_jax.json", "unseg_jax.journal"
_FORMAT = "unseg_jax results 1"
FITTED_ON = "images fitted on"
"""Name of the setting that stands for the set that a model was fitted on in the same run."""


@dataclasses.dataclass(frozen=True)
class Done:
    """An image that a run has finished.

    Attributes:
        source: absolute path of the image.
        stamp: (bytes, mtime in ns) of the source; None if it cannot be read.
        files: names below the folder → (bytes, mtime in ns) when they were written.
        record: what was found; None if the image failed.
        error: one sentence; "" if all went well.
    """

    source: str
    stamp: tuple[int, int] | None
    files: dict[str, tuple[int, int]]
    record: Record | None
    error: str = ""


class Manifest:
    """The manifest of a folder; reading changes nothing, `start` begins a run.

    Attributes:
        folder: the folder of the results.
        settings: those of the run that wrote them; {} if there is none.
        images: name → `Done`.
        files: names of the files of the whole run → (bytes, mtime in ns).
        planned: names that an unfinished run was about to write.
    """

    def __init__(self, folder: str | os.PathLike):
        """
        Raises:
            InputError: a manifest that cannot be read, or of another program.
        """
        self.folder = Path(folder)
        self.settings: dict[str, Any] = {}
        self.images: dict[str, Done] = {}
        self.files: dict[str, tuple[int, int]] = {}
        self.planned: set[str] = set()
        self._journal: Any = None
        self._read()

    def is_ours(self, name: str) -> bool:
        """Whether a file below the folder is as an earlier run wrote it, or was about to."""
        if (self.folder / name).is_symlink():
            return False  # no run writes links
        written = self._written().get(name)
        return name in self.planned or (
            written is not None and stamp_of(self.folder / name) == written
        )

    def is_free(self, name: str) -> bool:
        """Whether a name may be written: nothing is there, or something of ours."""
        return not os.path.lexists(self.folder / name) or self.is_ours(name)

    def is_done(self, name: str, source: Path, names: Iterable[str]) -> bool:
        """Whether an image was done, from the same source, and all its files are as written."""
        done = self.images.get(name)
        return (
            done is not None
            and not done.error
            and done.source == str(source.absolute())
            and done.stamp == stamp_of(source)
            and set(names) <= set(done.files)
            and all(stamp_of(self.folder / file) == stamp for file, stamp in done.files.items())
        )

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Settings that are not those of the earlier run, as "epochs 10, now 20"."""
        if not self.settings:
            return []
        settings = json.loads(json.dumps(settings))
        names = [*settings, *(name for name in self.settings if name not in settings)]
        return [
            f"{name} {_word(self.settings.get(name))}, now {_word(settings.get(name))}"
            for name in names
            if self.settings.get(name) != settings.get(name)
        ]

    def start(self, settings: Mapping[str, Any], keep: Iterable[str], names: Iterable[str]) -> int:
        """Begins a run.

        What the earlier run wrote for other images is removed, if it is as it was written, and
        so is what it left half written if it was killed.

        Args:
            settings: of the run, plain values.
            keep: images whose results stay.
            names: files that the run will write.

        Returns:
            How many images' results were removed.

        Raises:
            WriteError: the manifest cannot be written.
        """
        keep, names = set(keep), set(names)
        old = {name: done for name, done in self.images.items() if name not in keep}
        kept_files = {file for name in keep for file in self.images[name].files}
        stale = {file for file in self._written() if self.is_ours(file)}
        stale |= {file for file in self.planned if os.path.lexists(self.folder / file)}
        stale -= kept_files | names
        # Only a run that was killed has planned files left, and only then is a part file ours.
        for folder in {(self.folder / file).parent for file in self.planned}:
            sweep(folder)
        self.settings = json.loads(json.dumps(settings))
        # Listed before they are written or removed: if the run is killed, the next one knows.
        self.planned = names | stale
        self.images = {name: self.images[name] for name in self.images if name in keep}
        self.files = {}
        self._write()
        for file in stale:
            with contextlib.suppress(OSError):
                (self.folder / file).unlink()
            self._remove_empty((self.folder / file).parent)
        self.planned = names
        self._journal = open(self.folder / JOURNAL, "w", encoding="utf-8")  # noqa: SIM115
        return sum(not set(done.files) <= names for done in old.values() if done.files)

    def add(self, name: str, done: Done) -> None:
        """Notes that an image is done; its files are on disk."""
        self.images[name] = done
        line = json.dumps({"name": name, **_plain(done)})
        try:
            self._journal.write(line + "\n")
            self._journal.flush()
        except OSError as error:
            raise WriteError(self.folder / JOURNAL, error) from error

    def finish(self, order: Iterable[str], files: Iterable[str]) -> None:
        """Ends a run: the manifest is written whole, and the journal goes.

        Args:
            order: names of the images.
            files: names of the files of the whole run, as they lie on disk.
        """
        self.images = {name: self.images[name] for name in order if name in self.images}
        self.files = {name: stamp_of(self.folder / name) or (0, 0) for name in files}
        self.planned = set()
        self._write()
        self.close()
        with contextlib.suppress(OSError):
            (self.folder / JOURNAL).unlink()

    def close(self) -> None:
        """Closes the journal and leaves it, as at an interrupt."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # ------------------------------------------------------------- inner works

    def _written(self) -> dict[str, tuple[int, int]]:
        written = dict(self.files)
        for done in self.images.values():
            written |= done.files
        return written

    def _read(self) -> None:
        path = self.folder / MANIFEST
        if not os.path.lexists(path):
            return
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError
            self.settings = dict(content["settings"])
            self.images = {name: _done(value) for name, value in content["images"].items()}
            self.files = {name: _pair(stamp) for name, stamp in content["files"].items()}
            self.planned = set(map(str, content["planned"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path} is not a manifest of unseg-jax: choose another folder with out=, or "
                "move it away."
            ) from None
        with contextlib.suppress(OSError):
            lines = (self.folder / JOURNAL).read_text("utf-8", errors="replace").split("\n")
            for line in lines:
                # A killed run leaves its last line torn; that image is done again.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    value = json.loads(line)
                    self.images[value["name"]] = _done(value)

    def _write(self) -> None:
        write_json(
            self.folder / MANIFEST,
            {
                "format": _FORMAT,
                "settings": self.settings,
                "images": {name: _plain(done) for name, done in self.images.items()},
                "files": self.files,
                "planned": sorted(self.planned),
            },
            indent=None,
        )

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.folder:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def stamp_of(path: Path) -> tuple[int, int] | None:
    """(bytes, mtime in ns) of a regular file, behind links too; None for anything else."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _plain(done: Done) -> dict[str, Any]:
    return dataclasses.asdict(done)


def _done(value: Mapping[str, Any]) -> Done:
    record = value["record"]
    if record is not None:
        record = Record(
            **{
                **record,
                "size": _pair(record["size"]),
                "objects": tuple(record["objects"]),
                "losses": tuple(record["losses"]),
            }
        )
    stamp = None if value["stamp"] is None else _pair(value["stamp"])
    files = {name: _pair(stamp) for name, stamp in value["files"].items()}
    return Done(value["source"], stamp, files, record, value["error"])


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)
