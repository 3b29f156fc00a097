"""Images seen at two sizes: how features are packed, what they teach, and who asks for it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

import unseg_jax as us
from unseg_jax.backbones import grids
from unseg_jax.cli.main import main
from unseg_jax.collective import cues, equations, fitting, segmenter, set_scorer, steering, tiling
from unseg_jax.collective.choosing import choose
from unseg_jax.collective.fitting import fit
from unseg_jax.collective.model import load_model
from unseg_jax.postprocess.objects import several_small, typical_length
from unseg_jax.registry import resolve
from unseg_jax.segmentation import TWICE_NOTE
from unseg_jax.segmenter import BatchSegmenter
from unseg_jax.segmenter.decoded_cache import Decoded, DecodedCache
from unseg_jax.terminal.costs import expected_cost
from unseg_jax.terminal.segment_command import Segment, segment_images

SETTINGS = {"image_size": 64}
pytestmark = pytest.mark.usefixtures("short_training")


def _dots(index):
    """Where four blue dots of an image are; orange ones lie elsewhere."""
    mask = np.zeros((64, 64), bool)
    for row in (8, 40):
        for column in (4, 36):
            mask[row : row + 8, column + 2 * index : column + 2 * index + 8] = True
    return mask


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """Four images with small dots of two colours."""
    folder = tmp_path_factory.mktemp("dots")
    for index in range(4):
        image = np.random.default_rng(index).integers(60, 80, (64, 64, 3), dtype=np.uint8)
        image[_dots(index)] = (20, 80, 220)
        image[np.roll(_dots(index), (16, 16), (0, 1))] = (220, 120, 20)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def models(dots, backbone):
    """Steered by one example: as examples have it, and with images seen at one size."""
    examples = {dots / "1.png": _dots(1)}
    options = {"backbone": backbone, "examples": examples, **SETTINGS}
    return fit(dots, **options), fit(dots, scales=1, **options)


def test_quarters_lie_in_their_patches():
    grid, values = (2, 3), np.arange(24, dtype=np.float32)
    assert resolve("collective", scales=2).feature_parts == grids.PARTS
    packed = np.asarray(grids.pack_quarters(values.reshape(1, 24, 1), grid))[0]
    # Of the patch in the second row and third column: rows 2 and 3, columns 4 and 5 of six.
    np.testing.assert_array_equal(packed[5], [16, 17, 22, 23])
    np.testing.assert_array_equal(grids.unpack_quarters(packed, grid)[:, 0], values)
    pooled = np.asarray(grids.pool(values, grid))
    np.testing.assert_allclose(pooled, packed.mean(1))
    larger = np.asarray(grids.enlarge(pooled, grid)).reshape(4, 6)
    np.testing.assert_allclose(larger[1:3, 1:5], values.reshape(4, 6)[1:3, 1:5], atol=1e-5)
    wide = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    packed = grids.pack_quarters(wide[None], grid)[0]
    np.testing.assert_array_equal(grids.unpack_quarters(packed, grid), wide)


@pytest.mark.parametrize("batching", ["loop", "threads", "vmap"])
def test_kept_features_are_those_of_both_sizes(backbone, batching):
    """The image is smooth, so that making it smaller twice changes little."""
    columns, rows = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64))
    image = np.stack([columns, rows, 255 - columns], -1).astype(np.uint8)
    one, two = (
        BatchSegmenter(
            resolve("collective", image_size=64, scales=scales), backbone, batching=batching
        )
        for scales in (1, 2)
    )
    once, twice = one.prepare(image), two.prepare(image)
    assert twice.shape == (2 * once.shape[0], 2 * once.shape[1], 3)
    whole, both = (np.asarray(each.kept_features(each.prepare(image)[None])) for each in (one, two))
    grid = whole.shape[1:3]
    assert both.shape == (1, *grid, 5 * 48) == (1, *grid, 48 * two.method.feature_parts)
    np.testing.assert_allclose(both[..., :48], whole, atol=0.1)
    large = dataclasses.replace(one.method, resize="stretch", image_size=twice.shape[:2])
    alone = BatchSegmenter(large, backbone, batching=batching)
    closer = np.asarray(alone.kept_features(twice[None]))[0]
    quarters = both[0, ..., 48:].reshape(-1, 4 * 48)
    np.testing.assert_allclose(
        np.asarray(grids.unpack_quarters(quarters, grid)), closer.reshape(-1, 48), atol=1e-3
    )


def test_small_things_are_learned_from_twice_the_size(models, dots, backbone, tmp_path):
    closer, once = models
    assert (closer.method.scales, once.method.scales) == (2, 1)
    assert closer.method.block == once.method.block
    found = [model.segment([dots / f"{at}.png" for at in (0, 2, 3)]) for model in models]
    ious = [
        np.mean(
            [us.metrics.iou(one.mask, _dots(at)) for one, at in zip(these, (0, 2, 3), strict=True)]
        )
        for these in found
    ]
    assert ious[0] > ious[1] + 0.05
    assert (found[0][0].patch_labels.shape, found[1][0].patch_labels.shape) == ((16, 16), (8, 8))
    assert all(0 < one.confidence < 1 for one in found[0])
    assert (found[0][0].min_area, found[1][0].min_area) == (0.00025, 0.001)
    path = tmp_path / "closer.safetensors"
    closer.save(path)
    again = load_model(path, backbone=backbone)
    assert again.method == closer.method
    np.testing.assert_array_equal(again.segment(dots / "0.png")[0].mask, found[0][0].mask)
    described = again.segmenter().but(with_features=True)([dots / "0.png"])[0]
    assert described.patch_features.shape == (8, 8, 48)
    with pytest.raises(ValueError, match="scales=2 does not go with epochs=3"):
        again.segment(dots / "0.png", epochs=3)


def test_a_model_of_twice_the_size_is_refined_at_it(models, dots):
    sources = [dots / f"{at}.png" for at in range(4)]
    clicks = {sources[0]: [(23, 27, True), (25, 29, True)]}  # on an orange one
    again = models[0].refine(sources, clicks=clicks)
    assert (again.method, int(again.steering.examples)) == (models[0].method, 2)
    applied = models[0].segmenter()
    view = applied.prepare(np.asarray(Image.open(sources[0])))
    features = np.asarray(applied.kept_features(view[None]))[0].reshape(64, -1)
    before, after = (
        np.asarray(steering.steer(model.scorer, model.steering, features, (8, 8), 2))
        for model in (models[0], again)
    )
    change = (after - before).reshape(16, 16)
    assert change[6:8, 5:7].min() > 0.3  # where the clicks are
    assert np.abs(change).mean() < 0.2
    plain = fit(sources, backbone=models[0].backbone, steps=0, **SETTINGS)
    marked = plain.refine(sources, examples={1: _dots(1)})
    assert (plain.method.scales, marked.method.scales) == (1, 2)
    assert plain.refine(sources, clicks=clicks).method.scales == 1


def test_few_images_are_read_at_two_sizes(models, dots, monkeypatch):
    """What is steered is fitted on all of them, which are read at one size."""
    seen, real = [], fitting.fit_steering

    def record(scorer, batches, marked, *rest):
        kept = list(batches)
        seen.extend(len(batch) for batch in kept)
        assert {batch.shape[-1] for batch in kept} == {grids.PARTS * 48}
        return real(scorer, kept, marked, *rest)

    monkeypatch.setattr(fitting, "fit_steering", record)
    monkeypatch.setattr(fitting, "_MOST_CLOSER", 2)
    options = {"backbone": models[0].backbone, "examples": {dots / "1.png": _dots(1)}, **SETTINGS}
    assert fit(dots, **options).images == 4
    assert sum(seen) == 2
    seen.clear()
    fit(dots, max_images=1, **options)
    assert sum(seen) == 1


def test_words_and_examples_go_together_at_two_sizes(models, dots):
    word = {"look_for": "dark", "backbone": models[0].backbone, **SETTINGS}
    both = fit(dots, examples={dots / "1.png": _dots(1)}, **word)
    alone = fit(dots, **word)
    assert (both.method.scales, alone.method.scales) == (2, 1)
    width = len(alone.steering.everywhere)
    assert both.steering.everywhere.shape == (width,) == both.steering.like.shape[1:]
    # The features that the word is learned from are those of an image made smaller by the device.
    assert np.corrcoef(both.steering.everywhere, alone.steering.everywhere)[0, 1] > 0.9


def test_margins_at_two_sizes_are_those_of_the_formula(models):
    """The prior and scores are of both sizes, and coefficients read the quarters of patches."""
    rng, grid = np.random.default_rng(0), (4, 6)
    scorer = models[1].scorer
    features = rng.normal(size=(24, 5 * 48)).astype(np.float16)
    everywhere, like = rng.normal(size=(2, 51)).astype(np.float32)
    columns = equations.read_patches(scorer, features[:, :48], grid, 1).columns
    mean = np.asarray(columns[:, :48]).mean(0)
    found = steering.Steering(everywhere, jnp.asarray(like)[None], jnp.asarray(mean)[None], 1)
    margins = jax.jit(steering.steer, static_argnums=(3, 4))(scorer, found, features, grid, 2)
    quarters = np.asarray(grids.unpack_quarters(features[:, 48:].astype(np.float32), grid))
    quarters /= np.linalg.norm(quarters, axis=-1, keepdims=True)

    def larger(values):
        image = Image.fromarray(np.asarray(values, np.float32).reshape(grid))
        return np.asarray(image.resize((12, 8), Image.Resampling.BILINEAR)).ravel()

    near = set_scorer.both_scores(scorer, quarters, (8, 12))
    scores = [(larger(columns[:, 48 + at]) + near[at]) / 2 for at in range(2)]
    wanted = np.clip(set_scorer.score_closer(scorer, features, grid), -1, 1)
    wanted += larger(columns @ everywhere) + quarters @ like[:48]
    wanted += scores[0] * like[48] + scores[1] * like[49] + like[50]
    np.testing.assert_allclose(margins, wanted, atol=5e-3)
    # Confidence and shapes are of the same grid.
    fitted = segmenter.Fitted(scorer, None, np.zeros(1), found)
    method = resolve("collective", scales=2)
    result = segmenter.apply_steered(
        method, None, None, fitted, features[None].astype(np.float32), grid, 0
    )
    assert result.margins.shape == (1, 8, 12)
    np.testing.assert_allclose(result.margins.ravel(), wanted, atol=5e-3)


def test_without_examples_scores_of_both_sizes_count_alike(models):
    rng, grid, scorer = np.random.default_rng(0), (4, 6), models[1].scorer
    scorer = scorer._replace(frame=np.zeros_like(scorer.frame))
    features = rng.normal(size=(24, 5 * 48)).astype(np.float16)
    quarters = grids.unpack_quarters(features[:, 48:], grid)
    whole = sum(set_scorer.both_scores(scorer, features[:, :48], grid)[:2]) / 2
    near = sum(set_scorer.both_scores(scorer, quarters, (8, 12))[:2]) / 2
    scores = (grids.enlarge(whole, grid) + near) / 2
    wanted = scores - cues.otsu(scores, np.ones(96, bool))
    found = set_scorer.score_closer(scorer, features, grid)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_model_fitted_for_two_sizes_is_applied_at_them(dots, backbone):
    model = fit(dots, backbone=backbone, steps=0, scales=2, **SETTINGS)
    plain = fit(dots, backbone=backbone, steps=0, **SETTINGS)
    np.testing.assert_allclose(model.scorer.weights, plain.scorer.weights, atol=1e-3)
    found = model.segment(dots / "0.png")[0]
    assert found.patch_labels.shape == (16, 16)
    assert 0 < found.confidence < 1


def test_small_is_half_in_pieces_shorter_than_a_quarter():
    def square(side, at=0, size=100):
        mask = np.zeros((size, size), bool)
        mask[at : at + side, at : at + side] = True
        return mask

    assert steering.are_small([square(24)])
    assert not steering.are_small([square(26)])
    assert not steering.are_small([])
    assert not steering.are_small([np.zeros((9, 9), bool)])  # says nothing of the size
    assert steering.are_small([square(24), np.zeros((9, 9), bool)])
    # A large one with less than half of the area beside small ones.
    many = np.zeros((100, 100), bool)
    many[:20, :20] = many[:20, 30:50] = many[30:50, :20] = True
    many[60:90, 60:90] = True
    assert steering.are_small([many])
    assert typical_length(np.array([400, 400, 400, 900])) == 20
    assert typical_length(np.array([400, 400, 900])) == 30


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("collective", {"scales": 3}, "scales=3 must be 1 or 2"),
        ("collective", {"scales": 2, "tile": 64}, "scales=2 does not go with tile=64: leave one"),
        ("collective", {"scales": 2, "stride": 7}, "scales=2 does not go with stride=7"),
        ("collective", {"scales": 2, "epochs": 3}, "scales=2 does not go with epochs=3"),
        ("deepcut", {"scales": 2}, "is for models of a whole set: take 'collective'"),
    ],
)
def test_what_two_sizes_do_not_go_with(method, options, message):
    with pytest.raises(ValueError, match=message):
        resolve(method, **options)


@pytest.mark.parametrize("options", [{"stride": 4}, {"log_bin": True}])
def test_examples_teach_at_one_size_where_two_cannot_be(backbone, options):
    method = resolve("collective", **options)
    assert steering.to_be_taught(method, backbone, [_dots(0)]).scales == 1


def test_a_file_from_before_there_were_two_sizes_is_read(models, backbone, dots, tmp_path):
    path = tmp_path / "model.safetensors"
    models[1].save(path)
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    method = json.loads(facts["method"])
    assert method.pop("scales") == 1
    save_file(tensors, path, {**facts, "method": json.dumps(method)})
    again = load_model(path, backbone=backbone)
    assert again.method == models[1].method


def test_what_is_kept_is_of_the_features_of_a_method():
    cache, image = DecodedCache(), np.zeros((2, 2, 3), np.uint8)
    options = ({}, {"scales": 2}, {"block": (-1, 5)})
    keys = [resolve("collective", **one).feature_key for one in options]
    for width, key in enumerate(keys, 1):
        cache.put(image, Decoded(image, np.zeros(width, np.float16), (2, 2)), key)
    assert [len(cache.get(image, key).prepared) for key in keys] == [1, 2, 3]
    assert cache.get(image, resolve("collective", stride=7).feature_key) is None


@pytest.mark.parametrize("batch_size", [2, 8])
def test_images_that_ask_for_it_are_seen_at_twice_the_size(dots, backbone, batch_size, monkeypatch):
    """Each in its place, with those around it as they were."""
    monkeypatch.setattr(segmenter, "several_small", lambda mask, size: size == (64, 64))
    sources = [dots / f"{at}.png" for at in range(4)]
    model = fit(sources, backbone=backbone, steps=0, **SETTINGS)
    twice = dataclasses.replace(model, method=resolve(model.method, scales=2))
    other = np.asarray(Image.open(sources[0]))[:48]
    images = [sources[0], other, "missing.png", sources[1], other, other, sources[2]]
    found = list(model.segmenter(closer=True, batch_size=batch_size).stream(images))
    assert isinstance(found.pop(2), us.errors.ImageError)
    del images[2]
    wanted = [
        (twice if at in (0, 2, 5) else model).segment(one)[0] for at, one in enumerate(images)
    ]
    for at, (one, alone) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_array_equal(one.mask, alone.mask)
        assert (TWICE_NOTE in one.notes) == (at in (0, 2, 5))
    assert [one.id for one in found[::2]] == [str(sources[0]), str(sources[1]), "5"]
    assert [one.look_closer for one in found] == [""] * 6


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_at_twice_the_size_keeps_what_was_found(dots, backbone, monkeypatch, fails):
    model = fit(dots, backbone=backbone, steps=0, **SETTINGS)
    (plain,) = model.segment(dots / "0.png")
    nothing = dataclasses.replace(plain, raw_mask=np.zeros_like(plain.raw_mask))
    real = tiling.stream_batches

    def stream(segmenter, images, full_pixels):
        if segmenter.method.scales == 1:
            return real(segmenter, images, full_pixels)
        return iter([us.errors.ImageError("it vanished.") if fails else nothing for _ in images])

    monkeypatch.setattr(segmenter, "several_small", lambda mask, size: True)
    monkeypatch.setattr(tiling, "stream_batches", stream)
    (found,) = model.segmenter(closer=True)(dots / "0.png")
    assert (found.look_closer, found.notes) == ("scales", plain.notes)
    np.testing.assert_array_equal(found.mask, plain.mask)


@pytest.mark.parametrize(
    ("count", "side", "expected"),
    [(3, 20, True), (2, 20, False), (3, 60, False), (4, 5, False)],
)
def test_several_small_are_three_or_more_but_no_specks(count, side, expected):
    mask = np.zeros((200, 200), bool)
    for at in range(count):
        row, column = divmod(at, 2)
        mask[70 * row : 70 * row + side, 90 * column : 90 * column + side] = True
    assert several_small(mask, (200, 200)) == expected
    # A long image is longer than it is shown here.
    assert several_small(mask, (200, 800)) == (count == 3)


def test_that_it_takes_longer_is_said_once(dots, tmp_path, capsys, monkeypatch, backbone):
    monkeypatch.setattr(segmenter, "several_small", lambda mask, size: True)
    model = fit(dots, backbone=backbone, steps=0, **SETTINGS)
    asked = Segment(paths=[str(dots)], out=tmp_path / "out")
    chosen = choose("auto", overrides={})

    def load(*_):
        return model.segmenter(closer=True)

    assert segment_images(asked, chosen, load) == 0
    said = capsys.readouterr().err
    assert said.count("seen at twice the size as well, which takes about 10 times as long") == 1
    assert segment_images(asked, chosen, load) == 0  # all is done already
    assert "takes about" not in capsys.readouterr().err
    assert "twice the size" in (tmp_path / "out" / "report.html").read_text()


def test_a_fit_says_that_its_model_takes_longer(dots, tiny_weights, tmp_path, capsys):
    masks, model = tmp_path / "masks", str(tmp_path / "model.safetensors")
    masks.mkdir()
    Image.fromarray(255 * _dots(1).astype(np.uint8)).save(masks / "1.png")
    command = ["fit", str(dots), "--examples", str(masks), "--backbone", str(tiny_weights)]
    command += ["--image-size", "64", "--out", model, "--overwrite"]
    for asked, said in (((), True), (("--scales", "1"), False)):
        assert main([*command, *asked]) == 0
        assert ("takes about 10 times as long" in capsys.readouterr().out) == said
        assert load_model(model, backbone=tiny_weights).method.scales == 2 - (not said)


def test_auto_looks_closer_unless_a_size_is_asked_for():
    assert choose("auto").closer
    for asked in ({"scales": 1}, {"scales": 2}, {"tile": 0}):
        chosen = choose("auto", overrides=asked)
        assert (chosen.closer, chosen.method.name) == (False, "collective")
    said = expected_cost(choose("auto", overrides={"scales": 2}), [])
    assert "scales=2 sees an image at twice the size" in said
    assert not expected_cost(choose("auto"), [])
