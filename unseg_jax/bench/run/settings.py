"""What a run is asked to do: `Settings`, the methods it names, and the config that is compared."""

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import jax

from unseg_jax.bench.score.image_records import METRICS
from unseg_jax.bench.score.protocols import Protocol, resolve_protocol
from unseg_jax.collective.choosing import choose
from unseg_jax.custom import name_of
from unseg_jax.data.reading_options import Reading
from unseg_jax.data.truths import Value, parse_void
from unseg_jax.devices import resolve_dtype
from unseg_jax.errors import nearest
from unseg_jax.method import Method, check_writable, plain_fields
from unseg_jax.registry import GROUPS, METHODS, resolve
from unseg_jax.terminal.shared_options import method_parameters, overrides_from, parse_range

_ALIASES = {"all": tuple(METHODS), **GROUPS}

_RUN = "The run"
_METHOD = "Settings of all methods (default: each method's own)"


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field of `Settings` is said on the command line; None means as the field itself."""

    help: str
    flags: tuple[str, ...] = ()
    panel: str | None = None
    kind: Any = None
    shown: Any = None  # the default there
    parse: Callable[[Any], Any] | None = None  # makes the field's value from the one there
    minimum: int | None = None


def _option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field with an option; `MISSING` as the default means that it must be given."""
    metadata = {"option": Option(help, flags, **more)}
    return dataclasses.field(default=default, metadata=metadata)


def parse_names(text: str) -> tuple[str, ...]:
    """Names that are separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_shard(text: str) -> tuple[int, int]:
    """ "I/N" with 0 ≤ I < N. Raises ValueError for anything else."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard '{text}' must be I/N with I from 0 to N - 1, such as 0/4.")
    return int(index), int(count)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run does; the options of `python -m unseg_jax.bench` are made from these fields.

    Attributes:
        crop: None leaves it to the protocol.
        foreground_values: mask values that are foreground; see `unseg_jax.data.open_dataset`.
        void_values: see `unseg_jax.data.open_dataset`.
        value_range: see `unseg_jax.data.read_image`; "set" is measured when the run begins.
        overrides: fields of `Method`, for all methods. A loss or layer of your own is known by
            its module and name alone.
        shard: (I, N); None is what `jax.process_index()` and `jax.process_count()` say.
        workers: None is one per core.
        cluster: None does without Ray.
    """

    data: str = _option(
        dataclasses.MISSING,
        "DIR with images/ and masks/, a .csv or .jsonl list, NAME:DIR of a known data set, or "
        "tfds:NAME[/CONFIG][:SPLIT].",
    )
    out: str = _option(dataclasses.MISSING, "Folder of the run, or a URL that fsspec takes.")
    methods: tuple[str, ...] = _option(
        ("deepcut",),
        "Names, separated by commas; 'all', or a group such as 'grid', for many.",
        "--method",
        kind=str,
        shown="deepcut",
        parse=parse_names,
    )
    protocol: str = _option(
        "honest",
        "honest, published, or the protocol of a paper: deepcut, unseggnet, unsegarmanet or "
        "unsegmedgat.",
    )
    crop: bool | None = _option(
        None, "First crop to the true box plus 20 px (published).", "--crop/--no-crop"
    )
    limit: int | None = _option(None, "Use the first N images only.", minimum=1)
    split: str | None = _option(None, "Use this split of the data set only.")
    image_key: str | None = _option(None, "Image feature of a tfds: set.")
    mask_key: str | None = _option(None, "Mask feature of a tfds: set.")
    foreground_values: tuple[Value, ...] | str | None = None
    void_values: tuple[Value, ...] | None = _option(
        None,
        "Mask values to leave out of every score, such as 255, or none.",
        "--void",
        kind=str | None,
        parse=parse_void,
    )
    value_range: tuple[float, float] | str | None = _option(
        None,
        "Pixel values that become black and white in images of more than 8 bits: image, set or "
        "LOW:HIGH.",
        "--range",
        kind=str,
        shown="image",
        parse=parse_range,
    )
    backbone: str = _option("auto", "Name of a backbone, or a weights file.")
    dtype: str = _option(
        "auto", "Precision of the backbone: float32, bfloat16, or auto for the faster one."
    )
    batch_size: int = _option(8, "Images per batch on the device.", minimum=1)
    seed: int = _option(0, "Random seed of initial parameters and dropout.")
    metrics: tuple[str, ...] = _option(
        (),
        "Further scores, separated by commas: boundary, objects or classes.",
        kind=str,
        shown="",
        parse=parse_names,
    )
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record_every: int = _option(
        0, "Record the IoU every N epochs; 0 never does.", "--every", minimum=0
    )
    resume: bool = _option(False, "Continue the run in --out.", "--resume", panel=_RUN)
    retry_failed: bool = _option(
        False, "With --resume: try failed images again.", "--retry-failed", panel=_RUN
    )
    strict: bool = _option(
        False,
        "With --resume: compare files by content, not by size and time.",
        "--strict",
        panel=_RUN,
    )
    overwrite: bool = _option(False, "Replace the run in --out.", "--overwrite", panel=_RUN)
    fail_fast: bool = _option(
        False, "Stop at the first image that fails.", "--fail-fast", panel=_RUN
    )
    shard: tuple[int, int] | None = _option(
        None,
        "I/N: take every N-th image, starting with the I-th.",
        panel=_RUN,
        kind=str | None,
        parse=parse_shard,
    )
    save_masks: bool = _option(
        False, "Write every mask as PNG; `rescore` needs them.", "--save-masks", panel=_RUN
    )
    thumbnails: int = _option(1000, "How many thumbnails the report shows.", panel=_RUN, minimum=0)
    workers: int | None = _option(
        None, "Threads that decode images (default: one per core).", panel=_RUN, minimum=1
    )
    draft: bool = _option(
        True, "Decode large JPEGs at reduced size.", "--draft/--no-draft", panel=_RUN
    )
    cluster: str | None = _option(
        None, "Run on Ray: 'local' or the address of a cluster.", panel=_RUN
    )
    actors: int = _option(2, "How many segmenters to run on the cluster.", panel=_RUN, minimum=1)

    def check(self) -> None:
        """Raises ValueError for names or values that cannot be used, before anything is read."""
        self.resolve_protocol()
        self.resolve_methods()
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"unknown metrics '{name}'; {nearest(name, METRICS)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"the seed {self.seed} must be from 0 to 2**63 - 1.")

    @property
    def share(self) -> tuple[int, int]:
        """(I, N): which shard this process takes."""
        return self.shard or (jax.process_index(), jax.process_count())

    @property
    def reading(self) -> Reading:
        """How images are read, for fitting and for segmenting."""
        limits: Any = self.value_range
        return Reading(limits, workers=self.workers)

    def resolve_protocol(self) -> Protocol:
        """The protocol with the crop as asked for."""
        return resolve_protocol(self.protocol, self.crop)

    def resolve_methods(self) -> list[Method]:
        """The methods by name, aliases spelt out, overrides applied, each once.

        Raises:
            ValueError: an unknown method or field, a value out of range, or a loss or layer
                without a name.
        """
        names = [name for given in self.methods for name in _ALIASES.get(given, (given,))]
        if not names:
            raise ValueError("no method is named: give --method, such as --method deepcut.")
        for name in names:
            if name not in METHODS and name != "auto":
                raise ValueError(
                    f"unknown method '{name}'; {nearest(name, ['auto', *METHODS, *_ALIASES])}"
                )
        return [_resolve(name, self.overrides) for name in dict.fromkeys(names)]


def _resolve(name: str, overrides: Mapping[str, Any]) -> Method:
    if name == "auto":
        # What it becomes is decided by the images; see `Engine.fit`.
        method = dataclasses.replace(choose(overrides=overrides).method, name=name)
    else:
        method = resolve(name, **overrides)
    plain_fields(method)  # refuses what a resumed run could not know again
    if name != "auto":
        # A custom loss or layer makes another method, with a row and files of its own.
        parts = [re.sub(r"[^\w.()=,-]", "_", name_of(p)) for p in method.own_parts.values()]
        method = dataclasses.replace(method, name="+".join([name, *parts]))
    if method.learns_from_set:
        check_writable(method)
    return method


_METHOD_FIELDS = (
    *("image_size", "resize", "stride", "facet", "affinity", "tau", "alpha", "layer"),
    *("activation", "loss", "num_clusters", "epochs", "learning_rate", "weight_decay"),
    *("dropout", "refine", "quirks"),
)
_METHOD_OPTIONS = {
    "foreground": Option(
        "A rule, or the mask values that are foreground: 1,3 or 128-255 or '#ff0000' or nonzero; "
        "repeatable.",
        panel=_METHOD,
    ),
    "set_field": Option(
        "FIELD=VALUE: any other field of Method; repeatable.", ("--set",), panel=_METHOD
    ),
}


def command_parameter(name: str, option: Option, kind: Any, default: Any) -> inspect.Parameter:
    """A parameter of a Typer command; `MISSING` as the default means that it must be given."""
    import typer

    info = typer.Option(
        *option.flags, help=option.help, rich_help_panel=option.panel, min=option.minimum
    )
    empty = inspect.Parameter.empty if default is dataclasses.MISSING else default
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=empty, annotation=Annotated[kind, info])


def command_parameters() -> list[inspect.Parameter]:
    """The parameters of a Typer command for all of `Settings` and for fields of `Method`."""
    return [
        *(
            command_parameter(
                field.name,
                option,
                option.kind or field.type,
                option.shown if option.kind else field.default,
            )
            for field, option in _options()
        ),
        *method_parameters(*_METHOD_FIELDS, panel=_METHOD),
        *(
            command_parameter(name, option, list[str] | None, None)
            for name, option in _METHOD_OPTIONS.items()
        ),
    ]


def settings_from(
    options: Mapping[str, Any], foreground_values: tuple[Value, ...] | str | None = None
) -> Settings:
    """`Settings` from the values of a command that has `command_parameters`; raises ValueError."""
    fields = {}
    for field, option in _options():
        value = options[field.name]
        fields[field.name] = option.parse(value) if option.parse and value is not None else value
    named = {name: options[name] for name in (*_METHOD_FIELDS, "foreground")}
    fields["overrides"] = overrides_from(options["set_field"], **named)
    fields["resume"] = fields["resume"] or fields["retry_failed"]
    return Settings(**fields, foreground_values=foreground_values)


def _options() -> list[tuple[dataclasses.Field, Option]]:
    """The fields of `Settings` that have an option."""
    return [
        (field, field.metadata["option"])
        for field in dataclasses.fields(Settings)
        if "option" in field.metadata
    ]


# Fields of `Settings` that a config holds as they are.
_KEPT = (
    *("data", "split", "limit", "image_key", "mask_key", "foreground_values", "void_values"),
    *("value_range", "seed", "draft", "save_masks", "batch_size"),
)


def make_config(
    settings: Settings,
    methods: Iterable[Method],
    ids: Iterable[str],
    *,
    dataset: str,
    notes: Iterable[str],
    backbone: str,
    weights: str,
) -> dict[str, Any]:
    """What a run is, as JSON: two runs with the same config find the same.

    `methods` are fitted to the backbone, `ids` those of all images before sharding, `notes` on the
    data set, and `weights` the digest of the backbone's parameters.
    """
    ids = list(ids)
    config = {name: getattr(settings, name) for name in _KEPT} | {
        "dataset": dataset,
        "notes": list(notes),
        "images": len(ids),
        "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
        "protocol": dataclasses.asdict(settings.resolve_protocol()),
        "methods": {method.name: plain_fields(method) for method in methods},
        "backbone": backbone,
        "weights_sha256": weights,
        "dtype": resolve_dtype(settings.dtype),
        "every": settings.record_every,
        "shard": list(settings.share),
    }
    if settings.metrics:
        config["metrics"] = settings.metrics
    return json.loads(json.dumps(config))
