"""The settings by which images are read: decided once, for the fit of a model and its use."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from unseg_jax.data.decoding import Picture, Range, Source, measure_range, read_image


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the images of one call or run are read.

    Attributes:
        value_range: (low, high), the stored values that become 0 and 255, such as (0, 4095) for
            12 bits; "set" for the range of all images, see `measured`; None stretches each deep
            image by itself, see `unseg_jax.data.read_image`.
        page: of files with several, from 1; None takes all.
        workers: threads that decode images; None is one per core.

    Example:
        >>> Reading((0, 4095)).to_json()
        {'value_range': [0.0, 4095.0]}
    """

    value_range: Range | Literal["set"] | None = None
    page: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("page", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        limits: Any = self.value_range
        if limits is None or (isinstance(limits, str) and limits == "set"):
            return
        try:
            low, high = map(float, limits)
        except (TypeError, ValueError):
            low = high = math.nan
        if isinstance(limits, str) or not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f'value_range={limits!r} must be (low, high), "set", or None.')
        if not low < high:
            raise ValueError(f"value_range={limits} must have its low end below its high end.")
        object.__setattr__(self, "value_range", (low, high))

    @property
    def whole_set(self) -> bool:
        """Whether the range is still to be measured over all images."""
        return self.value_range == "set"

    def measured(self, sources: Sequence[Source]) -> Reading:
        """The same with "set" replaced by the range of these images."""
        if not self.whole_set:
            return self
        return dataclasses.replace(self, value_range=measure_range(sources))

    def read(self, source: Source, at_least: tuple[int, int] | None = None) -> Picture:
        """The decoded image; see `unseg_jax.data.read_image`."""
        assert not isinstance(self.value_range, str), "the range of a set is measured first"
        return read_image(source, at_least, value_range=self.value_range)

    def agreeing(self, fitted: Reading | None) -> Reading:
        """This reading with the range of a model, of which `fitted` may not be known.

        Raises:
            ValueError: a range that is not that of the model.
        """
        if fitted is None or self.value_range == fitted.value_range:
            return self
        if self.value_range is not None:
            raise ValueError(
                f"the model was fitted with {_words(fitted.value_range)}, not with "
                f"{_words(self.value_range)}: leave out the range, or fit again with it."
            )
        return dataclasses.replace(self, value_range=fitted.value_range)

    def to_json(self) -> dict[str, Any]:
        """What a model keeps: its results depend on it."""
        limits = self.value_range
        return {"value_range": None if limits is None else list(limits)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """From what `to_json` gave; raises ValueError for anything else."""
        if not isinstance(values, Mapping) or set(values) != {"value_range"}:
            raise ValueError("it does not say how images are read")
        limits = values["value_range"]
        return cls(limits if limits is None else tuple(limits))


PLAIN = Reading()
"""Each image by itself, on all cores."""


def _words(limits: Range | str | None) -> str:
    if limits is None:
        return "the range of each image"
    if isinstance(limits, str):
        return "the range of the set"
    return f"the range {limits[0]:g}:{limits[1]:g}"
