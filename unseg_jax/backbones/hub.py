"""The Hugging Face hub: is it there, a file from it, and any ViT of a known layout by its name."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unseg_jax.backbones.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from unseg_jax.backbones.layouts import infer_config
from unseg_jax.cache import unwritable
from unseg_jax.errors import WeightsError, why

PREFIX = "hf:"
"""What the names of backbones from the hub begin with: hf:ORG/NAME, or hf:ORG/NAME@REVISION."""
WEIGHTS = "model.safetensors"

_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def parse_name(name: str) -> tuple[str, str | None]:
    """(repository, revision or None) of a name such as hf:ORG/NAME.

    >>> parse_name("hf:facebook/dinov2-with-registers-small")
    ('facebook/dinov2-with-registers-small', None)

    Raises:
        ValueError: another form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"'{name}' is not of the form hf:ORG/NAME or hf:ORG/NAME@REVISION.")
    return match["repository"], match["revision"]


def cached_file(repository: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository if it is in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def unreachable(timeout: float) -> str | None:
    """Why the hub does not answer within `timeout` seconds, or None if it does.

    The hub's client retries for half a minute, whatever a call sets; a name that does not resolve
    may block past any socket's time-out.
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


def download(repository: str, file: str, revision: str | None, timeout: float) -> Path:
    """A file of the repository ORG/NAME from the hub, at a commit, branch or tag.

    Raises:
        WeightsError: the hub does not answer within `timeout` seconds, or has no such file; no
            full stop, as callers add what was asked for.
    """
    from huggingface_hub import constants, hf_hub_download

    if reason := unreachable(timeout):
        raise WeightsError(reason)
    if reason := unwritable(Path(constants.HF_HUB_CACHE)):
        raise WeightsError(
            f"{constants.HF_HUB_CACHE} cannot be written to, {reason}; set HF_HUB_CACHE to a "
            "folder that can"
        )
    try:
        return Path(hf_hub_download(repository, file, revision=revision, etag_timeout=timeout))
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise WeightsError(f"{type(error).__name__}: {why(error)}") from error


def fetch_file(name: str, timeout: float, file: str = WEIGHTS) -> Path:
    """A file of hf:ORG/NAME, from the hub's cache or from the hub within `timeout` seconds.

    Raises:
        ValueError: a name of another form.
        WeightsError: the repository cannot be reached or has no such file.
    """
    repository, revision = parse_name(name)
    cached = cached_file(repository, file, revision)
    try:
        return cached or download(repository, file, revision, timeout)
    except WeightsError as error:
        raise WeightsError(
            f"{name} cannot be fetched ({error}); check the name, and that the repository holds "
            f"{file}."
        ) from error


def read_facts(name: str, timeout: float) -> dict[str, Any]:
    """What a repository says of its model: `config.json` and `preprocessor_config.json` together.

    Raises:
        WeightsError: one of them is no JSON object.
    """
    facts: dict[str, Any] = {}
    for file in ("config.json", "preprocessor_config.json"):
        try:
            path = fetch_file(name, timeout, file)
        except WeightsError:
            continue  # not every repository has them
        try:
            facts.update(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"{file} of {name} is not readable as a JSON object; use another model."
            ) from error
    return facts


def config_of(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any], where: str) -> ViTConfig:
    """The shape of a model from the hub: from its tensors, and what they do not show from `facts`.

    Raises:
        WeightsError: tensors of another architecture, or facts that this transformer does not
            follow (its activation, or the normalisation of pixels).
    """
    config = infer_config(tensors, where)
    pretrained = facts.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    for words, expected, stated in (
        ("activation", "gelu", facts.get("hidden_act")),
        ("mean of pixels", IMAGENET_MEAN, facts.get("image_mean", pretrained.get("mean"))),
        ("deviation of pixels", IMAGENET_STD, facts.get("image_std", pretrained.get("std"))),
    ):
        if stated is not None and not _same(stated, expected):
            raise WeightsError(
                f"{where} was trained with the {words} {stated}, where {expected} is used here; "
                "use another model."
            )
    heads = facts.get("num_attention_heads", config.heads)
    if not isinstance(heads, int) or heads < 1 or config.width % heads:
        raise WeightsError(
            f"{where} says that it has {heads!r} attention heads, which do not divide its width "
            f"{config.width}; use another model."
        )
    epsilon = facts.get("layer_norm_eps", config.norm_epsilon)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise WeightsError(f"{where} says layer_norm_eps={epsilon!r}, which is no small number.")
    return dataclasses.replace(config, heads=heads, norm_epsilon=epsilon)


def _same(stated: Any, expected: str | tuple[float, ...]) -> bool:
    if isinstance(expected, str):
        return stated == expected
    try:
        return np.allclose(np.asarray(stated, float), expected, atol=1e-3)
    except (TypeError, ValueError):
        return False
