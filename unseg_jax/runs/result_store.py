"""What runs wrote into a folder of results, so that the next one adds to it and loses nothing.

`unseg_jax.json` holds each image's source, files and findings, the settings that each was made
with, and the files of the folder as a whole. A run appends what it is about to write, and then
what it wrote, to `unseg_jax.journal`; `finish` folds that into the manifest. A run may be killed
at any moment: what it was writing is still known as ours. Everything else in the folder is
foreign, and is never replaced or removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unseg_jax.errors import FolderError, foreign_error
from unseg_jax.files import atomic, sync_folders
from unseg_jax.runs.journal import Journal, is_journal, unseal
from unseg_jax.runs.stamps import is_unchanged, stamp_source

MANIFEST, JOURNAL = "unseg_jax.json", "unseg_jax.journal"
# In place of a stamp: the file grows, and its lines say whose they are.
_GROWS = "journal"


@dataclasses.dataclass(frozen=True)
class Done:
    """An image that a run has finished.

    Attributes:
        source: absolute path of the image.
        page: of a file with several pages, from 1; None for a file that is one image.
        stamp: of the source, see `stamp_source`; None if it cannot be read.
        settings: key of the settings that it was done with, in `ResultStore.settings`.
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


class ResultStore:
    """The manifest of a folder. Reading changes nothing; one process at a time may write.

    Attributes:
        folder: of the results.
        settings: key → the settings of a run, plain values.
        latest: key of the settings of the last run; "" if there was none.
        images: name → `Done`.
        files: names of the files of the folder as a whole → stamps.
        begun: names of files that a killed run was writing, or removing.
    """

    def __init__(self, folder: str | os.PathLike, kind: str = "results", *, sync: bool = False):
        """
        Args:
            folder: may be missing.
            kind: of what is in it; a folder of another kind is refused.
            sync: wait until what is written is on the disk, so that it outlives the machine.

        Raises:
            FolderError: a manifest that cannot be read, or of another program.
        """
        self.folder, self._sync = Path(folder), sync
        self._format = f"unseg_jax {kind} 2"
        self._journal: Journal | None = None
        self._lock = threading.RLock()
        self._read()

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- questions

    def is_ours(self, name: str) -> bool:
        """Whether a file below the folder is as a run wrote it, or was about to write it."""
        path = self.folder / name
        if path.is_symlink():
            return False  # no run writes links
        written = self._stamps.get(name)
        if written == _GROWS and path.is_file():
            with open(path, "rb") as lines:
                return is_journal(lines)
        return name in self.begun or (written is not None and is_unchanged(path, written))

    def wrote(self, name: str, content: bytes) -> bool:
        """Whether a run wrote this content by this name, or was about to write the file."""
        written = self._stamps.get(name) or ""
        if written == _GROWS:
            return is_journal(content.splitlines(keepends=True))
        digest = hashlib.sha256(content).hexdigest()[:16]
        return name in self.begun or written.rpartition("-")[2] == digest

    def is_free(self, name: str) -> bool:
        """Whether a name may be written: nothing is there, or something of ours."""
        return not os.path.lexists(self.folder / name) or self.is_ours(name)

    def names(self, *tops: str) -> list[str]:
        """Names of files that runs wrote or were writing, of some top folders or files, sorted."""
        names = self._stamps.keys() | self.begun
        return sorted(name for name in names if name.partition("/")[0] in tops)

    def check_free(self, names: Iterable[str]) -> None:
        """Raises FolderError for the first name that may not be written; see `is_free`."""
        for name in names:
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                path = self.folder / parent
                if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
                    raise foreign_error(path)
            if not self.is_free(name):
                self._read()  # another command may have written it
                if not self.is_free(name):
                    raise foreign_error(self.folder / name)

    def check_folders(self, tops: Iterable[str]) -> None:
        """Raises FolderError for the first thing in some top folders that is not ours."""
        for top in map(self.folder.joinpath, tops):
            if not os.path.lexists(top):
                continue
            if top.is_symlink() or not top.is_dir():
                raise foreign_error(top)
            for place, folders, files in os.walk(top):
                folders.sort()
                paths = [Path(place, name) for name in (*files, *folders)]
                for path in sorted(paths):
                    name = path.relative_to(self.folder).as_posix()
                    if path.is_symlink() or not (path.is_dir() or self.is_ours(name)):
                        raise foreign_error(path)

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

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write a file of the folder as a whole to; it is there when the block ends.

        Raises:
            WriteError: the operating system refused.
        """
        self.begin([name])
        with self._staged(name) as part:
            yield part
        self._note({name: stamp_source(self.folder / name)})

    def write(self, files: Mapping[str, bytes], image: str | None = None) -> dict[str, str | None]:
        """Writes files, each whole or not at all; returns their stamps.

        Args:
            files: name → content.
            image: whose they are, and `add` is called next; None for the folder as a whole.

        Raises:
            WriteError: the operating system refused.
        """
        self.begin(files, image)
        for name, content in files.items():
            with self._staged(name) as part:
                part.write_bytes(content)
        stamps = {name: stamp_source(self.folder / name) for name in files}
        if image is None:
            self._note(stamps)
        return stamps

    def link(self, other: ResultStore, names: Iterable[str]) -> None:
        """Adds files of another folder as hard links, or as copies where there are none.

        Raises:
            FolderError: a foreign file has one of the names.
            WriteError: the operating system refused.
        """
        names = list(names)
        self.check_free(names)
        self.begin(names)
        for name in names:
            source, target = other.folder / name, self.folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, target)
            except OSError:
                with self._staged(name) as part:
                    part.write_bytes(source.read_bytes())
        self._note({name: other._stamps[name] for name in names})

    def open_journal(self, name: str) -> Journal:
        """Opens a file of sealed JSON lines that grows; see `Journal`.

        Raises:
            FolderError: a foreign file has its name.
            WriteError: the operating system refused.
        """
        self.check_free([name])
        if self._stamps.get(name) != _GROWS:
            self._log({"file": name, "stamp": _GROWS})
        return Journal(self.folder / name, sync=self._sync)

    def rewrite_journal(self, name: str, lines: Iterable[str]) -> None:
        """Replaces the lines of a file that grows, in one step; see `open_journal`."""
        self.open_journal(name).close()
        with self._staged(name) as part, open(part, "w", encoding="utf-8") as file:
            file.writelines(lines)

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

    def sweep(self) -> None:
        """Removes what a killed run left half written; call as the only one who writes."""
        for name in (*self.begun, MANIFEST):
            with contextlib.suppress(OSError):
                self._part(name).unlink()

    def forget(self) -> None:
        """Begins an empty manifest, once everything in it has been removed."""
        self.close()
        self._clear()
        self._write()
        (self.folder / JOURNAL).unlink(missing_ok=True)

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

    def _log(self, *lines: dict[str, Any]) -> None:
        with self._lock:
            if self._journal is None:
                if not os.path.lexists(self.folder / MANIFEST):
                    self._write()
                self._journal = Journal(self.folder / JOURNAL, sync=self._sync)
            self._journal.append(lines)
            for line in lines:
                self._apply(line)

    def _note(self, stamps: Mapping[str, str | None]) -> None:
        """Notes that files of the folder as a whole are on the disk."""
        if self._sync:
            sync_folders({(self.folder / name).parent for name in stamps}, self.folder)
        self._log(*({"file": name, "stamp": stamp} for name, stamp in stamps.items()))

    def _part(self, name: str) -> Path:
        """Where a file is written before it is moved to its name; the suffix stays."""
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:24]
        return self.folder / f".{digest}.part{PurePosixPath(name).suffix}"

    def _staged(self, name: str) -> contextlib.AbstractContextManager[Path]:
        return atomic(self.folder / name, self._part(name), sync=self._sync)

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

    def _clear(self) -> None:
        self.settings: dict[str, dict[str, Any]] = {}
        self.latest = ""
        self.images: dict[str, Done] = {}
        self.files: dict[str, str | None] = {}
        self.begun: set[str] = set()
        self._stamps: dict[str, str | None] = {}

    def _read(self) -> None:
        self._clear()
        path, journal = self.folder / MANIFEST, self.folder / JOURNAL
        for own in (path, journal):
            if os.path.lexists(own) and not stat.S_ISREG(os.lstat(own).st_mode):
                raise foreign_error(own)
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != self._format:
                raise ValueError
            self.settings, self.latest = dict(content["settings"]), str(content["latest"])
            self.files = dict(content["files"])
            self.begun = set(map(str, content["begun"]))
            self.images = {name: Done(**value) for name, value in content["images"].items()}
            self._stamps = dict(self.files)
            for done in self.images.values():
                self._stamps.update(done.files)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise FolderError(
                f"{path} is not a manifest that this version of unseg-jax reads: choose another "
                "folder, or move it away."
            ) from None
        if not journal.exists():
            return
        with open(journal, "rb") as lines:
            if not is_journal(itertools.islice(lines, 1)):
                raise foreign_error(journal)
            lines.seek(0)
            for line in lines:
                # A killed run leaves its last line torn; that image is done again.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._apply(unseal(line.decode()))

    def _write(self) -> None:
        content = {
            "format": self._format,
            "settings": self.settings,
            "latest": self.latest,
            "images": {name: dataclasses.asdict(done) for name, done in self.images.items()},
            "files": self.files,
            "begun": sorted(self.begun),
        }
        with self._staged(MANIFEST) as part:
            part.write_text(json.dumps(content) + "\n", "utf-8")

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
