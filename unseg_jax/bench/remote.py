"""A run's folder on an object store or any other place that fsspec reaches, as in `s3://…`.

The run works in a folder of this machine and is copied out every half minute and at its end.
Object stores cannot append, so records go out as numbered parts (`per_image.jsonl.parts/`) and,
at the end, also whole. Resuming, on this machine or another, begins with what was copied out.
Each job copies its own shard's folder alone: its siblings are writing theirs.
"""

from __future__ import annotations

import contextlib
import fnmatch
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from unseg_jax.bench.records import OWN, RECORDS
from unseg_jax.errors import BenchError, WriteError

_PARTS = f"{RECORDS}.parts"
_SECONDS = 30.0
# What a resumed run reads beside its records; the report shows thumbnails of all sessions.
_READ = tuple(name for name in OWN if name not in (RECORDS, "report.html", "masks"))


def is_remote(out: str) -> bool:
    """Whether a run's folder is named by a URL."""
    return "://" in out


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A temporary folder, for which errors name the URL that it stands for."""
    with tempfile.TemporaryDirectory(prefix="unseg-jax-") as folder:
        try:
            yield Path(folder)
        except BenchError as error:
            # A full disk is one of this machine.
            if folder not in str(error) or isinstance(error.__cause__, WriteError):
                raise
            raise type(error)(str(error).replace(folder, url.rstrip("/"))) from error


class Remote:
    """What a run, or one shard of it, owns in a folder of this machine, and its copy elsewhere."""

    def __init__(self, url: str, folder: Path, shard: str = ""):
        """
        Args:
            url: of the run, as fsspec takes it.
            folder: for the run, empty.
            shard: name of the shard's folder in the run's; of a run in one piece "".

        Raises:
            BenchError: fsspec, or what it needs for this kind of URL, is missing.
        """
        try:
            import fsspec

            self._system, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise BenchError(
                f"{url} cannot be opened ({reason}): pip install 'unseg_jax[cluster]' and what "
                f"fsspec needs for such places, or choose a folder."
            ) from None
        self._system.invalidate_cache()  # other machines write there too
        self.url, self.folder = url, folder / shard
        self._root = f"{root}/{shard}" if shard else root
        self._sent: dict[str, tuple[int, int]] = {}
        # Of the records: bytes that are there in parts, and how many parts.
        self._offset, self._count = 0, 0
        self._lock = threading.Lock()

    def shards(self) -> list[Remote]:
        """Those of the run's shards that are there."""
        with self._plainly():
            names = [path.rpartition("/")[2] for path, is_folder in self._listed() if is_folder]
        return [
            Remote(self.url, self.folder, name)
            for name in sorted(fnmatch.filter(names, "shard-*-of-*"))
        ]

    def clear(self) -> None:
        """Removes what is there."""
        with self._plainly():
            for path, _ in self._listed(*OWN, _PARTS):
                self._system.rm(path, recursive=True)

    def pull(self) -> None:
        """Copies what a run needs to go on into the folder."""
        with self._plainly():
            names = self._find(*_READ)
            targets = [self.folder / name for name in names]
            for parent in {target.parent for target in targets}:
                parent.mkdir(parents=True, exist_ok=True)
            # All at once, because object stores take long over each of many small files.
            self._system.get(self._there(names), [str(target) for target in targets])
            # A run that was copied there by hand has its records whole only.
            parts = self._find(_PARTS)
            for path in self._there(parts or self._find(RECORDS)):
                content = self._system.cat_file(path)
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(self.folder / RECORDS, "ab") as file:
                    file.write(content)
                if parts:
                    self._count += 1
                    self._offset += len(content)
        # Records count as changed: a killed run has left them in parts only.
        self._sent = {name: stamp for name, stamp in self._changed() if name != RECORDS}

    def forget_parts(self) -> None:
        """Has all records sent anew, because lines among them are going to change."""
        with self._plainly():
            if (self.folder / RECORDS).exists():  # for a run that is killed before they are
                self._put(RECORDS, (self.folder / RECORDS).read_bytes())
            for path, _ in self._listed(_PARTS):
                self._system.rm(path, recursive=True)
        self._offset, self._count = 0, 0

    def copy_masks(self, other: Remote) -> None:
        """Copies the masks of a shard to this run, without a detour over this machine."""
        with self._plainly():
            names = other._find("masks")
            targets = self._there(names)
            for parent in {target.rpartition("/")[0] for target in targets}:
                self._system.makedirs(parent, exist_ok=True)
            self._system.copy(other._there(names), targets)

    def push(self, *, last: bool = False) -> None:
        """Copies out what has changed; records whole only the last time."""
        with self._lock, self._plainly():
            for name, stamp in self._changed():
                path = self.folder / name
                if name == RECORDS:
                    self._push_part(path)
                    if not last:
                        continue
                self._put(name, path.read_bytes())
                self._sent[name] = stamp

    @contextlib.contextmanager
    def pushing(self) -> Iterator[None]:
        """Copies out now and then while the block runs, and at its end however it ends."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(_SECONDS):
                # A place that is away for a moment is asked again; the last push raises.
                with contextlib.suppress(BenchError, OSError):
                    self.push()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.push(last=True)

    def _push_part(self, path: Path) -> None:
        with open(path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        if content:
            self._put(f"{_PARTS}/{self._count:06d}.jsonl", content)
            self._count += 1
            self._offset += len(content)

    def _listed(self, *names: str) -> list[tuple[str, bool]]:
        """What is there by these names, or by any: (path, whether it is a folder)."""
        if not self._system.exists(self._root):
            return []
        entries = self._system.ls(self._root, detail=True)
        found = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in entries]
        return [one for one in found if not names or one[0].rpartition("/")[2] in names]

    def _find(self, *names: str) -> list[str]:
        """The files there by these names or in folders of these names, in order."""
        found = []
        for path, is_folder in self._listed(*names):
            found += self._system.find(path) if is_folder else [path]
        return sorted(path[len(self._root) :].lstrip("/") for path in found)

    def _there(self, names: list[str]) -> list[str]:
        return [f"{self._root}/{name}" for name in names]

    def _put(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(path, content)

    def _changed(self) -> list[tuple[str, tuple[int, int]]]:
        found = []
        for own in sorted(OWN):
            top = self.folder / own
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.name.startswith(".") or not path.is_file():
                    continue
                state = path.stat()
                name = path.relative_to(self.folder).as_posix()
                stamp = (state.st_size, state.st_mtime_ns)
                if self._sent.get(name) != stamp:
                    found.append((name, stamp))
        return found

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except BenchError:
            raise
        except Exception as error:  # every kind of place has errors of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BenchError(
                f"{self.url} refuses ({reason}): check the address and your rights to it."
            ) from error
