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
import dataclasses
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.score.image_records import METRICS, WORST, are_truth_fields
from unseg_jax.bench.score.protocols import Protocol
from unseg_jax.errors import BenchError
from unseg_jax.runs.journal import damaged, read_lines, seal_lines
from unseg_jax.runs.locking import RunLock
from unseg_jax.runs.result_store import ResultStore

CONFIG, RECORDS, SESSIONS, SUMMARY, REPORT = FILES = (
    "config.json",
    "per_image.jsonl",
    "sessions.jsonl",
    "summary.json",
    "report.html",
)
FOLDERS = ("masks", "thumbnails", "models")
# These change how fast a run goes, or where its data lie and what that place is called; the
# images themselves are compared one by one.
_FREE = ("data", "dataset", "notes", "batch_size")
_LONGEST = 120
_FORBIDDEN = frozenset('<>:"/\\|?*')


def shard_folder(folder: Path, shard: tuple[int, int]) -> Path:
    """Where a shard is written: the run's folder itself if there is only one."""
    index, count = shard
    width = len(str(count - 1))
    return folder if count == 1 else folder / f"shard-{index:0{width}d}-of-{count}"


def json_bytes(value: Any) -> bytes:
    """JSON as `config.json` and `summary.json` hold it."""
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
    if differences := list(_differences(old, new)):
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
        there, here = (
            text if len(text) <= 40 else text[:37] + "..." for text in map(json.dumps, (old, new))
        )
        yield f"{name} is {there} there and {here} here"


def find_shards(path: Path) -> list[Path]:
    """The folders of the shards in a run's folder, in order. Raises BenchError for copies."""
    folders = sorted(folder for folder in path.glob("shard-*-of-*") if (folder / CONFIG).exists())
    for folder in folders:
        index, count = shard = read_config(folder)["shard"]
        if not re.fullmatch(rf"shard-0*{index}-of-0*{count}", folder.name):
            raise BenchError(
                f"{folder} holds shard {shard[0]} of {shard[1]} under another name, as a copy "
                f"does: move it away, or give it its own name."
            )
    return folders


def load_config(path: Path) -> dict[str, Any]:
    """The JSON object in a run's `config.json`. Raises BenchError if there is none."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(
            f"{path / CONFIG} cannot be read ({error}): name a run's folder."
        ) from None
    if not isinstance(config, dict):
        raise BenchError(f"{path / CONFIG} is no run's config: it must hold a JSON object.")
    return config


def read_config(path: Path) -> dict[str, Any]:
    """`load_config` with all that summaries and reports read of it. Raises BenchError."""
    config = load_config(path)
    for key, is_right in _CONFIG.items():
        if not is_right(config.get(key)):
            raise BenchError(
                f"{path / CONFIG} is no run's config ({key} is missing or of another kind): "
                f"put the original file back."
            )
    return config


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, is_right: Callable[[Any], bool], *lengths: int) -> bool:
    is_long = isinstance(value, list) and (not lengths or len(value) in lengths)
    return is_long and all(map(is_right, value))


def _is_protocol(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in dataclasses.fields(Protocol)}
        and value["family"] in ("honest", "published")
        and _is_string(value["name"])
        and (value["crop"] is None or _is_count(value["crop"]))
    )


# What summaries and reports read of a config, and what it must be.
_CONFIG: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("data", "dataset", "backbone"), _is_string),
    **dict.fromkeys(("images", "seed", "every"), _is_count),
    "notes": lambda value: _is_list(value, _is_string),
    "protocol": _is_protocol,
    "methods": lambda value: (
        isinstance(value, dict)
        and all(isinstance(one, dict) and _is_count(one.get("epochs")) for one in value.values())
    ),
    "shard": lambda value: _is_list(value, _is_count, 2) and value[0] < value[1],
    "metrics": lambda value: value is None or _is_list(value, list(METRICS).__contains__),
}


def read_records(path: Path, run: str | None = None) -> Iterator[dict[str, Any]]:
    """The records in a run's folder, in the order of writing; a torn last line is left out.

    Raises:
        BenchError: a line is damaged, holds what no record can, or is of another run than the one
            whose `identity` is given.
    """
    file = path / RECORDS
    for number, record in enumerate(read_lines(file), start=1):
        problem = _record_problem(record)
        if problem is not None:
            raise damaged(file, number, problem)
        if run is not None and record.get("run", run) != run:
            raise BenchError(
                f"line {number} of {file} was made with another config: remove that line, and "
                f"--resume, or choose another --out."
            )
        yield record


# Scores lie between 0 and 1 but for those that compare with chance or with a mean.
_RANGES = {
    **dict.fromkeys(WORST, (0.0, 1.0)),
    **dict.fromkeys(("ari", "s_measure", "e_measure", "f_measure", "f_everything"), (-1.0, 1.0)),
    **dict.fromkeys(("seconds", "shared_seconds", "confidence"), (-math.inf, math.inf)),
    "nmi": (-1.0, 1.0),
}


def _record_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, in a few words."""
    for name in ("id", "method", "error"):
        value = record.get(name)
        if not (_is_string(value) or (name == "error" and value is None)):
            return f"{name} is no string"
    for name, value in record.items():
        if value is not None and name in _RANGES and not _within(value, *_RANGES[name]):
            return f"{name} is {value!r}"
    if not _is_list(record.get("iou_by_epoch", []), lambda value: _within(value, 0.0, 1.0)):
        return "iou_by_epoch is no list of scores"
    losses = record.get("loss_by_epoch", [])
    if not _is_list(losses, lambda value: value is None or _within(value, -math.inf, math.inf)):
        return "loss_by_epoch is no list of numbers"
    box = record.get("box")
    if box is not None and not _is_list(box, lambda side: type(side) is int, 4):
        return "box is no box"
    return None if are_truth_fields(record.get("truth")) else "truth is none"


def _within(value: Any, low: float, high: float) -> bool:
    # Of JSON, and called for every number of a run: a bool is no int here.
    is_number = type(value) in (int, float)
    return is_number and math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions in a run's folder, oldest first. Raises BenchError for damaged lines."""
    file = path / SESSIONS
    sessions = list(read_lines(file))
    for number, session in enumerate(sessions, start=1):
        tables = [session.get(name, {}) for name in ("timing", "compile_seconds", "versions")]
        if not all(isinstance(table, dict) for table in tables):
            raise damaged(file, number, "it is no session")
        timing, compile_seconds, _ = tables
        numbers = [*timing.values(), *compile_seconds.values()]
        if not all(value is None or _within(value, -math.inf, math.inf) for value in numbers):
            raise damaged(file, number, "its timing is no number")
    return sessions


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
        """Begins a run, or goes on with one; `is_unchanged` says that a record's data are as were.

        Raises:
            BenchError: a run is there that must not be resumed, another process writes it, or
                files are in the way that the run did not write.
            WriteError: the folder cannot be written.
        """
        self.path = path
        # Locked before anything is changed: another process may be at work here.
        self._lock = RunLock(path)
        try:
            self.store = open_store(path)
            self.store.check_free(FILES)
            records, is_new = path / RECORDS, not (path / CONFIG).exists()
            if is_new and records.exists() and records.stat().st_size and not overwrite:
                raise BenchError(
                    f"{records} has no {CONFIG} beside it, so its settings are unknown: "
                    f"put that file back, or start again with --overwrite."
                )
            if not (is_new or resume or overwrite):
                raise BenchError(
                    f"{path} holds a run already: continue it with --resume, replace it with "
                    f"--overwrite, or choose another --out."
                )
            if overwrite or is_new:
                _clear(self.store)
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


def open_store(folder: Path) -> ResultStore:
    """What a run owns in its folder; see `ResultStore` for the errors."""
    return ResultStore(folder, "run", sync=True)


def _clear(store: ResultStore) -> None:
    """Removes the files that a run wrote itself; nothing if foreign ones are in the way."""
    store.check_free(FILES)
    store.check_folders(FOLDERS)
    store.sweep()
    # Records first and the config last: a half-removed run can be removed or resumed.
    names = store.names(*FILES, *FOLDERS)
    store.remove([RECORDS, *(name for name in names if name not in (RECORDS, CONFIG))])
    store.remove([CONFIG])
    store.forget()
