"""From the names that weights have in a file to the parameters of a `VisionTransformer`.

There is one table of name patterns for each layout: DINO's and timm's own names, and Hugging
Face's. Whatever does not fit (a name that no pattern knows, a wrong shape, a parameter that stays
unfilled) is collected and reported at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unseg_jax.backbones.vit import VisionTransformer, ViTConfig
from unseg_jax.errors import WeightsError

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
            tensors that a backbone does not need.
        transform: from the tensor to the parameter's shape.
    """

    pattern: str
    leaf: str | None
    transform: Callable[[np.ndarray], np.ndarray] = _as_is


_B = r"blocks\.(?P<block>\d+)\."
_E = r"encoder\.layer\.(?P<block>\d+)\."
_PART = r"attention\.attention\.(?P<part>query|key|value)\."

LAYOUTS: dict[str, tuple[Rule, ...]] = {
    "official": (
        Rule(r"cls_token", "class_token", _flat),
        Rule(r"pos_embed", "positions", _drop_batch),
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

_PREFIXES = re.compile(r"^(?:module\.|backbone\.|vit\.|dinov2\.)+")
_PARTS = ("query", "key", "value")


def strip_prefixes(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without what training wrappers put before them (`module.`, `backbone.`, …)."""
    return {_PREFIXES.sub("", name): tensor for name, tensor in tensors.items()}


def layout_of(tensors: Tensors) -> str:
    """The name of the layout that the tensors are in."""
    return (
        "huggingface"
        if any(n.startswith(("embeddings.", "encoder.")) for n in tensors)
        else "official"
    )


def _find(name: str, rules: tuple[Rule, ...]) -> tuple[Rule, re.Match[str]] | None:
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule, match
    return None


def infer_config(tensors: Tensors, where: str) -> ViTConfig:
    """The shape of the vision transformer that the tensors belong to.

    Heads are 64 wide, as in every DINO and DINOv2; LayerScale tells DINOv2.

    Raises:
        WeightsError: the tensors that say so are missing or are not a ViT's.
    """
    layout = layout_of(tensors)
    shapes: dict[str, tuple[int, ...]] = {}
    depth = 0
    for name, tensor in tensors.items():
        found = _find(name, LAYOUTS[layout])
        if found is None or found[0].leaf is None:
            continue
        rule, match = found
        shapes[match.expand(rule.leaf or "")] = rule.transform(tensor).shape
        if "block" in match.groupdict():
            depth = max(depth, int(match["block"]) + 1)
    try:
        patch_size, _, _, width = shapes["patch_embed.kernel"]
        hidden = shapes["blocks.fc1.kernel"][1]
        grid = math.isqrt(shapes["positions"][0] - 1)
    except (KeyError, IndexError, ValueError):
        raise WeightsError(
            f"{where} does not hold the weights of a DINO or DINOv2 vision transformer: no "
            "patch embedding, position embedding or blocks under a known name; give a file in "
            "the official, timm or Hugging Face layout"
        ) from None
    version2 = "blocks.scale1" in shapes
    return ViTConfig(
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=max(1, width // 64),
        grid=grid,
        mlp_ratio=hidden // width,
        layer_scale=version2,
        position_offset=0.0 if version2 and layout == "huggingface" else 0.1,
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

    Args:
        tensors: name to array, in one of `LAYOUTS`, without prefixes.
        config: the shape wanted.
        where: the file or source that the tensors came from, for errors.
        dtype: of the parameters, "float32" or "bfloat16".

    Raises:
        WeightsError: names that are unknown, tensors of a wrong shape and parameters that stay
            unfilled, all in one message.
    """
    graphdef, state = abstract_model(config)
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    arrays = {name: np.empty(leaf.get_value().shape, np.float32) for name, leaf in flat.items()}
    unfilled = {
        (leaf, block, part)
        for leaf in arrays
        for block in (range(config.depth) if leaf.startswith("blocks.") else (None,))
        for part in (_PARTS if ".qkv." in leaf else (None,))
    }
    problems = []
    rules = LAYOUTS[layout_of(tensors)]
    for name, tensor in tensors.items():
        found = _find(name, rules)
        if found is None:
            problems.append(f"unexpected {name}")
            continue
        rule, match = found
        if rule.leaf is None:
            continue
        leaf, groups = match.expand(rule.leaf), match.groupdict()
        block = int(groups["block"]) if "block" in groups else None
        part = groups.get("part")
        if leaf not in arrays or (block is not None and block >= config.depth):
            problems.append(f"unexpected {name}")
            continue
        target = arrays[leaf] if block is None else arrays[leaf][block]
        if part is not None:
            third = _PARTS.index(part) * config.width
            target = target[..., third : third + config.width]
        value = rule.transform(tensor)
        if value.shape != target.shape:
            problems.append(f"wrong shape {name}: {value.shape} where {target.shape} is wanted")
        else:
            target[...] = value
        unfilled -= {(leaf, block, p) for p in (_PARTS if part is None else (part,))}
        unfilled.discard((leaf, block, None))
    missing: dict[str, list[str]] = {}
    for leaf, block, part in sorted(unfilled, key=str):
        parts = missing.setdefault(leaf + ("" if block is None else f" of block {block}"), [])
        parts.extend([part] if part else [])
    for leaf, parts in missing.items():
        some = 0 < len(parts) < len(_PARTS)
        problems.append(f"missing {leaf}" + (f" ({', '.join(parts)})" if some else ""))
    if problems:
        raise WeightsError(
            f"{where} does not fit the backbone ({len(problems)} problems; give weights of the "
            f"right model): {'; '.join(problems)}"
        )
    values = [
        (path, leaf.replace(jnp.asarray(arrays[".".join(map(str, path))], dtype)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return graphdef, nnx.from_flat_state(values)
