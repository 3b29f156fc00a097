"""Things that touch are cut apart at their necks, and single things are not."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unseg_jax as us
from unseg_jax.export.folder import Output
from unseg_jax.export.formats import coco, record_of
from unseg_jax.export.records import Record
from unseg_jax.postprocess import find_objects

SIZE = (120, 160)


def disc(centre, radius, size=SIZE):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def chain(radii, overlap=0.9, size=SIZE):
    """Discs in a row, each reaching a little into the one before; and the middle of each."""
    mask, column, centres = np.zeros(size, bool), radii[0] + 3, []
    for before, radius in zip([None, *radii], radii, strict=False):
        column += 0 if before is None else overlap * (before + radius)
        centres.append((size[0] // 2, round(column)))
        mask |= disc(centres[-1], radius, size)
    return mask, centres


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(10, 15), min_size=1, max_size=5), st.sampled_from([1, 3]))
def test_discs_that_touch_are_counted(radii, scale):
    mask, centres = chain(radii)
    mask = np.kron(mask, np.ones((scale, scale), bool))
    assert len(find_objects(mask)) == 1
    for split in ("auto", "always"):
        found = find_objects(mask, split=split)
        assert len(found) == len(radii)
        # Together they are the mask, and each has its own middle.
        whole = np.zeros(mask.shape, int)
        for number, item in enumerate(found, 1):
            left, top, right, bottom = item.box
            whole[top:bottom, left:right][item.mask] += number
        np.testing.assert_array_equal(whole > 0, mask)
        assert sum(item.area for item in found) == mask.sum()
        middles = [whole[row * scale, column * scale] for row, column in centres]
        assert sorted(middles) == list(range(1, len(radii) + 1))


def test_auto_leaves_one_thing_whole():
    body = np.zeros(SIZE, bool)
    body[30:60, 40:120] = True  # a table: legs and neck are parts of one thing
    for column in (42, 60, 95, 112):
        body[60:100, column : column + 6] = True
    body[10:35, 108:130] = True
    ring = disc((60, 80), 40) & ~disc((60, 80), 25)
    crumb = disc((60, 60), 30) | disc((60, 93), 5)
    for shape in (body, ring, crumb, disc((60, 80), 40), np.ones(SIZE, bool)):
        assert len(find_objects(shape, split="auto")) == 1
    assert len(find_objects(body, split="always")) > 1
    assert find_objects(np.zeros(SIZE, bool), split="always") == ()


def test_results_show_and_count_what_was_split():
    mask, _ = chain([12, 12, 12])
    pixels = np.full((*SIZE, 3), 90, np.uint8)
    found = us.Segmentation.of(mask, mask, confidence=0.5, pixels=pixels, id="a.png")
    split = dataclasses.replace(found, split="auto")
    assert (len(found.objects), len(split.objects)) == (1, 3)
    np.testing.assert_array_equal(split.mask, found.mask)
    np.testing.assert_array_equal(split.labels, found.labels)
    assert set(np.unique(split.shown())) == {0, 1, 2, 3}
    assert len(np.unique(split.overlay().reshape(-1, 3), axis=0)) > len(
        np.unique(found.overlay().reshape(-1, 3), axis=0)
    )
    record = record_of(split, "a", "a.png")
    assert isinstance(record, Record)
    assert len(coco.dataset([record])["annotations"]) == 3
    # A part that is a speck is left out, as a piece is.
    small, _ = chain([14, 8])
    specks = find_objects(small, split="always", min_area=400)
    assert len(specks) == 1


def test_unknown_rules_are_refused():
    for use in (
        lambda: find_objects(np.ones((4, 4)), split="maybe"),
        lambda: Output(split="maybe"),
    ):
        with pytest.raises(ValueError, match="split='maybe' is not known: choose never, auto"):
            use()
