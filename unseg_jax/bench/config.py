"""What makes two runs the same: the config of a run, and how two of them differ."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from unseg_jax.bench.settings import Settings
from unseg_jax.errors import BenchError
from unseg_jax.method import Method, plain_fields

# These change how fast a run goes, or where its data lie and what that place is called; the
# images themselves are compared one by one.
_FREE = ("data", "dataset", "notes", "batch_size")


def make_config(
    settings: Settings,
    methods: Iterable[Method],
    ids: Iterable[str],
    *,
    dataset: str,
    notes: Iterable[str],
    backbone: str,
    weights: str,
    shard: tuple[int, int],
) -> dict[str, Any]:
    """What a run is, as JSON: two runs with the same config find the same.

    Args:
        settings: as given.
        methods: fitted to the backbone.
        ids: of all images, before sharding.
        dataset: its name.
        notes: on the data set.
        backbone: name of the loaded one.
        weights: digest of its parameters.
        shard: (I, N).
    """
    ids = list(ids)
    config = {
        "data": settings.data,
        "dataset": dataset,
        "notes": list(notes),
        "images": len(ids),
        "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
        "split": settings.split,
        "limit": settings.limit,
        "image_key": settings.image_key,
        "mask_key": settings.mask_key,
        "foreground_values": settings.foreground_values,
        "void_values": settings.void_values,
        "value_range": settings.value_range,
        "protocol": dataclasses.asdict(settings.resolve_protocol()),
        "methods": {method.name: plain_fields(method) for method in methods},
        "backbone": backbone,
        "weights_sha256": weights,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "every": settings.record_every,
        "draft": settings.draft,
        "save_masks": settings.save_masks,
        "shard": list(shard),
        "batch_size": settings.batch_size,
    }
    return json.loads(json.dumps(config))


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
