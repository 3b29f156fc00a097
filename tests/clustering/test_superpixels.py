"""Graphs of superpixels and pixels against scikit-image and sums written out."""

import numpy as np
import pytest
from PIL import Image
from skimage import data, graph, segmentation

from unseg_jax.clustering.superpixels import (
    BUCKETS,
    bucket,
    grid_affinity,
    neighbouring_regions,
    region_graph,
    stack_regions,
)
from unseg_jax.method import override
from unseg_jax.registry import resolve

SLIC = resolve("slic-ncut")
PIXELS = resolve("pixel-ncut")


@pytest.fixture(scope="module")
def photograph():
    return np.asarray(Image.fromarray(data.astronaut()).resize((160, 120), Image.Resampling.BOX))


def test_superpixels_are_scikit_images(photograph):
    regions = region_graph(photograph, SLIC)
    labels = segmentation.slic(
        photograph, n_segments=400, compactness=40, sigma=1, start_label=0, channel_axis=-1
    )
    np.testing.assert_array_equal(regions.index_map, labels)
    adjacency = graph.rag_mean_color(photograph, labels, mode="similarity", sigma=255.0)
    expected = np.zeros_like(regions.adjacency)
    for one, other, edge in adjacency.edges(data=True):
        expected[one, other] = expected[other, one] = edge["weight"]
    np.testing.assert_allclose(regions.adjacency, expected, rtol=1e-5, atol=1e-37)
    assert regions.mask.sum() == labels.max() + 1
    colours = [adjacency.nodes[node]["mean color"] for node in range(labels.max() + 1)]
    np.testing.assert_allclose(regions.nodes[regions.mask, :3] * 255, colours, rtol=1e-5, atol=1e-4)


def test_nodes_are_means_over_their_pixels(photograph):
    regions = region_graph(photograph, SLIC)
    for node in (0, 57, 211):
        rows, columns = np.nonzero(regions.index_map == node)
        expected = [*photograph[rows, columns].mean(0) / 255, rows.mean() / 120]
        np.testing.assert_allclose(regions.nodes[node], [*expected, columns.mean() / 160], 1e-5)


def test_pixels_are_those_of_the_reduced_image(photograph):
    image = photograph[:31, :42]
    regions = region_graph(image, PIXELS)
    height, width = 8, 11
    assert regions.mask.sum() == height * width
    assert regions.nodes.shape == (128, 5)
    corner = image[4:8, 8:12].reshape(-1, 3).mean(0)
    node = regions.index_map[5, 9]
    assert (regions.index_map[4:8, 8:12] == node).all()
    assert (regions.index_map == node).sum() == 16
    # Pillow rounds the mean to whole grey levels.
    np.testing.assert_allclose(regions.nodes[node, :3] * 255, corner, atol=0.51)
    np.testing.assert_allclose(regions.nodes[node, 3:], [5.5 / 31, 9.5 / 42], rtol=1e-6)

    colours = regions.nodes[: height * width, :3].astype(np.float64) * 255
    places = np.stack(np.divmod(np.arange(height * width), width), 1)
    squared = ((colours[:, None] - colours) ** 2).sum(-1)
    apart = ((places[:, None] - places) ** 2).sum(-1)
    expected = np.where((apart > 0) & (apart <= 9), np.exp(-squared / 255), 0)
    found = regions.adjacency[: height * width, : height * width]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-37)


def test_sigma_is_the_methods_alpha(photograph):
    image = photograph[:40, :40]
    narrow = region_graph(image, PIXELS).adjacency
    wide = region_graph(image, override(PIXELS, alpha=510.0)).adjacency
    np.testing.assert_allclose(wide**2, narrow, rtol=1e-5, atol=1e-37)


def test_padding_is_empty_and_batches_share_a_bucket(photograph):
    small = region_graph(photograph[:24, :24], PIXELS)
    large = region_graph(photograph[:40, :40], override(PIXELS))
    assert len(small.mask) == 64
    assert len(large.mask) == 128
    batch = stack_regions([small, large._replace(index_map=large.index_map[:24, :24])])
    assert batch.nodes.shape == (2, 128, 5)
    assert batch.adjacency.shape == (2, 128, 128)
    np.testing.assert_array_equal(batch.mask.sum(1), [36, 100])
    np.testing.assert_array_equal(batch.adjacency[0, :64, :64], small.adjacency)
    for graphs in (batch.adjacency, batch.adjacency.transpose(0, 2, 1), batch.nodes):
        assert not graphs[~batch.mask].any()


def test_an_image_of_one_colour():
    image = np.full((48, 48, 3), 90, np.uint8)
    for method in (SLIC, PIXELS):
        regions = region_graph(image, method)
        count = regions.mask.sum()
        assert set(np.unique(regions.adjacency)) == {0.0, 1.0}
        assert (regions.adjacency.sum(1)[:count] > 0).all()
        assert regions.index_map.max() == count - 1


def test_one_pixel_is_a_graph_of_one_node():
    regions = region_graph(np.zeros((1, 1, 3), np.uint8), PIXELS)
    assert regions.mask.sum() == 1
    assert not regions.adjacency.any()


def test_ladder_of_buckets():
    assert list(BUCKETS) == sorted(BUCKETS)
    assert [bucket(count) for count in (1, 64, 65, 400, 417, 4096, 4097, 9000)] == [
        64,
        64,
        128,
        416,
        640,
        4096,
        8192,
        12288,
    ]


def test_neighbours_of_a_small_map():
    index_map = np.array([[0, 0, 1], [2, 2, 1], [2, 3, 3]], np.int32)
    pairs = set(zip(*(side.tolist() for side in neighbouring_regions(index_map)), strict=True))
    assert pairs == {(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)}
    diagonal = neighbouring_regions(np.array([[0, 1], [1, 2]], np.int32))
    assert [side.tolist() for side in diagonal] == [[0, 0, 1], [1, 2, 2]]


def test_affinity_of_patches_by_their_colours():
    colours = np.zeros((2, 3, 1))
    colours[0, 1] = 10
    found = grid_affinity(colours, 50.0, radius=1)
    assert found[0, 1] == pytest.approx(np.exp(-2))
    assert found[0, 3] == 1
    assert found[0, 2] == found[0, 4] == found[0, 0] == 0


def test_errors_name_the_remedy(photograph):
    with pytest.raises(ValueError, match="nodes='superpixels'"):
        region_graph(photograph, resolve("deepcut"))
    with pytest.raises(ValueError, match=r"\(120, 160\)"):
        region_graph(photograph[..., 0], SLIC)
