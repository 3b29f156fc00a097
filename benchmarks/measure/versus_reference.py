"""DeepCut, image files to masks: the published PyTorch code, our PyTorch writings, and unseg_jax.

All sides run in this one run on this one machine, on the same images with the same weights, taking
turns image by image. PyTorch and JAX live in processes of their own; `--torch-python` names the
interpreter of the PyTorch side where it is another one than this.

    python -m benchmarks versus_reference                             # our PyTorch writings
    python -m benchmarks versus_reference --deepcut ../DeepCut        # and the published code
    python -m benchmarks versus_reference --images DIR --masks DIR    # and IoU against truth

Speed is measured with random ViT-S/8 weights unless `--weights` names a DINO checkpoint; masks of
random weights say nothing, so agreement and IoU are measured apart, on the token features of
`--features` (real weights), which all loops are given.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import common
from benchmarks.measure.workers import Worker, WorkerError, torch_python

SETTINGS = {
    "DeepCut's defaults: 280×280, 10 epochs": {"size": (280, 280), "epochs": 10},
    "224×224, 100 epochs": {"size": (224, 224), "epochs": 100},
}
STAGES = ("load", "vit", "graph", "optimisation", "masks")
PUBLISHED, PYG = "published code", "PyTorch + PyG"
DENSE, DENSE16 = "PyTorch dense", "PyTorch dense, ViT bf16"
OURS, OURS16 = "unseg_jax", "unseg_jax bf16"
BATCHED, BATCHED16 = "unseg_jax, batches of 8", "unseg_jax bf16, batches of 8"


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        _run(options, Path(scratch))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--deepcut", type=Path, help="checkout of the published DeepCut")
    parser.add_argument("--torch-python", help="interpreter with torch and torch_geometric")
    parser.add_argument("--images", type=Path, help="folder of images; default: scikit-image's")
    parser.add_argument("--masks", type=Path, help="folder of their masks, by stem, for IoU")
    parser.add_argument("--weights", help="a DINO ViT-S/8 .pth; default: random weights")
    parser.add_argument("--features", default="dinov2_vits14_focus", help="backbone for IoU")
    parser.add_argument("--no-quality", action="store_true", help="time only")
    parser.add_argument("--no-speed", action="store_true", help="compare masks only")
    parser.add_argument("--limit", type=int, default=3, help="images that are timed")
    parser.add_argument("--quality-limit", type=int, default=40, help="images compared by IoU")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over the images")
    parser.add_argument("--quick", action="store_true", help="one image, once, few epochs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.deepcut is not None and not (options.deepcut / "segment.py").is_file():
        parser.error(f"{options.deepcut} is not a checkout of DeepCut: it has no segment.py.")
    if options.quick:
        options.limit, options.repeats, options.quality_limit = 1, 1, 2
    return options


def _run(options: argparse.Namespace, scratch: Path) -> None:
    python = torch_python(options.torch_python)
    if python is None:
        raise SystemExit(
            "this interpreter has no PyTorch; name one that has with --torch-python, "
            'or install "unseg_jax[reference]".'
        )
    images = common.photographs(options.images)
    timed = [_as_png(path, scratch) for path in images[: options.limit]]
    print(f"at least {_estimate(options) // 60 + 1} minutes on two cores", file=sys.stderr)
    with (
        Worker(python, "benchmarks.measure.torch_side") as torch_side,
        Worker(sys.executable, "benchmarks.measure.jax_side") as jax_side,
    ):
        weights = scratch / "vit.npz"
        if options.weights:
            path = str(Path(options.weights).expanduser())
            torch_side("convert_checkpoint", path=path, out=weights)
        else:
            torch_side("random_weights", out=weights)
        for side in (torch_side, jax_side):
            side("load_vit", weights=weights)
        result = {
            "versions": {
                "torch side": torch_side("environment")["versions"],
                "jax side": jax_side("environment")["versions"],
            },
            "weights": "given checkpoint" if options.weights else "random ViT-S/8",
            "images": len(timed),
            "repeats": options.repeats,
            "standins": None,
        }
        if options.deepcut:
            result["standins"] = torch_side("open_published", checkout=options.deepcut.resolve())
            print(_explain_standins(result["standins"]))
        result["settings"] = {}
        for name, setting in SETTINGS.items() if not options.no_speed else ():
            setting = dict(setting, epochs=2) if options.quick else setting
            measured = _measure(options, setting, timed, torch_side, jax_side, scratch)
            result["settings"][name] = measured
            print(f"\n**{name}**\n\n{table(measured)}\n", flush=True)
        if not options.no_quality:
            result["quality"] = _quality(options, images, torch_side, jax_side, scratch)
            if result["quality"]:
                print(quality_table(result["quality"]), flush=True)
        result["peak_memory_gib"] = {
            "torch side": torch_side("peak_memory"),
            "jax side": jax_side("peak_memory"),
        }
        torch_side("close")
    partial = options.quick or options.no_speed or options.no_quality
    if options.out or not partial:
        common.write_result("versus_reference", result, options.out)


def _estimate(options: argparse.Namespace) -> int:
    """Seconds: the message passing of the references is nearly all of it."""
    loops = 1 + (options.deepcut is not None)
    return options.limit * options.repeats * loops * (5 if options.quick else 42) + 60


def _explain_standins(names: list[str]) -> str:
    if not names:
        return "the published code runs as it is, with all that it imports."
    return (
        f"the published files run as they are; {', '.join(names)} "
        f"{'is' if len(names) == 1 else 'are'} not installed: minimal stand-ins take the place "
        "(benchmarks/reference/standins.py)."
    )


def _as_png(path: Path, scratch: Path) -> Path:
    """A copy as RGB PNG: what every side can read, decoded alike."""
    from PIL import Image

    target = scratch / f"{path.stem}.png"
    with Image.open(path) as image:
        image.convert("RGB").save(target)
    return target


# ---------------------------------------------------------------- speed


def _measure(options, setting, images, torch_side, jax_side, scratch) -> dict:
    """Stage times of all sides, taking turns over images and rounds."""
    sides = {
        PYG: (torch_side, "segment_image", {}),
        DENSE: (torch_side, "segment_image", {"dense": True}),
        DENSE16: (torch_side, "segment_image", {"dense": True, "bfloat16": True}),
        OURS: (jax_side, "segment_image", {}),
        OURS16: (jax_side, "segment_image", {"dtype": "bfloat16"}),
    }
    if options.deepcut:
        sides = {PUBLISHED: (torch_side, "segment_published", {}), **sides}
    stages: dict[str, list[dict]] = {name: [] for name in sides}
    out = scratch / "mask.npy"
    first = {}
    for name, (side, command, more) in sides.items():
        # The first call compiles, or makes threads and buffers; it is reported, not counted.
        compiles = name in (OURS, OURS16)
        epochs = setting["epochs"] if compiles else min(2, setting["epochs"])
        warm = {**setting, "epochs": epochs}
        spent = side(command, image=images[0], out=out, **warm, **more)
        if compiles:
            first[name] = common.round_to(sum(spent.values()))
    batched = {BATCHED: "float32", BATCHED16: "bfloat16"}
    group = [str(images[index % len(images)]) for index in range(8 if options.quick else 16)]
    for dtype in batched.values():
        jax_side("segment_images", images=group[:8], batch_size=8, dtype=dtype, **setting)
    whole: dict[str, list[float]] = {name: [] for name in batched}
    for turn in range(options.repeats):
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        for image in images:
            for name in order:
                side, command, more = sides[name]
                stages[name].append(side(command, image=image, out=out, **setting, **more))
        for name, dtype in batched.items():
            spent = jax_side("segment_images", images=group, batch_size=8, dtype=dtype, **setting)
            whole[name].append(spent / len(group))
    rows = {}
    for name, runs in stages.items():
        medians = {
            stage: common.round_to(statistics.median(run[stage] for run in runs))
            for stage in STAGES
            if stage in runs[0]
        }
        rows[name] = {"stages": medians, "image": common.summarise(sum(r.values()) for r in runs)}
    for name, spent in whole.items():
        rows[name] = {"stages": {}, "image": common.summarise(spent)}
    return {
        "size": setting["size"],
        "epochs": setting["epochs"],
        "sides": rows,
        "first_call_seconds": first,
    }


def table(measured: dict) -> str:
    """Seconds an image by stage, and ratios to the slowest reference."""
    sides = measured["sides"]
    reference = PUBLISHED if PUBLISHED in sides else PYG
    base = sides[reference]["image"]["median"]
    header = ["seconds an image", *STAGES, "whole", f"{reference} takes"]
    rows = []
    for name, row in sides.items():
        cells = [common.seconds(row["stages"].get(stage)) for stage in STAGES]
        whole = row["image"]["median"]
        rows.append([name, *cells, common.seconds(whole), common.ratio(base, whole)])
    loop = [
        sides[name]["stages"].get("graph", 0.0) + sides[name]["stages"]["optimisation"]
        for name in (reference, OURS)
    ]
    lines = common.table(header, rows)
    return f"{lines}\n\nGraph and optimisation: {common.ratio(*loop)} faster than {reference}."


# ---------------------------------------------------------------- quality


def _quality(options, images, torch_side, jax_side, scratch) -> dict:
    """IoU of all loops on the same real features: with the truth, and with each other."""
    from PIL import Image

    try:
        jax_side("load_vit", weights=options.features)
        chosen = [path for path in images if _truth_of(path, options.masks) or not options.masks]
        chosen = chosen[: options.quality_limit]
        patch, side = 14, 224
        scores: dict[str, list[float]] = {}
        agreement: dict[str, list[float]] = {}
        bfloat16: list[float] = []
        commands = {PYG: (torch_side, "segment_image"), OURS: (jax_side, "segment_image")}
        if options.deepcut:
            commands = {PUBLISHED: (torch_side, "segment_published"), **commands}
        setting = {"size": (side, side), "epochs": 10}
        for path in chosen:
            image = _as_png(path, scratch)
            with Image.open(image) as opened:
                resized = opened.resize((side, side), Image.Resampling.LANCZOS)
            np.save(scratch / "pixels.npy", np.asarray(resized)[None])
            features = {}
            for dtype in ("float32", "bfloat16"):
                features[dtype] = scratch / f"{dtype}.npy"
                jax_side(
                    "save_features",
                    pixels=scratch / "pixels.npy",
                    out=features[dtype],
                    facet="token",
                    grid=True,
                    dtype=dtype,
                )
            masks = {}
            # Two seeds of the reference show how far chance alone moves a mask.
            asked = [(name, name, "float32", 0) for name in commands]
            asked += [
                ("PyTorch + PyG, another seed", PYG, "float32", 1),
                (OURS16, OURS, "bfloat16", 0),
            ]
            for name, key, dtype, seed in asked:
                worker, command = commands[key]
                out = scratch / "quality.npy"
                nodes = features[dtype]
                worker(command, image=image, out=out, features=nodes, seed=seed, **setting)
                masks[name] = np.load(out)
            bfloat16.append(_agreement(masks[OURS16], masks[OURS]))
            truth_path = _truth_of(path, options.masks)
            for name, mask in masks.items():
                if truth_path:
                    truth = _load_truth(truth_path, mask.shape)
                    score = common.intersection_over_union(mask, truth)
                    scores.setdefault(name, []).append(score)
                score = _agreement(mask, masks[PYG])
                agreement.setdefault(name, []).append(score)
    except WorkerError as error:
        print(f"no comparison of masks: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return {
        "features": f"{options.features}, tokens, {side}×{side}, patch {patch}",
        "data": _name_of(options.images),
        "images": len(chosen),
        "epochs": setting["epochs"],
        "miou": {name: round(statistics.mean(values), 4) for name, values in scores.items()},
        "bfloat16_agreement": round(statistics.mean(bfloat16), 4),
        "agreement_with_pyg": {
            name: round(statistics.mean(values), 4) for name, values in agreement.items()
        },
    }


def _name_of(folder: Path | None) -> str:
    """A folder's name; that of the data set where the folder is only called images."""
    if folder is None:
        return "photographs of scikit-image"
    folder = folder.resolve()
    return folder.parent.name if folder.name == "images" else folder.name


def _agreement(mask: np.ndarray, other: np.ndarray) -> float:
    """Share of pixels on the same side of the cut, whichever side is called the object."""
    same = float((mask == other).mean())
    return max(same, 1 - same)


def _truth_of(path: Path, masks: Path | None) -> Path | None:
    if masks is None:
        return None
    found = [masks / f"{path.stem}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
    return next((mask for mask in found if mask.is_file()), None)


def _load_truth(path: Path, shape: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as opened:
        grey = opened.convert("L").resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(grey) > 127


def quality_table(quality: dict) -> str:
    """mIoU with the truth where there is one, and the share of pixels cut as by PyG."""
    rows = [
        [name, quality["miou"].get(name, "–"), f"{100 * value:.1f} %"]
        for name, value in quality["agreement_with_pyg"].items()
    ]
    header = [f"{quality['images']} images, {quality['data']}", "mIoU", "pixels cut as by PyG"]
    share = f"{100 * quality['bfloat16_agreement']:.2f} %"
    return (
        f"{common.table(header, rows)}\n\nbfloat16 and float32 features give the same label to "
        f"{share} of pixels."
    )


if __name__ == "__main__":
    main()
