"""A run's folder on an object store or any other place that fsspec reaches, as in `s3://…`.

The run works in a folder of this machine and is copied out every half minute and at its end.
Object stores cannot append, so records go out as numbered parts (`per_image.jsonl.parts/`) and,
at the end, also whole. Resuming, on this machine or another, begins with what was copied out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unseg_jax.bench.errors import BenchError
from unseg_jax.bench.records import RECORDS
from unseg_jax.bench.settings import Settings

_PARTS = f"{RECORDS}.parts"
_SECONDS = 30.0
# What a resumed run reads; pictures stay where they are.
_READ = (".json", ".jsonl", ".safetensors")


def is_remote(out: str) -> bool:
    """Whether a run's folder is named by a URL."""
    return "://" in out


def run_remote(settings: Settings, *, quiet: bool = False) -> dict[str, Any]:
    """`unseg_jax.bench.run` with its folder at a URL.

    Raises:
        BenchError: fsspec or the driver of the place is missing, or the place refuses.
    """
    from unseg_jax.bench.runner import run

    with tempfile.TemporaryDirectory(prefix="unseg-jax-") as folder:
        remote = Remote(settings.out, Path(folder))
        if settings.overwrite:
            remote.clear()
        else:
            remote.pull()
        if settings.retry_failed:
            remote.forget_parts()
        with remote.pushing():
            return run(dataclasses.replace(settings, out=folder), quiet=quiet)


class Remote:
    """A folder of this machine and its copy elsewhere."""

    def __init__(self, url: str, folder: Path):
        """
        Args:
            url: as fsspec takes it.
            folder: empty.

        Raises:
            BenchError: fsspec, or what it needs for this kind of URL, is missing.
        """
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise BenchError(
                f"{url} cannot be opened ({reason}): pip install 'unseg_jax[cluster]' and what "
                f"fsspec needs for such places, or choose a folder."
            ) from None
        self.url, self.folder = url, folder
        self._sent: dict[str, tuple[int, int]] = {}
        self._offsets: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Removes what is there."""
        with self._plainly():
            if self._system.exists(self._root):
                self._system.rm(self._root, recursive=True)

    def pull(self) -> None:
        """Copies what a run needs to go on into the folder."""
        with self._plainly():
            if not self._system.exists(self._root):
                return
            paths = sorted(self._system.find(self._root))
            for path in paths:
                name = path[len(self._root) :].lstrip("/")
                target = self.folder / name
                parts = f"/{_PARTS}/" in f"/{name}"
                if not parts and (target.suffix not in _READ or target.name == RECORDS):
                    continue
                content = self._system.cat_file(path)
                if parts:
                    target = target.parent.with_name(RECORDS)
                    key = target.relative_to(self.folder).as_posix()
                    self._counts[key] = self._counts.get(key, 0) + 1
                    self._offsets[key] = self._offsets.get(key, 0) + len(content)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "ab") as file:
                    file.write(content)
        # Records count as changed: a killed run has left them in parts only.
        found = self._changed(all=True)
        self._sent = {name: stamp for name, stamp in found if not name.endswith(RECORDS)}

    def forget_parts(self) -> None:
        """Has all records sent anew, because lines among them are going to change."""
        with self._plainly():
            for key in self._counts:
                self._system.rm(f"{self._root}/{key}.parts", recursive=True)
        self._offsets, self._counts = {}, {}

    def push(self, *, last: bool = False) -> None:
        """Copies out what has changed; records whole only the last time."""
        with self._lock, self._plainly():
            for name, stamp in self._changed():
                path = self.folder / name
                if path.name == RECORDS:
                    self._push_part(name, path)
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

    def _push_part(self, name: str, path: Path) -> None:
        offset = self._offsets.get(name, 0)
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        if content:
            count = self._counts.get(name, 0)
            self._put(f"{name}.parts/{count:06d}.jsonl", content)
            self._counts[name] = count + 1
            self._offsets[name] = offset + len(content)

    def _put(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(path, content)

    def _changed(self, *, all: bool = False) -> list[tuple[str, tuple[int, int]]]:
        found = []
        for path in sorted(self.folder.rglob("*")):
            if path.name.startswith(".") or not path.is_file():
                continue
            state = path.stat()
            name, stamp = (
                path.relative_to(self.folder).as_posix(),
                (state.st_size, state.st_mtime_ns),
            )
            if all or self._sent.get(name) != stamp:
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
