"""The fast bilateral solver as it was published, step by step with NumPy and SciPy.

Floating-point hashes of the coordinates, one sparse matrix for every dimension,
`scipy.sparse.linalg.cg`. `unseg_jax.postprocess.bilateral` is compared with it.
"""

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import cg


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
