"""The report in a real browser: sorting, the gallery, keys, both themes, a phone."""

import functools
from xml.etree import ElementTree

import numpy as np
import pytest

from unseg_jax.bench.report.html_report import write_summary
from unseg_jax.metrics import paired_sign_flip_test

COUNT = 400
IDS = [f"photo-{index:04d}" for index in range(COUNT)]
METHODS = ("deepcut", "vit-kmeans", "ncut-gcn")


@pytest.fixture(scope="module")
def ious():
    rng = np.random.default_rng(0)
    # No two alike, so that every order has one answer.
    return {
        name: (rng.permutation(COUNT) / COUNT + 0.0001 * index).round(4).tolist()
        for index, name in enumerate(METHODS)
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_folder, ious):
    folder = tmp_path_factory.mktemp("report")
    failed = {("vit-kmeans", IDS[5])}
    metrics = ("boundary", "objects", "classes")
    write_summary(make_folder(folder, IDS, ious, epochs=5, failed=failed, metrics=metrics))
    return folder / "report.html"


@pytest.fixture
def open_page(open_file, report):
    return functools.partial(open_file, report)


def card_ids(page):
    return page.locator("#cards li .name b").all_text_contents()


def test_pictures_are_made_only_near_the_screen(open_page):
    page = open_page()
    assert page.locator("#cards li").count() == COUNT
    before = page.locator("#cards img").count()
    page.locator("#gallery").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('#cards li img').length > 0")
    page.wait_for_function(
        "[...document.querySelectorAll('#cards li:first-child img')]"
        ".every((image) => image.naturalWidth === 64)"
    )
    after = page.locator("#cards img").count()
    assert before <= after
    assert 0 < after < 0.2 * COUNT * 9
    page.locator("#cards li").nth(300).scroll_into_view_if_needed()
    page.wait_for_function(
        "document.querySelectorAll('#cards li')[300].querySelectorAll('img').length > 0"
    )
    assert page.locator("#cards img").count() < 0.4 * COUNT * 9


def test_the_gallery_sorts_by_any_method_finds_and_hides(open_page, ious):
    page = open_page()
    order = np.argsort(ious["deepcut"])
    assert card_ids(page) == [IDS[index] for index in order]
    page.select_option("#sort-order", "best")
    assert card_ids(page) == [IDS[index] for index in order[::-1]]
    page.select_option("#sort-method", "ncut-gcn")
    page.select_option("#sort-order", "worst")
    assert card_ids(page) == [IDS[index] for index in np.argsort(ious["ncut-gcn"])]
    page.select_option("#sort-order", "spread")
    table = np.array([ious[name] for name in METHODS])
    table[1, 5] = np.nan
    spread = np.nanmax(table, axis=0) - np.nanmin(table, axis=0)
    found = [spread[IDS.index(id)] for id in card_ids(page)]
    np.testing.assert_allclose(found, np.sort(spread)[::-1], atol=1e-4)
    page.select_option("#sort-order", "name")
    assert card_ids(page) == IDS
    # The one image that failed under a method comes last there.
    page.select_option("#sort-method", "vit-kmeans")
    page.select_option("#sort-order", "worst")
    assert card_ids(page)[-1] == IDS[5]
    # Images are found by name, and methods can be hidden.
    page.fill("#find", "PHOTO-00")
    assert sorted(card_ids(page)) == IDS[:100]
    page.locator("#cards li").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('#cards li:first-child .tile').length === 5")
    page.locator("#shown label", has_text="ncut-gcn").click()
    page.wait_for_function("document.querySelectorAll('#cards li:first-child .tile').length === 4")
    # A failure is shown in place of its mask.
    page.fill("#find", IDS[5])
    page.locator("#cards button").first.click()
    assert "is truncated" in page.locator("#viewer-tiles .missing").inner_text()


def test_tables_sort_and_pairs_are_explained(open_page, ious):
    page = open_page()
    rows = page.locator("#score-table tbody tr")
    heading = page.locator("#score-table thead th", has_text="median IoU")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"

    def column(index):
        texts = [row.locator("td").nth(index).inner_text() for row in rows.all()]
        return [float(text) for text in texts if text != "–"]

    assert column(3) == sorted(column(3), reverse=True)
    button = page.locator("#score-table").get_by_role("button", name="mIoU", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert column(1) == sorted(column(1))
    assert len(column(1)) == len(METHODS)
    # A cell of the matrix says all about its pair.
    words = page.locator("#pair-words")
    assert words.inner_text() == "Choose a cell."
    cells = page.locator("#pairs-table td button")
    assert cells.count() == len(METHODS) * (len(METHODS) - 1)
    cells.first.focus()
    assert "p = " in words.inner_text()
    first = words.inner_text()
    cells.last.click()
    assert words.inner_text() != first
    assert f"of {COUNT} images." in words.inner_text()
    # A point of the scatter opens its image.
    page.select_option("#scatter-y", "ncut-gcn")
    first, second = np.array(ious["deepcut"]), np.array(ious["ncut-gcn"])
    words = page.locator("#scatter-words").inner_text()
    better, worse = int((second > first).sum()), int((second < first).sum())
    assert words == (
        f"ncut-gcn is better on {better}, worse on {worse}, equal on {COUNT - better - worse}."
    )
    assert page.locator("#scatter-chart circle").count() == COUNT
    page.locator("#scatter-chart circle[data-index='17']").dispatch_event("click")
    assert page.locator("#viewer-title").inner_text() == IDS[17]


def test_the_viewer_is_used_by_keys_alone(open_page):
    page = open_page()
    order = card_ids(page)
    page.locator("#cards button").first.focus()
    page.keyboard.press("Enter")
    title = page.locator("#viewer-title")
    assert title.inner_text() == order[0]
    assert page.locator("#viewer .tile").count() == 2 + len(METHODS)
    assert "IoU 0.000, Dice 0.000" in page.locator("#viewer-tiles").inner_text()
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == order[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == order[-1]
    page.keyboard.press("Escape")
    # Chromium closes it before it says so to the page, which then moves the focus.
    page.wait_for_function(
        f"document.activeElement.closest('li')?.dataset.index === '{IDS.index(order[-1])}'"
    )
    assert not page.locator("#viewer").is_visible()


def test_nothing_is_wider_than_the_screen(open_page):
    page = open_page()
    for width, height in ((360, 740), (400, 800), (820, 1180), (1280, 900), (1600, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator("#cards li").first.scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # Wide tables scroll in boxes of their own.
        boxes = page.locator(".scroll:visible")
        assert all(box.bounding_box()["width"] <= width for box in boxes.all())
        # A long number at the axis of a loss is not cut.
        number = page.locator(".loss text").first
        assert number.evaluate("(one) => (one.textContent = '-0.00012', one.getBBox().x)") >= 0
        # From a laptop's width on, the table of scores shows every column.
        hidden = "table => table.scrollWidth - table.parentElement.clientWidth"
        assert width < 1280 or page.locator("#score-table").evaluate(hidden) <= 0


def test_charts_and_tables_are_saved(open_page, luminance):
    page = open_page(scheme="dark")
    page.select_option("#plot-method", "ncut-gcn")
    assert page.locator("[data-rho=confidence]").inner_text() == "ρ = 1.00"
    assert page.locator("[data-rho=size]").inner_text() == "ρ = −1.00"
    assert page.locator("#plot-size circle").count() == COUNT
    page.locator("#plot-size circle[data-index='9']").dispatch_event("click")
    assert page.locator("#viewer-title").inner_text() == IDS[9]
    page.keyboard.press("Escape")

    def saved(locator):
        with page.expect_download() as download:
            locator.click()
        return download.value.suggested_filename, download.value.path().read_text("utf-8")

    assert page.locator("svg.chart").count() == page.locator("button.save").count()
    name, text = saved(page.locator("#plots .save").first)
    assert name == "IoU-against-confidence.svg"
    root = ElementTree.fromstring(text)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == COUNT
    assert circles[0].get("fill") == "rgb(0, 99, 160)"  # light, whatever the page is
    assert luminance(page, "page") < 0.2
    assert saved(page.locator("#tables button", has_text="CSV"))[0] == "table.csv"
    name, text = saved(page.locator("#tables button", has_text="LaTeX"))
    assert name == "table.tex"
    assert text.startswith(r"\begin{tabular}")
    assert page.locator("#table-text").inner_text() == text.rstrip("\n")


def test_a_run_is_compared_with_another(open_page, make_folder, ious, tmp_path):
    page = open_page()
    ids = IDS[100:]
    other = {"deepcut": (0.9 * np.array(ious["deepcut"][100:])).tolist()}
    folder = make_folder(tmp_path, ids, other, pictures=False)
    page.set_input_files("#other-run", folder / "per_image.jsonl")
    cells = page.locator("#other-table tbody tr").locator("th, td")
    cells.last.wait_for()
    name, count, there, here, difference, interval, wins, p_value = cells.all_inner_texts()
    own = np.array(ious["deepcut"][100:])
    expected = paired_sign_flip_test(own, np.array(other["deepcut"]))
    assert (name, count, wins) == ("deepcut", "300", f"{expected.wins}, {expected.losses}")
    assert (there, here) == (f"{90 * own.mean():.1f}", f"{100 * own.mean():.1f}")
    assert difference == f"{100 * expected.mean:+.1f}"
    low, high = (float(text.replace("\u2212", "-")) for text in interval.split(" to "))
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.15)
    assert float(p_value) == pytest.approx(expected.p_value, abs=0.01)
    (tmp_path / "none.jsonl").write_text("no run")
    page.set_input_files("#other-run", tmp_path / "none.jsonl")
    page.locator("#other-words", has_text="no method and image in common").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes_and_the_button_changes_them(open_page, luminance, scheme):
    page = open_page(scheme=scheme)

    def check(dark):
        for ink in ("ink", "soft", "accent", "bad"):
            for ground in ("page", "card", "tint"):
                low, high = sorted([luminance(page, ink), luminance(page, ground)])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
        assert (luminance(page, "page") < 0.2) == dark

    check(scheme == "dark")
    page.locator("#theme").click()
    check(scheme != "dark")
