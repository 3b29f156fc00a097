"""The whole accelerator table in one command of under eight minutes.

Needs jax with the accelerator's plugin, flax, optax, numpy, pillow, scipy and scikit-image; torch
and torch-geometric for the PyTorch rows. ViT weights are random: speed does not depend on them.
Labels are checked on saved features of real photographs against the labels that a CPU gave.
Images are already decoded and on the device. The result is written after every row, so a run that
is killed keeps what it measured.

    python -m benchmarks accelerator [--torch-python PATH]
    python -m benchmarks accelerator --save-features    # on a CPU: makes the file of the check
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

# PyTorch shares the accelerator, so JAX must not take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks.accelerators.parts import FEATURES, PARTS, Clock, Context
from benchmarks.measure import common
from benchmarks.measure.random_weights import random_state

_PLUGINS = (
    "jax-cuda12-plugin",
    "jax-cuda12-pjrt",
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "jax-rocm7-plugin",
    "jax-rocm7-pjrt",
    "libtpu",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)


def main() -> None:
    options = _parse()
    if options.save_features:
        save_features()
        return
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "versions": {"jax side": common.versions() | plugin_versions()},
        "driver": driver(),
        "platform": getattr(device.client, "platform_version", "").split("\n")[0],
        "quick": options.quick,
        "finished": False,
        "parts": {},
        "errors": {},
    }
    print(f"{result['devices']} × {device.device_kind}", file=sys.stderr, flush=True)
    clock = Clock(options.budget)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vit.npz"
        tiny = {"width": 64, "depth": 2, "native_grid": 8} if options.quick else {}
        np.savez(weights, **random_state(**tiny))  # type: ignore[arg-type]
        context = Context(options, weights, clock, result)
        for name, (part, share) in PARTS.items():
            if options.parts and name not in options.parts:
                continue
            clock.begin(share)
            if clock.spent > clock.budget:
                result["errors"][name] = f"left out: {clock.spent:.0f} s were spent already"
                continue
            try:
                part(context)
            except (Exception, SystemExit) as error:  # a part that fails must not cost the others
                result["errors"][name] = f"{type(error).__name__}: {str(error)[-500:]}"
            context.save()
        result["finished"] = True
        context.save()
    print(table(result))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", help="interpreter with torch and torch_geometric")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="only these rows")
    parser.add_argument("--budget", type=float, default=420, help="seconds; later rows are left")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save-features", action="store_true", help="make the file of the check")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 2
    return options


def plugin_versions() -> dict[str, str]:
    """Versions of the accelerator's packages that are installed."""
    found = {}
    for name in _PLUGINS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def driver() -> str:
    """Name, driver and memory of the GPUs, as nvidia-smi says; "" where there is none."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.strip().splitlines())


def save_features() -> None:
    """Saves token features of photographs, in float16, with the labels that this CPU gives."""
    from PIL import Image

    import unseg_jax as us
    from unseg_jax.backbones import load_backbone

    backbone = load_backbone("dinov2_vits14_focus")
    images = []
    for path in common.photographs(limit=6):
        with Image.open(path) as opened:
            resized = opened.convert("RGB").resize((168, 168), Image.Resampling.LANCZOS)
        images.append(np.asarray(resized))
    features = np.asarray(backbone.features(backbone.params, np.stack(images))).astype(np.float16)
    labels = {
        f"labels.{method}": np.asarray(
            us.cluster(features.astype(np.float32), method=method, dropout=0.0).labels
        ).astype(np.uint8)
        for method in ("deepcut", "deepcut-cc", "unsegarmanet", "unsegmedgat")
    }
    FEATURES.parent.mkdir(exist_ok=True)
    np.savez_compressed(FEATURES, features=features, **labels)
    print(f"wrote {FEATURES.name}: {FEATURES.stat().st_size / 2**10:.0f} KiB", file=sys.stderr)


# ---------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    """Images a second of unseg_jax and PyTorch on the device, and the shares of its limits."""
    parts = result["parts"]
    torch = parts.get("torch", {})
    rates = parts.get("rates", {})
    rows = []
    for part in ("whole", "vit", "loop", "heads"):
        for title, row in parts.get(part, {}).items():
            theirs = torch.get(row.get("torch"), {}).get("images_per_second")
            rows.append(
                [
                    title,
                    row["batch"],
                    f"{row['images_per_second']:.4g}",
                    "–" if theirs is None else f"{theirs:.4g}",
                    "–" if theirs is None else common.ratio(row["images_per_second"], theirs),
                    *(_percent(share) for share in shares(row, rates)),
                    ", ".join(f"{batch}: {rate:.4g}" for batch, rate in row["by_batch"].items()),
                    row["stopped"],
                ]
            )
    header = [result["device"], "batch", "images/s", "PyTorch", "ratio", "of operations"]
    header += ["of bytes", "of launches", "images/s by batch", "larger batches"]
    lines = [common.table(header, rows)]
    if "labels" in parts:
        lines.append(
            common.table(
                ["patches labelled alike", "here and on a CPU", "here with two random seeds"],
                [
                    [title, _percent(row["cpu"], 1), _percent(row["seed"], 1)]
                    for title, row in parts["labels"].items()
                ],
            )
        )
    if not result.get("finished", True):
        lines.append("The run was ended before it was done.")
    if result["errors"]:
        errors = (f"{name} ({error})" for name, error in result["errors"].items())
        lines.append(f"Not measured: {'; '.join(errors)}.")
    return "\n\n".join(lines)


def shares(row: dict[str, Any], rates: dict[str, Any]) -> tuple[float | None, ...]:
    """Of the time of a row, what its products, its bytes and its launches take at the least.

    Args:
        row: with `images_per_second`, and `operations`, `bytes` and `kernels` of a batch.
        rates: the part of that name; without it nothing is known.
    """
    if not rates:
        return None, None, None
    seconds = row["batch"] / row["images_per_second"]
    operations = row["operations"]
    products = operations["half"] / rates["bfloat16"] + operations["default"] / rates["tf32"]
    products += operations["exact"] / rates["float32"]
    moved, launched = row["bytes"] / rates["copy_bytes"], row["kernels"] * rates["launch_seconds"]
    return products / seconds, moved / seconds, launched / seconds


def _percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


if __name__ == "__main__":
    main()
