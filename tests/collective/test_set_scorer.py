"""The scorer of a set: on made-up features with known answers, and on real photographs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.linalg import eigh

import unseg_jax as us
from unseg_jax.clustering.loop import cluster, dropout_seeds
from unseg_jax.collective import cues, set_scorer, shared_head
from unseg_jax.errors import WeightsError
from unseg_jax.postprocess.margins import margin_confidence, refine_margins, upsample_margins
from unseg_jax.registry import resolve

GRID = (10, 10)
NEAR = jnp.asarray(cues.neighbours(GRID))


def _squares(count=8, seed=0, frame=False, noise=0.2):
    """Features of images with a square object at a random place, and the truth; with `frame`
    a third material surrounds the picture. Materials are those of every seed."""
    material = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0][:4]
    rng = np.random.default_rng((1, seed))
    features, truth = [], []
    for _ in range(count):
        mask = np.zeros(GRID, bool)
        top, left = rng.integers(2, 5, 2)
        mask[top : top + 3, left : left + 3] = True
        kind = mask.astype(int)
        if frame:
            surround = np.ones(GRID, bool)
            surround[1:-1, 1:-1] = False
            kind[surround] = 2
        image = material[kind.ravel()] + material[3] * 0.5
        features.append(image + noise * rng.normal(size=image.shape) / np.sqrt(24))
        truth.append(mask.ravel())
    return np.array(features, np.float32), np.array(truth)


def _grids(features, grid=GRID):
    return list(features.reshape(len(features), *grid, -1))


_score = jax.jit(lambda head, one: set_scorer.score(head, one, GRID)[0])
_evidence = jax.jit(cues.image_evidence)
_nearest_mean = jax.jit(cues.nearest_mean, static_argnums=2)
_otsu = jax.jit(cues.otsu)


def _margins(head, features):
    return np.stack([_score(head, one) for one in features])


@pytest.mark.parametrize("frame", [False, True])
def test_evidence_finds_the_object_of_the_set(frame):
    features, truth = _squares(frame=frame)
    head, found = set_scorer.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(0))
    new, new_truth = _squares(seed=1, frame=frame)
    assert not any(np.array_equal(image, fitted) for image in new for fitted in features)
    np.testing.assert_array_equal(_margins(head, features) > 0, truth)
    np.testing.assert_array_equal(_margins(head, new) > 0, new_truth)
    kinds = {entry["found"] for entry in found}
    assert kinds == ({"frame"} if frame else set()) | {"foreground", "background"}
    for entry in found:
        if entry["found"] == "foreground":
            assert entry["border_ratio"] == 0


def test_fit_scorer_is_the_same_under_a_key():
    features, _ = _squares(4)
    one, other = (
        set_scorer.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(7))[0]
        for _ in range(2)
    )
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)
    another = set_scorer.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(8))[0]
    assert not np.array_equal(one.centres, another.centres)


def _rows(noise):
    (features,), _ = _squares(1, noise=noise)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_partition_is_the_second_eigenvector():
    """Against SciPy's generalised eigenvectors of (D - W, D)."""
    rows = _rows(0.05)
    ours = np.asarray(_evidence(rows, np.ones(100, bool), NEAR))
    weights = rows @ rows.T
    weights = np.where(weights < 0.2, 1e-5, weights).astype(np.float64)
    degrees = np.diag(weights.sum(1))
    vector = eigh(degrees - weights, degrees)[1][:, 1]
    border = np.asarray(cues.border_of(jnp.ones(100, bool), NEAR))
    vector = -vector if vector[border].mean() > vector.mean() else vector
    unlike = -rows @ rows[border].mean(0)
    apart = -np.sort(rows @ rows[border].T, axis=1)[:, -5:].mean(1)
    expected = sum((cue - cue.mean()) / cue.std() for cue in (vector, unlike, apart))
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_nearest_mean_takes_what_there_is():
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    cosines = vectors @ vectors.T
    among = np.array([True, False, True, False, False, False])
    nearest = _nearest_mean(cosines, among, 5)
    np.testing.assert_allclose(nearest, cosines[:, among].mean(1), rtol=1e-6)
    first = _nearest_mean(cosines, among, 1)
    np.testing.assert_allclose(first, cosines[:, among].max(1), rtol=1e-6)
    for count in (1, 5):
        nothing = _nearest_mean(cosines, np.zeros(6, bool), count)
        np.testing.assert_array_equal(nothing, np.zeros(6))


def test_evidence_with_frame_equals_that_of_the_rest():
    """Whatever stands in invalid patches changes nothing."""
    rows, valid = _rows(0.2), np.ones(GRID, bool)
    valid[0] = valid[:, -1] = False
    valid = valid.ravel()
    other = np.where(valid[:, None], rows, np.roll(rows, 1, 1))
    first, second = (np.asarray(_evidence(one, valid, NEAR)) for one in (rows, other))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert (first[~valid] == 0).all()


def test_otsu_against_scikit_image():
    from skimage.filters import threshold_otsu

    rng, valid = np.random.default_rng(0), np.arange(4050) < 4000
    for share in (0.1, 0.3, 0.7):
        values = np.where(rng.random(4050) < share, rng.normal(3, 0.5, 4050), rng.normal(size=4050))
        values = values.astype(np.float32)
        ours, other = (float(_otsu(np.where(valid, values, x), valid)) for x in (99, -np.inf))
        expected = threshold_otsu(values[:4000], 64)
        assert abs(ours - expected) <= np.ptp(values[:4000]) / 64
        assert other == ours
    assert np.isinf(_otsu(values, ~valid & valid))
    assert _otsu(np.ones_like(values), valid) == pytest.approx(1)


def test_of_tiles_those_with_a_clear_split_tell_the_threshold():
    """Most tiles of a slide show no thing; tiles of small images mostly do."""
    rng = np.random.default_rng(0)
    empty = rng.normal(2, 0.05, (20, 100))
    split = np.where(np.arange(100) < 30, 1, -1) + rng.normal(0, 0.05, (3, 100))
    scores = jnp.asarray(np.concatenate([empty, split]), jnp.float32)
    valid = jnp.ones(scores.shape, bool).at[0].set(False)
    threshold, own = set_scorer._thresholds(scores, valid, True)
    assert -0.8 < threshold < 0.8
    assert own[0] == threshold
    np.testing.assert_allclose(own[1:20], 2, atol=0.1)
    # Where all show something, and no tile is much clearer than another, it is the median.
    alike = np.linspace(-1, 1, 9)[:, None] + split[0]
    threshold, own = set_scorer._thresholds(jnp.asarray(alike), jnp.ones(alike.shape, bool), True)
    assert threshold == jnp.median(own)


@pytest.mark.parametrize("case", ["equal", "one_image", "one_colour_each"])
def test_features_without_contrast_give_finite_margins(case):
    rng = np.random.default_rng(0)
    features = {
        "equal": np.ones((3, 100, 24)),
        "one_image": rng.normal(size=(1, 100, 24)),
        "one_colour_each": np.repeat(rng.normal(size=(3, 1, 24)), 100, 1),
    }[case].astype(np.float32)
    head, _ = set_scorer.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(0))
    assert np.isfinite(_margins(head, features)).all()


def test_shared_training_of_one_image_is_the_per_image_loop():
    """A pass over one image with as many steps as epochs is `cluster` on it."""
    features, _ = _squares(1)
    method = resolve("deepcut", dropout=0.0, epochs=6)
    key = jax.random.key(3)
    params, state = shared_head.start(key, method, 24)
    seeds = dropout_seeds(key, method, 1, 6)
    trained, _, losses = shared_head.train(
        params, state, jnp.asarray(features), seeds, method=method, grid=GRID
    )
    alone = cluster(features[0], method=method, key=key)
    np.testing.assert_allclose(losses[0], alone.losses, rtol=1e-5)
    for first, second in zip(jax.tree.leaves(trained), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_refined_margins_follow_the_image():
    """A patchy margin becomes the disc that is in the image, better than by interpolation."""
    rows, columns = np.mgrid[:256, :256]
    disc = (rows - 120) ** 2 + (columns - 130) ** 2 < 70**2
    image = np.where(disc[..., None], [200, 80, 60], [40, 90, 160]).astype(np.uint8)
    patches = disc.reshape(16, 16, 16, 16).mean((1, 3)) > 0.5
    margins = np.where(patches, 1.0, -1.0).astype(np.float32)
    method = resolve("collective")

    def refined(margins, refine):
        found = refine_margins(image, margins, dataclasses.replace(method, refine=refine))
        return upsample_margins(found, image.shape[:2])

    def iou(mask):
        return (mask & disc).sum() / (mask | disc).sum()

    plain = iou(refined(margins, "none"))
    for refine in ("guided", "bilateral"):
        assert iou(refined(margins, refine)) > plain
    assert iou(refined(margins, "guided")) > 0.97
    assert not refined(-np.ones((16, 16), np.float32), "guided").any()


def test_contrast_is_half_the_difference_of_inside_and_outside():
    margins = np.array([[0.5, 3.0], [-0.25, -0.5]], np.float32)
    # Means 0.75 (3 is clipped to 1) and −0.375.
    assert margin_confidence(margins) == pytest.approx((0.75 + 0.375) / 2)
    assert margin_confidence(np.where(margins > 0, 9.0, -9.0)) == 1
    assert margin_confidence(-np.abs(margins)) == margin_confidence(np.abs(margins)) == 0


@pytest.fixture(scope="module")
def real_backbone():
    try:
        return us.load_backbone("dinov2_vits14_focus")
    except WeightsError as error:
        pytest.skip(f"no real weights here: {error}")


def test_real_photographs(real_backbone):
    """Four photographs have little in common, and still an object is found in each."""
    from skimage import data

    images = [data.chelsea(), data.astronaut(), data.coffee(), data.rocket()]
    # All of one shape, so that the backbone is compiled once.
    model = us.fit(images, backbone=real_backbone, image_size=224, resize="stretch", steps=0)
    cat, astronaut, cup, rocket = (result.mask for result in model.segment(images))
    # The cat's face, the astronaut's face, the cup and the rocket.
    assert cat[100:200, 100:200].mean() > 0.9
    assert astronaut[80:130, 200:250].mean() > 0.9
    assert cup[100:300, 250:330].mean() > 0.9
    assert rocket[220:380, 318:322].mean() > 0.5
    for mask in (cat, astronaut, cup, rocket):
        assert 0.005 < mask.mean() < 0.7
        assert not mask[:10, -10:].any()
    assert rocket.mean() < 0.1


def matched(objects, places, side):
    count = 0
    for left, top in places:
        for item in objects:
            a, b, c, d = item.box
            width = min(c, left + side) - max(a, left)
            height = min(d, top + side) - max(b, top)
            both = max(0, width) * max(0, height)
            count += both / ((c - a) * (d - b) + side**2 - both) >= 0.5
    return count


def test_small_objects_of_one_slide_are_found(real_backbone):
    """With real features; whole, an object is a patch of the slide."""
    from skimage import data

    texture = np.tile(data.grass()[:192, :256], (2, 2))
    image = np.stack([0.75 * texture, 0.95 * texture, 0.6 * texture], -1).astype(np.uint8)
    cat = np.asarray(Image.fromarray(data.chelsea()[30:230, 100:300]).resize((64, 64)))
    rows, columns = np.ogrid[-1:1:64j, -1:1:64j]
    inside = rows**2 + columns**2 < 1
    places = [(90, 60), (380, 130), (220, 280)]
    for left, top in places:
        image[top : top + 64, left : left + 64][inside] = cat[inside]
    model = us.fit([image], tile=256, backbone=real_backbone, image_size=112, steps=0)
    (tiled,) = model.segment(image)
    assert tiled.mask.shape == image.shape[:2]
    assert matched(tiled.objects, places, 64) == len(places)
    assert len(tiled.objects) <= len(places) + 1
    assert tiled.confidence > 0.4
