"""`Backbone`: pixels in, patch features out, as a pure function with its weights beside it.

It is made of a vision transformer, or out of any pure function by `from_callable`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.extend  # with Flax it would come amid a first trace, and JAX traces all anew after it
import jax.numpy as jnp

from unseg_jax.backbones import grids
from unseg_jax.backbones.config import Facet, ViTConfig
from unseg_jax.errors import why

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8


CALLABLE = "callable:"
"""What the source of such a backbone begins with."""
_PROBE = 14  # patches a side of the made-up image on which the width is read


@functools.partial(jax.jit, static_argnames=("config", "facet", "block", "stride", "log_bin"))
def _features(config, params, pixels, **wanted):
    from unseg_jax.backbones.vit import with_params  # with Flax, only where something is traced

    return with_params(config, params).features(pixels, **wanted)


@functools.partial(jax.jit, static_argnames=("config", "stride"))
def _class_attention(config, params, pixels, *, stride):
    from unseg_jax.backbones.vit import with_params

    return with_params(config, params).class_attention(pixels, stride=stride)


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A vision transformer with its weights, split so that `jax.jit` sees a pure function.

    It compares and hashes by identity: a program may be compiled around it, and takes `params`
    as an argument.

    Attributes:
        name: of `list_backbones()`, hf:ORG/NAME, or the stem of the weights file.
        source: where the weights came from.
        params: dotted path → array of float32 or bfloat16, see `ViTConfig.shapes`.
        config: the model's shape and its best facet.
    """

    name: str
    source: str
    params: Any
    config: ViTConfig

    @property
    def form(self) -> Backbone:
        """The same without its weights: one object for all backbones that differ in them alone."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _form(type(self), **{**values, "params": None})

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels that there may be between patches: the divisors of the patch size, ascending."""
        return self.config.strides

    def grid(self, size: tuple[int, int], stride: int | None = None) -> tuple[int, int]:
        """(h, w) of the patches of a (H, W) image: h = 1 + (H - p) // s, w likewise.

        Raises:
            ValueError: the image is smaller than a patch, or the stride does not divide the patch.
        """
        return self.config.patch_grid(size, stride)

    def features(
        self,
        params: Any,
        pixels: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        *,
        facet: Facet | None = None,
        block: int | tuple[int, ...] = -1,
        stride: int | None = None,
        log_bin: bool = False,
    ) -> Float[Array, "b n d"]:
        """Patch features. Pure; compiled for each shape and setting.

        Args:
            params: `self.params`, or others of the same structure.
            pixels: (B, H, W, 3) RGB, uint8 or float in [0, 1].
            facet: "key", "query", "value": the vectors of that name, D = width, heads varying
                fastest as in the published extractor; "token": the output of the block, for
                DINOv2's last block after the final normalisation; "attn": each patch's
                attention to all tokens, class token first, D = (N + 1) heads, heads varying
                fastest. None takes `config.facet`.
            block: the block to take it from, counted from 0; negative from the end. Of several
                the facets are concatenated, so D is as many times as long.
            stride: pixels between patches, a divisor of the patch size; None is the patch size.
            log_bin: give log-binned descriptors instead, D 17 times as long; not for "attn".

        Returns:
            (B, N, D) float32, row-major over the grid, without the class token.

        Raises:
            ValueError: an unknown facet, block or stride, or an image smaller than a patch.
        """
        pixels = jnp.asarray(pixels)
        return _features(
            self.config, params, pixels, facet=facet, block=block, stride=stride, log_bin=log_bin
        )

    def class_attention(
        self,
        params: Any,
        pixels: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        *,
        stride: int | None = None,
    ) -> Float[Array, "b n"]:
        """The class token's attention to each patch in the last block, averaged over heads.

        Args:
            params, pixels, stride: as for `features`.

        Returns:
            (B, N) float32, at least 0; with the class token's attention to itself a row sums to 1.

        Raises:
            ValueError: an unknown stride, or an image smaller than a patch.
        """
        return _class_attention(self.config, params, jnp.asarray(pixels), stride=stride)


@functools.lru_cache(maxsize=64)
def _form(kind: type[Backbone], **fields: Any) -> Backbone:
    return kind(**fields)


@functools.partial(jax.jit, static_argnames=("backbone", "grid", "log_bin"))
def _function_features(backbone, params, pixels, *, grid, log_bin):
    patch = backbone.config.patch_size
    pixels = pixels[:, : grid[0] * patch, : grid[1] * patch]
    if jnp.issubdtype(pixels.dtype, jnp.integer):
        pixels = pixels.astype(jnp.float32) / 255
    features = backbone.function(params, pixels.astype(jnp.float32))
    expected = (pixels.shape[0], grid[0] * grid[1], backbone.config.width)
    if getattr(features, "shape", None) != expected:
        raise ValueError(
            f"the backbone '{backbone.name}' gives {_describe(features)} for "
            f"{pixels.shape[1]}x{pixels.shape[2]} pixels, where an array of shape {expected} is "
            "expected: one row per patch, row by row."
        )
    features = features.astype(jnp.float32)
    return grids.log_bin(features, grid) if log_bin else features


@dataclasses.dataclass(frozen=True, eq=False)
class CallableBackbone(Backbone):
    """What `from_callable` makes: one facet, patches side by side, no class token.

    Attributes:
        function: (params, pixels (B, H, W, 3)) to features (B, N, D).
    """

    function: Callable[[Any, Array], Array]

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.config.patch_size,)

    def grid(self, size: tuple[int, int], stride: int | None = None) -> tuple[int, int]:
        """(h, w) of the whole patches in a (H, W) image; raises ValueError as `Backbone.grid`."""
        if stride not in (None, *self.strides):
            raise ValueError(
                f"the backbone '{self.name}' has patches of {self.config.patch_size} pixels side "
                f"by side; leave out stride={stride}."
            )
        return self.config.patch_grid(size)

    def features(
        self,
        params: Any,
        pixels: Array,
        *,
        facet: Facet | None = None,
        block: int | tuple[int, ...] = -1,
        stride: int | None = None,
        log_bin: bool = False,
    ) -> Float[Array, "b n d"]:
        """See `Backbone.features`; there is the facet "token" only, and no blocks to choose."""
        if facet not in (None, "token") or block != -1:
            raise ValueError(
                f"the backbone '{self.name}' is one function; leave out facet and block."
            )
        pixels = jnp.asarray(pixels)
        grid = self.grid((pixels.shape[1], pixels.shape[2]), stride)
        return _function_features(self, params, pixels, grid=grid, log_bin=log_bin)

    def class_attention(
        self, params: Any, pixels: Any, *, stride: int | None = None
    ) -> Float[Array, "b n"]:
        """There is none: raises ValueError."""
        raise ValueError(
            f"the backbone '{self.name}' has no class token, which foreground='attention' and "
            "'auto' read; use another foreground."
        )


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" if shape is None else f"an array of shape {shape}"


def from_callable(
    fn: Callable[..., Array],
    patch: int,
    *,
    width: int | None = None,
    params: Any = None,
    name: str | None = None,
) -> Backbone:
    """A backbone out of a pure function, jitted and batched like any other.

    >>> import jax, jax.numpy as jnp
    >>> def mean_colours(pixels):
    ...     b, h, w, c = pixels.shape
    ...     patches = pixels.reshape(b, h // 16, 16, w // 16, 16, c)
    ...     return patches.mean((2, 4)).reshape(b, -1, c)
    >>> backbone = from_callable(mean_colours, patch=16)
    >>> backbone.features(backbone.params, jnp.ones((2, 32, 48, 3))).shape
    (2, 6, 3)

    Args:
        fn: pixels (B, H, W, 3) float32 in [0, 1], H and W multiples of `patch`, to features
            (B, H W / patch², D), row by row over the grid. With `params` it is called as
            fn(params, pixels). It is traced by JAX: write it with jax.numpy.
        patch: side of a patch in pixels.
        width: D; None reads it off `fn` for a square of 14 x 14 patches, without computing.
        params: tree of arrays that `fn` takes first; None if it takes pixels alone.
        name: of the backbone in results; None is the name of `fn`.

    Raises:
        ValueError: no function, a patch or width below 1, or a function that JAX cannot trace or
            that gives another shape.
    """
    if not callable(fn):
        raise ValueError(f"from_callable takes a function, not a {type(fn).__name__}.")
    for words, value in (("patch", patch), ("width", 1 if width is None else width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{words}={value!r} must be a whole number of at least 1.")
    name = str(name or getattr(fn, "__name__", type(fn).__name__))
    alone = params is None  # the function must not keep the params themselves

    def function(weights: Any, pixels: Array) -> Array:
        return fn(pixels) if alone else fn(weights, pixels)

    if width is None:
        side = _PROBE * patch
        pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        try:
            shape = jax.eval_shape(function, params, pixels).shape
        except Exception as error:  # the function is the user's
            raise ValueError(
                f"'{name}' cannot be traced by JAX for {side}x{side} pixels "
                f"({type(error).__name__}: {why(error)}); write it with jax.numpy, or give width "
                "if it takes another size only."
            ) from error
        if len(shape) != 3 or shape[:2] != (1, _PROBE**2):
            raise ValueError(
                f"'{name}' gives an array of shape {shape} for {side}x{side} pixels, where "
                f"(1, {_PROBE**2}, D) is expected: one row per patch of {patch} pixels."
            )
        width = int(shape[2])
    config = ViTConfig(patch_size=patch, width=width, depth=1, heads=1, grid=_PROBE, facet="token")
    return CallableBackbone(name, CALLABLE + name, params, config, function)
