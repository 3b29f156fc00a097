"""From the names that weights have in a file to the parameters of a `VisionTransformer`.

There is one table of name patterns for each layout: DINO's and timm's own names, and Hugging
Face's. Everything that does not fit (a name that no pattern knows, a wrong shape or dtype, a
parameter without a tensor) is collected and reported at once, before any array is allocated.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unseg_jax.backbones.vit import VisionTransformer, ViTConfig
from unseg_jax.errors import WeightsError, printable

Tensors = Mapping[str, np.ndarray]


def _as_is(x: np.ndarray) -> np.ndarray:
    return x


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1) if x.shape[:-1] == (1, 1) else x


def _drop_batch(x: np.ndarray) -> np.ndarray:
    return x[0] if x.ndim == 3 and len(x) == 1 else x


def _transposed(x: np.ndarray) -> np.ndarray:
    """PyTorch's linear (out, in) and convolution (out, in, high, wide) weights to ours."""
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor of a layout.

    Attributes:
        pattern: regular expression for the whole name. A group `block` is the number of the
            block; a group `part` is "query", "key" or "value" where a file keeps them apart.
        leaf: dotted path of the parameter, an expansion template of the pattern; None for
            tensors that the features do not depend on.
        transform: from the tensor to the parameter's shape.
    """

    pattern: str
    leaf: str | None
    transform: Callable[[np.ndarray], np.ndarray] = _as_is


_B = r"blocks\.(?P<block>[0-9]{1,4})\."
_E = r"encoder\.layer\.(?P<block>[0-9]{1,4})\."
_PART = r"attention\.attention\.(?P<part>query|key|value)\."

LAYOUTS: dict[str, tuple[Rule, ...]] = {
    "official": (
        Rule(r"cls_token", "class_token", _flat),
        Rule(r"pos_embed", "positions", _drop_batch),
        Rule(r"register_tokens|reg_token", "registers", _drop_batch),
        Rule(r"patch_embed\.proj\.weight", "patch_embed.kernel", _transposed),
        Rule(r"patch_embed\.proj\.bias", "patch_embed.bias"),
        Rule(_B + r"norm(?P<n>[12])\.weight", r"blocks.norm\g<n>.scale"),
        Rule(_B + r"norm(?P<n>[12])\.bias", r"blocks.norm\g<n>.bias"),
        Rule(
            _B + r"(?:attn|mlp)\.(?P<l>qkv|proj|fc1|fc2)\.weight",
            r"blocks.\g<l>.kernel",
            _transposed,
        ),
        Rule(_B + r"(?:attn|mlp)\.(?P<l>qkv|proj|fc1|fc2)\.bias", r"blocks.\g<l>.bias"),
        Rule(_B + r"ls(?P<n>[12])\.gamma", r"blocks.scale\g<n>"),
        Rule(r"norm\.weight", "norm.scale"),
        Rule(r"norm\.bias", "norm.bias"),
        Rule(r"mask_token|(?:\w*head|fc_norm)\..*", None),
    ),
    "huggingface": (
        Rule(r"embeddings\.cls_token", "class_token", _flat),
        Rule(r"embeddings\.position_embeddings", "positions", _drop_batch),
        Rule(r"embeddings\.register_tokens", "registers", _drop_batch),
        Rule(
            r"embeddings\.patch_embeddings\.projection\.weight", "patch_embed.kernel", _transposed
        ),
        Rule(r"embeddings\.patch_embeddings\.projection\.bias", "patch_embed.bias"),
        Rule(_E + _PART + r"weight", "blocks.qkv.kernel", _transposed),
        Rule(_E + _PART + r"bias", "blocks.qkv.bias"),
        Rule(_E + r"attention\.output\.dense\.weight", "blocks.proj.kernel", _transposed),
        Rule(_E + r"attention\.output\.dense\.bias", "blocks.proj.bias"),
        # The ViT of DINO:
        Rule(_E + r"layernorm_before\.weight", "blocks.norm1.scale"),
        Rule(_E + r"layernorm_before\.bias", "blocks.norm1.bias"),
        Rule(_E + r"layernorm_after\.weight", "blocks.norm2.scale"),
        Rule(_E + r"layernorm_after\.bias", "blocks.norm2.bias"),
        Rule(_E + r"intermediate\.dense\.weight", "blocks.fc1.kernel", _transposed),
        Rule(_E + r"intermediate\.dense\.bias", "blocks.fc1.bias"),
        Rule(_E + r"output\.dense\.weight", "blocks.fc2.kernel", _transposed),
        Rule(_E + r"output\.dense\.bias", "blocks.fc2.bias"),
        # DINOv2:
        Rule(_E + r"norm(?P<n>[12])\.weight", r"blocks.norm\g<n>.scale"),
        Rule(_E + r"norm(?P<n>[12])\.bias", r"blocks.norm\g<n>.bias"),
        Rule(_E + r"mlp\.(?P<l>fc1|fc2)\.weight", r"blocks.\g<l>.kernel", _transposed),
        Rule(_E + r"mlp\.(?P<l>fc1|fc2)\.bias", r"blocks.\g<l>.bias"),
        Rule(_E + r"layer_scale(?P<n>[12])\.lambda1", r"blocks.scale\g<n>"),
        Rule(r"layernorm\.weight", "norm.scale"),
        Rule(r"layernorm\.bias", "norm.bias"),
        Rule(r"embeddings\.mask_token|(?:pooler|classifier)\..*", None),
    ),
}

_PREFIXES = re.compile(r"^(?:module\.|backbone\.|vit\.|dinov2\.|dinov2_with_registers\.)+")
_PARTS = ("query", "key", "value")
_SHOWN = 12


class Slot(NamedTuple):
    """A place that one tensor of a file fills.

    Attributes:
        leaf: dotted path of the parameter.
        block: index into its leading axis; None outside of the blocks.
        part: "query", "key" or "value" of the joint projection; None for all of it.
    """

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


def layout_of(tensors: Tensors) -> str:
    """The name in `LAYOUTS` of the layout that the tensors are in."""
    return (
        "huggingface"
        if any(n.startswith(("embeddings.", "encoder.")) for n in tensors)
        else "official"
    )


def _matches(tensors: Tensors) -> Iterator[tuple[str, np.ndarray, Slot | None, bool]]:
    """(name, array for the slot, slot or None, whether a rule knows the name) of each tensor."""
    rules = LAYOUTS[layout_of(tensors)]
    for name, tensor in tensors.items():
        for rule in rules:
            match = re.fullmatch(rule.pattern, name)
            if match is None:
                continue
            slot = None
            if rule.leaf is not None:
                groups = match.groupdict()
                block = None if groups.get("block") is None else int(groups["block"])
                slot = Slot(match.expand(rule.leaf), block, groups.get("part"))
            yield name, rule.transform(tensor), slot, True
            break
        else:
            yield name, tensor, None, False


def infer_config(tensors: Tensors, where: str) -> ViTConfig:
    """The shape of the vision transformer that the tensors belong to.

    Heads are 64 wide, as in every DINO and DINOv2; LayerScale tells DINOv2.

    Args:
        tensors: name to array, in one of `LAYOUTS`, without prefixes.
        where: the file or source of the tensors, for errors.

    Raises:
        WeightsError: the tensors are not those of such a transformer; the message says which are
            missing, unknown or of a wrong shape.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    blocks: set[int] = set()
    unknown = []
    for name, array, slot, known in _matches(tensors):
        if not known:
            unknown.append(printable(name, 80))
        if slot is not None:
            shapes.setdefault(slot.leaf, array.shape)
            blocks |= {slot.block} if slot.block is not None else set()
    needed = {
        "patch embedding": "patch_embed.kernel",
        "position embedding": "positions",
        "blocks": "blocks.fc1.kernel",
    }
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
    positions = shapes["positions"]
    if len(kernel) != 4 or kernel[0] != kernel[1] or kernel[2] != 3 or 0 in kernel:
        raise WeightsError(
            f"{where} has a patch embedding of shape {kernel}, where (patch, patch, 3, width) is "
            "expected; use weights for square patches of RGB."
        )
    patch_size, width = kernel[0], kernel[3]
    # timm leaves the class token's position out where there are registers.
    grid = math.isqrt(positions[0]) if positions else 0
    if len(positions) != 2 or grid < 1 or positions[0] - grid**2 not in (0, 1):
        raise WeightsError(
            f"{where} has a position embedding of shape {positions}, which is not that of a "
            "square grid; use weights with one learned position per patch."
        )
    if len(hidden) != 2 or not hidden[1] or hidden[1] % width:
        raise WeightsError(
            f"{where} has a multilayer perceptron of shape {hidden}, where a multiple of the width "
            f"{width} is expected; use another model."
        )
    if width > 64 and width % 64:
        raise WeightsError(
            f"{where} has tokens of width {width}, which heads of 64 do not divide; use another "
            "model."
        )
    registers = shapes.get("registers", (0,))[0] if shapes.get("registers", (0,)) else 0
    version2 = "blocks.scale1" in shapes
    exact = registers or (version2 and layout_of(tensors) == "huggingface")
    return ViTConfig(
        patch_size=patch_size,
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


def abstract_model(config: ViTConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """(graph definition, state of shapes) of a model, without computing anything."""
    model = nnx.eval_shape(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)


def build_params(
    tensors: Tensors, config: ViTConfig, where: str, dtype: str = "float32"
) -> tuple[nnx.GraphDef, nnx.State]:
    """(graph definition, state) of a model with these weights.

    What is allocated is what the tensors take as float32, and only after all of them fit.

    Args:
        tensors: name to array, in one of `LAYOUTS`, without prefixes.
        config: the expected shape.
        where: the file or source of the tensors, for errors.
        dtype: of the parameters, "float32" or "bfloat16".

    Raises:
        WeightsError: names that are unknown or double, tensors of a wrong shape or dtype, values
            that are not finite, and parameters without a tensor, all in one message.
    """
    graphdef, state = abstract_model(config)
    leaves = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    shapes = {name: leaf.get_value().shape for name, leaf in leaves.items()}
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
    values = [
        (path, leaf.replace(jnp.asarray(arrays[".".join(map(str, path))], dtype)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return graphdef, nnx.from_flat_state(values)


def _fill(
    tensors: Tensors, config: ViTConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[Slot, np.ndarray], list[str]]:
    """The tensor of each slot, and what is wrong with the others."""
    filled: dict[Slot, np.ndarray] = {}
    problems = []
    for name, array, slot, known in _matches(tensors):
        if slot is None:
            problems += [] if known else [f"unexpected {printable(name, 80)}"]
            continue
        if slot.leaf not in shapes or (slot.block or 0) >= config.depth:
            problems.append(f"unexpected {printable(name, 80)}")
            continue
        if slot in filled:
            problems.append(f"double {printable(name, 80)}")
            continue
        shape = shapes[slot.leaf] if slot.block is None else shapes[slot.leaf][1:]
        if slot.part is not None:
            shape = (*shape[:-1], config.width)
        if slot.leaf == "positions" and array.shape == (shape[0] - 1, *shape[1:]):
            array = np.concatenate([np.zeros_like(array[:1]), array])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(
                f"wrong dtype {printable(name, 80)}: {array.dtype} where float32 is expected"
            )
        elif array.shape != shape:
            problems.append(
                f"wrong shape {printable(name, 80)}: {array.shape} where {shape} is expected"
            )
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
