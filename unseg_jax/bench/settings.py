"""What a run is asked to do: `Settings`, the methods it names, and the config that is compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unseg_jax.bench.protocols import Protocol, resolve_protocol
from unseg_jax.data.truths import Value
from unseg_jax.errors import nearest
from unseg_jax.methods import METHODS, Method, resolve

GRID = tuple(
    f"{loss}-{layer}"
    for loss in ("ncut", "cc", "dmon")
    for layer in ("gcn", "gat", "arma")
    if f"{loss}-{layer}" in METHODS
)
"""The course project's grid of losses and layers, as `--method grid`."""

_ALIASES = {"all": tuple(METHODS), "grid": GRID}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the command line of `python -m unseg_jax.bench` says.

    Attributes:
        data: see `unseg_jax.data.open_dataset`.
        out: the run's folder.
        methods: names; "all" and "grid" stand for several.
        protocol: of `unseg_jax.bench.protocols.PROTOCOLS`.
        crop: crop to the true box too, or not; None leaves it to the protocol.
        limit, split, image_key, mask_key: see `open_dataset`.
        foreground_values, void_values: `foreground` and `void` of `open_dataset`.
        value_range: see `unseg_jax.data.read_image`; "set" is measured when the run begins.
        backbone, batch_size, seed, dtype: see `unseg_jax.Segmenter`.
        overrides: fields of `Method`, for all methods.
        record_every: record the labels every so many epochs; 0 never.
        resume: go on with the run in `out`.
        retry_failed: on resuming, try the listed failures again.
        overwrite: throw away the run in `out`.
        fail_fast: stop at the first image that fails.
        shard: (I, N): only every N-th image, from the I-th on; None is what
            `jax.process_index()` and `jax.process_count()` say.
        save_masks: write each mask as PNG.
        thumbnails: of the first so many images, for the report.
        workers: threads that decode; None is one a core.
        draft: decode large JPEGs at a reduced size (see `unseg_jax.data.read_image`).
        cluster: "local" or the address of a Ray cluster; None does without.
        actors: Ray actors, each with a backbone of its own.
    """

    data: str
    out: str
    methods: tuple[str, ...] = ("deepcut",)
    protocol: str = "honest"
    crop: bool | None = None
    limit: int | None = None
    split: str | None = None
    image_key: str | None = None
    mask_key: str | None = None
    foreground_values: tuple[Value, ...] | str | None = None
    void_values: tuple[Value, ...] | None = None
    value_range: tuple[float, float] | str | None = None
    backbone: str = "auto"
    batch_size: int = 8
    seed: int = 0
    dtype: str = "float32"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record_every: int = 0
    resume: bool = False
    retry_failed: bool = False
    overwrite: bool = False
    fail_fast: bool = False
    shard: tuple[int, int] | None = None
    save_masks: bool = False
    thumbnails: int = 1000
    workers: int | None = None
    draft: bool = True
    cluster: str | None = None
    actors: int = 2

    def resolve_protocol(self) -> Protocol:
        """The protocol with the crop as asked for."""
        return resolve_protocol(self.protocol, self.crop)

    def resolve_methods(self) -> list[Method]:
        """The methods by name, aliases spelt out, overrides applied, each once.

        Raises:
            ValueError: an unknown method or field, or a value out of range.
        """
        names = [name for given in self.methods for name in _ALIASES.get(given, (given,))]
        if not names:
            raise ValueError("no method is named: give --method, such as --method deepcut.")
        for name in names:
            if name not in METHODS:
                raise ValueError(f"unknown method '{name}'; {nearest(name, [*METHODS, *_ALIASES])}")
        return [_resolve(name, self.overrides) for name in dict.fromkeys(names)]


def _resolve(name: str, overrides: Mapping[str, Any]) -> Method:
    return resolve(name, **overrides)


def parse_shard(text: str) -> tuple[int, int]:
    """ "I/N" with 0 ≤ I < N.

    Raises:
        ValueError: anything else.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard '{text}' must be I/N with I from 0 to N - 1, such as 0/4.")
    return int(index), int(count)
