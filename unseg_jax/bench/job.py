"""A run that is set up, and how its time was spent."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

from unseg_jax.bench.engine import Engine
from unseg_jax.bench.finishing import Finisher
from unseg_jax.bench.preparing import Preparer
from unseg_jax.bench.records import RunFolder
from unseg_jax.bench.settings import Settings
from unseg_jax.data import Dataset, Item


@dataclasses.dataclass
class Timing:
    """Where the wall time of a session went, in seconds."""

    wall: float = 0.0
    device: float = 0.0
    waiting: float = 0.0
    images: int = 0

    def as_json(self) -> dict[str, Any]:
        """With the shares that are printed."""
        wall = max(self.wall, 1e-9)
        return {
            "wall_seconds": round(self.wall, 3),
            "device_seconds": round(self.device, 3),
            "device_busy": round(self.device / wall, 4),
            "overhead_seconds": round(self.wall - self.device, 3),
            "waiting_for_images_seconds": round(self.waiting, 3),
            "images": self.images,
            "images_per_second": round(self.images / wall, 3),
            "peak_memory_mb": _peak_memory(),
        }


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that is set up: what there is to do, and with what."""

    settings: Settings
    dataset: Dataset
    engine: Engine
    folder: RunFolder
    items: tuple[Item, ...]
    missing: dict[str, frozenset[str]]

    @property
    def preparer(self) -> Preparer:
        """What turns items into pixels."""
        engine, protocol = self.engine, self.settings.resolve_protocol()
        rule, draft = self.dataset.rule, self.settings.draft
        reading = self.settings.reading
        return Preparer(engine.framings, protocol, rule, engine.reads_images, draft, reading)

    @property
    def thumbnails(self) -> frozenset[str]:
        """Ids of the images that get thumbnails."""
        return frozenset(item.id for item in self.dataset.items[: self.settings.thumbnails])

    @property
    def finisher(self) -> Finisher:
        """What turns results into records."""
        return Finisher(
            self.engine.segmenters,
            self.settings.resolve_protocol(),
            self.dataset.rule,
            self.settings.record_every,
            self.settings.save_masks,
        )


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10), 1)
