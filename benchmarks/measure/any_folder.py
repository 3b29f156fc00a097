"""How well a folder of any kind is segmented without an option, and what a few examples add.

    python -m benchmarks any_folder --data FOLDER... [--images 24] [--draws 3]

FOLDER is a data set, or holds one in each subfolder, as `unseg-jax bench --data` takes them. Of
each set so many images, evenly spread, are segmented at full size by

* auto: what `unseg-jax segment` does; ready: the model that ships; fit: `--method collective`;
* deepcut: the published method with its own features;
* 1, 3, 10 examples: `unseg-jax fit --examples` with as many true masks, drawn anew each time;
* probe: a ridge on the same features with the masks of half of the images.

Scores are mean IoU under the honest protocol, those of examples and probe on the other images. A
second table says how well the confidence tells masks with an IoU below .5 from the others, over the
images of all sets. It writes benchmarks/results/any_folder.json, and with --sheets FOLDER a picture
of each set: the image with the median IoU of `auto`, its truth, and what was found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import common
from benchmarks.measure.common import intersection_over_union
from benchmarks.measure.quality import auc
from benchmarks.measure.quality_sets import enlarge
from unseg_jax.collective.choosing import choose
from unseg_jax.collective.fitting import fit_set
from unseg_jax.collective.shipped import load_shipped
from unseg_jax.data import Dataset, open_dataset
from unseg_jax.data.masks import load_mask
from unseg_jax.data.reading_options import PLAIN
from unseg_jax.export.drawing import overlay
from unseg_jax.export.records import UNSURE
from unseg_jax.registry import resolve
from unseg_jax.segmenter import BatchSegmenter, load_for
from unseg_jax.segmenter.decoded_cache import DecodedCache

EXAMPLES = (1, 3, 10)
_LOWS = (0, 0.25, 0.5, 0.75)
_TITLES = {"auto": "auto", "ready": "ready model", "fit": "fit", "deepcut": "deepcut"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=int, default=24, help="of each set")
    parser.add_argument("--draws", type=int, default=3, help="of each number of examples")
    parser.add_argument("--backbone", default="auto", help="name or weights, for all but deepcut")
    parser.add_argument("--sheets", type=Path, help="folder for a picture of each set")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    sets: dict[str, Any] = {}
    result = {"versions": {"jax side": common.versions()}, "draws": options.draws, "sets": sets}
    backbone = load_for(resolve("collective"), options.backbone)[1]
    for name, dataset in data_sets(options.data):
        sets[name] = measure(dataset, backbone, options.images, options.draws, options.sheets)
        print(f"{name}: {sets[name]['auto']}", flush=True)
        common.write_result("any_folder", result, options.out, quiet=True)
    print(f"{table(result)}\n\n{confidence_table(result)}")


def data_sets(folders: Iterable[Path]) -> Iterable[tuple[str, Dataset]]:
    """Name and content of each set in the folders, in order."""
    for folder in folders:
        try:
            yield folder.name, open_dataset(str(folder))
        except ValueError:
            inner = sorted(path for path in folder.iterdir() if path.is_dir())
            if not inner:
                raise
            yield from data_sets(inner)


def measure(
    dataset: Dataset, backbone: Any, most: int, draws: int, sheets: Path | None = None
) -> dict[str, Any]:
    """Mean IoU of a set by what segmented it, each image passing the backbone twice."""
    places = np.unique(np.linspace(0, len(dataset.items) - 1, most).astype(int))
    items = [dataset.items[place] for place in places]
    images: list[Any] = [item.image for item in items]
    truths = [load_mask(item.mask, dataset.rule) for item in items]
    method, cache = resolve("collective"), DecodedCache()

    every = range(len(images))

    def judged(segmenter: BatchSegmenter, to: Sequence[int]) -> np.ndarray:
        """(n, 2) IoU and confidence."""
        found = segmenter.stream([images[at] for at in to])
        pairs = zip(found, [truths[at] for at in to], strict=True)
        scored = [(intersection_over_union(a.mask, truth), a.confidence) for a, truth in pairs]
        return np.array(scored)

    def fitted(**marks: Any) -> BatchSegmenter:
        options = {"steps": 0, "backbone": backbone, "kept": cache, **marks}
        return fit_set(images, method, PLAIN, **options).segmenter(closer=not marks, kept=cache)

    on_set = fitted()
    sure = {"fit": judged(on_set, every)}
    sure["ready"] = judged(
        load_shipped(backbone=backbone).segmenter(closer=True, kept=cache), every
    )
    chosen = choose("auto", images)
    sure["auto"] = sure["fit" if chosen.fits else "ready"]
    auto = sure["auto"][:, 0]
    deepcut = judged(BatchSegmenter(*load_for(resolve("deepcut"), "auto")), every)[:, 0]
    found: dict[str, Any] = {"images": len(images), "deepcut": deepcut}
    found |= {name: both[:, 0] for name, both in sure.items()}
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(images)) for _ in range(draws)]
    for count in EXAMPLES:
        pairs = []
        for order in orders if count < len(images) else ():
            examples = {images[at]: truths[at] for at in order[:count]}
            others = np.sort(order[count:])
            steered = judged(fitted(examples=examples), others)[:, 0]
            pairs.append((steered.mean(), auto[others].mean()))
        if pairs:
            found[f"examples {count}"], found[f"auto beside {count}"] = np.mean(pairs, 0)
    kept: list[Any] = [cache.get(image, on_set.method.feature_key) for image in images]
    # Of the last block, which comes first, as long as a fit reads others as well.
    share = method.feature_parts / on_set.method.feature_parts
    features = [one.prepared[..., : round(share * one.prepared.shape[-1])] for one in kept]
    found["probe"] = np.mean([probe(features, truths, order) for order in orders])
    if sheets is not None:
        middle = int(np.argsort(auto)[len(auto) // 2])
        segmenter = fitted() if chosen.fits else load_shipped(backbone=backbone).segmenter()
        mask = segmenter([images[middle]])[0].mask
        _draw(sheets / f"{dataset.name}.png", images[middle], truths[middle], mask)
    scores = {name: value if name == "images" else _round(value) for name, value in found.items()}
    return scores | {"confidence": {name: both.round(4).tolist() for name, both in sure.items()}}


def probe(features: list[np.ndarray], truths: list[np.ndarray], order: np.ndarray) -> float:
    """Mean IoU of a ridge on the features of half of the images, on the other half."""
    half = len(order) // 2
    rows = [one.reshape(-1, one.shape[-1]).astype(np.float32) for one in features]
    rows = [one / np.linalg.norm(one, axis=-1, keepdims=True) for one in rows]
    x = np.concatenate([rows[at] for at in order[:half]])
    y = np.concatenate(
        [enlarge(truths[at].astype(float), features[at].shape[:2]).ravel() for at in order[:half]]
    )
    centre, middle = x.mean(0), y.mean()
    gram = (x - centre).T @ (x - centre)
    gram += np.eye(len(gram)) * 1e-3 * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram, (x - centre).T @ (y - middle))
    found = []
    for at in order[half:]:
        margins = ((rows[at] - centre) @ weights + middle - 0.5).reshape(features[at].shape[:2])
        mask = enlarge(margins, truths[at].shape) > 0
        found.append(intersection_over_union(mask, truths[at]))
    return float(np.mean(found))


def _share(hits: np.ndarray) -> str:
    return f"{np.mean(hits):.0%}" if len(hits) else "–"


def _round(value: Any) -> float:
    return round(float(np.mean(value)), 4)


def _draw(path: Path, image: Any, truth: np.ndarray, mask: np.ndarray) -> None:
    pixels = PLAIN.read(image).pixels
    sides = [pixels, *(overlay(pixels, found.astype(np.int32)) for found in (truth, mask))]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sides, 1)).save(path)


def table(result: dict[str, Any]) -> str:
    """A row a set, and their mean; in brackets what examples add on the same images."""
    sets = dict(result["sets"])
    names = sorted({name for one in sets.values() for name in one} - {"images", "confidence"})
    mean = {name: _round([one[name] for one in sets.values() if name in one]) for name in names}
    shown = [*_TITLES, *(f"examples {count}" for count in EXAMPLES), "probe"]

    def cells(one: dict[str, Any]) -> Iterable[str]:
        for name in shown:
            if name not in one:
                yield "–"
                continue
            value = f"{100 * one[name]:.1f}"
            beside = one.get(name.replace("examples", "auto beside")) if "ex" in name else None
            yield value if beside is None else f"{value} ({100 * (one[name] - beside):+.1f})"

    header = ["set", "images", *(_TITLES.get(name, name) for name in shown)]
    lines = [[name, one["images"], *cells(one)] for name, one in sets.items()]
    lines.append(["**mean**", "", *cells(mean)])
    return common.table(header, lines)


def confidence_table(result: dict[str, Any]) -> str:
    """How well the confidence tells masks with an IoU below .5, over the images of all sets."""
    sets, lines = result["sets"], []
    for kind, title in list(_TITLES.items())[:3]:
        pairs = np.concatenate([one["confidence"][kind] for one in sets.values()])
        wrong, sure = pairs[:, 0] < 0.5, pairs[:, 1]
        shares = [_share(sure[side] < UNSURE) for side in (wrong, ~wrong)]
        bins = [(sure >= low) & (sure < low + 0.25 + 1e-6 * (low > 0.7)) for low in _LOWS]
        right = [f"{_share(~wrong[bin])} of {bin.sum()}" for bin in bins]
        area = f"{auc(sure[~wrong], sure[wrong]):.2f}" if 0 < wrong.sum() < len(wrong) else "–"
        lines.append([title, area, *shares, *right])
    header = ["confidence of", "AUC", f"below {UNSURE:g}: IoU < .5", f"below {UNSURE:g}: others"]
    header += [f"right from {low:g}" for low in _LOWS]
    return common.table(header, lines)


if __name__ == "__main__":
    main()
