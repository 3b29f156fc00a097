"""A few marked images: against least squares of the stacked system, and on images with squares."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import unseg_jax as us
from unseg_jax.cli import main
from unseg_jax.collective import equations, marks, self_teaching, spreading, steering, words
from unseg_jax.collective.fitting import fit
from unseg_jax.collective.model import load_model
from unseg_jax.collective.shipped import load_shipped
from unseg_jax.collective.shipped_scorer import is_of_shipped
from unseg_jax.data.folders import find_images
from unseg_jax.data.opening import Page
from unseg_jax.data.truths import Truth
from unseg_jax.export.folder import segment_files
from unseg_jax.export.rle import encode_rle
from unseg_jax.registry import resolve
from unseg_jax.terminal.fit_command import parse_clicks

SETTINGS = {"image_size": 64}
pytestmark = pytest.mark.usefixtures("short_training")
_steer = jax.jit(steering.steer, static_argnums=(3, 4))


def _columns_of(scorer, features):
    """Margins before steering, and columns, of images seen at one size."""
    return equations.read_batch(scorer, features)[2:]


def _set(count=400, marked=90, width=5, seed=0):
    """Made-up columns of all patches, and prior, targets and known shares of the marked ones."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(count, width + 3)) * [0.05] * (width + 3) + 0.1
    columns[:, width:-1] *= [7, 3]
    columns[:, -1] = 1
    known = np.where(rng.random(marked) < 0.1, 0.5, 1.0)
    return columns, rng.uniform(-1, 1, marked), rng.uniform(-1, 1, marked), known


@pytest.mark.parametrize(("lam", "mu"), [(0.5, 0.1), (2, 2)])
def test_solution_is_that_of_least_squares(lam, mu):
    columns, prior, targets, weights = _set()
    gram, gaps = columns.T @ columns / len(columns), targets - prior
    found = equations.solve(gram, columns[:90], gaps, weights, lam, mu)
    scores = columns[:, 5:7]
    standard = 0.2 * (scores - scores.mean(0)) / scores.std(0)
    centred = columns[:, :5] - columns[:, :5].mean(0)
    q = np.concatenate([centred, standard, np.ones((400, 1))], 1)
    v = np.sqrt(weights)
    ridge = np.sqrt([*[lam * np.mean(np.sum(centred**2, 1)) / 5] * 7, 1e-3])
    stacked = np.concatenate([v[:, None] * q[:90], np.sqrt(mu / 400) * q, np.diag(ridge)])
    c = np.linalg.lstsq(stacked, np.concatenate([v * gaps, np.zeros(400 + 8)]))[0]
    np.testing.assert_allclose(columns @ found, q @ c, atol=1e-6)
    nothing = equations.solve(gram, columns[:90], 0 * gaps, weights, lam, mu)
    np.testing.assert_array_equal(nothing, 0)


def test_directions_in_which_features_do_not_vary_are_left_out(monkeypatch):
    columns, prior, targets, weights = _set()
    columns[:, 3:5] = columns[:, :2] @ [[1, 2], [3, -1]] + 0.2  # three directions are left of five
    gram = columns.T @ columns / len(columns)

    def margins():
        return columns @ equations.solve(gram, columns[:90], targets - prior, weights, 0.5, 0.1)

    full = margins()
    monkeypatch.setattr(equations, "_DIRECTIONS", 3)
    assert equations.System(gram).directions.shape == (8, 6)
    np.testing.assert_allclose(margins(), full, atol=1e-6)
    monkeypatch.setattr(equations, "_DIRECTIONS", 1)
    assert np.abs(margins() - full).max() > 0.01


@pytest.mark.parametrize("kind", ["consistent", "opposed", "unlike", "single"])
def test_masks_teach_as_strongly_as_serves_those_left_out(kind):
    """Patches are told by one column; in the second example its sign may be the opposite."""
    rng, grid, examples = np.random.default_rng(0), (6, 6), []
    gram = np.zeros((5, 5))
    for at in range(1 if kind == "single" else 4):
        inside = np.zeros(grid, bool)
        inside[at : at + 3, 1:5] = True
        sign = -1 if kind in ("opposed", "unlike") and at % 2 else 1
        columns = np.ones((36, 5))
        columns[:, :4] = rng.normal(0, 0.05, (36, 4))
        columns[:, 0] += sign * np.where(inside.ravel(), 1, -1)
        prior = np.where(np.roll(inside, 1), 0.4, -0.4).ravel()  # nearly right
        truth = Truth(inside.repeat(4, 0).repeat(4, 1))
        mean = np.full(2, at % 2 if kind == "unlike" else 0.1 * at)
        examples.append((steering._Example(grid, mean, np.zeros(5), columns, prior), truth))
        gram += columns.T @ columns / 36 / (1 if kind == "single" else 4)
    system = equations.System(gram)
    examples = [steering._with_mask(system, *one) for one in examples]
    strength, quality = steering._strength(system, examples, np.zeros((0, 2)))
    means = np.stack([one.mean for one in examples])
    found = steering._taught(system, examples, means, [strength])[strength]
    before = np.mean([steering._agreement(one, None) for one in examples])
    if kind == "opposed":
        np.testing.assert_array_equal(found, 0)
        assert quality == before
    elif kind == "unlike":  # each pair of a kind has its own
        assert found[0, 0] > 0.1
        np.testing.assert_array_equal(found[0], found[2])
        np.testing.assert_allclose(found[1, 0], -found[0, 0], rtol=0.3)
    else:
        assert (found[:, 0] > 0.1).all()
        after = np.mean([steering._agreement(*pair) for pair in zip(examples, found, strict=True)])
        assert before < after
        assert (quality == before) if kind == "single" else (before < quality)


@hypothesis.given(
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_click_marks_its_patch_most(x, y, grid):
    size = 300, 200
    shares = marks.click_shares(x * size[1], y * size[0], size, grid).reshape(grid)
    assert shares.sum() == pytest.approx(1)
    at = int(y * grid[0]), int(x * grid[1])
    assert shares[at] == pytest.approx(shares.max(), rel=1e-6)
    far = np.abs(np.arange(grid[0])[:, None] - at[0]) > 2
    assert not shares[np.broadcast_to(far, grid)].any()


def test_a_stroke_marks_what_it_covers():
    y, x = np.mgrid[:300, :200] + 0.5
    near = np.minimum(  # of two lines that meet at 150, 40
        np.hypot(x - np.clip(x, 30, 150), y - 40), np.hypot(x - 150, y - np.clip(y, 40, 200))
    )
    covered = (near <= 12).reshape(6, 50, 5, 40).mean((1, 3)).ravel()
    stroke = marks.Stroke([(30, 40), (150, 40), (150, 200)], 12, True)
    found = marks.mark_shares(stroke, (300, 200), (6, 5))
    np.testing.assert_allclose(found, covered / covered.sum(), atol=0.01)
    dot = marks.mark_shares(marks.Stroke([(199.9, 0)], 0.1, True), (300, 200), (6, 5))
    assert (dot[4], dot.sum()) == (1, 1)


def test_targets_are_shares_of_patches():
    mask = np.zeros((6, 9), bool)
    mask[:3, :3] = True
    targets, known = marks.patch_targets(Truth(mask), (2, 2))
    np.testing.assert_allclose(targets, [2 * 3 / 4.5 - 1, -1, -1, -1])
    np.testing.assert_allclose(known, 1)
    void = Truth(mask, np.arange(9) < np.full((6, 1), 3))
    targets, known = marks.patch_targets(void, (2, 3))
    np.testing.assert_allclose(known, [1, 0, 0] * 2)
    np.testing.assert_allclose(targets[known > 0], [1, -1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images, each with an orange and a blue square."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        image = np.random.default_rng(index).integers(60, 80, (64, 64, 3), dtype=np.uint8)
        image[16:32, 8 + 8 * index : 24 + 8 * index] = (220, 120, 20)
        image[40:56, 40 - 8 * index : 56 - 8 * index] = (20, 80, 220)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def _blue(index):
    mask = np.zeros((64, 64), bool)
    mask[40:56, 40 - 8 * index : 56 - 8 * index] = True
    return mask


def _ious(model, photos):
    found = model.segment([photos / f"{index}.png" for index in range(4)])
    return [us.metrics.iou(one.mask, _blue(index)) for index, one in enumerate(found)]


@pytest.fixture(scope="module")
def models(photos, backbone):
    """Fitted without examples and with one."""
    return [
        fit(photos, backbone=backbone, steps=0, examples=examples, **SETTINGS)
        for examples in (None, {photos / "1.png": _blue(1)})
    ]


def test_one_example_steers_the_other_images(models, photos):
    plain, steered = (np.delete(_ious(model, photos), 1) for model in models)
    assert steered.mean() > plain.mean() + 0.1


def test_masks_teach_from_earlier_blocks_as_well(photos, deep_weights, tmp_path):
    """The scorer and the kinds of objects read the last one alone."""
    deep, mark = us.load_backbone(deep_weights), {photos / "1.png": _blue(1)}
    plain = fit(photos, backbone=deep, steps=0, **SETTINGS)
    steered = fit(photos, backbone=deep, examples=mark, **SETTINGS)
    assert (plain.method.block, steered.method.block) == (-1, (-1, 0, 1))
    assert plain.scorer.mean.shape == steered.scorer.mean.shape == (48,)
    np.testing.assert_allclose(steered.scorer.weights, plain.scorer.weights, atol=1e-3)
    assert steered.steering.everywhere.shape == (3 * 48 + 3,)
    assert steered.steering.centres.shape == (1, 48)
    taught = np.abs(steered.steering.like[0, :-3]).reshape(3, 48).max(1)
    assert (taught > 0.1 * taught.max()).all()
    found, before = (model.segment(photos / "0.png")[0] for model in (steered, plain))
    # How well examples fit those left out goes into the confidence, and is kept.
    assert 0 <= float(steered.steering.quality) < 1
    sure, unsure = (
        dataclasses.replace(steered, steering=steered.steering._replace(quality=np.float32(one)))
        .segment(photos / "0.png")[0]
        .confidence
        for one in (0.9, 0.1)
    )
    assert sure > unsure + 0.05
    # With nothing learned it is the plain one.
    nothing = _without_itself(steered.steering)._replace(like=0 * steered.steering.like)
    nothing = dataclasses.replace(steered, steering=nothing)
    np.testing.assert_array_equal(nothing.segment(photos / "0.png")[0].mask, before.mask)
    steered.save(tmp_path / "steered.safetensors")
    again = load_model(tmp_path / "steered.safetensors", backbone=deep)
    np.testing.assert_array_equal(again.segment(photos / "0.png")[0].mask, found.mask)
    assert again.steering.quality == steered.steering.quality
    described = steered.segmenter().but(with_features=True)([photos / "0.png"])[0]
    assert described.patch_features.shape == (8, 8, 48)
    # Clicks teach from them as well, and a wide one is refined as it is.
    assert plain.refine(clicks={photos / "1.png": CLICKS}).method.block == (-1, 0, 1)
    marked = plain.refine(examples=mark)
    again = marked.refine(clicks={photos / "1.png": CLICKS})
    assert again.steering.quality == marked.steering.quality != np.float32(steering.TYPICAL)
    assert plain.refine(clicks={photos / "1.png": CLICKS}).steering.quality == np.float32(0.6)
    assert marked.method.block == again.method.block == (-1, 0, 1)


def test_features_of_each_block_count_alike(models):
    scorer, rng = models[0].scorer, np.random.default_rng(0)
    wide = rng.normal(size=(1, 8, 8, 3, 48)) * np.array([1, 30, 0.1])[:, None]
    prior, columns = _columns_of(scorer, wide.reshape(1, 8, 8, 144).astype(np.float16))
    lengths = np.linalg.norm(np.asarray(columns)[0, :, :144].reshape(64, 3, 48), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)
    alone, first = _columns_of(scorer, wide[:, :, :, 0].astype(np.float16))
    np.testing.assert_allclose(prior, alone, atol=1e-5)
    np.testing.assert_allclose(columns[..., :48], first[..., :48], atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "block", "blocks"),
    [
        (12, -1, (-1, 5, 8)),
        (12, 8, (8, 3, 5)),
        (24, -1, (-1, 11, 17)),
        (2, -1, (-1, 0)),
        (1, -1, -1),
    ],
)
def test_earlier_blocks_lie_at_half_and_three_quarters(backbone, depth, block, blocks):
    config = dataclasses.replace(backbone.config, depth=depth)
    deep = dataclasses.replace(backbone, config=config)
    method = resolve("collective", block=block)
    assert steering.with_earlier_blocks(method, deep).block == blocks
    for chosen in ({"block": (-1, 0)}, {"log_bin": True}):
        method = resolve("collective", **chosen)
        assert steering.with_earlier_blocks(method, deep) == method


def test_an_example_that_agrees_leaves_the_others_as_they_are(models, photos):
    """The model's own margins are sure; what it found is marked in one image."""
    plain, grids = models[0], np.random.default_rng(0).normal(size=(4, 8, 8, 48))
    scorer = plain.scorer._replace(
        **{name: 50 * getattr(plain.scorer, name) for name in ("weights", "offset")}
    )
    grids = grids.astype(np.float16)
    prior = _columns_of(scorer, grids)[0]
    assert (np.abs(prior) == 1).mean() > 0.8
    marked = marks.Marks((8, 8), Truth(np.asarray(prior[0] > 0).reshape(8, 8)))
    found, _ = steering.fit_steering(scorer, [grids], [marks.Marked(grids[:1], marked)])
    for image, before in zip(grids, prior, strict=True):
        after = _steer(scorer, found, image.reshape(64, 48), (8, 8))
        np.testing.assert_array_equal(np.asarray(after) > 0, np.asarray(before) > 0)


def _without_itself(taught):
    """What an earlier version learned: an image does not teach itself."""
    return taught._replace(held=None)


def _taught_by_itself(margins, columns, held, weight):
    """The formula in plain NumPy, from rows in which H is the identity."""
    rows = columns.astype(float) @ np.asarray(held.basis, float) - np.asarray(held.origin)
    before = margins = margins.astype(float)
    for _ in range(2):
        inside, outside = margins >= 0.2, margins <= -0.2
        ratio = inside.sum() / (inside | outside).sum()
        weights = inside / ratio**0.5 + outside / (1 - ratio) ** 0.5
        weights *= weight / weights.sum()
        gram = np.eye(rows.shape[1]) + rows.T @ np.diag(weights) @ rows
        gaps = rows.T @ (weights * (np.sign(margins) - before))
        margins = before + rows @ np.linalg.solve(gram, gaps)
    return margins


def test_an_image_teaches_itself_as_the_formula_says(models, photos):
    features = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float16)
    columns = np.asarray(_columns_of(models[1].scorer, features.reshape(1, 8, 8, 48))[1][0])
    share, far = 0.5, np.eye(48)[0] * 0.525  # halfway from being like the example to being unlike
    taught = models[1].steering._replace(caution=0.0)
    taught = taught._replace(centres=np.float32(columns[:, :48].mean(0) + far)[None])
    before = np.asarray(_steer(models[1].scorer, _without_itself(taught), features, (8, 8)))
    found = np.asarray(_steer(models[1].scorer, taught, features, (8, 8)))
    expected = _taught_by_itself(before, columns, taught.held, 0.1 * share)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(found - before).max() > 0.02
    # What the scorer itself is sure of holds an image as far as it is unlike the example.
    other = taught.held._replace(basis=0.5 * taught.held.basis)
    both = np.asarray(_steer(models[1].scorer, taught, features, (8, 8), 1, other))
    expected += _taught_by_itself(before, columns, other, 0.1 * (1 - share)) - before
    rows = columns @ other.basis - other.origin
    spread = np.asarray(spreading.spread(expected.astype(np.float32), rows))
    expected = share * expected + (1 - share) * spread
    np.testing.assert_allclose(both, expected, atol=2e-3)
    # What marks did not teach is left to the scorer alone.
    idle = taught._replace(like=0 * taught.like, centres=taught.centres - far, held=None)
    alone = np.asarray(_steer(models[1].scorer, idle, features, (8, 8), 1, other))
    prior = np.asarray(_columns_of(models[1].scorer, features.reshape(1, 8, 8, 48))[0][0])
    prior = prior + columns @ np.asarray(taught.everywhere)
    itself = _taught_by_itself(prior, columns, other, 0.1).astype(np.float32)
    np.testing.assert_allclose(alone, np.asarray(spreading.spread(itself, rows)), atol=2e-3)
    firm = taught._replace(held=self_teaching.Held(*(1e-2 * part for part in taught.held[:2])))
    firmly = np.asarray(_steer(models[1].scorer, firm, features, (8, 8)))
    np.testing.assert_allclose(firmly, before, atol=1e-3)
    # An image unlike all examples stays as it is.
    unlike = taught._replace(centres=taught.centres + 10)
    kept = np.asarray(_steer(models[1].scorer, unlike, features, (8, 8)))
    plain = np.asarray(_steer(models[1].scorer, _without_itself(unlike), features, (8, 8)))
    np.testing.assert_array_equal(kept, plain)


@pytest.mark.parametrize(
    ("quality", "agreed"), [(0.2, 0.9), (0.45, 0.9), (0.9, 0.5), (0.9, 0.7), (0.9, 0.9)]
)
def test_an_image_found_alike_without_a_single_example_keeps_that(models, quality, agreed):
    rng, taught = np.random.default_rng(0), models[1].steering
    features = rng.normal(size=(64, 48)).astype(np.float16)
    read = equations.read_batch(models[1].scorer, features.reshape(1, 8, 8, 48))
    prior, columns = (np.asarray(part[0], float) for part in read[2:])
    prior = prior + columns @ np.asarray(taught.everywhere)
    held = taught.held._replace(basis=0.2 * taught.held.basis)
    rows = columns @ np.asarray(held.basis) - np.asarray(held.origin)
    itself = _taught_by_itself(prior, columns, held, 0.1).astype(np.float32)
    alone = np.clip(spreading.spread(itself, rows), -1, 1)
    # What marks teach is chosen so that both agree as far as is asked for.
    other = columns @ rng.normal(size=columns.shape[1])
    other -= other.mean() + (alone - alone.mean()) * np.cov(other, alone)[0, 1] / np.var(alone)
    wanted = alone - alone.mean() + other * alone.std() / other.std() * np.sqrt(1 / agreed**2 - 1)
    ridge = columns.T @ columns + 1e-2 * np.eye(columns.shape[1])
    like = np.linalg.solve(ridge, columns.T @ (wanted - prior))
    taught = taught._replace(
        like=np.float32(like)[None],
        centres=np.asarray(read.mean) + np.eye(48, dtype=np.float32)[:1] * 0.1,
        held=None,
        caution=steering._caution(quality),
    )
    found = np.asarray(_steer(models[1].scorer, taught, features, (8, 8), 1, held))
    marked = np.clip(_taught_by_itself(prior + columns @ like, columns, held, 0.1), -1, 1)
    alike = np.corrcoef(marked, alone)[0, 1]
    assert alike == pytest.approx(agreed, abs=0.1)
    trusted, likely = (np.clip(x, 0, 1) for x in ((quality - 0.3) / 0.3, (alike - 0.6) / 0.2))
    kept = 0.75 * trusted * likely
    np.testing.assert_allclose(found, marked + kept * (alone - marked), atol=3e-3)
    assert np.abs(alone - marked).max() > 0.1
    # The example itself is as marked.
    same = taught._replace(centres=np.asarray(read.mean))
    found = np.asarray(_steer(models[1].scorer, same, features, (8, 8), 1, held))
    np.testing.assert_allclose(np.clip(found, -1, 1), marked, atol=3e-3)


def test_only_a_single_mask_makes_cautious(models, photos):
    found = {photos / f"{at}.png": models[0].segment(photos / f"{at}.png")[0].mask for at in (1, 2)}
    one = {photos / "1.png": found[photos / "1.png"]}
    clicks = {photos / "1.png": [(3, 3, False)]}
    single = models[0].refine(examples=one)
    assert (single.steering.quality > 0.6, single.steering.caution) == (True, 1)
    others = [{"examples": found}, {"examples": one, "clicks": clicks}, {"clicks": clicks}]
    assert [models[0].refine(**marks).steering.caution for marks in others] == [0, 0, 0]
    assert single.refine(clicks=clicks).steering.caution == 0


def test_models_of_an_earlier_version_are_read(models, photos, tmp_path):
    earlier = dataclasses.replace(models[1], steering=_without_itself(models[1].steering))
    path = tmp_path / "earlier.safetensors"
    earlier.save(path)
    tensors = load_file(path)
    assert tensors.pop("steering/caution") == models[1].steering.caution
    with safe_open(path, "numpy") as file:
        save_file(tensors, path, file.metadata())
    assert not [name for name in load_file(path) if "basis" in name and "evidence" not in name]
    again = load_model(path, backbone=models[1].backbone)
    assert (again.steering.held, again.steering.caution) == (None, 0)
    assert _ious(again, photos) == _ious(earlier, photos)
    # Clicks on top of masks leave what masks hold.
    clicked = models[1].refine([photos / "2.png"], clicks={photos / "2.png": [(3, 3, False)]})
    for kept, before in zip(*(one.steering.held[:2] for one in (clicked, models[1])), strict=True):
        np.testing.assert_array_equal(kept, before)
    one = {photos / "2.png": [(3, 3, False)]}
    alone = fit(photos, clicks=one, backbone=again.backbone, **SETTINGS)
    assert alone.steering.held is None


@pytest.mark.parametrize("prefix", ["steering/", "held/"])
def test_half_of_what_holds_is_refused(models, tmp_path, prefix):
    path = tmp_path / "model.safetensors"
    dataclasses.replace(models[1], held=models[1].steering.held).save(path)
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
    whole = load_file(path)
    again = load_model(path, backbone=models[1].backbone)
    basis = np.asarray(models[1].steering.held.basis)
    step = np.abs(basis).max(0) / 127
    assert (np.abs(again.held.basis - basis) <= 0.51 * step).all()
    again.save(path)  # what is read back is written as it was
    for name, part in load_file(path).items():
        np.testing.assert_array_equal(part, whole[name])
    for name in ("basis", "origin", "scale")[: 2 if prefix == "steering/" else 3]:
        tensors = {key: part for key, part in whole.items() if key != prefix + name}
        save_file(tensors, path, facts)
        with pytest.raises(ValueError, match=f"'{prefix}"):
            load_model(path, backbone=models[1].backbone)


def test_steered_models_are_saved_and_loaded(models, photos, tmp_path):
    path = tmp_path / "model.safetensors"
    models[1].save(path)
    again = load_model(path, backbone=models[1].backbone)
    assert (again.images, again.steering.examples) == (4, 1)
    assert _ious(again, photos) == _ious(models[1], photos)
    segment_files(again.segmenter(), find_images([photos]), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "steered by 1 marked image" in page
    assert "No labels were used" not in page
    tiled = dataclasses.replace(again, method=resolve(again.method, tile=64))
    with pytest.raises(ValueError, match=r"tile=64 .* steered"):
        tiled.segment(photos / "0.png")


CLICKS = [(36, 44, True), (40, 52, True), (20, 24, False), (24, 20, False)]


def test_clicks_steer_and_refine_a_model_that_stays_as_it_is(models, photos):
    plain, sources = models[0], [photos / f"{index}.png" for index in range(4)]
    refined = plain.refine(sources, clicks={photos / "1.png": CLICKS})
    before, after = (
        [model.segment(path)[0].evidence[192, 192 - 32 * at] for at, path in enumerate(sources)]
        for model in (plain, refined)
    )
    assert np.mean(after) > np.mean(before)  # on blue squares
    assert (plain.steering, refined.steering.examples) == (None, 1)
    fitted = fit(
        photos, backbone=plain.backbone, clicks={str(photos / "1.png"): CLICKS}, **SETTINGS
    )
    np.testing.assert_allclose(fitted.steering.like, refined.steering.like, atol=2e-3)
    again = refined.refine(examples={sources[0]: _blue(0)})  # which starts from the first
    assert again.steering.examples == 2
    with pytest.raises(ValueError, match="only a model of 'collective' without"):
        dataclasses.replace(plain, method=resolve(plain.method, tile=64)).refine(sources)


def test_painted_patches_are_labelled_as_painted(models, photos):
    """What a model found in an image is painted over, with the other sign."""
    source, at = photos / "1.png", np.index_exp[20:28, 20:28]  # the orange square
    before = models[0].segment(source)[0].mask[at]
    stroke = ([(20, 20), (28, 28)], 6, not before.mean() > 0.5)
    found = models[0].refine([photos / f"{n}.png" for n in range(4)], clicks={source: [stroke]})
    after = found.segment(source)[0].mask[at]
    assert (before == stroke[2]).mean() < 0.1
    assert (after == stroke[2]).mean() > 0.6


def test_examples_count_in_images_like_theirs(models):
    scorer = models[0].scorer
    grids = np.random.default_rng(0).normal(size=(1, 8, 8, 48)).astype(np.float16)
    prior, columns = (part[0] for part in _columns_of(scorer, grids))
    mean = np.asarray(columns[:, :48]).mean(0)
    away = np.eye(48)[0] * (mean[0] < 0) - np.eye(48)[0] * (mean[0] >= 0)
    word, like = np.random.default_rng(1).normal(size=(2, 51))
    for distances, share in (((0.4,), 1), ((0.525, 2), 0.5), ((0.61, 0.7), 0)):
        centres = mean + np.array(distances)[:, None] * away
        rows = like[None] * [[1], [-1]][: len(distances)]
        found = steering.Steering(word, rows, centres, 1)
        margins = _steer(scorer, found, grids.reshape(64, 48), (8, 8))
        wanted = prior + columns @ (word + share * like)
        np.testing.assert_allclose(margins, wanted, atol=2e-3)


@pytest.mark.parametrize("word", ["bright", "dark", "centre"])
def test_a_word_raises_what_it_names(models, word):
    """One image of random features, of which the left half is bright."""
    grid = (8, 8)
    features = np.random.default_rng(0).normal(size=(1, *grid, 48)).astype(np.float16)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = 255
    named = {name: np.zeros(grid, bool) for name in ("bright", "dark", "centre")}
    named["bright"][:, :4] = named["dark"][:, 4:] = named["centre"][2:6, 2:6] = True
    scorer = models[0].scorer
    found = words.fit_word(scorer, [(features, pixels)], word)
    columns = _columns_of(scorer, features)[1][0]
    change = np.asarray(columns @ found.everywhere).reshape(grid)
    assert change[named[word]].mean() > change[~named[word]].mean() + 0.02
    assert int(found.examples) == 0


def test_pieces_are_small_or_large():
    margins = np.full((20, 20), -1.0)
    margins[:12, :10] = margins[18, 18] = 1
    large = words._cue("large", margins, np.zeros((4, 4, 3), np.uint8))
    assert (large[0, 0], large[18, 18], large[19, 0]) == (1, -1, 0)
    small = words._cue("small", margins, np.zeros((4, 4, 3), np.uint8))
    np.testing.assert_array_equal(small, -large)


@pytest.mark.parametrize("change", ["short", "missing", "uncounted", "nowhere"])
def test_damaged_steering_is_refused(models, tmp_path, change):
    from safetensors import safe_open
    from safetensors.numpy import load, save_file

    path = tmp_path / "model.safetensors"
    models[1].save(path)
    tensors = load(path.read_bytes())
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
    if change == "short":
        tensors["steering/like"] = tensors["steering/like"][:, 1:]
    elif change in ("missing", "nowhere"):
        del tensors["steering/like" if change == "missing" else "steering/centres"]
    else:
        del facts["examples"]
    save_file(tensors, path, facts)
    with pytest.raises(ValueError, match="is not a model that can be used"):
        load_model(path, backbone=models[1].backbone)


def test_command_line_reads_masks_by_stem(photos, tiny_weights, models, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    out = tmp_path / "m.safetensors"
    command = ["fit", photos, "--out", out, "--backbone", tiny_weights, "--image-size", 64]
    command = [*map(str, command), "--examples", str(masks)]
    assert main.main(command) == 1
    assert "holds no masks" in capsys.readouterr().err
    Image.fromarray(_blue(1).astype(np.uint8) * 38).save(masks / "1.bmp")
    assert main.main(command) == 0
    assert "fitted on 4 images, steered by 1 of them" in capsys.readouterr().out
    found = load_model(out, backbone=models[1].backbone).steering.like
    np.testing.assert_array_equal(found, models[1].steering.like)
    # Decisions that keep the same mask teach the same; clicks beside it change it.
    objects = [{"box": [32, 40, 48, 56], "counts": encode_rle(np.ones((16, 16), bool))["counts"]}]
    image = {"name": "1", "decision": "keep", "size": [64, 64], "objects": objects}
    decided = {"format": "unseg-jax decisions", "images": [image]}
    (tmp_path / "decisions.json").write_text(json.dumps(decided))
    command[-1] = str(tmp_path / "decisions.json")
    for clicks in (
        [],
        ["--look-for", "dark", "--click", "0.png:16,24,+", "--click", f"{photos / '1.png'}:0,0,+"],
    ):
        assert main.main([*command, "--overwrite", *clicks]) == 0
        said = f"steered by {1 + bool(clicks)} of them"
        assert said in capsys.readouterr().out
        again = load_model(out, backbone=models[1].backbone).steering.like
        assert np.array_equal(found, again) != bool(clicks)
    command[-1] = str(masks)
    (masks / "1.bmp").rename(masks / "1_mask.bmp")
    assert main.main([*command, "--overwrite"]) == 1
    assert "has no image of the stem '1_mask'" in capsys.readouterr().err


def test_clicks_are_read_from_texts(tmp_path):
    sources = [tmp_path / "a:1,2.jpg", tmp_path / "x" / "b.jpg", tmp_path / "y" / "b.jpg"]
    texts = ["a:1,2.jpg:3,4.5,-", f"{tmp_path}/x/b.jpg:0,0,+", f"{tmp_path}/x/b.jpg:1,2,-"]
    assert parse_clicks(texts, sources) == {
        sources[0]: [(3, 4.5, False)],
        sources[1]: [(0, 0, True), (1, 2, False)],
    }
    for text, message in {
        "b.jpg:1,2": "not of the form",
        "b.jpg:1,2,+": "2 of the images are called so; give its path, such as .*x/b.jpg",
        "c.jpg:1,2,+": "0 of the images",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_clicks([text], sources)


def test_pages_are_clicked_on_by_their_number(tmp_path):
    pages = [Page(tmp_path / "z.tif", number) for number in (1, 2)]
    texts = ["z.tif (page 2):3,4,+", f"{tmp_path}/z.tif (page 1):1,2,-"]
    assert parse_clicks(texts, pages) == {pages[1]: [(3, 4, True)], pages[0]: [(1, 2, False)]}
    assert parse_clicks(["z.tif:3,4,+"], pages[:1]) == {pages[0]: [(3, 4, True)]}
    with pytest.raises(ValueError, match=r"2 of the images .* such as .*z.tif \(page 1\)\."):
        parse_clicks(["z.tif:3,4,+"], pages)


_NONE, _ALL = np.zeros((64, 64), bool), np.ones((64, 64), bool)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ({"11.png": _ALL}, {}, "11.png is not among the images: did you mean .*1.png"),
        ({"1.png": _ALL[:9]}, {}, "64 × 9 pixels and the image 64 × 64"),
        ({"1.png": _NONE}, {}, "no example marks any foreground"),
        ({"1.png": _ALL, "2.png": _ALL}, {}, "foreground all over"),
        ({}, {}, "no example marks"),
        (
            {"1.png": _blue(1)},
            {"clicks": {"0.png": [(1, 64, True)]}},
            "click at 1, 64 lies outside",
        ),
        ({}, {"clicks": {"0.png": [([(1, 2), (64, 2)], 3, True)]}}, "stroke at 64, 2 lies outside"),
        ({}, {"clicks": {"0.png": [([(1, 2)], 0, True)]}}, "1 points and a radius of 0"),
        ({}, {"clicks": {"0.png": [([], 3, True)]}}, "stroke on .* has 0 points"),
        ({"1.png": _NONE}, {"clicks": {"1.png": []}}, "no example marks any"),
        ({"1.png": _blue(1)}, {"method": "unsegmedgat-c"}, "look_for steer 'collective' alone"),
        ({"1.png": _blue(1)}, {"tile": 64}, "tile=64 is not for a fit that is steered"),
        ({"1.png": _blue(1)}, {"steps": 5}, "steps=5 is not for a fit that is steered"),
    ],
)
def test_what_cannot_steer(photos, backbone, examples, options, message):
    marked = {str(photos / name): mask for name, mask in examples.items()}
    if "clicks" in options:
        points = {photos / name: clicks for name, clicks in options["clicks"].items()}
        options = {**options, "clicks": points}
    with pytest.raises(ValueError, match=message) as caught:
        fit(photos, backbone=backbone, examples=marked, **SETTINGS, **options)
    assert str(caught.value).endswith(("?", "."))


def test_what_is_looked_for_is_fitted_saved_and_said(photos, models, tmp_path, capsys):
    """Blue squares are darker than orange ones, which are what stands out."""
    out = tmp_path / "m.safetensors"
    model = fit(photos, backbone=models[0].backbone, look_for="dark", **SETTINGS)
    model.save(out)
    again = load_model(out, backbone=models[0].backbone)
    assert int(again.steering.examples) == 0
    np.testing.assert_array_equal(again.steering.everywhere, model.steering.everywhere)
    assert _ious(again, photos) == _ious(model, photos)
    both = fit(
        photos,
        backbone=models[0].backbone,
        look_for="dark",
        examples={photos / "1.png": _blue(1)},
        **SETTINGS,
    )
    assert int(both.steering.examples) == 1
    with pytest.raises(ValueError, match="look_for='drak' is not known: did you mean 'dark'"):
        fit(photos, backbone=models[0].backbone, look_for="drak", **SETTINGS)


def test_an_image_may_hold_nothing(photos, backbone):
    marked = {photos / "1.png": _blue(1), photos / "2.png": _NONE}
    model = fit(photos, backbone=backbone, examples=marked, **SETTINGS)
    assert model.steering.examples == 2


def test_only_its_own_features_take_the_ready_model(models):
    real = dataclasses.replace(models[0].backbone, name=resolve("collective").backbone)
    assert is_of_shipped(resolve("collective", tile=64), real)
    assert not is_of_shipped(resolve("collective"), models[0].backbone)
    assert is_of_shipped(resolve("collective", block=(-1, 5)), real)
    for other in ({"facet": "query"}, {"block": 5}, {"block": (5, -1)}, {"log_bin": True}):
        assert not is_of_shipped(resolve("collective", **other), real)
    with pytest.raises(ValueError, match="width 384"):
        load_shipped(backbone=models[0].backbone)
