"""Kinds of objects: what tells them apart, and the files of a folder in which they are told."""

import dataclasses
import json
import re
import types

import numpy as np
import pandas
import pytest
import roifile
from PIL import Image

import unseg_jax as us
from unseg_jax.data.folders import find_images
from unseg_jax.errors import InputError
from unseg_jax.export import regrouping
from unseg_jax.export.decisions import read_decisions, read_kinds
from unseg_jax.export.drawing import palette
from unseg_jax.export.folder import Output, plan_run, segment_files
from unseg_jax.export.formats import FORMATS, label_studio
from unseg_jax.export.kinds import describe, find_kinds, pack, unpack
from unseg_jax.postprocess import Object
from unseg_jax.runs.result_store import MANIFEST

from .conftest import Stand

WIDTH = 24


def mixture(kinds, images=24, seed=0):
    """Objects of an image are of one kind. They vary in three directions more than kinds do."""
    rng = np.random.default_rng(seed)
    centres, nuisance = rng.normal(size=(kinds, WIDTH)), 3 * rng.normal(size=(3, WIDTH))
    truth = np.repeat(np.arange(images) % kinds, 1 + 4 * (np.arange(images) % kinds == 0))
    image = np.repeat(np.arange(images), 1 + 4 * (np.arange(images) % kinds == 0))
    noise = 0.2 * rng.normal(size=(len(truth), WIDTH))
    varied = centres[truth] + rng.normal(size=(len(truth), 3)) @ nuisance + noise
    return varied, image, nuisance, truth


def test_kinds_are_found_where_objects_vary_more_within():
    descriptions, images, within, truth = mixture(3)
    kinds, again, auto = (find_kinds(descriptions, images, within, n) for n in (3, 3, "auto"))
    np.testing.assert_array_equal(again.centres, kinds.centres)
    for one in (auto, kinds):
        numbers = np.array(one.number(descriptions))
        pairs = set(zip(numbers.tolist(), truth.tolist(), strict=True))
        assert len(pairs) == len(one.names) == 3
        assert (numbers == 1).sum() == np.bincount(truth).max()  # the largest is the first
    read = unpack(json.loads(json.dumps(pack(kinds))))
    assert read.number(descriptions) == numbers.tolist()
    # Kinds of one name are one.
    merged = dataclasses.replace(kinds, names=("a", "b", "a")).number(descriptions)
    assert set(zip(merged, numbers.tolist(), strict=True)) == {(1, 1), (2, 2), (1, 3)}


def test_what_is_of_one_kind_stays_one():
    for images in (24, 1):
        descriptions, image, within, _ = mixture(1, images)
        assert find_kinds(descriptions, image, within, "auto").names == ("kind 1",)
    same = np.ones((5, WIDTH))
    assert len(find_kinds(same, range(5), np.zeros((4, WIDTH)), 3).names) == 1


def test_an_object_is_described_by_the_patches_under_it():
    features = np.random.default_rng(0).normal(size=(3, 4, 5))
    mask = np.zeros((30, 48), bool)
    mask[4:17, 9:31] = True
    item = Object(mask[4:17, 9:31], (9, 4, 31, 17), int(mask.sum()), 1.0, 1)
    (mean,), within = describe([item], features, mask.shape)
    inside = np.kron(features, np.ones((10, 12, 1)))[mask]
    np.testing.assert_allclose(mean, inside.mean(0), atol=2e-3)
    variance = np.linalg.eigvalsh(np.cov(inside.T, bias=True))[-4:]
    np.testing.assert_allclose(np.square(np.float32(within)).sum(1), variance, rtol=1e-2)


COLOURS = ((200, 0, 0), (0, 200, 0))
FORMS = tuple(name for name in FORMATS if name != "cutout")
SETTINGS = {"method": "deepcut"}


@pytest.fixture
def photos(tmp_path):
    """Nine images with a red thing, a green one, or both."""
    (tmp_path / "in").mkdir()
    for index in range(9):
        pixels = np.zeros((24, 40, 3), np.uint8)
        for colour in {0: (0,), 1: (1,), 2: (0, 1)}[index % 3]:
            left = 4 + 20 * colour
            pixels[4 : 12 + index, left : left + 10] = COLOURS[colour]
            pixels[4 : 12 + index, left : left + 10, 2] = 30 * (index // 3)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
    return tmp_path / "in"


def run(photos, out, kinds, formats=FORMS, **options):
    images = find_images([photos], out=out)
    output = Output(formats, kinds=kinds)
    plan = plan_run(images, out, output, SETTINGS, **options)
    stand = Stand(backbone=types.SimpleNamespace(name="any", source=""))
    done = segment_files(stand, images, out, plan=plan)
    return [path.name for path in stand.seen], done, plan


def told(out):
    """Image and centre of each object -> its kind; red things lie on the left."""
    table = pandas.read_csv(out / "objects.csv", dtype={"file": str})
    return {(row.file, row.left < 20): row.kind for row in table.itertuples()}


def test_all_files_name_the_kinds(photos, tmp_path):
    out = tmp_path / "out"
    seen, done, plan = run(photos, out, 2)
    kinds = told(out)
    red, green = kinds["0.png", True], kinds["1.png", False]
    assert {red, green} == {1, 2}
    assert kinds == {key: red if key[1] else green for key in kinds}
    assert (len(seen), done.kinds.counts) == (9, (6, 6))
    coco = json.loads((out / "coco.json").read_text())
    assert coco["categories"] == [{"id": n, "name": f"kind {n}"} for n in (1, 2)]
    assert [one["category_id"] for one in coco["annotations"]] == list(kinds.values())
    labels = np.asarray(Image.open(out / "2_labels.png"))
    assert (labels[5, 5], labels[5, 25], labels[0, 0]) == (red, green, 0)
    overlay = np.asarray(Image.open(out / "2_overlay.png").convert("RGB"))
    np.testing.assert_array_equal(overlay[4, 5], palette(3)[red])
    np.testing.assert_array_equal(overlay[4, 25], palette(3)[green])
    features = json.loads((out / "2.geojson").read_text())["features"]
    order = [number for (file, _), number in kinds.items() if file == "2.png"]
    assert [one["properties"]["kind"] for one in features] == order
    assert features[0]["properties"]["classification"]["name"] == f"kind {order[0]}"
    assert [int(line.split()[0]) + 1 for line in (out / "2.txt").read_text().splitlines()] == order
    with np.load(out / "2.npz") as arrays:
        assert arrays["object_kinds"].tolist() == order
    rois = roifile.ImagejRoi.fromfile(out / "2_rois.zip")
    assert [roi.group for roi in rois] == order
    tasks = json.loads((out / label_studio.FILES[0]).read_text())
    assert tasks[0]["predictions"][0]["result"][0]["value"]["polygonlabels"] == [f"kind {red}"]
    assert us.read_results(out, objects=True)["kind"] == list(kinds.values())
    written = plan_run(find_images([photos]), out, plan.output, SETTINGS).written
    assert {"0_labels.png", "0.geojson"} <= set(written)


def test_later_runs_group_again_and_segment_nothing_again(photos, tmp_path):
    out = tmp_path / "out"
    late = (photos / "8.png").read_bytes()
    (photos / "8.png").unlink()
    run(photos, out, 2)
    (photos / "8.png").write_bytes(late)
    (out / "0.geojson").write_text("mine")
    seen, done, _ = run(photos, out, "auto")
    assert (seen, sum(done.kinds.counts)) == (["8.png"], 12)
    assert (out / "0.geojson").read_text() == "mine"
    assert done.entries[0].record.objects[0]["kind"] == told(out)["0.png", True]
    seen, done, _ = run(photos, out, 3)
    assert (seen, sorted(done.kinds.counts)) == ([], sorted(done.kinds.counts))
    assert len(set(told(out).values())) == 3
    with pytest.raises(InputError, match="kinds True, now unset"):
        run(photos, out, None)


def test_a_run_that_is_stopped_before_kinds_are_told_goes_on(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def stop(labels):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(regrouping, "encode_labels", stop)
        with pytest.raises(KeyboardInterrupt):
            run(photos, out, 2)
    seen, done, _ = run(photos, out, 2)
    assert (seen, done.kinds.counts) == ([], (6, 6))
    assert len(told(out)) == 12


def test_without_kinds_nothing_is_kept_or_named(photos, tmp_path):
    run(photos, tmp_path / "without", None)
    for path in (tmp_path / "without").iterdir():
        content = path.read_bytes()
        assert path.suffix == ".html" or not (b'"kind' in content or b",kind" in content)
    assert 'class="kind' not in (tmp_path / "without" / "report.html").read_text()
    assert "features" not in (tmp_path / "without" / MANIFEST).read_text()
    with pytest.raises(InputError, match="kinds unset, now True"):
        run(photos, tmp_path / "without", 2)
    with pytest.raises(ValueError, match="kinds=1 must be at least 2"):
        Output(kinds=1)
    with pytest.raises(InputError, match="'deepcut' has no patch features"):
        segment_files(Stand(), find_images([photos]), tmp_path / "new", Output(kinds=2))


def test_kinds_are_named_and_dropped_on_the_page(photos, tmp_path, open_file):
    out, file = tmp_path / "out", tmp_path / "decisions.json"
    run(photos, out, 2)
    red = told(out)["0.png", True]
    page = open_file(out / "report.html", 400, accept_downloads=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator(".kind .crops img").count() == 10
    field = page.locator(f".kind[data-kind='{red}'] input")
    field.fill(" <b>rose")
    page.click(f".kind[data-kind='{3 - red}'] [data-drop]")
    page.click(f"[data-show-kind='{red}']")
    said = "6 shown, 0 kept, 0 rejected, 1 named, 1 kind dropped"
    assert page.locator("#tally").inner_text() == said
    other = page.context.new_page()  # a second tab, which takes the drop back and drops again
    other.goto(page.url)
    assert other.inner_text("#tally").endswith(", 1 named, 1 kind dropped")
    other.click(f".kind[data-kind='{3 - red}'] [data-drop]")
    said_there = "document.querySelector('#tally').value"
    page.wait_for_function(f"!{said_there}.includes('dropped')")
    other.click(f".kind[data-kind='{3 - red}'] [data-drop]")
    page.wait_for_function(f"{said_there}.includes('dropped')")
    page.reload()  # decisions outlive the page
    assert field.input_value() == "<b>rose"
    assert page.locator(f"option[value='kind {red}']").inner_text() == "<b>rose"
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(file)
    # Found again by its examples where its number is another.
    text = (out / "report.html").read_text()
    swapped = text.translate({ord("1"): "2", ord("2"): "1"})
    places = re.compile(r'data-kinds="[^"]*"|class="kind" data-kind="\d"')
    text = places.sub(lambda one: swapped[one.start() : one.end()], text)
    (out / "report.html").write_text(text)
    page.reload()
    assert page.locator(f".kind[data-kind='{3 - red}'] input").input_value() == "<b>rose"
    kinds = read_kinds(file)
    assert (kinds.names[red - 1], kinds.dropped) == ("<b>rose", {3 - red})
    assert read_decisions(file) == ()
    # The name is in the field of the next report, to be changed.
    run(photos, tmp_path / "named", dataclasses.replace(kinds, dropped=frozenset()))
    page = open_file(tmp_path / "named" / "report.html")
    values = page.locator(".kind input").evaluate_all("fields => fields.map(one => one.value)")
    assert values == ["<b>rose" if kind == red else "" for kind in (1, 2)]
    assert page.locator("#tally").inner_text().endswith(", 1 named")


def test_decided_kinds_are_written_by_name_and_dropped(photos, tmp_path):
    out, new = tmp_path / "out", tmp_path / "new"
    _, done, _ = run(photos, out, 2)
    red, before = told(out)["0.png", True], told(out)
    names = tuple("rose" if number == red else "leaf" for number in (1, 2))
    named = dataclasses.replace(done.kinds, names=names)
    assert run(photos, out, named)[0] == []  # a name segments nothing again
    assert told(out) == before
    assert "rose" in (out / "0.geojson").read_text()
    dropping = dataclasses.replace(named, dropped=frozenset([3 - red]))
    with pytest.raises(InputError, match="dropped kinds unset, now"):
        run(photos, out, dropping)
    seen, done, _ = run(photos, new, dropping, without=["8"])
    assert len(seen) == 8
    assert told(new) == {key: red for key in before if key[1] and key[0] != "8.png"}
    coco = json.loads((new / "coco.json").read_text())
    assert coco["categories"] == [{"id": red, "name": "rose"}]
    for name in "12":
        old, now = (np.asarray(Image.open(at / f"{name}_mask.png")) for at in (out, new))
        np.testing.assert_array_equal(now[:, :20], old[:, :20])
        assert (old[:, 20:].any(), now[:, 20:].any()) == (True, False)
    other = dataclasses.replace(named, mean=np.zeros(7, np.float32))
    with pytest.raises(InputError, match="features of 7 numbers, not of 3"):
        run(photos, out, other)


def test_objects_that_are_left_out_leave_nothing_where_a_mask_is_enlarged():
    mask = np.zeros((7, 9), bool)
    mask[1:3, 1:4] = mask[4:6, 5:8] = True
    found = us.Segmentation.of(mask, mask, size=(11, 15), min_area=0)
    for item in found.objects:
        left = found.without([item])
        assert (len(left.objects), left.mask.sum()) == (1, found.mask.sum() - item.area)
