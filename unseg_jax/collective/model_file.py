"""Reading a model file and checking all of it before anything is computed from it.

A model is a safetensors file whose metadata are JSON. It may be damaged, or come from a stranger:
each name, shape, dtype and value is compared with what `CollectiveModel.save` writes, and each
field of `Method` is checked as if a user had typed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unseg_jax.backbones import Backbone
from unseg_jax.clustering.head import Params, init_head
from unseg_jax.collective.self_teaching import Held
from unseg_jax.collective.set_scorer import Scorer
from unseg_jax.collective.steering import Steering, with_earlier_blocks
from unseg_jax.data.reading_options import Reading
from unseg_jax.errors import printable, why
from unseg_jax.method import FIELDS, Method
from unseg_jax.pipeline import extract_features

FORMAT = "unseg_jax collective model 2"

_LONGEST_JSON = 1_000_000
_LONGEST_NAME = 1000
# Loops and arrays grow with these before any shape could be compared.
_MOST = {"arma_layers": 256, "stacks": 1024, "heads": 1024, "num_clusters": 4096}
_MOST_PIXELS = 8192
_MOST_LAYERS = 256
# Fields that files of earlier versions lack, which had what these say.
_LATER = {"scales": 1}
# What is not float32 of a scorer.
_DTYPES = {"frame": np.bool_, "kernel": np.float16}
_KINDS = ("frame", "background", "foreground")


class StoredModel(NamedTuple):
    """What a model file holds, checked as far as it can be without the backbone.

    Attributes:
        method: with every field in range.
        backbone: name or path of the backbone that the model was fitted with.
        foreground: see `CollectiveModel`.
        images: number of images that the model was fitted on.
        tensors: name to finite array.
        reading: how those were read; None in a file that does not say so.
        examples: number of marked images that steered the model; None where nothing did.
    """

    method: Method
    backbone: str
    foreground: tuple[dict[str, Any], ...]
    images: int
    tensors: dict[str, np.ndarray]
    reading: Reading | None = None
    examples: int | None = None


def read_model(path: str | Path) -> StoredModel:
    """Reads a model file and checks its metadata and values.

    Raises:
        ValueError: the file cannot be read, is no model, or holds something out of range.
    """
    facts, tensors = _read(path)
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} is not a model of unseg_jax.fit; fit and save one.")
    for name, array in tensors.items():
        if array.dtype not in (np.float32, np.float16, np.bool_, np.int8):
            raise _refusal(path, f"'{printable(name, 80)}' is of the dtype {array.dtype}")
        if not np.isfinite(array).all():
            raise _refusal(
                path, f"'{printable(name, 80)}' holds values that are not finite numbers"
            )
    backbone = facts.get("backbone")
    if not _is_text(backbone):
        raise _refusal(path, "it names no backbone")
    counts = []
    for name, value in (
        ("images", facts.get("images", "")),
        ("examples", facts.get("examples", "0")),
    ):
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise _refusal(path, f"{name}='{printable(value, 80)}' is not a number")
        counts.append(int(value))
    method = _parsed(path, facts, "method", method_from)
    foreground = _parsed(path, facts, "foreground", _clusters_from)
    reading = None
    if "reading" in facts:
        reading = _parsed(path, facts, "reading", Reading.from_json)
    images, examples = counts[0], counts[1] if "examples" in facts else None
    return StoredModel(method, str(backbone), foreground, images, tensors, reading, examples)


def build_model(
    path: str | Path, stored: StoredModel, backbone: Backbone
) -> tuple[Scorer | None, Params | None, Steering | None, Held | None]:
    """The scorer, the head, the steering and what an image that teaches itself is held to, of a
    model; their names and shapes checked.

    Args:
        path: of the file, for errors.
        stored: from `read_model`.
        backbone: that the model is applied with.

    Returns:
        The scorer or None, and the head's parameters or None, of which one is not None; the
        steering of a scorer, or None; and what it is sure of itself, or None.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape, or a backbone that the
            model was not fitted with.
    """
    method, tensors = stored.method, stored.tensors
    try:
        width = _feature_width(method, backbone)
    except ValueError as error:
        detail = str(error).strip().rstrip(".")
        raise ValueError(
            f"{path} does not fit the backbone '{backbone.name}': {detail}."
        ) from error
    scorer = _build_scorer(path, stored, width, backbone) if _has(tensors, "evidence/") else None
    head = None
    if _has(tensors, "head/"):
        inputs = width if scorer is None else scorer.basis.shape[1]
        head = _build_head(path, stored, inputs)
    steering, steered = None, 0
    if stored.examples is not None:
        read = len(scorer.mean) if scorer is not None else width
        centres = tensors.get("steering/centres", np.zeros((0, read)))
        count = max(1, len(centres))
        shapes = {"everywhere": (width + 3,), "like": (count, width + 3), "centres": (count, read)}
        shapes |= {"quality": (), "caution": ()}
        if "steering/caution" not in tensors:  # saved by an earlier version
            del shapes["caution"]
        parts = {name: tensors.get(f"steering/{name}") for name in shapes}
        if scorer is None or any(part is None for part in parts.values()):
            raise _refusal(path, "it holds nothing of its examples")
        for name, shape in shapes.items():
            _check_array(path, f"steering/{name}", parts[name], shape, np.float32)
        arrays = {name: jnp.asarray(part) for name, part in parts.items()}
        by_masks = _build_held(path, tensors, "steering/", width)
        steering = Steering(**arrays, examples=jnp.int32(stored.examples), held=by_masks)
        steered = len(shapes) + len(jax.tree.leaves(by_masks))
    held = None
    if _has(tensors, "held/"):
        taught = with_earlier_blocks(method, backbone)
        wide = _feature_width(taught, backbone)
        # A shallow backbone has no tokens of earlier blocks; images then teach themselves nothing.
        fewer = wide + 3 < len(np.atleast_1d(tensors.get("held/basis", 0)))
        if not (len(taught.blocks) < 3 and fewer):
            held = _build_held(path, tensors, "held/", wide, np.int8)
            if held is None:
                raise _refusal(path, "'held/basis' is missing")
            scale = tensors.get("held/scale", np.zeros(0))
            _check_array(path, "held/scale", scale, held.origin.shape, np.float32)
            held = held._replace(basis=jnp.asarray(held.basis, jnp.float32) * scale)
    known = len(scorer or ()) + len(jax.tree.leaves(head)) + steered
    known += sum(f"held/{name}" in tensors for name in (*Held._fields, "scale"))
    if known < len(tensors):
        raise _refusal(path, "it holds tensors of unknown names")
    if scorer is None and head is None:
        raise _refusal(path, "it holds neither a scorer nor a head")
    if (
        scorer is None
        and method.foreground == "set"
        and method.num_clusters != len(stored.foreground)
    ):
        raise _refusal(path, "it does not say which clusters are foreground")
    return scorer, head, steering, held


def method_from(fields: Mapping[str, Any]) -> Method:
    """A `Method` from the fields of one, all of them checked.

    >>> from unseg_jax.registry import METHODS
    >>> method_from(vars(METHODS["deepcut"])) == METHODS["deepcut"]
    True

    Args:
        fields: name to value, as `dataclasses.asdict` or JSON give them; there need be no group.

    Raises:
        ValueError: a field that is unknown, missing or out of range.
    """
    if isinstance(fields, Mapping) and "fit" in fields:  # as files named it first
        fields = {"resize" if name == "fit" else name: value for name, value in fields.items()}
    if isinstance(fields, Mapping):
        fields = {**_LATER, **fields}
    if not isinstance(fields, Mapping) or {*fields, "group"} != set(FIELDS):
        raise ValueError("its method does not have the fields of a Method")
    for name in ("name", "source", "backbone"):
        if not _is_text(fields[name]) and not (name == "source" and fields[name] == ""):
            raise ValueError(f"{name}={printable(repr(fields[name]), 80)} is not a short string")
    method = Method(**fields)
    _check_bounds(method)
    return method


def _check_bounds(method: Method) -> None:
    for name, most in _MOST.items():
        if getattr(method, name) > most:
            raise ValueError(f"{name}={getattr(method, name)} is more than {most}")
    if max(method.size) > _MOST_PIXELS:
        raise ValueError(f"image_size={method.image_size} is more than {_MOST_PIXELS} pixels")
    if sum(map(len, method.branches)) > _MOST_LAYERS:
        raise ValueError(f"branches have more than {_MOST_LAYERS} layers")


def single(array: Any) -> np.ndarray:
    """float64 as float32: only JAX_ENABLE_X64 gives a model any of the former."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            facts = file.metadata() or {}
            tensors = {name: single(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read the model {path}: {why(error)}.") from error
    return facts, tensors


def _parsed(
    path: str | Path, facts: Mapping[str, str], name: str, parse: Callable[[Any], Any]
) -> Any:
    """A value kept as JSON."""
    text = facts.get(name, "")
    if len(text) > _LONGEST_JSON:
        raise _refusal(path, f"its {name} is {len(text):,} characters long")
    try:
        return parse(json.loads(text, parse_constant=_no_constant))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _refusal(path, f"its {name} cannot be used ({why(error)})") from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _clusters_from(entries: Any) -> tuple[dict[str, Any], ...]:
    """What was found of each cluster, as `CollectiveModel.foreground`."""
    if not isinstance(entries, list) or not entries:
        raise ValueError("there are no clusters")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or entry.get("cluster") != index:
            raise ValueError(f"cluster {index} is missing")
        if entry.get("found") not in _KINDS:
            raise ValueError(f"cluster {index} is none of {', '.join(_KINDS)}")
        for name in ("share", "border_ratio", "score"):
            value = entry.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"cluster {index} has no {name}")
    return tuple(entries)


def _feature_width(method: Method, backbone: Backbone) -> int:
    """D of the features that a method takes from a backbone; nothing is computed."""
    depth = backbone.config.depth
    there = all(-depth <= block < depth for block in method.blocks)
    if there and (method.facet, method.stride, method.log_bin) == (None, None, False):
        backbone.grid(method.size)  # raises where the images are too small
        return backbone.config.width * len(method.blocks)  # without tracing it
    pixels = jax.ShapeDtypeStruct((1, *method.size, 3), jnp.uint8)
    features = jax.eval_shape(
        lambda params, pixels: extract_features(backbone, method, params, pixels),
        backbone.params,
        pixels,
    )
    return features.shape[-1]


def _build_scorer(path: str | Path, stored: StoredModel, width: int, backbone: Backbone) -> Scorer:
    parts: dict[str, np.ndarray] = {}
    for name in Scorer._fields:
        if f"evidence/{name}" not in stored.tensors:
            raise _refusal(path, f"'evidence/{name}' is missing")
        parts[name] = stored.tensors[f"evidence/{name}"]
    fitted, directions = parts["mean"].shape, parts["basis"].shape
    first = width // len(stored.method.blocks)
    if stored.examples is not None and fitted == (first,):
        width = first  # the other blocks are for the examples
    if len(fitted) == 1 and fitted[0] != width:
        raise ValueError(
            f"{path} was fitted on features of width {fitted[0]}, and '{backbone.name}' gives "
            f"{width}: use the backbone '{printable(stored.backbone, 80)}'."
        )
    components = directions[1] if len(directions) == 2 else 0
    hidden = parts["bias"].size
    clusters = len(stored.foreground)
    expected = {
        "mean": (width,),
        "basis": (width, components),
        "rest": (),
        "centres": (clusters, components),
        "frame": (clusters,),
        "weights": (components,),
        "offset": (),
        "kernel": (3, 3, components, hidden),
        "bias": (hidden,),
        "readout": (hidden,),
        "shift": (),
        "threshold": (),
    }
    for name, shape in expected.items():
        dtype = _DTYPES.get(name, np.float32)
        _check_array(path, f"evidence/{name}", parts[name], shape, dtype)
    if not components or not hidden:
        raise _refusal(path, "its scorer is empty")
    return Scorer(**jax.device_put(parts))


def _build_held(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    prefix: str,
    width: int,
    dtype: Any = np.float32,
) -> Held | None:
    parts = {name: tensors.get(prefix + name) for name in Held._fields}
    if all(part is None for part in parts.values()):
        return None  # an earlier version has none
    if parts["taught"] is None:
        del parts["taught"]
    rank = 0 if parts["origin"] is None else parts["origin"].size
    expected = {"basis": ((width + 3, rank), dtype), "origin": ((rank,), np.float32)}
    expected |= {"taught": ((rank,), np.float32)} if "taught" in parts else {}
    for name, (shape, kind) in expected.items():
        part = np.zeros(0) if parts[name] is None else parts[name]
        _check_array(path, prefix + name, part, shape, kind)
    return Held(**jax.device_put(parts))


def _build_head(path: str | Path, stored: StoredModel, inputs: int) -> Params:
    """The parameters in the form of fresh ones, each from the tensor of its name."""
    fresh = jax.eval_shape(lambda key: init_head(key, stored.method, inputs), jax.random.key(0))

    def leaf(keys: Any, expected: jax.ShapeDtypeStruct) -> jax.Array:
        name = "head/" + jax.tree_util.keystr(keys, simple=True, separator="/")
        array = stored.tensors.get(name)
        if array is None:
            raise _refusal(path, f"'{name}' is missing")
        _check_array(path, name, array, expected.shape, np.float32)
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(leaf, fresh)


def _check_array(
    path: str | Path, name: str, array: Any, shape: tuple[int, ...], dtype: Any
) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise _refusal(
            path,
            f"'{name}' is {array.dtype} of shape {array.shape}, where {np.dtype(dtype)} of shape "
            f"{shape} is expected",
        )


def _has(tensors: Mapping[str, np.ndarray], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def _refusal(path: str | Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not a model that can be used: {reason}; fit and save it again.")
