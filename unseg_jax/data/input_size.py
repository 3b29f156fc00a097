"""To what size an image is resized before the backbone sees it."""

from __future__ import annotations

import math
from typing import NamedTuple

from unseg_jax.method import Method, Resize

# Long side over short side: those of cameras and films. An image gets the nearest, so a set of any
# images has at most eleven shapes, and each is compiled once.
_ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 7 / 3, 3.0)


class InputSize(NamedTuple):
    """How images are brought to a size.

    Attributes:
        size: (height, width) in pixels that a method states.
        resize: "stretch" resizes every image to that size. "keep" keeps the aspect ratio, to the
            nearest of those that are common, with at most as many patches as that size has.
        patch: side of a patch in pixels; sizes of "keep" are multiples of it.
        scales: of the method; with 2 all is twice as large.
    """

    size: tuple[int, int]
    resize: Resize
    patch: int
    scales: int = 1

    @classmethod
    def of(cls, method: Method, patch: int) -> InputSize:
        """What a method asks for, with a backbone of that patch size."""
        return cls(method.size, method.resize, patch, method.scales)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is resized to.

        Example:
            >>> kept = InputSize((392, 392), "keep", 14)
            >>> kept.size_for(300, 400), kept.size_for(3000, 2000), kept.size_for(9, 9)
            ((336, 448), (476, 322), (392, 392))
        """
        if self.scales > 1:
            height, width = self._replace(scales=1).size_for(height, width)
            return self.scales * height, self.scales * width
        if self.resize == "stretch":
            return self.size
        ratio = max(width / height, height / width)
        aspect = min(_ASPECTS, key=lambda aspect: abs(math.log(ratio / aspect)))
        patches = (self.size[0] // self.patch) * (self.size[1] // self.patch)
        short = max(1, round(math.sqrt(patches / aspect)))
        sides = (short * self.patch, max(1, patches // short) * self.patch)
        return sides if width >= height else (sides[1], sides[0])

    @property
    def at_least(self) -> tuple[int, int]:
        """(height, width) that a decoder must give, so that no image is enlarged afterwards."""
        if self.resize == "stretch":
            return self.size_for(*self.size)
        longest = max(max(self.size_for(1, ratio)) for ratio in (1, 3))
        return (longest, longest)
