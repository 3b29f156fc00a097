"""A run's folder: what is written, when, and how it survives a kill at any moment.

```
DIR/config.json       what the run is; a run with another config may not go on with it
    per_image.jsonl   one line per image and method, appended a batch at a time and synced to disk
    sessions.jsonl    one line for every time the run was worked on: timing, versions, device
    unseg_jax.journal   which files the run wrote: nothing else is ever replaced or removed
    summary.json      made from the above, so it can be made again at any time
    report.html       likewise
    masks/METHOD/ID.png                            with --save-masks
    thumbnails/{image/ID.jpg,truth/ID.png,METHOD/ID.png}   of the first images, for the report
    models/METHOD.safetensors                      of methods that learn from the whole set
    shard-I-of-N/     the same again, of one shard, until they are merged
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.records import (
    CONFIG,
    FILES,
    FOLDERS,
    RECORDS,
    SESSIONS,
    load_config,
    read_config,
    read_records,
)
from unseg_jax.errors import BenchError
from unseg_jax.runs.journal import seal_lines
from unseg_jax.runs.locking import RunLock
from unseg_jax.runs.store import Store

# These change how fast a run goes, or where its data lie and what that place is called; the
# images themselves are compared one by one.
_FREE = ("data", "dataset", "notes", "batch_size")
_LONGEST = 120
_FORBIDDEN = frozenset('<>:"/\\|?*')
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


def shard_folder(folder: Path, shard: tuple[int, int]) -> Path:
    """Where a shard is written: the run's folder itself if there is only one."""
    index, count = shard
    width = len(str(count - 1))
    return folder if count == 1 else folder / f"shard-{index:0{width}d}-of-{count}"


def json_bytes(value: Any) -> bytes:
    """JSON as it is written to `config.json` and `summary.json`."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def file_stem(id: str) -> str:
    """A file name, without suffix, that no other id has: the id itself wherever that is safe.

    Ids that are long, hidden, or hold characters that some file system refuses keep what can be
    kept of them, with a part of their SHA-256 at the end.

    >>> file_stem("bird-003")
    'bird-003'
    >>> file_stem("../a")
    '_a~61b4c98bfb92'
    """
    safe = "".join("_" if _is_unsafe(character) else character for character in id)
    safe = safe.lstrip(".").rstrip(". ")
    if safe == id and id and len(id.encode()) <= _LONGEST:
        return id
    short = safe.encode()[: _LONGEST - 16].decode(errors="ignore")
    digest = hashlib.sha256(id.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{short}~{digest}"


def _is_unsafe(character: str) -> bool:
    return character in _FORBIDDEN or unicodedata.category(character) in ("Cc", "Cs")


def identity(config: Mapping[str, Any]) -> str:
    """A short digest of what makes a run's records comparable; all its shards share it."""
    fixed = {key: value for key, value in config.items() if key not in (*_FREE, "shard")}
    text = json.dumps(fixed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """Raises BenchError that says in what two configs differ, if they do."""
    differences = list(_differences(old, new))
    if differences:
        shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
        raise BenchError(
            f"the run in {where} has another config ({shown}): resume it with its own options, "
            f"or choose another --out."
        )


def _differences(old: Any, new: Any, name: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if name or key not in _FREE:
                inner = f"{name}.{key}" if name else key
                yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{name} is {_short(old)} there and {_short(new)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def find_shards(path: Path) -> list[Path]:
    """The folders of the shards in a run's folder, in order.

    Raises:
        BenchError: a folder is named as a shard and holds a run, but is not that shard.
    """
    folders = sorted(folder for folder in path.glob("shard-*-of-*") if (folder / CONFIG).exists())
    for folder in folders:
        match = _SHARD.fullmatch(folder.name)
        shard = read_config(folder)["shard"]
        if match is None or [int(match[1]), int(match[2])] != shard:
            raise BenchError(
                f"{folder} holds shard {shard[0]} of {shard[1]} under another name, as a copy "
                f"does: move it away, or give it its own name."
            )
    return folders


class RunFolder:
    """The folder of a run that is being worked on; a context manager that lets go of it.

    Attributes:
        path: the folder.
        store: the files in it that are the run's own.
        finished: image id → names of the methods that have a record.
        changed: ids of the images whose records were dropped because their data has changed.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        retry_failed: bool = False,
        is_unchanged: Callable[[Mapping[str, Any]], bool] = lambda record: True,
    ):
        """Begins a run, or goes on with one.

        Args:
            path: made if missing.
            config: see `make_config`.
            resume: go on with what is there, if anything is.
            overwrite: remove the run that is there, and nothing else.
            retry_failed: forget the failures that are there.
            is_unchanged: called with a record; false if its image or mask is another now.

        Raises:
            BenchError: a run is there that must not be resumed, another process writes it, or
                files are in the way that the run did not write.
            WriteError: the folder cannot be written.
        """
        self.path = path
        # Owned before anything is changed: another process may be at work here.
        self._lock = RunLock(path)
        try:
            self.store = open_store(path)
            self.store.check_free(FILES)
            if not (path / CONFIG).exists():
                _check_no_records(path, overwrite)
            elif not (resume or overwrite):
                raise BenchError(
                    f"{path} holds a run already: continue it with --resume, replace it with "
                    f"--overwrite, or choose another --out."
                )
            if overwrite or not (path / CONFIG).exists():
                clear(self.store)
                self.store.write({CONFIG: json_bytes(config)})
            check_same(load_config(path), config, str(path))
            self.store.sweep()
            self._run = identity(config)
            self.finished, self.changed = self._read_finished(retry_failed, is_unchanged)
            self._records = self.store.open_journal(RECORDS)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_) -> None:
        self._records.close()
        self.store.close()
        self._lock.release()

    def append(
        self, records: Sequence[Mapping[str, Any]], files: Mapping[str, bytes] | None = None
    ) -> None:
        """Adds records, and before them the files that belong to them; both are on the disk then.

        Args:
            records: of a batch.
            files: name in the folder → content.

        Raises:
            BenchError: a file that the run did not write is in the way.
            WriteError: the operating system refused; none of the records is kept.
        """
        if files:
            self.write(files)
        self._records.append([{**record, "run": self._run} for record in records])

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files; see `append` for the errors."""
        self.store.check_free(files)
        self.store.write(files)

    def add_session(self, session: Mapping[str, Any]) -> None:
        """Adds a line to `sessions.jsonl`. Raises `WriteError`."""
        with contextlib.closing(self.store.open_journal(SESSIONS)) as journal:
            journal.append([session])

    def _read_finished(
        self, retry_failed: bool, is_unchanged: Callable[[Mapping[str, Any]], bool]
    ) -> tuple[dict[str, frozenset[str]], tuple[str, ...]]:
        finished: dict[str, frozenset[str]] = {}
        shared: dict[frozenset[str], frozenset[str]] = {}
        changed: dict[str, None] = {}
        stamps: dict[str, tuple[tuple[Any, Any], bool]] = {}
        dropped = 0

        def is_kept(record: Mapping[str, Any]) -> bool:
            if retry_failed and record["error"] is not None:
                return False
            # The records of an image lie together and were mostly made from the same data.
            stamp = record.get("image_stamp"), record.get("mask_stamp")
            id = record["id"]
            if id not in stamps or stamps[id][0] != stamp:
                stamps[id] = stamp, is_unchanged(record)
            if not stamps[id][1]:
                changed[id] = None
            return stamps[id][1]

        for record in read_records(self.path, self._run):
            if not is_kept(record):
                dropped += 1
                continue
            methods = finished.get(record["id"], frozenset()) | {record["method"]}
            # One set for all images with the same methods keeps 100,000 images small.
            finished[record["id"]] = shared.setdefault(methods, methods)
        if dropped:
            kept = (record for record in read_records(self.path, self._run) if is_kept(record))
            self.store.rewrite_journal(RECORDS, seal_lines(kept))
        return finished, tuple(changed)


def open_store(folder: Path) -> Store:
    """What a run owns in its folder; see `Store` for the errors."""
    return Store(folder, "run", sync=True)


def clear(store: Store) -> None:
    """Removes a run, that is the files that it wrote itself.

    Raises:
        FolderError: a file that the run did not write is in the way; nothing is removed then.
    """
    store.check_free(FILES)
    store.check_folders(FOLDERS)
    store.sweep()
    # Records first and the config last: a half-removed run can be removed or resumed.
    names = store.names(*FILES, *FOLDERS)
    store.remove([RECORDS, *(name for name in names if name not in (RECORDS, CONFIG))])
    store.remove([CONFIG])
    store.forget()


def _check_no_records(path: Path, overwrite: bool) -> None:
    if (path / RECORDS).exists() and (path / RECORDS).stat().st_size and not overwrite:
        raise BenchError(
            f"{path / RECORDS} has no {CONFIG} beside it, so its settings are unknown: "
            f"put that file back, or start again with --overwrite."
        )
