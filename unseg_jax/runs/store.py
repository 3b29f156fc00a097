"""What runs wrote into a folder of results, so that the next one adds to it and loses nothing.

`unseg_jax.json` holds each image's source, files and findings, the settings that each was made
with, and the files of the folder as a whole. A run appends what it is about to write, and then
what it wrote, to `unseg_jax.journal`, and folds that into the manifest when it ends. It may be
killed at any moment: only files in the middle of being written are forgotten, and those are still
known as ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unseg_jax.errors import InputError
from unseg_jax.files import sweep, write_bytes, write_json
from unseg_jax.runs.journal import Journal, unseal
from unseg_jax.runs.stamps import is_unchanged, stamp_source

MANIFEST, JOURNAL = "unseg_jax.json", "unseg_jax.journal"
_FORMAT = "unseg_jax results 2"


@dataclasses.dataclass(frozen=True)
class Done:
    """An image that a run has finished.

    Attributes:
        source: absolute path of the image.
        page: of a file with several pages, from 1; None for a file that is one image.
        stamp: of the source, see `stamp_source`; None if it cannot be read.
        settings: key of the settings that it was done with, in `Store.settings`.
        model: which model of those that the settings allow did it; "" where there is but one.
        files: names below the folder → stamps.
        record: what was found, as plain values; None if the image failed.
        error: one sentence; "" if all went well.
    """

    source: str
    page: int | None
    stamp: str | None
    settings: str
    model: str = ""
    files: dict[str, str | None] = dataclasses.field(default_factory=dict)
    record: dict[str, Any] | None = None
    error: str = ""


class Store:
    """The manifest of a folder. Reading changes nothing; one process at a time may write.

    Attributes:
        folder: of the results.
        settings: key → the settings of a run, plain values.
        latest: key of the settings of the last run; "" if there was none.
        images: name → `Done`.
        files: names of the files of the folder as a whole → stamps.
        begun: names of files that a killed run was writing, or removing.
    """

    def __init__(self, folder: str | os.PathLike):
        """
        Raises:
            InputError: a manifest that cannot be read, or of another program.
        """
        self.folder = Path(folder)
        self.settings: dict[str, dict[str, Any]] = {}
        self.latest = ""
        self.images: dict[str, Done] = {}
        self.files: dict[str, str | None] = {}
        self.begun: set[str] = set()
        self._stamps: dict[str, str | None] = {}
        self._journal: Journal | None = None
        self._lock = threading.RLock()
        self._read()

    # ---------------------------------------------------------------- questions

    def is_ours(self, name: str) -> bool:
        """Whether a file below the folder is as a run wrote it, or was about to write it."""
        path = self.folder / name
        if path.is_symlink():
            return False  # no run writes links
        written = self._stamps.get(name)
        return name in self.begun or (written is not None and is_unchanged(path, written))

    def is_free(self, name: str) -> bool:
        """Whether a name may be written: nothing is there, or something of ours."""
        return not os.path.lexists(self.folder / name) or self.is_ours(name)

    def differences(self, settings: Mapping[str, Any], images: Iterable[str]) -> list[str]:
        """How settings differ from those of the folder and of some images in it, each difference
        as "epochs 10, now 20"."""
        keys = {self.latest: None} | {
            self.images[name].settings: None for name in images if name in self.images
        }
        settings = _plain(settings)
        found: dict[str, None] = {}
        for key in keys:
            made = self.settings.get(key, settings)
            names = [*settings, *(name for name in made if name not in settings)]
            found |= {
                f"{name} {_word(made.get(name))}, now {_word(settings.get(name))}": None
                for name in names
                if made.get(name) != settings.get(name)
            }
        return list(found)

    # ------------------------------------------------------------------ writing

    def use(self, settings: Mapping[str, Any]) -> str:
        """Makes settings those of the folder; returns their key."""
        values = _plain(settings)
        key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        self._log({"settings": key, "values": values})
        return key

    def begin(self, files: Iterable[str], image: str | None = None) -> None:
        """Notes that files are about to be written or removed, which are those of an image."""
        self._log({"begin": list(files), "image": image})

    def add(self, name: str, done: Done) -> None:
        """Notes that an image is done; its files are on the disk."""
        self._log({"image": name, "done": dataclasses.asdict(done)})

    def note(self, name: str) -> None:
        """Notes that a file of the folder as a whole is on the disk."""
        self._log({"file": name, "stamp": stamp_source(self.folder / name)})

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the folder as a whole.

        Raises:
            WriteError: the operating system refused.
        """
        self.begin([name])
        write_bytes(self.folder / name, content)
        self.note(name)

    def remove(self, files: Iterable[str], image: str | None = None) -> None:
        """Removes files as far as they are ours; all of an image if one is named.

        What was changed since stays, and is known no more.
        """
        files = list(files)
        if not files and image is None:
            return
        ours = [name for name in files if self.is_ours(name)]
        self.begin(ours, image)
        for name in ours:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
            self._remove_empty((self.folder / name).parent)
        self._log({"removed": files})

    def finish(self) -> None:
        """Ends a run: the manifest is written whole, images in the order of their paths, and the
        journal goes.

        Raises:
            WriteError: the manifest cannot be written.
        """
        used = {self.latest} | {done.settings for done in self.images.values()}
        self.settings = {key: value for key, value in self.settings.items() if key in used}
        order = sorted(self.images.items(), key=lambda pair: order_of(pair[1]))
        self.images = dict(order)
        self.begun = {name for name in self.begun if os.path.lexists(self.folder / name)}
        self._write()
        self.close()
        with contextlib.suppress(OSError):
            (self.folder / JOURNAL).unlink()

    def close(self) -> None:
        """Closes the journal and leaves it, as at an interrupt."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    # ------------------------------------------------------------- inner works

    def _log(self, line: dict[str, Any]) -> None:
        with self._lock:
            if self._journal is None:
                self._open()
            assert self._journal is not None
            self._journal.append([line])
            self._apply(line)

    def _open(self) -> None:
        """Begins a journal; that of a killed run is folded into the manifest before."""
        journal = self.folder / JOURNAL
        if os.path.lexists(journal) or not os.path.lexists(self.folder / MANIFEST):
            if os.path.lexists(journal):  # only a killed run leaves one, and part files of ours
                for folder in {self.folder, *((self.folder / name).parent for name in self.begun)}:
                    sweep(folder)
            self._write()
            journal.unlink(missing_ok=True)
        self._journal = Journal(journal, sync=False)

    def _apply(self, line: Mapping[str, Any]) -> None:
        """What a line of the journal changes; the same for a line that is read back."""
        if "begin" in line:
            self.begun.update(line["begin"])
            done = self.images.pop(line["image"], None)
            if done is not None:
                # Whatever it wrote stays known until it is written again or removed.
                self.begun.update(name for name in done.files if self.is_ours(name))
        elif "done" in line:
            done = Done(**line["done"])
            self.images[line["image"]] = done
            self._stamps.update(done.files)
            self.begun.difference_update(done.files)
        elif "file" in line:
            self.files[line["file"]] = self._stamps[line["file"]] = line["stamp"]
            self.begun.discard(line["file"])
        elif "removed" in line:
            for name in line["removed"]:
                self._stamps.pop(name, None)
                self.files.pop(name, None)
            self.begun.difference_update(line["removed"])
        else:
            self.latest = line["settings"]
            self.settings[self.latest] = line["values"]

    def _read(self) -> None:
        path = self.folder / MANIFEST
        if not os.path.lexists(path):
            return
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError
            self.settings, self.latest = dict(content["settings"]), str(content["latest"])
            self.files = dict(content["files"])
            self.begun = set(map(str, content["begun"]))
            self.images = {name: Done(**value) for name, value in content["images"].items()}
            self._stamps = dict(self.files)
            for done in self.images.values():
                self._stamps.update(done.files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path} is not a manifest that this version of unseg-jax reads: choose another "
                "folder, or move it away."
            ) from None
        with contextlib.suppress(OSError):
            for line in (self.folder / JOURNAL).read_text("utf-8", errors="replace").split("\n"):
                # A killed run leaves its last line torn; that image is done again.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._apply(unseal(line))

    def _write(self) -> None:
        write_json(
            self.folder / MANIFEST,
            {
                "format": _FORMAT,
                "settings": self.settings,
                "latest": self.latest,
                "images": {name: dataclasses.asdict(done) for name, done in self.images.items()},
                "files": self.files,
                "begun": sorted(self.begun),
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


def order_of(done: Done) -> tuple[str, int]:
    """What images are sorted by, whichever run did them."""
    return done.source, done.page or 0


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(_word, value)) or "none"
    return "unset" if value is None else str(value)
