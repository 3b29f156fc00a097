"""One model for a set: on made-up features with known answers, and on real photographs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh

import unseg_jax as us
from unseg_jax.clustering.loop import cluster, dropout_seeds
from unseg_jax.collective import cues, scoring, shared_head
from unseg_jax.collective.fitting import fit
from unseg_jax.collective.model import CollectiveModel, load_model
from unseg_jax.errors import WeightsError
from unseg_jax.postprocess.margins import contrast, refine_margins, upsample_margins
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


_score = jax.jit(lambda head, one: scoring.score(head, one, GRID)[0])


def _margins(head, features):
    return np.stack([_score(head, one) for one in features])


@pytest.mark.parametrize("frame", [False, True])
def test_evidence_finds_the_object_of_the_set(frame):
    features, truth = _squares(frame=frame)
    head, found = scoring.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(0))
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
        scoring.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(7))[0]
        for _ in range(2)
    )
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)
    another = scoring.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(8))[0]
    assert not np.array_equal(one.centres, another.centres)


def test_partition_is_the_second_eigenvector():
    """Against SciPy's generalised eigenvectors of (D - W, D)."""
    features, _ = _squares(1, noise=0.05)
    rows = features[0] / np.linalg.norm(features[0], axis=1, keepdims=True)
    valid = np.ones(100, bool)
    ours = np.asarray(cues.image_evidence(jnp.asarray(rows), jnp.asarray(valid), NEAR))
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
    cosines = jnp.asarray(vectors @ vectors.T)
    among = np.array([True, False, True, False, False, False])
    nearest = cues.nearest_mean(cosines, jnp.asarray(among), 5)
    np.testing.assert_allclose(nearest, np.asarray(cosines)[:, among].mean(1), rtol=1e-6)
    nothing = cues.nearest_mean(cosines, jnp.zeros(6, bool), 5)
    np.testing.assert_array_equal(nothing, np.zeros(6))


def test_evidence_with_frame_equals_that_of_the_rest():
    """Whatever stands in invalid patches changes nothing."""
    features, _ = _squares(1)
    _, whole = cues.project(
        jnp.asarray(features[0]),
        cues.fit_projection(features, 20, np.random.default_rng(0)),
    )
    valid = np.ones(GRID, bool)
    valid[0] = valid[:, -1] = False
    other = jnp.where(valid.ravel()[:, None], whole, jnp.roll(whole, 1, 1))
    first, second = (
        np.asarray(cues.image_evidence(rows, jnp.asarray(valid.ravel()), NEAR))
        for rows in (whole, other)
    )
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert (first[~valid.ravel()] == 0).all()


def test_otsu_against_scikit_image():
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.7):
        values = np.where(rng.random(4000) < share, rng.normal(3, 0.5, 4000), rng.normal(size=4000))
        values = values.astype(np.float32)
        ours = float(cues.otsu(jnp.asarray(values), jnp.ones(4000, bool)))
        bin_width = np.ptp(values) / 64
        assert abs(ours - threshold_otsu(values, 64)) <= bin_width
        padded = jnp.concatenate([jnp.asarray(values), jnp.full(50, 99.0)])
        masked = float(cues.otsu(padded, jnp.arange(4050) < 4000))
        assert masked == ours
    assert np.isinf(cues.otsu(jnp.zeros(3), jnp.zeros(3, bool)))
    assert np.isfinite(cues.otsu(jnp.ones(3), jnp.ones(3, bool)))


@pytest.mark.parametrize("case", ["equal", "one_image", "one_colour_each"])
def test_features_without_contrast_give_finite_margins(case):
    rng = np.random.default_rng(0)
    features = {
        "equal": np.ones((3, 100, 24)),
        "one_image": rng.normal(size=(1, 100, 24)),
        "one_colour_each": np.repeat(rng.normal(size=(3, 1, 24)), 100, 1),
    }[case].astype(np.float32)
    head, _ = scoring.fit_scorer(_grids(features), num_clusters=4, key=jax.random.key(0))
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


def _photographs(count=4, seed=1):
    """Made-up photographs: a bright square on a noisy ground."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        image = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        top, left = rng.integers(12, 30, 2)
        image[top : top + 24, left : left + 24] += np.uint8(180)
        images.append(image)
    return images


@pytest.fixture(scope="module")
def model(tiny_weights) -> CollectiveModel:
    head = {"branches": ((8,), (8, 4))}
    return fit(_photographs(), backbone=tiny_weights, image_size=64, steps=3, **head)


def test_fit_and_segment(model):
    images = _photographs(3, seed=2)  # not those that were fitted
    found = model.segment(images)
    for image, result in zip(images, found, strict=True):
        assert result.mask.shape == image.shape[:2]
        assert result.mask.dtype == bool
        assert 0 <= result.confidence <= 1
        assert result.losses.shape == (0,)
        assert result.method == "collective"
        np.testing.assert_array_equal(result.labels, result.mask)
    assert len(model.foreground) == 16
    assert model.images == 4
    # One image alone gives what it gives in a batch.
    np.testing.assert_array_equal(model.segment(images[1])[0].mask, found[1].mask)


def test_segment_goes_on_from_the_shared_weights(model):
    images = _photographs(2, seed=2)
    found = model.segment(images, epochs=4)
    assert [result.losses.shape for result in found] == [(4,), (4,)]
    assert all(np.isfinite(result.losses).all() for result in found)


def test_save_and_load(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load_model(path, backbone=model.backbone)
    assert loaded.method == model.method
    assert loaded.foreground == model.foreground
    assert loaded.images == model.images
    images = _photographs(2)
    for epochs in (0, 2):
        before, after = model.segment(images, epochs=epochs), loaded.segment(images, epochs=epochs)
        for first, second in zip(before, after, strict=True):
            np.testing.assert_array_equal(first.mask, second.mask)
            np.testing.assert_array_equal(first.losses, second.losses)
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_safetensors_with_json(model, tmp_path):
    """Read with the format's own layout: a length, a JSON header, numbers; no pickle."""
    path = tmp_path / "model.safetensors"
    model.save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = header["__metadata__"]
    assert json.loads(facts["method"])["name"] == "collective"
    assert json.loads(facts["foreground"]) == list(model.foreground)
    begin, end = header["evidence/weights"]["data_offsets"]
    stored = np.frombuffer(content[8 + length :][begin:end], np.float32)
    assert model.scorer is not None
    assert model.evidence is model.scorer  # the earlier name
    np.testing.assert_array_equal(stored, model.scorer.weights)


def test_loading_something_else(tmp_path):
    from safetensors.numpy import save_file

    text = tmp_path / "text.safetensors"
    text.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="cannot read the model"):
        load_model(text)
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, other)
    with pytest.raises(ValueError, match="not a model"):
        load_model(other)


class Source:
    """An image, and where it is noted that it was read."""

    def __init__(self, image, reads):
        self.image, self.reads = image, reads

    def read(self):
        self.reads.append(self)
        return self.image


@pytest.mark.parametrize("foreground", ["corner", "set"])
def test_shared_passes_of_a_published_method(tiny_weights, tmp_path, foreground):
    """Which read each image once."""
    reads = []
    sources = [Source(image, reads) for image in _photographs(3)]
    settings = {"image_size": 64, "stride": 8, "branches": ((8,),), "epochs": 2}
    model = fit(
        sources,
        method="unsegmedgat-c",
        backbone=tiny_weights,
        passes=2,
        steps=2,
        batch_size=2,
        foreground=foreground,
        **settings,
    )
    assert sorted(map(sources.index, reads)) == [0, 1, 2]
    assert model.scorer is None
    assert model.method.collective_epochs == 2
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load_model(path, backbone=model.backbone)
    found = model.segment(_photographs(3))
    again = loaded.segment(_photographs(3))
    for first, second in zip(found, again, strict=True):
        assert first.losses.shape == (2,)
        np.testing.assert_array_equal(first.mask, second.mask)
    assert {entry["found"] for entry in model.foreground} == {"foreground", "background"}


def test_max_images_bounds_what_is_read(tiny_weights):
    reads = []
    sources = [Source(_photographs(1)[0], reads) for _ in range(9)]
    model = fit(sources, backbone=tiny_weights, image_size=64, max_images=4, steps=0)
    assert len(reads) == model.images == 4
    with pytest.raises(ValueError, match="graph head"):
        model.segment(_photographs(1), epochs=1)


def test_unreadable_images_are_left_out(tiny_weights, tmp_path):
    from PIL import Image

    for index, image in enumerate(_photographs(3)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    model = fit(tmp_path, backbone=tiny_weights, image_size=64, steps=0)
    assert model.images == 3
    assert len(model.skipped) == 1
    assert "broken.png" in model.skipped[0]
    with pytest.raises(us.ImageError, match="broken"):
        fit([tmp_path / "broken.png"], backbone=tiny_weights, image_size=64)


def test_model_serves_where_a_segmenter_does(model, tmp_path):
    """Files in, masks and a report out, as for any method."""
    from PIL import Image

    from unseg_jax.data.folders import find_images
    from unseg_jax.export.folder import segment_files

    for index, image in enumerate(_photographs(2)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    run = segment_files(model.segmenter(), find_images([tmp_path]), tmp_path / "out")
    assert len(run.done) == 2
    expected = model.segment(_photographs(1))[0].mask
    written = np.asarray(Image.open(tmp_path / "out" / "0_mask.png")) > 127
    np.testing.assert_array_equal(written, expected)
    assert "collective" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tokencut"}, "no head"),
        ({"method": "slic-ncut"}, "no head"),
        ({"method": "colective"}, "did you mean 'collective'"),
        ({"max_images": 0}, "max_images"),
        ({"steps": -1}, "steps"),
    ],
)
def test_what_cannot_be_fitted(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(_photographs(1), **arguments)
    with pytest.raises(ValueError, match="no images"):
        fit([])


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
    assert contrast(margins) == pytest.approx((0.75 + 0.375) / 2)
    assert contrast(np.where(margins > 0, 9.0, -9.0)) == 1
    assert contrast(-np.abs(margins)) == contrast(np.abs(margins)) == 0


@pytest.fixture(scope="module")
def real_backbone():
    try:
        return us.load_backbone("dinov2_vits14_focus")
    except WeightsError as error:
        pytest.skip(f"no real weights here: {error}")


def test_a_model_of_one_type_is_applied_in_the_other(real_backbone):
    from skimage import data

    images = [data.chelsea(), data.astronaut()]
    half = us.load_backbone("dinov2_vits14_focus", dtype="bfloat16")
    options = {"image_size": 112, "resize": "stretch", "steps": 0}
    models = [fit(images, backbone=used, **options) for used in (real_backbone, half)]
    found = [
        np.concatenate(
            [
                result.mask.ravel()
                for result in dataclasses.replace(model, backbone=used).segment(images)
            ]
        )
        for model in models
        for used in (real_backbone, half)
    ]
    for masks in found[1:]:
        assert (masks == found[0]).mean() > 0.99


def test_real_photographs(real_backbone):
    """Four photographs have little in common, and still an object is found in each."""
    from skimage import data

    images = [data.chelsea(), data.astronaut(), data.coffee(), data.rocket()]
    model = fit(images, backbone=real_backbone, image_size=224, steps=0)
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
