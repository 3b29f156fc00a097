"""Decides and loads what segments a set of images, whichever method or model that is.

It is the only place that decides what method="auto" is, and stands in this room as "auto" applies
a fitted model, or fits one. The command line, the page, the plugin, the benchmark and `Segmenter`
all call `choose` and `load`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unseg_jax.collective.black_frames import share_framed
from unseg_jax.data.reading_options import PLAIN, Reading
from unseg_jax.method import Method, current_names, override
from unseg_jax.registry import ELSEWHERE, refuse_options, refuse_sets, resolve

if TYPE_CHECKING:
    from unseg_jax.backbones import Backbone
    from unseg_jax.batching import Batching
    from unseg_jax.collective.model import CollectiveModel
    from unseg_jax.data.decoding import Source
    from unseg_jax.segmenter import BatchSegmenter

MAX_FITTED = 512
"""Images that are fitted at most; `auto` keeps as many, the first of a longer stream, in a list."""

# Fields that say how an image is shown to any method.
_OF_ALL = ("resize", "stride", "tile", "scales")
# Options of `unseg_jax.fit` that are no fields of `Method`; num_clusters is one of both.
_OF_FITTING = ("num_clusters", "steps", "passes", "max_images")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What segments a set of images, and why.

    Attributes:
        method: with overrides applied. A model that is applied brings its own, which may differ.
        model: file of a fitted model that is applied; None without.
        options: what else was asked for: of fitting where the method is fitted, of a model its
            `epochs`, `resize`, `stride`, `tile` and `scales`.
        explicit: fields that the user chose.
        closer: whether images are seen closer where little was found, or several small things.
        why: what "auto" became, in a line; "" where the user chose.
    """

    method: Method
    model: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    explicit: tuple[str, ...] = ()
    closer: bool = False
    why: str = ""

    @property
    def fits(self) -> bool:
        """Whether a model is fitted on the images."""
        return self.model is None and self.method.learns_from_set


def choose(
    method: str | Method = "auto",
    images: Sequence[Source] = (),
    overrides: Mapping[str, Any] | None = None,
    model: Path | None = None,
) -> Choice:
    """Decides what segments the images of a call or run.

    `auto` applies the model that ships with the library. It fits `collective` on eight images or
    more if they have a black frame in common, or on tiles where `tile` is given. With overrides
    other than `resize`, `stride`, `tile` and `scales` it is `deepcut`.

    Args:
        method: "auto", a name of `list_methods()`, or a `Method`.
        images: all of them, as far as they are known; only "auto" looks at them.
        overrides: fields of `Method`, and options of `unseg_jax.fit`; None leaves one out.
        model: file of a fitted model, which brings its own method.

    Raises:
        ValueError: an unknown name, a value out of range, or an option that does not go with what
            is chosen.
    """
    asked = current_names(overrides or {})
    refuse_options(asked, ELSEWHERE)
    if model is not None:
        others = [name for name in asked if name not in ("epochs", *_OF_ALL)]
        others += ["method"] if method != "auto" else []
        if others:
            raise ValueError(
                f"a model brings its own method: leave out {', '.join(others)}, or fit with them."
            )
        return Choice(resolve("collective"), model, asked)
    if method != "auto":
        return _named(method, asked)
    others = [name for name in asked if name not in _OF_ALL]
    if others:
        why = f"auto: takes deepcut, since {', '.join(others)} is a setting of it."
        return dataclasses.replace(_named("deepcut", asked), why=why)
    chosen, closer = _named("collective", asked), not {"tile", "scales"} & {*asked}
    tile = asked.get("tile")
    framed = 0.0 if tile else share_framed(images)
    if tile:
        why = f"auto: 'collective' is fitted on tiles of {tile} pixels, and joins them."
    elif framed == 1:
        why = (
            f"auto: these {len(images)} images have a black frame in common, so 'collective' is "
            "fitted on them, which learns to leave it out."
        )
    else:
        from unseg_jax.collective.shipped import SHIPPED_MODEL

        why = (
            "auto: takes the model that ships with unseg-jax; method='collective' fits one on "
            "these images instead."
        )
        if framed:
            why += (
                f" About {framed * len(images):.0f} of the {len(images)} have a black frame in "
                "common: on these alone, 'collective' would be fitted."
            )
        return dataclasses.replace(
            chosen, model=SHIPPED_MODEL, options=asked, closer=closer, why=why
        )
    return dataclasses.replace(chosen, closer=closer, why=why)


def _named(method: str | Method, asked: Mapping[str, Any]) -> Choice:
    fields = {name: value for name, value in asked.items() if name not in _OF_FITTING}
    options = {name: asked[name] for name in _OF_FITTING if name in asked}
    resolved, explicit = resolve(method, **fields), tuple(asked)
    if resolved.learns_from_set:
        return Choice(resolved, options=options, explicit=explicit)
    refuse_sets(resolved)
    resolved = override(resolved, num_clusters=options.pop("num_clusters", None))
    for name in options:
        raise ValueError(
            f"{name}={options[name]} is of methods that are fitted on a set, such as 'collective': "
            f"leave it out, since '{resolved.name}' learns nothing from other images."
        )
    return Choice(resolved, explicit=explicit)


def load(
    choice: Choice,
    sources: Sequence[Source] = (),
    reading: Reading | None = None,
    *,
    backbone: str | Path | Backbone = "auto",
    batch_size: int = 8,
    seed: int = 0,
    dtype: str = "auto",
    batching: Batching | None = None,
    kept: Path | None = None,
    keep: Callable[[CollectiveModel], Any] = lambda model: None,
    on_image: Callable[[int, int], Any] | None = None,
) -> BatchSegmenter:
    """The segmenter that was chosen; a method of sets is fitted on the images first.

    Args:
        choice: from `choose`.
        sources: all images of the set; read where a model is fitted, or the range is that of the
            set.
        reading: how images are read; None each by itself.
        backbone: name, path to weights, or loaded; "auto" takes that of the method or the model.
        batch_size, seed, dtype, batching: see `Segmenter`.
        kept: file of a model that was fitted for the same choice and images: read if it is there.
        keep: called with a model that was fitted here.
        on_image: see `unseg_jax.fit`.

    Raises:
        ValueError: see `Segmenter` and `unseg_jax.fit`; also a range that is not the model's.
        WeightsError: weights, or the model that ships, cannot be loaded.
        ImageError: a set of which no image can be read.
    """
    reading = (reading or PLAIN).measured(sources)
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "batching": batching}
    options: dict[str, Any] = {"backbone": backbone, "dtype": dtype}
    if choice.model is None and not choice.fits:
        from unseg_jax.segmenter import BatchSegmenter, load_for

        method, loaded = load_for(choice.method, explicit=choice.explicit, **options)
        return BatchSegmenter(method, loaded, reading=reading, **settings)
    cache = None
    if choice.model is not None:
        model = _read(choice.model, choice.options, **options)
    elif kept is not None and kept.is_file():
        model = _read(kept, {}, **options)
    else:
        from unseg_jax.collective.fitting import fit_set
        from unseg_jax.segmenter.decoded_cache import DecodedCache

        fitting = {**choice.options, "explicit": choice.explicit, "on_image": on_image}
        if not (choice.method.epochs or choice.method.collective_epochs):
            fitting.setdefault("steps", 0)  # no epoch would use a graph head
        cache = DecodedCache()
        fitting |= {"kept": cache, **options, **settings}
        model = fit_set(sources, choice.method, reading, **fitting)
        keep(model)
    epochs = None if choice.fits else choice.options.get("epochs")
    return model.segmenter(epochs, closer=choice.closer, reading=reading, kept=cache, **settings)


def _read(path: Path, shown: Mapping[str, Any], *, backbone: Any, dtype: str) -> CollectiveModel:
    from unseg_jax.collective.model import load_model
    from unseg_jax.collective.shipped import SHIPPED_MODEL, load_shipped

    if path == SHIPPED_MODEL:
        model = load_shipped(backbone=backbone, dtype=dtype)
    else:
        named = None if backbone == "auto" else backbone
        model = load_model(path, backbone=named, dtype=dtype)
    fields = {name: shown.get(name) for name in _OF_ALL}
    return dataclasses.replace(model, method=override(model.method, **fields))
