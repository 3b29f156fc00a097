"""Folders of runs that never ran: records and pictures with known numbers, for the report."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unseg_jax.bench.run.settings import Settings, make_config
from unseg_jax.bench.run_folder import CONFIG, RECORDS, SESSIONS
from unseg_jax.bench.score.image_records import SCORES, failure_record, loss_epochs, score_names
from unseg_jax.data import Item
from unseg_jax.registry import resolve
from unseg_jax.runs.journal import seal


def _encode(array: np.ndarray, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def _make_records(ids, ious, *, epochs=0, failed=()):
    """Records of methods × images; `failed` holds (method, id) pairs."""
    records = []
    pairs = ((method, *one) for method, row in ious.items() for one in zip(ids, row, strict=True))
    for method, id, iou in pairs:
        if (method, id) in failed:
            records.append(failure_record(Item(id, id, id), method, f"image {id} is truncated."))
            continue
        record = dict.fromkeys(SCORES) | {"id": id, "method": method, "error": None}
        if iou is not None:
            iou = float(iou)
            # The surer the better, and the larger the object the worse.
            record |= {"iou": iou, "dice": 2 * iou / (1 + iou), "confidence": iou**2}
            truth = {"share": 0.5 - iou / 4, "void_share": 0.0, "foreground": [1], "void": []}
            record |= {"seconds": 0.01, "truth": truth}
        if epochs:
            record["iou_by_epoch"] = [iou * e / epochs for e in range(epochs + 1)]
            # Falls by a unit an epoch, from the image's own start.
            record["loss_by_epoch"] = [iou - e for e in loss_epochs(10 * epochs)]
        records.append(record)
    return records


def _make_folder(
    folder: Path,
    ids,
    ious,
    *,
    dataset="isic2018",
    notes=(),
    epochs=0,
    failed=(),
    pictures=True,
    metrics=(),
    protocol="honest",
) -> Path:
    """A finished run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    more = {"record_every": 10 if epochs else 0, "metrics": tuple(metrics)}
    facts = {"dataset": dataset, "notes": notes, "backbone": "dino_vits8", "weights": "0123456789"}
    config = make_config(
        Settings("somewhere", str(folder), tuple(ious), protocol, **more),
        [resolve(name, epochs=10 * epochs or None) for name in ious],
        ids,
        **facts,
    )
    records = _make_records(ids, ious, epochs=epochs, failed=failed)
    for record in records:
        if record["error"] is None:
            record |= dict.fromkeys(score_names(metrics), record["iou"]) | record
    timing = {"images_per_second": 12.5, "device_busy": 0.95}
    session = {"timing": timing, "versions": {"jax": "0.10.0"}, "device": "a device"}
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / RECORDS).write_text("".join(map(seal, records)))
    (folder / SESSIONS).write_text(seal(session))
    if pictures:
        _write_pictures(folder / "thumbnails", ids, list(ious))
    return folder


def _write_pictures(folder: Path, ids, methods) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :64]
    for kind in ("image", "truth", *methods):
        (folder / kind).mkdir(parents=True)
    for id in ids:
        colour = rng.integers(60, 250, 3)
        mask = (rows - 24) ** 2 + (columns - 32) ** 2 < rng.uniform(8, 20) ** 2
        picture = np.where(mask[..., None], colour, 255 - colour).astype(np.uint8)
        (folder / "image" / f"{id}.jpg").write_bytes(_encode(picture, "JPEG"))
        for kind in ("truth", *methods):
            shifted = np.roll(mask, rng.integers(-6, 7), axis=1)
            (folder / kind / f"{id}.png").write_bytes(_encode(shifted, "PNG"))


@pytest.fixture(scope="session")
def make_records():
    """See `_make_records`."""
    return _make_records


@pytest.fixture(scope="session")
def make_folder():
    """See `_make_folder`."""
    return _make_folder
