"""The bilateral solver against the published code's output and against a grid of dictionaries."""

import numpy as np
import pytest

from benchmarks.reference.bilateral import published
from unseg_jax.postprocess import bilateral_grid, refine, refine_labels, refine_segmentation
from unseg_jax.postprocess.bilateral import solve

RNG = np.random.default_rng(0)


def written_out(image, target, sigmas, confidence=0.999):
    """The solver by definition: vertices in a dictionary, dense matrices, SciPy's CG."""
    from scipy.sparse.linalg import LinearOperator, cg

    matrix = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    yuv = np.tensordot(image, np.array(matrix), ([2], [1])) + np.array([0, 128.0, 128.0])
    numbers: dict[tuple, int] = {}
    vertex = np.empty(target.shape, int)
    for y, x in np.ndindex(*target.shape):
        luma, blue, red = yuv[y, x] / np.array([sigmas[1], sigmas[2], sigmas[2]])
        cell = (int(x / sigmas[0]), int(y / sigmas[0]), int(luma), int(blue), int(red))
        vertex[y, x] = numbers.setdefault(cell, len(numbers))
    blur = 10 * np.eye(len(numbers))
    for cell, number in numbers.items():
        for dimension in range(5):
            for step in (-1, 1):
                other = list(cell)
                other[dimension] += step
                if tuple(other) in numbers:
                    blur[number, numbers[tuple(other)]] = 1
    pixels = np.bincount(vertex.ravel())
    scale = np.ones(len(numbers))
    for _ in range(10):
        scale = np.sqrt(scale * pixels / (blur @ scale))
    smooth = np.diag(scale * (blur @ scale)) - scale[:, None] * blur * scale
    weights = np.broadcast_to(confidence, target.shape).ravel()
    mass = np.bincount(vertex.ravel(), weights)
    right = np.bincount(vertex.ravel(), weights * target.ravel())
    system = 256 * smooth + np.diag(mass)
    inverse = 1 / np.maximum(np.diag(system), 1e-5)
    jacobi = LinearOperator(system.shape, lambda v: inverse * v, dtype=float)
    found, _ = cg(system, right, x0=right / mass, M=jacobi, rtol=1e-5, atol=0, maxiter=25)
    return found[vertex]


def picture(height=18, width=25, grey=False) -> np.ndarray:
    """Smooth colours with some noise, so that vertices have neighbours in every dimension."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([4 * x + 2 * y, 3 * y + 60, 90 + 2 * x - y], 2)
    image = np.clip(smooth + RNG.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    return np.repeat(image[..., :1], 3, 2) if grey else image


@pytest.mark.parametrize(("sigmas", "suffix"), [((24, 4, 4), ""), ((11, 5, 5), "_11_5_5")])
@pytest.mark.parametrize("quirks", ["paper", "code"])
def test_published_output(golden, sigmas, suffix, quirks):
    values = golden("bilateral_solver")
    soft, hard = refine(values["image"], values["mask"], *sigmas, quirks=quirks)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, values["soft" + suffix], rtol=0, atol=2e-5)
    assert (hard == values["hard" + suffix]).mean() >= 0.999


@pytest.mark.parametrize(("sigmas", "suffix"), [((24, 4, 4), ""), ((11, 5, 5), "_11_5_5")])
def test_the_reference_is_the_published_code(golden, sigmas, suffix):
    values = golden("bilateral_solver")
    soft, hard = published(values["image"], values["mask"], *sigmas)
    np.testing.assert_allclose(soft, values["soft" + suffix], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(hard, values["hard" + suffix])


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize("sigmas", [(6, 8, 8), (4, 4, 4), (5.5, 10.3, 7.7)])
def test_against_dictionaries(sigmas, grey):
    image = picture(grey=grey)
    for target in (RNG.random(image.shape[:2]), np.arange(25) < RNG.integers(8, 16, (18, 1))):
        soft, _ = refine(image, target, *sigmas)
        expected = written_out(image, target, sigmas)
        np.testing.assert_allclose(soft, np.clip(expected, 0, 1), rtol=0, atol=2e-5)


def test_confidence_of_each_pixel():
    image, sigmas = picture(), (6, 8, 8)
    target, confidence = RNG.random((18, 25)), RNG.uniform(0.1, 1, (18, 25))
    found = solve(bilateral_grid.build_grid(image, *sigmas), target, confidence)
    expected = written_out(image, target, sigmas, confidence)
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), rtol=0, atol=2e-5)


def test_classes_are_solved_as_if_alone():
    image = picture(40, 50)
    targets = RNG.random((40, 50, 3))
    targets[..., 1] = 0
    soft, hard = refine(image, targets, 6, 8, 8)
    for channel in range(3):
        alone, _ = refine(image, targets[..., channel], 6, 8, 8)
        np.testing.assert_allclose(soft[..., channel], alone, rtol=0, atol=1e-6)
    assert hard.dtype == np.int32
    np.testing.assert_array_equal(hard, soft.argmax(2))


def test_sorting_numbers_cells_as_the_table_does(monkeypatch):
    image, target = picture(), RNG.random((18, 25))
    soft, hard = refine(image, target)
    monkeypatch.setattr(bilateral_grid, "_LARGEST_TABLE", 0)
    sorted_soft, sorted_hard = refine(image, target)
    np.testing.assert_allclose(soft, sorted_soft, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(hard, sorted_hard)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_constants_are_kept(value):
    soft, hard = refine(picture(), np.full((18, 25), value), 6, 8, 8)
    np.testing.assert_allclose(soft, value, atol=3e-5)
    np.testing.assert_array_equal(hard, np.full((18, 25), value > 0.5))


def test_edges_move_to_those_of_the_image():
    image = np.full((48, 64, 3), 60, np.uint8)
    image[:, 30:] = (150, 130, 90)
    image += RNG.integers(0, 6, image.shape, dtype=np.uint8)
    truth = np.zeros((48, 64), bool)
    truth[:, 30:] = True
    rough = np.zeros((48, 64), bool)
    rough[:, 24:] = True
    _, hard = refine(image, rough)
    np.testing.assert_array_equal(hard, truth)
    labels = refine_labels(image, np.where(rough, 7, 3).astype(np.uint8))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.where(truth, 7, 3))


def test_mask_and_labels_together():
    image = picture(40, 50)
    labels = RNG.integers(0, 3, (5, 5)).repeat(8, 0).repeat(10, 1)
    mask, parts = refine_segmentation(image, labels == 2, labels, 6, 8, 8)
    np.testing.assert_array_equal(mask, refine(image, labels == 2, 6, 8, 8)[1])
    np.testing.assert_array_equal(parts, refine_labels(image, labels, 6, 8, 8))
    mask, parts = refine_segmentation(image, labels == 2, labels == 2, 6, 8, 8)
    np.testing.assert_array_equal(mask, refine(image, labels == 2, 6, 8, 8)[1])
    np.testing.assert_array_equal(parts, mask)


def test_one_label_one_colour_one_pixel():
    flat = np.full((5, 6, 3), 90, np.uint8)
    np.testing.assert_array_equal(refine_labels(flat, np.full((5, 6), 4)), np.full((5, 6), 4))
    mask = np.zeros((5, 6), bool)
    mask[:4] = True
    soft, hard = refine(flat, mask)
    np.testing.assert_allclose(soft, 4 / 5, atol=1e-5)
    assert hard.all()
    soft, hard = refine(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool))
    assert soft == pytest.approx(1)
    assert hard.all()


def test_grey_images_are_taken_as_their_three_channels():
    image = picture(grey=True)
    target = RNG.random(image.shape[:2])
    np.testing.assert_array_equal(refine(image[..., 0], target)[0], refine(image, target)[0])


def test_the_codes_choice_of_region():
    """A mask of more than half of the image: the published code takes the background."""
    image = np.zeros((24, 24, 3), np.uint8)
    image[6:] = 200
    mask = np.zeros((24, 24), bool)
    mask[6:] = True
    _, hard = refine(image, mask)
    np.testing.assert_array_equal(hard, mask)
    _, hard = refine(image, mask, quirks="code")
    np.testing.assert_array_equal(hard, ~mask)
    _, hard = refine(image, np.zeros_like(mask), quirks="code")
    assert hard.all()


def test_errors_name_the_fault():
    image, mask = picture(), np.zeros((18, 25), bool)
    with pytest.raises(ValueError, match=r"targets of shape \(17, 25\) do not lie on"):
        refine(image, mask[1:])
    with pytest.raises(ValueError, match="pass uint8 of shape"):
        refine(image / 255, mask)
    with pytest.raises(ValueError, match="must all be positive"):
        refine(image, mask, 24, 0, 4)
    with pytest.raises(ValueError, match="must be finite"):
        refine(image, np.full((18, 25), np.nan))
