"""Runs into one folder: going on, other settings, other images, foreign files, being killed."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import tempfile
import types
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.data.folders import ImageFile, find_images
from unseg_jax.errors import InputError
from unseg_jax.export import folder
from unseg_jax.export.folder import Output, plan_run, segment_files
from unseg_jax.export.formats import Cutout, table
from unseg_jax.export.records import Record, Run
from unseg_jax.export.report import _confidence, _facts, _sentence
from unseg_jax.registry import resolve
from unseg_jax.runs.result_store import JOURNAL, MANIFEST

from .conftest import Stand

OUTPUT = Output(("png", "csv"))
SETTINGS = {"method": "deepcut", "epochs": 10}


def draw(path, seed=0):
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[2 + seed : 12, 3:15] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    for index in range(4):
        draw(tmp_path / "in" / f"{index}.png", index)
    return tmp_path / "in"


def run(source, out, settings=SETTINGS, output=OUTPUT, **options):
    """Plans and does a run; gives the names of the images that were segmented."""
    images = find_images([source], out=out, recursive=output.recursive)
    plan = plan_run(images, out, output, settings, **options)
    stand = Stand()
    done = segment_files(stand, images, out, plan=plan)
    assert len(done.entries) == len(images)
    return [path.name for path in stand.seen], done


def contents(out):
    """Every file but those that hold times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "report.html")
    }


def test_a_second_run_does_what_is_new_and_refuses_other_settings(photos, tmp_path):
    out = tmp_path / "out"
    assert run(photos, out)[0] == ["0.png", "1.png", "2.png", "3.png"]
    before = contents(out)
    seen, done = run(photos, out)
    assert (seen, [entry.reused for entry in done.entries]) == ([], [True] * 4)
    assert contents(out) == before
    assert (out / "report.html").read_text().count("data:image/jpeg") == 8
    draw(photos / "4.png", 4)
    draw(photos / "1.png", 6)
    (out / "2_mask.png").unlink()
    plan = plan_run(find_images([photos], out=out), out, OUTPUT, SETTINGS)
    assert [image.name for image in plan.changed] == ["1"]  # said, and left as it is
    assert run(photos, out)[0] == ["2.png", "4.png"]
    assert run(photos, out, overwrite=True)[0] == [f"{index}.png" for index in range(5)]
    before = contents(out)
    with pytest.raises(InputError, match=r"other settings \(epochs 10, now 20\).*overwrite=True"):
        run(photos, out, {**SETTINGS, "epochs": 20})
    with pytest.raises(InputError, match=r"min_area unset, now 0\.5"):
        run(photos, out, output=dataclasses.replace(OUTPUT, min_area=0.5))
    assert contents(out) == before
    assert len(run(photos, out, {**SETTINGS, "epochs": 20}, overwrite=True)[0]) == 5
    assert run(photos, out, {**SETTINGS, "epochs": 20})[0] == []


def test_only_what_was_kept_is_done(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    images = find_images([photos], out=out)
    for prune, left in ((False, {"0", "1", "2", "3"}), (True, {"0", "2"})):
        plan = plan_run(images, out, OUTPUT, SETTINGS, only={"0", "2"}, prune=prune)
        assert [image.name for image in plan.images] == ["0", "2"]
        assert plan.todo == []
        done = segment_files(None, images, out, plan=plan)
        assert done.removed == 4 - len(left)
        assert {path.stem[0] for path in out.glob("*_mask.png")} == left
        assert set(us.read_results(out)["name"]) == left
    with pytest.raises(InputError, match="'7' is to be kept but is none of the 4 images"):
        plan_run(images, out, OUTPUT, SETTINGS, only={"0", "7"})


def test_what_another_model_did_stays(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, model="a")
    before = contents(out)
    draw(photos / "4.png", 4)
    assert run(photos, out, model="b")[0] == ["4.png"]
    tables = {name: before[name] for name in table.FILES}
    assert before.items() <= {**contents(out), **tables}.items()
    plan = plan_run(find_images([photos], out=out), out, OUTPUT, SETTINGS, model="b")
    assert (len(plan.done), plan.of_other_models) == (5, 4)
    assert len(run(photos, out, model="b", overwrite=True)[0]) == 5


def test_two_folders_with_the_same_names_are_both_kept(photos, tmp_path):
    out = tmp_path / "out"
    for index in range(4):
        draw(tmp_path / "other" / f"{index}.png", 4 + index)
    draw(tmp_path / "other" / "5.png", 5)
    run(photos, out)
    (out / "3_mask.png").write_bytes(b"corrected by hand")
    before = contents(out)
    run(tmp_path / "other", out)
    after = contents(out)
    names = {f"other_{index}" for index in range(4)} | {"5"}
    added = {f"{name}_{kind}.png" for name in names for kind in ("mask", "labels", "overlay")}
    assert set(after) - set(before) == added
    tables = {name: before[name] for name in table.FILES}
    assert before.items() <= {**after, **tables}.items()
    rows = after["objects.csv"].decode().splitlines()[1:]
    files = [f"{folder}/{index}.png" for folder in ("in", "other") for index in range(4)]
    assert [row.split(",")[0] for row in rows] == [*files, "other/5.png"]
    page = (out / "report.html").read_text()
    assert "<h1>9 images, 9 objects" in page
    assert page.count("data:image/jpeg") >= 17  # one of them is no picture any more
    # Each keeps its name, whichever comes first.
    assert run(tmp_path / "other", out)[0] == run(photos, out)[0] == []
    # One run over both finds the same.
    segment_files(Stand(), find_images([photos, tmp_path / "other"]), tmp_path / "both", OUTPUT)
    assert (tmp_path / "both/objects.csv").read_bytes() == after["objects.csv"]


def test_overwriting_replaces_results_of_these_images_alone(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    before = contents(out)
    other = Output(("mask", "coco"), min_area=0.0)
    _, done = run(photos / "1.png", out, {**SETTINGS, "epochs": 20}, other, overwrite=True)
    assert (done.replaced, done.removed) == (1, 0)
    after = contents(out)
    assert set(before) - set(after) == {"1_labels.png", "1_overlay.png"}
    assert len(after["objects.csv"].splitlines()) == 5
    assert len(json.loads(after["coco.json"])["images"]) == 4
    for name in ("0_mask.png", "2_labels.png"):
        assert after[name] == before[name]
    # Images of both settings lie there: neither is done again without a word.
    with pytest.raises(InputError, match="formats png and csv, now mask and coco"):
        run(photos, out, {**SETTINGS, "epochs": 20}, other)
    with pytest.raises(InputError, match="epochs 20, now 10"):
        run(photos, out)


def test_an_image_that_fails_keeps_its_results(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    before = contents(out)
    (photos / "2.png").write_bytes(b"no image any more")
    _, done = run(photos, out, overwrite=True)
    assert [entry.image.name for entry in done.failed] == ["2"]
    assert contents(out) == before
    (photos / "3.png").unlink()
    images = [*find_images([photos / "0.png"]), ImageFile(photos / "3.png", "3")]
    done = segment_files(Stand(), images, out, plan=plan_run(images, out, OUTPUT, SETTINGS))
    assert [entry.image.name for entry in done.failed] == ["3"]
    assert contents(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder"])
def test_foreign_files_are_never_replaced(photos, tmp_path, overwrite, kind):
    out, target = tmp_path / "out", tmp_path / "elsewhere.png"
    out.mkdir()
    mine = out / "1_labels.png"
    if kind == "file":
        mine.write_bytes(b"mine")
    elif kind == "folder":
        mine.mkdir()
    else:
        mine.symlink_to(target)
        if kind == "link":
            target.write_bytes(b"mine")
    seen, done = run(photos, out, overwrite=overwrite)
    assert seen == ["0.png", "2.png", "3.png"]
    (failed,) = done.failed
    assert "1_labels.png is there already" in failed.error
    assert "out=" in failed.error
    if kind in ("file", "link"):
        assert mine.read_bytes() == b"mine"
    assert mine.is_symlink() == (kind in ("link", "dangling"))
    assert not target.exists() or kind == "link"
    assert not (out / "1_mask.png").exists()


@pytest.mark.parametrize("name", ["report.html", "objects.csv", MANIFEST])
def test_foreign_files_of_the_whole_run_refuse_it(photos, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=name):
            run(photos, out, overwrite=overwrite)
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: "mine"}


def test_cutouts_of_each_object_replace_nothing_foreign_and_no_output_an_input(photos, tmp_path):
    out, output = tmp_path / "out", Output(("cutout",), cutout=Cutout(each=True))
    out.mkdir()
    (out / "1_cutout_001.png").write_text("mine")
    _, done = run(photos, out, output=output)
    assert [entry.image.name for entry in done.failed] == ["1"]
    assert "1_cutout_001.png is there already" in done.failed[0].error
    assert {path.name for path in out.glob("*.png")} == {f"{n}_cutout_001.png" for n in range(4)}
    assert run(photos, out, output=output)[0] == ["1.png"]
    assert (out / "1_cutout_001.png").read_text() == "mine"
    source = draw(tmp_path / "a.png")
    before = draw(tmp_path / "objects.png").read_bytes()
    (tmp_path / "a.txt").write_text("mine")
    _, done = run(source, tmp_path, output=Output(("yolo",)))
    assert "a.txt is there already" in done.failed[0].error
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert (tmp_path / "objects.png").read_bytes() == before


class Killed(BaseException):
    pass


PLACES = ("m/1", "m/2", "t/1", "t/3", "t/u/2")
FORMATS = ("png", "mask", "csv", "coco", "yolo")
RUN = st.fixed_dictionaries(
    {
        "images": st.sets(st.sampled_from(PLACES), min_size=1),
        "formats": st.lists(st.sampled_from(FORMATS), min_size=1, max_size=3, unique=True),
        "epochs": st.sampled_from((10, 20)),
        "model": st.sampled_from("ab"),
        "recursive": st.booleans(),
        "overwrite": st.booleans(),
        "prune": st.sampled_from((False, False, False, True)),
        "lost": st.sets(st.sampled_from(PLACES), max_size=1),
        "changed": st.sets(st.sampled_from(PLACES), max_size=1),
        "killed": st.sampled_from((0, 0, 1, 3, 6)),
    }
)


def results_of(out):
    """Path of an image → the content of its files, as the manifest tells."""
    if not (out / MANIFEST).exists():
        return {}
    table = us.read_results(out)
    return {
        path: {Path(file).name: Path(file).read_bytes() for file in files}
        for path, files, error in zip(table["path"], table["files"], table["error"], strict=True)
        if not error
    }


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(st.lists(RUN, min_size=2, max_size=5))
def test_no_sequence_of_runs_loses_a_result_without_an_option_that_says_so(runs):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        out, shades = Path(folder) / "out", itertools.count()
        for place in PLACES:
            draw(Path(folder) / f"{place}.png")
        for number, given in enumerate(runs):
            before = results_of(out)
            for place in given["changed"]:
                draw(Path(folder) / f"{place}.png", next(shades) % 9)
            for place in given["lost"]:
                (Path(folder) / f"{place}.png").unlink(missing_ok=True)
            paths = {str(Path(folder) / f"{place}.png") for place in given["images"]}
            output = Output(tuple(given["formats"]), recursive=given["recursive"])
            stand = Stand(number)
            with contextlib.suppress(InputError, Killed), patch.context() as dying:
                images = find_images(sorted(paths), recursive=output.recursive)
                settings = {"epochs": given["epochs"]}
                options = {name: given[name] for name in ("model", "overwrite", "prune")}
                plan = plan_run(images, out, output, settings, **options)
                die_at_write(dying, given["killed"] or math.inf)
                segment_files(stand, images, out, plan=plan)
                check_whole(out, given["formats"])
            after = results_of(out)
            for path, files in before.items():
                if path not in paths and not given["prune"]:
                    assert after[path] == files
                elif path in paths and not given["overwrite"] and not given["killed"]:
                    assert after[path] == files
                    assert Path(path) not in stand.seen or not Path(path).exists()
                elif path in paths and not given["killed"]:
                    assert path in after
            if not given["overwrite"] and not given["prune"]:
                assert before.keys() <= after.keys()


def die_at_write(patch, moment):
    """Ends everything at a replacement of a file, from which on there is none."""
    count, replace = itertools.count(1), os.replace

    def dying(source, target, **options):
        if next(count) >= moment:
            raise Killed
        replace(source, target, **options)

    patch.setattr(os, "replace", dying)


def check_whole(out, formats):
    """Every file of the folder as a whole holds every image of the folder."""
    table = us.read_results(out)
    objects = us.read_results(out, objects=True)
    good = [path for path, error in zip(table["path"], table["error"], strict=True) if not error]
    with_objects = sorted(objects["path"])
    page = (out / "report.html").read_text()
    assert re.search(rf"<h1>{len(good)} images?, {len(with_objects)} objects?, ", page)
    if "coco" in formats:
        coco = json.loads((out / "coco.json").read_text())
        assert len(coco["images"]) == len(good)
        assert len(coco["annotations"]) == len(with_objects)
    if "csv" in formats:
        rows = (out / "objects.csv").read_text().splitlines()[1:]
        files = sorted(row.partition(",")[0] for row in rows)
        assert len(files) == len(with_objects)
        for file, path in zip(files, sorted(with_objects), strict=True):
            assert path.endswith(file)


def test_killed_at_any_moment_the_next_run_ends_the_same(photos, tmp_path, monkeypatch):
    (photos / "broken.png").write_bytes(b"no image")
    whole = tmp_path / "whole"
    run(photos, whole)
    for moment in range(1, 17):
        out = tmp_path / f"killed{moment}"
        with monkeypatch.context() as patch:
            die_at_write(patch, moment)
            with pytest.raises(Killed):
                run(photos, out)
        if (out / JOURNAL).exists():
            with open(out / JOURNAL, "a") as journal:
                journal.write('{"image": "torn')
        _, done = run(photos, out)
        assert len(done.done) == 4
        assert contents(out) == contents(whole), moment
        assert not (out / JOURNAL).exists()
    # Files that look half written are kept where no run was killed.
    mine = whole / ".0123456789ab.part.png"
    mine.write_bytes(b"mine")
    run(photos, whole, overwrite=True)
    assert mine.read_bytes() == b"mine"


def test_folders_are_mirrored_and_named_by_their_relative_paths(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/c/2.png", "b/2.jpg", "b/2.png"):
        draw(tmp_path / "in" / name)
    out = tmp_path / "out"
    run(tmp_path / "in", out, output=Output(("png", "csv"), recursive=True))
    masks = {path.relative_to(out).as_posix() for path in out.rglob("*_mask.png")}
    assert len(masks) == 5
    assert masks > {"a/1_mask.png", "b/1_mask.png", "b/c/2_mask.png"}
    names = pandas.read_csv(out / "objects.csv")["file"]
    assert sorted(names) == ["a/1.png", "b/1.png", "b/2.jpg", "b/2.png", "b/c/2.png"]
    # Folders go with the last of what is pruned in them.
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "in" / name).unlink()
    run(tmp_path / "in", out, output=Output(("png", "csv"), recursive=True), prune=True)
    assert ((out / "a").exists(), (out / "b").exists()) == (False, True)


def test_results_are_read_as_columns(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    run(photos, out)
    table = pandas.DataFrame(us.read_results(out))
    assert table["name"].tolist() == ["0", "1", "2", "3", "broken"]
    assert table["objects"].tolist() == [1, 1, 1, 1, 0]
    assert table["width"].tolist()[:4] == [24] * 4
    assert "broken.png" in table["error"][4]
    assert all(os.path.isfile(path) for path in table["files"][0])
    rows = pandas.DataFrame(us.read_results(out, objects=True))
    assert rows["area"].tolist() == [120 - 12 * seed for seed in range(4)]
    with pytest.raises(InputError, match="holds no results"):
        us.read_results(photos)


def test_the_report_says_what_is_true_of_the_method():
    stand = Stand()
    cases = {
        "deepcut": "optimised on each image on its own",
        "vit-kmeans": "clustered on its own, and nothing was trained",
        "tokencut": "nothing was trained",
        "collective": "fitted on a set",
    }
    for name, words in cases.items():
        stand.method = resolve(name)
        assert words in _sentence(stand, {})
        assert ("on its own" in _sentence(stand, {})) == (name != "collective")
    stand.method = resolve("deepcut", foreground="set")
    assert "fitted on a set of unlabelled images" in _sentence(stand, {})
    assert "then optimised further on it" in _sentence(stand, {})
    stand.method = resolve("collective")
    facts = dict(_facts(Run((), 1.0, 0.0), types.SimpleNamespace(**vars(stand))))
    assert facts["Edges refined by"] == "the guided filter"


def test_what_confidence_means_is_said_for_the_kind_of_method():
    for name, fields, estimated in (
        ("collective", {}, True),
        ("collective", {"tile": 64}, False),
        ("unsegmedgat-c", {}, False),
        ("deepcut", {}, False),
    ):
        said = _confidence(types.SimpleNamespace(method=resolve(name, **fields)), {})
        assert ("estimated chance" in said) == estimated, name
    assert "estimated chance" in _confidence(None, {"method": "auto"})
    assert "within one run" in _confidence(None, {"method": "deepcut"})


@pytest.mark.parametrize(
    ("coverage", "confidence", "objects", "check"),
    [
        (0.5, 0.5, ({},), ""),
        (0.9, 1.0, ({},), ""),
        (0.5, 0.49, ({},), "unsure"),
        (0.91, 1.0, ({},), "nearly all of the image"),
        (0.0, 1.0, (), "no object"),
    ],
)
def test_what_is_to_be_checked(coverage, confidence, objects, check):
    assert Record("a", "a.png", (4, 4), coverage, confidence, 1, objects).check == check


def test_images_to_check_come_first_and_those_beyond_a_number_are_listed(tmp_path, monkeypatch):
    draw(tmp_path / "in" / "a.png")
    Image.new("RGB", (24, 20)).save(tmp_path / "in" / "b.png")
    _, done = run(tmp_path / "in", tmp_path / "out")
    page = (tmp_path / "out" / folder.REPORT).read_text()
    assert "<h1>2 images, 1 object, 1 to check</h1>" in page
    assert page.index("<h3>b.png") < page.index("<h3>a.png")
    assert "check: no object" in page
    assert len(done.done) == 2
    monkeypatch.setattr(folder, "PICTURED", 1)
    run(tmp_path / "in", tmp_path / "out", overwrite=True)
    page = (tmp_path / "out" / folder.REPORT).read_text()
    assert (page.count("data:image/jpeg"), 'href="b_overlay.png"' in page) == (2, True)
