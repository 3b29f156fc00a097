"""The report of `unseg-jax segment` in a real browser: sorting, keep or reject, a phone."""

import io
import re
from datetime import date

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data.folders import ImageFile
from unseg_jax.export.decisions import kept_names, marks_from, read_decisions
from unseg_jax.export.records import Entry, Record, Run
from unseg_jax.export.report import render_report

HOSTILE = '<img src=x onerror=alert(1)>",\n.png'
# name, coverage, confidence, objects
IMAGES = (
    ("b", 0.20, 0.80, 2),
    (HOSTILE, 0.95, 0.70, 1),
    ("a", 0.30, 0.10, 1),
    ("c", 0.00, 0.00, 0),
    ("d", 0.10, 0.90, 3),
)


def _picture(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((240, 320, 3), value, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    one = {"box": [0, 0, 2, 2], "area": 4, "score": 0.5, "label": 1, "counts": "04"}
    measured = {"circularity": 0.8, "intensity": 99.0, "equivalent_diameter_um": 1.1}
    one |= {**measured, "area_um2": 1.0}
    entries = []
    for name, coverage, confidence, count in IMAGES:
        notes = ("it was stretched to 8 bits.",) if name == "b" else ()
        objects = tuple(
            {**one, "area_um2": float(area), "area": area} for area in range(9, 9 + count)
        )
        record = Record(name, name, (240, 320), coverage, confidence, 1, objects, notes=notes)
        pictures = {"photograph": _picture(40), "overlay": _picture(200)}
        entries.append(Entry(ImageFile(folder / "x.png", name), record, pictures=pictures))
    entries.append(Entry(ImageFile(folder / "bad.png", "bad"), error="bad.png is empty: drop it."))
    run = Run(tuple(entries), 1.0, 0.0, ("2 files in photos left out by suffix: 2 .dcm.",))
    path = folder / "report.html"
    path.write_text(render_report(run, None, folder="nuclei"), encoding="utf-8")
    return path


def shown(page):
    return page.eval_on_selector_all(
        ".card:not([hidden])", "cards => cards.map(card => card.dataset.name)"
    )


def test_it_says_what_was_left_out_changed_and_failed(open_file, report):
    page = open_file(report)
    title = rf"nuclei · {date.today().year}-\d\d-\d\d · 5 images, 7 objects, 3 to check, 1 failed"
    assert re.fullmatch(title, page.title())
    assert page.locator("#offered").count() == 0
    page.click("#left-out summary")
    assert page.locator("#left-out li").inner_text().startswith("2 files in photos left out")
    page.click("#changed summary")
    assert page.locator("#changed li").inner_text() == "b: it was stretched to 8 bits."
    page.click("#failed summary")
    assert "bad.png is empty: drop it." in page.locator("#failed table").inner_text()
    assert page.locator("img").count() == 2 * len(IMAGES)  # none that a name brought in


def test_objects_are_in_histograms_and_a_table_that_is_sorted(open_file, report):
    page = open_file(report, 400)
    page.click("#measured summary")
    captions = page.locator(".plots figcaption").all_inner_texts()
    assert captions[0] == "Area (µm²): median 9.00"
    assert [text.partition(":")[0] for text in captions[1:]] == ["Circularity", "Intensity"]
    bars = page.locator(".plots figure >> nth=0").locator("rect title").all_text_contents()
    assert sum(int(text.rpartition(" ")[2]) for text in bars) == 7
    area = "cells => cells.map(cell => Number(cell.textContent))"
    cells = page.locator(".sortable tbody td:nth-child(3)")
    areas = [9, 10, 9, 9, 9, 10, 11]
    assert cells.evaluate_all(area) == sorted(areas, reverse=True)
    page.click(".sortable th:nth-child(3) button")
    assert cells.evaluate_all(area) == sorted(areas, reverse=True)
    page.click(".sortable th:nth-child(3) button")
    assert cells.evaluate_all(area) == sorted(areas)
    assert page.get_attribute(".sortable th:nth-child(3)", "aria-sort") == "ascending"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_what_is_not_flagged_is_offered_for_a_look(open_file, tmp_path):
    pictures = {"photograph": _picture(40), "overlay": _picture(200)}
    one = {"box": [0, 0, 2, 2], "area": 4, "score": 0.5, "label": 1, "counts": "04"}
    entries = [
        Entry(
            ImageFile(tmp_path / f"{at}.png", f"{at}"),
            Record(f"{at}", f"{at}.png", (240, 320), 0.2, 0.8, 1, (one,)),
            pictures=pictures,
        )
        for at in range(9)
    ]
    for count, offered in ((9, 3), (2, 2)):
        path = tmp_path / "report.html"
        path.write_text(render_report(Run(tuple(entries[:count]), 1.0, 0.0), None), "utf-8")
        page = open_file(path)
        said = f"{count} images, {count} objects, none looks broken"
        assert page.locator("h1").inner_text() == said
        links = page.locator("#offered a")
        assert links.count() == offered
        for link in links.all():
            card = page.locator(link.get_attribute("href"))
            assert card.locator("h3").inner_text() == link.inner_text()


def test_sorting_and_filtering(open_file, report):
    page = open_file(report)
    assert shown(page) == [HOSTILE, "a", "c", "b", "d"]  # to check first
    for order, expected in {
        "confidence": ["c", "a", HOSTILE, "b", "d"],
        "coverage": [HOSTILE, "a", "b", "d", "c"],
        "objects": ["d", "b", HOSTILE, "a", "c"],
    }.items():
        page.select_option("#sort", order)
        assert shown(page) == expected
    page.select_option("#filter", "check")
    assert set(shown(page)) == {HOSTILE, "a", "c"}


def export(page, path):
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(path)
    return {one.name: one for one in read_decisions(path)}


def test_decisions_by_keyboard_are_exported_and_read_back(open_file, report, tmp_path):
    page = open_file(report, accept_downloads=True)
    for key in ("j", "y", "n", "y"):  # from one card to the next
        page.keyboard.press(key)
    page.locator(".card").nth(4).locator("text=Reject").click()
    assert page.locator("#tally").inner_text() == "5 shown, 2 kept, 2 rejected"
    # The click made that card the current one, and from there the keys go on.
    page.keyboard.press("k")
    page.keyboard.press("u")
    page.keyboard.press("j")
    page.keyboard.press("1")
    page.locator(".card").nth(4).locator("[data-reason]").select_option("too much")
    found = export(page, tmp_path / "decisions.json")
    verdicts = {name: (one.verdict, one.reason) for name, one in found.items()}
    assert verdicts == {
        HOSTILE: ("keep", ""),
        "a": ("reject", ""),
        "c": ("keep", ""),
        "d": ("reject", "too much"),
    }
    kept = kept_names(found.values())
    page.select_option("#filter", "keep")
    assert set(shown(page)) == kept == {HOSTILE, "c"}
    page.reload()  # decisions outlive the page
    page.select_option("#filter", "keep")
    assert set(shown(page)) == kept


def test_clicks_on_pictures_are_marks_in_pixels_of_the_image(open_file, report, tmp_path):
    page = open_file(report, accept_downloads=True)
    cards = page.locator(".card")
    pictures = "[...document.querySelectorAll('.card')].slice(0, 2).flatMap"
    page.wait_for_function(
        pictures + "((card) => [...card.querySelectorAll('img')]).every((one) => one.complete)"
    )
    page.keyboard.press("+")
    picture = cards.nth(0).locator(".photograph img")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] / 4, "y": box["height"] / 2})
    page.select_option("#clicking", "background")
    cards.nth(0).locator(".overlay img").click(position={"x": 30, "y": 20})
    cards.nth(1).locator(".overlay img").click()
    assert cards.nth(0).locator(".mark").count() == 4  # two, in both pictures
    page.keyboard.press("y")  # the mask of the second, which was clicked last
    page.keyboard.press("1")  # and the inverted one of the third
    cards.nth(1).locator(".overlay img").click()  # on the mark, which goes again
    assert page.locator("#tally").inner_text() == "5 shown, 1 kept, 1 rejected, 2 marks"
    decisions = export(page, tmp_path / "decisions.json")
    assert set(decisions) == {HOSTILE, "a", "c"}
    assert (decisions[HOSTILE].verdict, decisions["a"].clicks) == ("undecided", ())
    (x, y, thing), (*_, other) = decisions[HOSTILE].clicks
    # The picture may be smaller than its element, above and below which there is then nothing.
    assert (x, y, thing) == (pytest.approx(80, abs=2), pytest.approx(120, abs=2), True)
    assert not other
    images = [ImageFile(tmp_path / f"{at}.png", one[0]) for at, one in enumerate(IMAGES)]
    sources, examples, clicks = marks_from(decisions.values(), images)
    assert len(sources) == len(IMAGES)
    assert clicks == {images[1].path: decisions[HOSTILE].clicks}
    masks = {path.name: np.argwhere(mask).max(0).tolist() for path, mask in examples.items()}
    assert masks == {"2.png": [1, 1], "3.png": [239, 319]}


def test_painted_strokes_are_exported_and_undone(open_file, report, tmp_path):
    page = open_file(report, accept_downloads=True)
    picture = page.locator(".card .photograph img").first
    page.wait_for_function("document.querySelector('.photograph img').complete")
    assert page.is_hidden("#brush")
    page.select_option("#clicking", "thing")
    box = picture.bounding_box()
    scale, tally = 320 / box["width"], page.locator("#tally")

    def paint(*points):
        for at, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
            if not at:
                page.mouse.down()
        page.mouse.up()

    page.fill("#brush", "20")
    paint((40, 50), (120, 50), (120, 90))
    page.select_option("#clicking", "background")
    paint((30, 110), (-50, 110))  # beyond the edge, and held to it
    assert page.locator(".card").first.locator("polyline").count() == 4  # two, in both pictures
    assert tally.inner_text().endswith(", 2 marks")
    thing, background = export(page, tmp_path / "x.json")[HOSTILE].clicks
    assert (thing[2], background[2]) == (True, False)
    assert thing[1] == background[1] == pytest.approx(10 * scale, abs=0.1)
    assert len(thing[0]) > 4
    ends = np.array([thing[0][0], thing[0][-1]]) / scale
    np.testing.assert_allclose(ends, [[40, 50], [120, 90]], atol=11)  # within a radius
    assert min(x for x, _ in background[0]) == 0
    picture.click(position={"x": 30, "y": 110})  # on the stroke, which goes
    assert tally.inner_text().endswith(", 1 mark")
    page.keyboard.press("Control+z")
    page.click("#undo")
    assert [one[2] for one in export(page, tmp_path / "x.json")[HOSTILE].clicks] == [True]
    page.reload()
    assert tally.inner_text().endswith(", 1 mark")
    page.select_option("#clicking", "thing")
    assert page.is_disabled("#undo")


def test_what_is_decided_in_another_tab_is_not_overwritten(open_file, report):
    page = open_file(report)
    other = page.context.new_page()
    other.goto(report.as_uri())
    page.click(".card >> nth=0 >> [data-decision=keep]")
    other.wait_for_function("document.querySelector('#tally').value.includes(' 1 kept')")
    other.click(".card >> nth=1 >> [data-decision=reject]")
    said = "5 shown, 1 kept, 1 rejected"
    page.wait_for_function(f"document.querySelector('#tally').value === '{said}'")
    other.reload()
    assert other.inner_text("#tally") == said


def test_decisions_outlive_a_browser_that_drops_them(open_file, report):
    page = open_file(report)
    page.click(".card >> nth=0 >> [data-decision=keep]")
    page.evaluate("localStorage.clear()")  # as Chromium does where memory is short
    page.reload()
    assert page.inner_text("#tally") == "5 shown, 1 kept, 0 rejected"
    page.evaluate("localStorage.clear(), sessionStorage.clear()")
    page.reload()
    assert page.inner_text("#tally") == "5 shown, 1 kept, 0 rejected"
    other = page.context.new_page()  # and they are there again for all
    other.goto(report.as_uri())
    assert other.inner_text("#tally") == "5 shown, 1 kept, 0 rejected"
    page.goto("about:blank")
    other.click(".card >> nth=1 >> [data-decision=reject]")
    page.goto(report.as_uri())  # what this tab kept is older
    assert page.inner_text("#tally") == "5 shown, 1 kept, 1 rejected"


def test_decisions_of_a_report_made_before_are_read(open_file, report):
    page = open_file(report)
    of = "document.querySelector('[data-name=a]').dataset.of"
    saved = f"JSON.stringify([['a', {{ decision: 'keep', reason: '', of: {of} }}]])"
    page.evaluate(f"localStorage.setItem('unseg-jax ' + location.pathname, {saved})")
    page.reload()
    assert page.inner_text("#tally") == "5 shown, 1 kept, 0 rejected"


def test_a_page_that_cannot_keep_decisions_asks_before_it_is_left(open_file, report, tmp_path):
    page = open_file(report, accept_downloads=True)
    full = "Storage.prototype.setItem = () => { throw new Error('full'); }; 0"
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.evaluate(full)
    page.reload()  # nothing was decided
    assert asked == []
    for exported in (False, True):
        page.evaluate(full)
        page.click(".card >> nth=0 >> [data-decision=keep]")
        if exported:
            export(page, tmp_path / "decisions.json")
        page.reload()
        assert asked == ["beforeunload"]


def test_holding_shows_the_photograph(open_file, report):
    page = open_file(report)
    level = """() => {
      const image = document.querySelector('.card .overlay img');
      const canvas = document.createElement('canvas');
      canvas.width = canvas.height = 1;
      canvas.getContext('2d').drawImage(image, 0, 0);
      return image.complete ? canvas.getContext('2d').getImageData(0, 0, 1, 1).data[0] : 0;
    }"""
    page.wait_for_function(f"({level})() > 190")
    page.locator(".card .overlay img").first.hover()
    page.mouse.down()
    page.wait_for_function(f"(({level})() < 50) && (({level})() > 30)")
    page.wait_for_timeout(300)  # a shorter press is a click, which opens the file
    page.mouse.up()
    page.wait_for_function(f"({level})() > 190")


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_the_first_picture_is_near_the_top_and_nothing_overflows(open_file, report, width, scheme):
    page = open_file(report, width, scheme=scheme)
    box = page.locator(".card img").first.bounding_box()
    assert box["y"] < 400
    assert box["width"] >= (320 if width == 400 else 280)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_everything_is_shown(open_file, report):
    page = open_file(report, java_script_enabled=False)
    assert page.locator(".card").count() == len(IMAGES)
    assert not page.locator("#bar").is_visible()
    assert not page.locator("text=Reject").first.is_visible()
