"""Seconds an image of `unseg_jax.postprocess.bilateral` and of the solver as it was published.

The published one is written out here with NumPy and SciPy, step by step as its authors'
reference implementation goes: floating-point hashes of the coordinates, one sparse matrix for
every dimension, `scipy.sparse.linalg.cg`. Both solve the same images in turn, in one run.

    python benchmarks/bilateral.py --out benchmarks/results/bilateral.json [IMAGE...]
"""

import os

# One thread for both: the published solver's small products are slower with several.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import cg

from unseg_jax.postprocess import refine

SIGMAS = ((24, 4, 4), (11, 5, 5))


def published(image, target, sigma_spatial, sigma_luma, sigma_chroma):
    """Soft (H, W) float64 and hard (H, W) bool as the reference implementation computes them.

    image: (H, W, 3) uint8; target: (H, W) in [0, 1].
    """
    height, width = target.shape
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    yuv = np.tensordot(image, matrix, ([2], [1])) + np.array([0, 128.0, 128.0])
    y, x = np.mgrid[:height, :width]
    coordinates = np.dstack(
        [
            (x / sigma_spatial).astype(int),
            (y / sigma_spatial).astype(int),
            (yuv[..., 0] / sigma_luma).astype(int),
            (yuv[..., 1:] / sigma_chroma).astype(int),
        ]
    ).reshape(-1, 5)
    powers = 255.0 ** np.arange(5)
    hashes, first, vertex = np.unique(coordinates @ powers, return_index=True, return_inverse=True)
    vertices = coordinates[first]
    pixels, number = coordinates.shape[0], len(vertices)
    splat = csr_matrix((np.ones(pixels), (vertex, np.arange(pixels))))

    blurs = []
    for dimension in range(5):
        both = 0.0
        for step in (-1, 1):
            offset = np.zeros((1, 5))
            offset[0, dimension] = step
            wanted = (vertices + offset) @ powers
            place = np.clip(np.searchsorted(hashes, wanted), 0, number - 1)
            here = np.flatnonzero(hashes[place] == wanted)
            both = both + csr_matrix(
                (np.ones(len(here)), (here, place[here])), shape=(number, number)
            )
        blurs.append(both)

    def blur(values):
        result = 10 * values
        for one in blurs:
            result = result + one.dot(values)
        return result

    mass, scale = splat.dot(np.ones(pixels)), np.ones(number)
    for _ in range(10):
        scale = np.sqrt(scale * mass / blur(scale))
    mass = scale * blur(scale)
    smoothness = diags(mass, 0) - diags(scale, 0).dot(blur(diags(scale, 0)))

    confidence = np.full((pixels, 1), 0.999)
    flat = target.reshape(-1, 1).astype(np.float64)
    weights = splat.dot(confidence)
    system = 256 * smoothness + diags(weights[:, 0], 0)
    right = splat.dot(flat * confidence)
    preconditioner = diags(1 / np.maximum(system.diagonal(), 1e-5), 0)
    start = right / weights
    found, _ = cg(
        system, right[:, 0], x0=start[:, 0], M=preconditioner, maxiter=25, rtol=1e-5, atol=0.0
    )
    soft = splat.T.dot(found).reshape(height, width)

    regions, count = ndimage.label(ndimage.binary_fill_holes(soft > 0.5))
    sizes = [np.sum(regions == region) for region in range(count + 1)]
    order = np.argsort(sizes)
    hard = regions == order[-2] if count else np.ones(target.shape, bool)
    return soft, hard


def rough_mask(image: np.ndarray, seed: int) -> np.ndarray:
    """A mask of patches, as segmentation gives it: an ellipse on a grid of 8 × 8 pixels."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] // 8 * 8 + 4
    middle_y, middle_x = rng.uniform(0.4, 0.6, 2) * (height, width)
    radius_y, radius_x = rng.uniform(0.2, 0.4, 2) * (height, width)
    return ((y - middle_y) / radius_y) ** 2 + ((x - middle_x) / radius_x) ** 2 < 1


def load(paths: list[Path], size: tuple[int, int] | None) -> list[tuple[str, np.ndarray]]:
    """The images named, or the photographs that scikit-image ships."""
    images = []
    if paths:
        for path in paths:
            with Image.open(path) as picture:
                images.append((path.name, np.array(picture.convert("RGB"))))
    else:
        from skimage import data

        for name in ("astronaut", "chelsea", "coffee", "rocket", "cat"):
            images.append((name, np.asarray(getattr(data, name)())))
    if size is not None:
        resized = []
        for name, image in images:
            picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
            resized.append((name, np.array(picture)))
        return resized
    return images


def measure(images, sigmas, repeats: int) -> dict:
    """Times both on each image in turn and compares what they give."""
    seconds = {"published": [], "ours": []}
    processor = {"published": [], "ours": []}
    rows, worst_soft, agreement = [], 0.0, 1.0
    for index, (name, image) in enumerate(images):
        target = rough_mask(image, index).astype(np.float64)
        times = {"published": [], "ours": []}
        busy = {"published": [], "ours": []}
        soft = hard = our_soft = our_hard = np.zeros(0)
        for _ in range(repeats):
            start, start_busy = time.perf_counter(), time.process_time()
            soft, hard = published(image, target, *sigmas)
            between, between_busy = time.perf_counter(), time.process_time()
            our_soft, our_hard = refine(image, target, *sigmas, quirks="code")
            times["published"].append(between - start)
            times["ours"].append(time.perf_counter() - between)
            busy["published"].append(between_busy - start_busy)
            busy["ours"].append(time.process_time() - between_busy)
        medians = {who: statistics.median(values) for who, values in times.items()}
        for who, value in medians.items():
            seconds[who].append(value)
            processor[who].append(statistics.median(busy[who]))
        worst_soft = max(worst_soft, float(np.abs(soft - our_soft).max()))
        agreement = min(agreement, float((hard == our_hard).mean()))
        rows.append(
            {
                "image": name,
                "height": image.shape[0],
                "width": image.shape[1],
                "published_seconds": round(medians["published"], 5),
                "seconds": round(medians["ours"], 5),
                "ratio": round(medians["published"] / medians["ours"], 2),
            }
        )
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    processor_medians = {who: statistics.median(values) for who, values in processor.items()}
    return {
        "sigma_spatial": sigmas[0],
        "sigma_luma": sigmas[1],
        "sigma_chroma": sigmas[2],
        "published_seconds": round(medians["published"], 5),
        "seconds": round(medians["ours"], 5),
        "ratio": round(medians["published"] / medians["ours"], 2),
        # Processor time tells the two apart also where other programs take turns.
        "processor_ratio": round(processor_medians["published"] / processor_medians["ours"], 2),
        "worst_soft_difference": worst_soft,
        "least_hard_agreement": agreement,
        "images": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path, help="photographs; default scikit-image's")
    parser.add_argument("--repeats", type=int, default=7, help="of each solver on each image")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    results = {}
    for label, size in (("480x640", (480, 640)), ("own_size", None)):
        images = load(options.images, size)
        results[label] = [measure(images, sigmas, options.repeats) for sigmas in SIGMAS]
        for result in results[label]:
            print(
                f"{label} sigma {result['sigma_spatial']}/{result['sigma_luma']}/"
                f"{result['sigma_chroma']}: published {result['published_seconds']:.3f} s, "
                f"ours {result['seconds']:.3f} s, {result['ratio']:.1f} times as fast "
                f"({result['processor_ratio']:.1f} by processor time); "
                f"soft within {result['worst_soft_difference']:.1e}, "
                f"hard equal on {100 * result['least_hard_agreement']:.3f} %"
            )
    summary = {
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "system": platform.system(),
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "repeats": options.repeats,
        "blas_threads": int(os.environ["OPENBLAS_NUM_THREADS"]),
        "results": results,
    }
    if options.out is not None:
        from unseg_jax.files import write_json

        write_json(options.out, summary)
    else:
        json.dump(summary, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
