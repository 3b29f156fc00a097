"""A run's folder: what is written, when, and how it survives a kill at any moment.

```
DIR/config.json       what the run is; a run with another config may not go on with it
    per_image.jsonl   one line per image and method, appended a batch at a time and synced to disk
    sessions.jsonl    one line for every time the run was worked on: timing, versions, device
    manifest.jsonl    one line for every file that the run wrote: nothing else is ever removed
    summary.json      made from the above, so it can be made again at any time
    report.html       likewise
    masks/METHOD/ID.png                            with --save-masks
    thumbnails/{image/ID.jpg,truth/ID.png,METHOD/ID.png}   of the first images, for the report
    models/METHOD.safetensors                      of methods that learn from the whole set
    shard-I-of-N/     the same again, of one shard, until they are merged
```
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unseg_jax.bench.config import check_same, identity
from unseg_jax.bench.manifest import MANIFEST, Manifest
from unseg_jax.bench.protocols import Protocol
from unseg_jax.bench.truths import are_truth_fields
from unseg_jax.errors import BenchError
from unseg_jax.runs.journal import damaged, read_lines, seal_lines
from unseg_jax.runs.locking import RunLock

CONFIG, RECORDS, SESSIONS, SUMMARY, REPORT = (
    "config.json",
    "per_image.jsonl",
    "sessions.jsonl",
    "summary.json",
    "report.html",
)
FILES = (CONFIG, RECORDS, SESSIONS, SUMMARY, REPORT)
FOLDERS = ("masks", "thumbnails", "models")
JOURNALS = (RECORDS, SESSIONS, MANIFEST)
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


def shard_folder(folder: Path, shard: tuple[int, int]) -> Path:
    """Where a shard is written: the run's folder itself if there is only one."""
    index, count = shard
    width = len(str(count - 1))
    return folder if count == 1 else folder / f"shard-{index:0{width}d}-of-{count}"


def json_bytes(value: Any) -> bytes:
    """JSON as it is written to `config.json` and `summary.json`."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


class RunFolder:
    """The folder of a run that is being worked on; a context manager that lets go of it.

    Attributes:
        path: the folder.
        manifest: the files in it that are the run's own.
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
            config: see `unseg_jax.bench.config.make_config`.
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
            self.manifest = Manifest(path)
            self.manifest.check_free(FILES)
            if not (path / CONFIG).exists():
                _check_no_records(path, overwrite)
            elif not (resume or overwrite):
                raise BenchError(
                    f"{path} holds a run already: continue it with --resume, replace it with "
                    f"--overwrite, or choose another --out."
                )
            if overwrite or not (path / CONFIG).exists():
                clear(self.manifest)
                self.manifest.write({CONFIG: json_bytes(config)})
            check_same(load_config(path), config, str(path))
            self.manifest.sweep()
            self._run = identity(config)
            self.finished, self.changed = self._read_finished(retry_failed, is_unchanged)
            self._records = self.manifest.open_journal(RECORDS)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_) -> None:
        self._records.close()
        self.manifest.close()
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
            self.manifest.write(files)
        self._records.append([{**record, "run": self._run} for record in records])

    def write(self, name: str, content: bytes) -> None:
        """Writes one file; see `append` for the errors."""
        self.manifest.write({name: content})

    def add_session(self, session: Mapping[str, Any]) -> None:
        """Adds a line to `sessions.jsonl`. Raises `WriteError`."""
        journal = self.manifest.open_journal(SESSIONS)
        try:
            journal.append([session])
        finally:
            journal.close()

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
            self.manifest.rewrite_journal(RECORDS, seal_lines(kept))
        return finished, tuple(changed)


def clear(manifest: Manifest) -> None:
    """Removes a run, that is the files that it wrote itself.

    Raises:
        BenchError: a file that the run did not write is in the way; nothing is removed then.
        WriteError: the operating system refused.
    """
    manifest.check_free(FILES)
    manifest.check_folders(FOLDERS)
    manifest.sweep()
    # Records first and the config last: a half-removed run can be removed or resumed.
    names = manifest.names()
    manifest.remove([RECORDS, *(name for name in names if name not in (RECORDS, CONFIG))])
    manifest.remove([CONFIG])
    manifest.reset()


def _check_no_records(path: Path, overwrite: bool) -> None:
    if (path / RECORDS).exists() and (path / RECORDS).stat().st_size and not overwrite:
        raise BenchError(
            f"{path / RECORDS} has no {CONFIG} beside it, so its settings are unknown: "
            f"put that file back, or start again with --overwrite."
        )


def load_config(path: Path) -> dict[str, Any]:
    """The JSON object in a run's `config.json`, not checked any further.

    Raises:
        BenchError: no run there, or one that cannot be read.
    """
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
    """The config of the run in a folder, with all that summaries and reports read of it.

    Raises:
        BenchError: no run there, or one that cannot be read.
    """
    config = load_config(path)
    problem = next(_config_problems(config), None)
    if problem is not None:
        raise BenchError(
            f"{path / CONFIG} is no run's config ({problem} is missing or of another kind): "
            f"put the original file back."
        )
    return config


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Keys whose values are not what they must be."""

    def is_count(value: Any) -> bool:
        return type(value) is int and value >= 0

    def is_text(value: Any) -> bool:
        return isinstance(value, str)

    def is_protocol(value: Any) -> bool:
        fields = {field.name for field in dataclasses.fields(Protocol)}
        return (
            isinstance(value, dict)
            and value.keys() == fields
            and value["family"] in ("honest", "published")
            and is_text(value["name"])
            and (value["crop"] is None or is_count(value["crop"]))
        )

    def is_methods(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(method, dict) and is_count(method.get("epochs")) for method in value.values()
        )

    def is_shard(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(map(is_count, value))
            and value[0] < value[1]
        )

    def is_notes(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_text, value))

    checks: dict[str, Callable[[Any], bool]] = {
        "data": is_text,
        "dataset": is_text,
        "notes": is_notes,
        "images": is_count,
        "protocol": is_protocol,
        "methods": is_methods,
        "backbone": is_text,
        "seed": is_count,
        "every": is_count,
        "shard": is_shard,
    }
    for key, check in checks.items():
        if not check(config.get(key)):
            yield key


def read_records(path: Path, run: str | None = None) -> Iterator[dict[str, Any]]:
    """The records in a run's folder, in the order of writing; a torn last line is left out.

    Args:
        path: of the folder.
        run: identity of the config that all records must have been made with; None takes any.

    Raises:
        BenchError: a line is damaged, holds what no record can, or is of another run.
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
_SIGNED = ("ari", "s_measure", "e_measure", "f_measure", "f_everything", "nmi")
_UNIT = ("iou", "dice", "pixel_accuracy", "mae", "corloc")
_NUMBERS = ("seconds", "shared_seconds", "confidence")


def _record_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, in a few words."""
    for name in ("id", "method"):
        if not isinstance(record.get(name), str):
            return f"{name} is no text"
    if not isinstance(record.get("error"), str | None):
        return "error is no text"
    for names, low in ((_UNIT, 0.0), (_SIGNED, -1.0)):
        for name in names:
            value = record.get(name)
            if value is not None and not _within(value, low, 1.0):
                return f"{name} is {value!r}"
    for name in _NUMBERS:
        value = record.get(name)
        if value is not None and not _within(value, -math.inf, math.inf):
            return f"{name} is {value!r}"
    curve = record.get("iou_by_epoch", [])
    if not isinstance(curve, list) or not all(_within(value, 0.0, 1.0) for value in curve):
        return "iou_by_epoch is no list of scores"
    box = record.get("box")
    is_box = isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box)
    if box is not None and not is_box:
        return "box is no box"
    return None if are_truth_fields(record.get("truth")) else "truth is none"


def _within(value: Any, low: float, high: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low - 1e-6 <= value <= high + 1e-6


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions in a run's folder, oldest first.

    Raises:
        BenchError: a line is damaged, or is no session.
    """
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
