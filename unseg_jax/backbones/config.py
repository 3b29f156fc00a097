"""What a vision transformer is, without the code that runs it: Flax takes a second to import."""

from __future__ import annotations

import dataclasses
from typing import Literal

Facet = Literal["key", "query", "value", "token", "attn"]
FACETS: tuple[Facet, ...] = ("key", "query", "value", "token", "attn")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a vision transformer.

    Attributes:
        patch_size: side of a patch in pixels.
        width: D, length of a token.
        depth: number of blocks.
        heads: attention heads; they divide the width.
        grid: side of the square grid that the position embedding was learned on.
        mlp_ratio: hidden width of the multilayer perceptrons over `width`.
        layer_scale: whether branches are scaled by a learned vector (DINOv2).
        registers: number of register tokens, which follow the class token and are left out of
            the features.
        norm_epsilon: of every layer normalisation.
        position_offset, position_antialias: see `interpolate_positions`.
        normalised_tokens: whether the facet "token" of the last block is taken after the final
            normalisation (DINOv2) or before (DINO).
        facet: the facet that serves these weights best.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    grid: int
    mlp_ratio: int = 4
    layer_scale: bool = False
    registers: int = 0
    norm_epsilon: float = 1e-6
    position_offset: float = 0.1
    position_antialias: bool = False
    normalised_tokens: bool = False
    facet: Facet = "key"

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels that there may be between patches: the divisors of the patch size, ascending."""
        patch = self.patch_size
        return tuple(stride for stride in range(1, patch + 1) if patch % stride == 0)

    def stride(self, stride: int | None) -> int:
        """The stride in pixels; None is the patch size. Raises ValueError if it is no divisor."""
        stride = self.patch_size if stride is None else stride
        if stride not in self.strides:
            raise ValueError(
                f"stride {stride} does not divide the patch size {self.patch_size}; "
                f"use one of {list(self.strides)}."
            )
        return stride

    def patch_grid(self, size: tuple[int, int], stride: int | None = None) -> tuple[int, int]:
        """(rows, columns) of patches of an image of `size` (height, width) in pixels.

        >>> ViTConfig(patch_size=8, width=384, depth=12, heads=6, grid=28).patch_grid((280, 64), 4)
        (69, 15)

        Raises:
            ValueError: an image smaller than a patch, or a stride that does not divide the patch.
        """
        stride = self.stride(stride)
        if min(size) < self.patch_size:
            raise ValueError(
                f"an image of {size[0]}x{size[1]} pixels is smaller than one patch of "
                f"{self.patch_size}; resize it first."
            )
        height, width = (1 + (side - self.patch_size) // stride for side in size)
        return height, width

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its dotted path in a `VisionTransformer`."""
        width, hidden, patch = self.width, self.width * self.mlp_ratio, self.patch_size
        inner = {"qkv": (width, 3 * width), "proj": (width, width)}
        inner |= {"fc1": (width, hidden), "fc2": (hidden, width)}
        block: dict[str, tuple[int, ...]] = {}
        for layer, shape in inner.items():
            block |= {f"{layer}.kernel": shape, f"{layer}.bias": shape[1:]}
        vectors = [f"norm{n}.{kind}" for n in (1, 2) for kind in ("scale", "bias")]
        vectors += ["scale1", "scale2"] if self.layer_scale else []
        block |= dict.fromkeys(vectors, (width,))
        return {
            "patch_embed.kernel": (patch, patch, 3, width),
            "class_token": (width,),
            "positions": (1 + self.grid**2, width),
            **({"registers": (self.registers, width)} if self.registers else {}),
            **{f"blocks.{name}": (self.depth, *shape) for name, shape in block.items()},
            **dict.fromkeys(("patch_embed.bias", "norm.scale", "norm.bias"), (width,)),
        }
