"""What segments how many images, and what is loaded for them; nothing depends on weights."""

import dataclasses
import logging

import numpy as np
import pytest

import unseg_jax as us
from unseg_jax import registry
from unseg_jax.cache import compile_clock
from unseg_jax.collective import black_frames, fitting
from unseg_jax.collective.choosing import choose, load
from unseg_jax.collective.shipped import SHIPPED_MODEL, load_shipped
from unseg_jax.data.reading_options import Reading
from unseg_jax.errors import WeightsError
from unseg_jax.registry import resolve

pytestmark = pytest.mark.usefixtures("short_training")


def square(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(20, 60, (56, 70, 3))
    image[14:42, 20:50] += 150
    return image.astype(np.uint8)


def framed(seed: int, thickness: int = 6) -> np.ndarray:
    """The same behind a black frame, in which values are not quite 0."""
    image = square(seed)
    opening = np.zeros((56, 70, 1), bool)
    opening[thickness : 56 - thickness, thickness : 70 - thickness] = True
    return np.where(opening, image + 40, seed % 9).astype(np.uint8)


def test_the_ready_model_is_small_and_whole(colours, monkeypatch, tmp_path):
    assert SHIPPED_MODEL.stat().st_size < 500_000
    model = load_shipped(backbone=colours)
    assert model.method.name == "collective"
    assert model.images == 11
    assert model.head is None
    copy = tmp_path / "shipped.safetensors"
    content = bytearray(SHIPPED_MODEL.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    monkeypatch.setattr("unseg_jax.collective.shipped.SHIPPED_MODEL", copy)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_shipped(backbone=colours)


@pytest.mark.parametrize(
    ("draw", "count", "fitted"),
    [
        (framed, 7, False),
        (framed, black_frames.SET_SIZE, True),
        (square, black_frames.SET_SIZE, False),
    ],
)
def test_a_set_behind_a_black_frame_is_fitted(colours, monkeypatch, caplog, draw, count, fitted):
    small = resolve("collective", image_size=56)
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, "collective": small})
    calls = []
    real = fitting.fit_set
    record = lambda *a, **k: calls.append(len(a[0])) or real(*a, **k)  # noqa: E731
    monkeypatch.setattr(fitting, "fit_set", record)
    segmenter = us.Segmenter(backbone=colours, batch_size=4)
    images = [draw(seed) for seed in range(count)]
    with caplog.at_level(logging.INFO, logger="unseg_jax"):
        results = segmenter(images)
    assert calls == ([count] if fitted else [])
    assert len(results) == count
    assert all(result.mask.shape == (56, 70) for result in results)
    said = [message for message in caplog.messages if message.startswith("auto: ")]
    assert len(said) == 1
    assert ("black frame" in said[0]) == fitted


def test_a_mixed_set_is_told_how_many_images_have_a_frame():
    choice = choose("auto", [draw(seed) for seed in range(12) for draw in (framed, square)])
    assert choice.model == SHIPPED_MODEL
    assert "About 12 of the 24 have a black frame in common" in choice.why


def test_a_frame_is_black_at_one_place_in_most_images(tmp_path):
    rng = np.random.default_rng(0)
    frame, plain = [framed(seed) for seed in range(40)], list(map(square, range(40)))
    dark = [framed(seed, 24) for seed in range(8)]  # fields
    missing = tmp_path / "missing.png"
    for images in (frame, [*frame[:36], *plain[:4]], [missing, *frame[:8]]):
        assert black_frames.share_framed(images) == 1
    moving = [np.roll(image, rng.integers(10, 50, 2), (0, 1)) for image in frame]
    assert black_frames.share_framed(moving) < 1
    thin = [framed(seed, 1) for seed in range(8)]
    grey = [image + np.uint8(60) for image in frame]
    for images in (thin, dark, grey, frame[:7], [missing] * 8, []):
        assert black_frames.share_framed(images) == 0
    # A mixed set; the rest of it may be dark.
    for others in (plain[:14], [*plain[:6], *dark]):
        assert black_frames.share_framed([*frame[:10], *others]) == pytest.approx(10 / 24)
        assert black_frames.share_framed([*frame[:7], *others]) == 0
    assert black_frames.share_framed([*frame[:8], *plain[:32]]) == 0  # too few of all


MASK = np.zeros((56, 70), bool)
MASK[14:42, 20:50] = True


@pytest.mark.parametrize(
    ("draw", "marks", "count", "better", "fitted", "tried"),
    [
        (square, "examples", 8, (0.5, 0.5), False, 2),
        (square, "examples", 8, (0.5, 0.59), False, 2),
        (square, "examples", 8, (0.5, 0.61), True, 2),
        (square, "two examples", 8, (0.5, 0.54), False, 2),
        (square, "two examples", 8, (0.5, 0.56), True, 2),
        (framed, "examples", 8, (0.5, 0.5), True, 2),
        (framed, "examples", 8, (0.61, 0.5), False, 2),
        (square, "examples", 7, (0.5, 0.6), False, 1),
        (square, "clicks", 8, (np.nan, np.nan), False, 1),
        (framed, "clicks", 8, (np.nan, np.nan), True, 1),
    ],
)
def test_marks_steer_what_agrees_with_them_best(
    colours, monkeypatch, draw, marks, count, better, fitted, tried
):
    """Neither is anything fitted here, nor steered: how well that agrees is given."""
    own = dataclasses.replace(colours, name=resolve("collective").backbone)
    shipped, seen = load_shipped(backbone=own), []
    of_fit = shipped.scorer._replace(mean=-shipped.scorer.mean)

    def steer(scorer, *rest):
        seen.append(np.array_equal(scorer.mean, of_fit.mean))
        return f"steering of {seen[-1]}", better[seen[-1]]

    monkeypatch.setattr(fitting, "fit_steering", steer)
    monkeypatch.setattr(fitting, "fit_evidence", lambda *_: (of_fit, None, ({},)))
    marked = {1: [(30, 20, True)] if marks == "clicks" else MASK}
    marked |= {2: MASK} if marks == "two examples" else {}
    images = [draw(seed) for seed in range(count)]
    model = us.fit(images, backbone=own, image_size=56, **{marks.split()[-1]: marked})
    assert np.array_equal(model.scorer.mean, of_fit.mean) == fitted
    assert model.foreground == (({},) if fitted else shipped.foreground)
    assert model.steering == f"steering of {fitted}"
    assert len(seen) == tried


def test_a_fit_and_the_model_that_ships_are_steered(colours, monkeypatch):
    own, found = dataclasses.replace(colours, name=resolve("collective").backbone), []
    real = fitting.fit_steering
    record = lambda *given: found.append((*real(*given), given[0])) or found[-1][:2]  # noqa: E731
    monkeypatch.setattr(fitting, "fit_steering", record)
    images = [square(seed) for seed in range(black_frames.SET_SIZE)]
    model = us.fit(images, backbone=own, image_size=56, examples={1: MASK})
    (_, first, shipped), (_, second, of_fit) = found
    assert np.array_equal(shipped.mean, load_shipped(backbone=own).scorer.mean)
    assert not np.array_equal(of_fit.mean, shipped.mean)
    steering, _, scorer = found[second > first + 0.1]
    assert model.steering is steering
    assert model.scorer is scorer
    assert us.metrics.iou(model.segment(images[1])[0].mask, MASK) > max(first, second)


def test_settings_of_published_methods_take_deepcut(colours):
    segmenter = us.Segmenter(backbone=colours, image_size=56, epochs=2)
    assert segmenter.method.name == "deepcut"
    assert segmenter.method.epochs == 2


@pytest.mark.parametrize(
    ("method", "count", "overrides", "name", "fits", "why"),
    [
        ("auto", 7, {}, "collective", False, "auto: takes the model that ships"),
        ("auto", 1, {"stride": 7}, "collective", False, "auto: takes the model that ships"),
        ("auto", 8, {"resize": "stretch"}, "collective", True, "auto: these 8 images have a black"),
        ("auto", 1, {"tile": 64}, "collective", True, "auto: 'collective' is fitted on tiles"),
        ("auto", 9, {"epochs": 3}, "deepcut", False, "auto: takes deepcut, since epochs is a"),
        ("deepcut", 9, {"num_clusters": 3}, "deepcut", False, ""),
        ("unsegmedgat-c", 2, {}, "unsegmedgat-c", True, ""),
    ],
)
def test_each_choice_says_why(method, count, overrides, name, fits, why):
    chosen = choose(method, [framed(seed) for seed in range(count)], overrides)
    assert (chosen.method.name, chosen.fits) == (name, fits)
    assert chosen.why.startswith(why) if why else chosen.why == ""
    assert chosen.closer == (method == "auto" and name == "collective" and "tile" not in overrides)
    assert (chosen.model == SHIPPED_MODEL) == ("ships" in why)


@pytest.mark.parametrize(
    ("method", "overrides", "model", "message"),
    [
        ("deepcut", {"steps": 2}, None, "steps=2 is of methods that are fitted on a set"),
        ("deepcut", {"tile": 64}, None, "tile=64 cuts images into tiles"),
        ("deepcut", {"page": 2}, None, r"page= is no option here: pass unseg_jax\.data\.Page"),
        ("auto", {"strid": 2}, None, "did you mean 'stride'"),
        ("auto", {"num_clusters": 2}, "a.safetensors", "brings its own method.* num_clusters"),
        ("deepcut", {}, "a.safetensors", "brings its own method.* method"),
    ],
)
def test_what_does_not_go_together_is_said(method, overrides, model, message):
    with pytest.raises(ValueError, match=message):
        choose(method, [], overrides, model and SHIPPED_MODEL.with_name(model))


OPTIONS = {"image_size": 56, "steps": 0, "max_images": 4}


def test_collective_is_fitted_on_the_images_of_a_call_and_compiled_once(colours):
    images = [square(seed) for seed in range(3)]
    model = us.fit(images, backbone=colours, batching="loop", seed=3, **OPTIONS)
    options = {"backbone": colours, "seed": 3, **OPTIONS}
    for found in (
        us.segment(images, "collective", batching="loop", **options),
        us.Segmenter("collective", batching="loop", **options)(images),
    ):
        for one, other in zip(found, model.segment(images), strict=True):
            np.testing.assert_array_equal(one.evidence, other.evidence)
    with compile_clock() as clock:
        us.segment(images[::-1], "collective", batching="loop", **options)
    assert clock.seconds == 0


def test_two_users_of_one_model_do_not_disturb_each_other(colours):
    deep = [square(seed).astype(np.uint16) * 16 for seed in range(3)]
    model = dataclasses.replace(us.fit(deep, backbone=colours, **OPTIONS), reading=None)
    one = model.segmenter(reading=Reading((0, 4080)))
    before = one(deep[0])[0]
    other = model.segmenter(reading=Reading((3000, 60_000), workers=1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.reading = other.reading
    assert not np.array_equal(other(deep[0])[0].pixels, before.pixels)
    again = one(deep[0])[0]
    np.testing.assert_array_equal(again.evidence, before.evidence)
    np.testing.assert_array_equal(again.pixels, square(0))
    options = {"workers": 1, "batch_size": 1, "seed": 3, "batching": "loop"}
    asked = model.segment(deep[0], value_range=np.array([0, 4080]), **options)[0]
    np.testing.assert_array_equal(asked.pixels, square(0))
    whole = model.segment(iter(deep[:1]), value_range="set")[0]
    assert not np.array_equal(whole.pixels, square(0))
    with pytest.raises(ValueError, match=r"steps= is no option here: pass it to unseg_jax\.fit"):
        model.segment(deep[0], steps=1)


def test_a_model_is_fitted_and_applied_with_one_range(colours, tmp_path):
    """The range (0, 4080) makes of 16 times an image of 8 bits that image."""
    plain = [square(seed) for seed in range(3)]
    deep = [image.astype(np.uint16) * 16 for image in plain]
    expected = us.segment(plain, "collective", backbone=colours, **OPTIONS)
    path = tmp_path / "model.safetensors"
    us.fit(deep, backbone=colours, value_range=(0, 4080), **OPTIONS).save(path)
    model = us.load_model(path, backbone=colours)
    options = {"value_range": (0, 4080), "backbone": colours, **OPTIONS}
    for found in (model.segment(deep), us.segment(deep, "collective", **options)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.evidence, other.evidence)
    with pytest.raises(ValueError, match="range 0:4080, not with the range 0:4095"):
        model.segmenter(reading=Reading((0, 4095)))


def test_a_kept_model_is_read_and_a_fitted_one_is_given(colours, tmp_path):
    images = [square(seed) for seed in range(2)]
    path, given = tmp_path / "kept.safetensors", []
    choice = choose("collective", images, {"image_size": 56, "max_images": 4})
    options = {"backbone": colours, "kept": path, "keep": given.append, "batch_size": 2}
    first = load(choice, images, **options)
    given[0].save(path)
    second = load(choice, images, **options)
    assert len(given) == 1
    assert given[0].head is None  # no epoch would use it
    shown = {"epochs": 0, "resize": "stretch", "stride": 4, "tile": 64}
    applied = choose("auto", images, shown, path)
    segmenter = load(applied, backbone=colours, batch_size=3, seed=7)
    assert (segmenter.batch_size, segmenter.seed) == (3, 7)
    method = segmenter.method
    assert {name: getattr(method, name) for name in shown} == shown
    assert method.image_size == 56
    assert (second.batch_size, second.method) == (2, first.method)
    np.testing.assert_array_equal(first(images[0])[0].evidence, second(images[0])[0].evidence)
