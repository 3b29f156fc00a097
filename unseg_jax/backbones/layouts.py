"""From the names that weights have in a file to the parameters of a `VisionTransformer`.

There is one table of name patterns for each layout: DINO's and timm's own names, and Hugging
Face's. Everything that does not fit (a name that no pattern knows, a wrong shape or dtype, a
parameter without a tensor) is collected and reported at once, before any array is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones.config import ViTConfig
from unseg_jax.errors import WeightsError, printable

Tensors = Mapping[str, np.ndarray]

_B = r"blocks\.(?P<block>[0-9]{1,4})\."
_E = r"encoder\.layer\.(?P<block>[0-9]{1,4})\."

# Regular expressions for whole names, to the parameter they fill, as an expansion template; a
# layer's ends with its own ".weight" or ".bias". A group `block` is the number of the block; a
# group `part` is "query", "key" or "value" where a file keeps them apart. The features do not
# depend on what fills None.
_LAYOUTS: dict[str, dict[str, str | None]] = {
    "official": {
        r"cls_token": "class_token",
        r"pos_embed": "positions",
        r"register_tokens|reg_token": "registers",
        r"patch_embed\.proj": "patch_embed",
        r"norm": "norm",
        _B + r"(?P<l>norm[12])": r"blocks.\g<l>",
        _B + r"(?:attn|mlp)\.(?P<l>qkv|proj|fc1|fc2)": r"blocks.\g<l>",
        _B + r"ls(?P<n>[12])\.gamma": r"blocks.scale\g<n>",
        r"mask_token|(?:\w*head|fc_norm)\..*": None,
    },
    "huggingface": {
        r"embeddings\.cls_token": "class_token",
        r"embeddings\.position_embeddings": "positions",
        r"embeddings\.register_tokens": "registers",
        r"embeddings\.patch_embeddings\.projection": "patch_embed",
        r"layernorm": "norm",
        _E + r"attention\.attention\.(?P<part>query|key|value)": "blocks.qkv",
        _E + r"attention\.output\.dense": "blocks.proj",
        # The ViT of DINO:
        _E + r"layernorm_before": "blocks.norm1",
        _E + r"layernorm_after": "blocks.norm2",
        _E + r"intermediate\.dense": "blocks.fc1",
        _E + r"output\.dense": "blocks.fc2",
        # DINOv2:
        _E + r"(?P<l>norm[12])": r"blocks.\g<l>",
        _E + r"mlp\.(?P<l>fc[12])": r"blocks.\g<l>",
        _E + r"layer_scale(?P<n>[12])\.lambda1": r"blocks.scale\g<n>",
        r"embeddings\.mask_token|(?:pooler|classifier)\..*": None,
    },
}
_PREFIXES = re.compile(r"^(?:module\.|backbone\.|vit\.|dinov2\.|dinov2_with_registers\.)+")
_PARTS = ("query", "key", "value")
_SHOWN = 12


class Slot(NamedTuple):
    """A place that one tensor of a file fills: a parameter by its dotted path, or of its leading
    axis a block, or of the joint projection a part."""

    leaf: str
    block: int | None = None
    part: str | None = None

    def __str__(self) -> str:
        block = "" if self.block is None else f" of block {self.block}"
        return self.leaf + block + (f" ({self.part})" if self.part else "")


def strip_prefixes(tensors: Tensors, where: str = "the file") -> dict[str, np.ndarray]:
    """Names without the prefixes that training wrappers add (`module.`, `backbone.`, …).

    >>> list(strip_prefixes({"module.backbone.norm.bias": np.ones(3)}))
    ['norm.bias']

    Raises:
        WeightsError: two tensors of `where` have the same name then.
    """
    stripped: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = _PREFIXES.sub("", name)
        if short in stripped:
            raise WeightsError(
                f"{where} holds '{printable(short, 80)}' twice, under different prefixes; keep "
                "one of them."
            )
        stripped[short] = tensor
    return stripped


def _layout_of(tensors: Tensors) -> str:
    hugging = any(name.startswith(("embeddings.", "encoder.")) for name in tensors)
    return "huggingface" if hugging else "official"


def _slot(name: str, layout: str) -> Slot | None:
    """What a tensor of that name fills; None for nothing. Raises KeyError for an unknown name."""
    layer, _, kind = name.rpartition(".")
    for pattern, leaf in _LAYOUTS[layout].items():
        whole = re.fullmatch(pattern, name)
        match = whole or (leaf and kind in ("weight", "bias") and re.fullmatch(pattern, layer))
        if not match:
            continue
        if leaf is None:
            return None
        leaf, groups = match.expand(leaf), match.groupdict()
        if not whole:
            weight = "scale" if "norm" in leaf else "kernel"
            leaf += "." + (weight if kind == "weight" else "bias")
        block = groups.get("block")
        return Slot(leaf, None if block is None else int(block), groups.get("part"))
    raise KeyError(name)


def _transformed(leaf: str, x: np.ndarray) -> np.ndarray:
    """A tensor as the parameter has it, as far as its shape allows."""
    if leaf.endswith("kernel"):  # PyTorch's are (out, in), and (out, in, high, wide)
        return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
    if leaf == "class_token" and x.shape[:-1] == (1, 1):
        return x.reshape(-1)
    return x[0] if leaf in ("positions", "registers") and x.ndim == 3 and len(x) == 1 else x


def _assigned(tensors: Tensors) -> tuple[list[tuple[str, np.ndarray, Slot]], list[str]]:
    """(name, array for the slot, slot) of each tensor that fills one, and what no pattern knows."""
    layout = _layout_of(tensors)
    found, unknown = [], []
    for name, tensor in tensors.items():
        try:
            slot = _slot(name, layout)
        except KeyError:
            unknown.append(printable(name, 80))
            continue
        if slot is not None:
            found.append((printable(name, 80), _transformed(slot.leaf, tensor), slot))
    return found, unknown


def infer_config(tensors: Tensors, where: str) -> ViTConfig:
    """The shape of the vision transformer that the tensors (without prefixes) of `where` belong to.

    Heads are 64 wide, as in every DINO and DINOv2; LayerScale tells DINOv2.

    Raises:
        WeightsError: the tensors are not those of such a transformer; the message says which are
            missing, unknown or of a wrong shape.
    """
    assigned, unknown = _assigned(tensors)
    shapes = {slot.leaf: array.shape for _, array, slot in reversed(assigned)}
    blocks = {slot.block for _, _, slot in assigned if slot.block is not None}
    needed = {"patch embedding": "patch_embed.kernel", "position embedding": "positions"}
    needed["blocks"] = "blocks.fc1.kernel"
    missing = [words for words, leaf in needed.items() if leaf not in shapes]
    if missing:
        names = f"; unknown names: {_first(unknown)}" if unknown else ""
        raise WeightsError(
            f"{where} does not hold the weights of a DINO or DINOv2 vision transformer: no "
            f"{' and no '.join(missing)} under a known name (use a file in the official, timm or "
            f"Hugging Face layout{names})."
        )
    if len(blocks) != max(blocks) + 1:
        raise WeightsError(
            f"{where} names block {max(blocks)}, but holds tensors of {len(blocks)} blocks only; "
            "use a complete file."
        )
    kernel, hidden = shapes["patch_embed.kernel"], shapes["blocks.fc1.kernel"]
    positions, registers = shapes["positions"], (*shapes.get("registers", ()), 0)[0]
    square = len(kernel) == 4 and kernel[0] == kernel[1] and kernel[2] == 3 and 0 not in kernel
    width = kernel[-1] if square else 1
    # timm leaves the class token's position out where there are registers.
    grid = math.isqrt(positions[0]) if positions else 0
    for fits, words in (
        (
            square,
            f"a patch embedding of shape {kernel}, where (patch, patch, 3, width) is expected; use "
            "weights for square patches of RGB.",
        ),
        (
            len(positions) == 2 and grid > 0 and positions[0] - grid**2 in (0, 1),
            f"a position embedding of shape {positions}, which is not that of a square grid; use "
            "weights with one learned position per patch.",
        ),
        (
            len(hidden) == 2 and hidden[1] and hidden[1] % width == 0,
            f"a multilayer perceptron of shape {hidden}, where a multiple of the width {width} is "
            "expected; use another model.",
        ),
        (
            width <= 64 or width % 64 == 0,
            f"tokens of width {width}, which heads of 64 do not divide; use another model.",
        ),
    ):
        if not fits:
            raise WeightsError(f"{where} has {words}")
    version2 = "blocks.scale1" in shapes
    exact = registers or (version2 and _layout_of(tensors) == "huggingface")
    return ViTConfig(
        patch_size=kernel[0],
        width=width,
        depth=len(blocks),
        heads=max(1, width // 64),
        grid=grid,
        mlp_ratio=hidden[1] // width,
        layer_scale=version2,
        registers=registers,
        position_offset=0.0 if exact else 0.1,
        position_antialias=registers > 0,
        normalised_tokens=version2,
        facet="token" if version2 else "key",
    )


def build_params(
    tensors: Tensors, config: ViTConfig, where: str, dtype: str = "float32"
) -> dict[str, jax.Array]:
    """Parameters of a model, by `ViTConfig.shapes`, of the tensors (without prefixes) of `where`.

    What is allocated is what the tensors take as float32, and only after all of them fit.

    Raises:
        WeightsError: names that are unknown or double, tensors of a wrong shape or dtype, values
            that are not finite, and parameters without a tensor, all in one message.
    """
    shapes = config.shapes
    filled, problems = _fill(tensors, config, shapes)
    problems += _missing(filled, config, shapes)
    if problems:
        raise WeightsError(
            f"{where} does not fit the backbone ({len(problems)} problems; use weights of the "
            f"right model): {_first(problems)}."
        )
    arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for slot, value in filled.items():
        target = arrays[slot.leaf] if slot.block is None else arrays[slot.leaf][slot.block]
        if slot.part is not None:
            third = _PARTS.index(slot.part) * config.width
            target = target[..., third : third + config.width]
        with np.errstate(over="ignore"):
            target[...] = value
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{where} has values in {name} that are not finite numbers; fetch it again, or "
                "use other weights."
            )
    # Converted by NumPy: JAX would compile a program for each shape.
    return jax.device_put({name: array.astype(dtype, copy=False) for name, array in arrays.items()})


def _fill(
    tensors: Tensors, config: ViTConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[Slot, np.ndarray], list[str]]:
    """The tensor of each slot, and what is wrong with the others."""
    filled: dict[Slot, np.ndarray] = {}
    assigned, unknown = _assigned(tensors)
    problems = [f"unexpected {name}" for name in unknown]
    for shown, array, slot in assigned:
        if slot.leaf not in shapes or (slot.block or 0) >= config.depth or slot in filled:
            problems.append(f"{'double' if slot in filled else 'unexpected'} {shown}")
            continue
        shape = shapes[slot.leaf] if slot.block is None else shapes[slot.leaf][1:]
        if slot.part is not None:
            shape = (*shape[:-1], config.width)
        if slot.leaf == "positions" and array.shape == (shape[0] - 1, *shape[1:]):
            array = np.concatenate([np.zeros_like(array[:1]), array])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"wrong dtype {shown}: {array.dtype} where float32 is expected")
        elif array.shape != shape:
            problems.append(f"wrong shape {shown}: {array.shape} where {shape} is expected")
        filled[slot] = array
    return filled, problems


def _missing(
    filled: Mapping[Slot, np.ndarray], config: ViTConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is said of each parameter that no tensor fills."""
    problems = []
    for leaf in sorted(shapes):
        for block in range(config.depth) if leaf.startswith("blocks.") else (None,):
            if Slot(leaf, block) in filled:
                continue
            parts = [part for part in _PARTS if Slot(leaf, block, part) not in filled]
            if ".qkv." not in leaf or len(parts) == len(_PARTS):
                problems.append(f"missing {Slot(leaf, block)}")
            elif parts:
                problems.append(f"missing {Slot(leaf, block)} ({', '.join(parts)})")
    return problems


def _first(problems: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
