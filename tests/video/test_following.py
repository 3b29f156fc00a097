"""Parts keep their labels; flicker and its comparison; drawing."""

import itertools

import numpy as np
import pytest
from skimage import data

from unseg_jax.backbones import WeightsError, load_backbone
from unseg_jax.video.following import flicker, matched, segment_video
from unseg_jax.video.frames import open_frames


@pytest.fixture(scope="module")
def backbone():
    try:
        return load_backbone("dinov2_vits14_focus")
    except WeightsError as error:
        pytest.skip(f"no real weights: {error}")


SMALL = {"num_clusters": 2, "image_size": 112, "batch_size": 4}


def panning(count=6, step=6, size=260):
    """A window that moves over a photograph."""
    photograph = data.coffee()
    return [
        np.ascontiguousarray(photograph[20 : 20 + size, 10 + step * i : 10 + step * i + size])
        for i in range(count)
    ]


def test_flicker_counts_changes_of_steady_patches():
    labels = np.array([[[0, 1, 2]], [[0, 2, 2]], [[1, 2, 0]]])
    steady = np.array([[[True, True, True]], [[True, True, False]], [[False, True, False]]])
    assert flicker(labels, steady) == pytest.approx(1 / 3)
    assert np.isnan(flicker(labels, np.zeros_like(steady)))
    assert np.isnan(flicker(labels[:1], steady[:1]))


def test_matching_undoes_permutations_and_is_the_best():
    random = np.random.default_rng(0)
    still = np.broadcast_to(random.integers(4, size=(6, 7)), (5, 6, 7))
    permuted = np.stack([random.permutation(4)[frame] for frame in still])
    np.testing.assert_array_equal(matched(permuted), np.broadcast_to(permuted[0], (5, 6, 7)))
    labels = random.integers(3, size=(2, 4, 4))
    best = max(
        (np.array(order)[labels[1]] == labels[0]).sum()
        for order in itertools.permutations(range(3))
    )
    assert (matched(labels)[1] == labels[0]).sum() == best


def test_parts_flicker_less_than_in_frames_on_their_own(backbone, tmp_path):
    pictures = panning()
    out = tmp_path / "parts.gif"
    report = segment_video(pictures, out, backbone=backbone, **SMALL)
    assert (report.frames, report.labels.shape) == (6, (6, 8, 8))
    assert set(np.unique(report.labels)) == {0, 1}
    assert report.steady > 0.5
    assert report.flicker < report.matched_flicker <= report.fresh_flicker
    drawn = list(open_frames(out))
    assert (len(drawn), drawn[0].shape) == (6, pictures[0].shape)
    part = np.repeat(np.repeat(report.labels[0] > 0, 32, 0), 32, 1)[:256, :256]
    difference = np.abs(drawn[0][:256, :256].astype(int) - pictures[0][:256, :256]).mean(-1)
    assert difference[part].mean() > 3 * difference[~part].mean()
    # A still video does not flicker.
    report = segment_video(pictures[:1] * 5, backbone=backbone, compare=False, **SMALL)
    assert (report.flicker, report.steady) == (0, 1)
    assert np.isnan(report.fresh_flicker)


def test_methods_without_weights_are_refused(backbone):
    for name in ("tokencut", "slic-ncut"):
        with pytest.raises(ValueError, match="a graph neural network on patches"):
            segment_video(panning(1), method=name, backbone=backbone)
    with pytest.raises(ValueError, match="num_clusters="):
        segment_video(panning(1), backbone=backbone, parts=3)
    with pytest.raises(ValueError, match=r"memory=1\.0"):
        segment_video(panning(1), backbone=backbone, memory=1.0)
