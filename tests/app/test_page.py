"""The page in a real browser: upload, segment, change K, download, a bad file, two users."""

import dataclasses
import functools
import io
import itertools
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import unseg_jax as us
from unseg_jax.app.work import Settings, choose_for
from unseg_jax.export.formats import table


@pytest.fixture
def open_page(open_url, server):
    return functools.partial(open_url, server.url)


def drop(page, *paths):
    page.set_input_files("#files", [str(path) for path in paths])
    page.wait_for_selector("#start:not([disabled])")


def segment(page, method="deepcut", clusters="", backbone="tiny"):
    page.evaluate("document.getElementById('advanced').open = true")
    page.select_option("#method", method)
    if page.is_enabled("#clusters"):
        page.fill("#clusters", clusters)
    if page.is_enabled("#backbone"):
        page.select_option("#backbone", backbone)
    page.click("#start")
    page.wait_for_selector("#output[hidden]", state="attached")
    # A run takes as long as the machine needs: fitting on a busy one takes minutes.
    page.wait_for_selector("#output:not([hidden])", timeout=300_000)


def download(page):
    with page.expect_download() as waiting:
        page.click("#download")
    return zipfile.ZipFile(io.BytesIO(waiting.value.path().read_bytes()))


def test_drop_segment_change_k_and_download(
    open_page, photographs, server, tiny_weights, small_images
):
    page = open_page()
    path = photographs["coffee.png"]
    drop(page, path)
    segment(page)
    assert page.inner_text("#headline").startswith("1 image, ")
    assert "deepcut: " in page.inner_text("#how")
    page.click("#cards .open")
    # Ten epochs, and so ten losses; two clusters have no parts to show.
    assert "each of 10 epochs" in page.inner_text("#loss figcaption")
    assert page.locator("#loss .curve").get_attribute("d").count("L") == 9
    assert "Parts" not in page.inner_text("#kinds")
    page.keyboard.press("Escape")

    segment(page, "vit-kmeans", clusters="3")
    # Called as from Python, without the page; compiled already.
    settings = Settings("vit-kmeans", 3, "tiny")
    segmenter = server.app.state.worker.load(choose_for(settings, [path]), settings)
    assert segmenter.method == dataclasses.replace(small_images["vit-kmeans"], num_clusters=3)
    assert segmenter.backbone.source == str(tiny_weights)
    expected = segmenter(path)[0]
    with download(page) as archive:
        names = {f"coffee_{kind}.png" for kind in ("mask", "labels", "overlay", "cutout")}
        names |= {"coco.json", "coco_polygons.json", *table.FILES}
        assert set(archive.namelist()) == names
        mask = np.asarray(Image.open(archive.open("coffee_mask.png"))) > 0
        labels = np.asarray(Image.open(archive.open("coffee_labels.png")))
        coco = json.loads(archive.read("coco.json"))
        alpha = np.asarray(Image.open(archive.open("coffee_cutout.png")))[..., 3]
    np.testing.assert_array_equal(mask, expected.mask)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_array_equal(alpha, expected.cutout()[..., 3])
    assert coco["images"][0]["file_name"] == "coffee.png"
    assert len(coco["annotations"]) == len(expected.objects) > 0

    # The first run is still there, to see and to download.
    page.select_option("#runs", label="1: deepcut, 1 image")
    page.wait_for_selector("#download[href*='runs/1/']")
    with download(page) as archive:
        first = np.asarray(Image.open(archive.open("coffee_labels.png")))
    assert (first.max(), labels.max()) == (1, 2)
    page.select_option("#runs", label="2: vit-kmeans, K=3, 1 image")
    page.wait_for_selector("#download[href*='runs/2/']")

    page.click("#cards .open")
    for kind in ("Photograph", "Mask", "Parts", "Cut-out"):
        page.click(f"#kinds button:has-text('{kind}')")
        page.wait_for_selector(f"#large[alt='{kind} of coffee.png']")
        page.locator("#large").evaluate("(image) => image.decode()")
    rows = page.locator("#objects tbody tr")
    assert rows.count() == len(expected.objects)
    assert rows.first.locator("td").nth(2).inner_text() == str(expected.objects[0].area)


def test_decisions_refit_the_run(open_page, photographs, server):
    page = open_page()
    names = ["coffee", "chelsea", "astronaut"]
    drop(page, *(photographs[f"{name}.png"] for name in names))
    segment(page, "vit-kmeans")
    assert page.is_disabled("#refit")
    cards = page.locator("#cards li")
    cards.nth(0).locator("text=Keep").click()
    cards.nth(2).locator("text=Reject").click()
    page.select_option("#clicking", "thing")
    cards.nth(1).locator("img").click()  # and does not open it
    box = cards.nth(0).locator("img").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2, steps=9)
    page.mouse.up()
    cards.nth(2).locator("[data-reason]").select_option("wrong thing")
    assert page.inner_text("#tally") == "1 kept, 1 rejected, 2 marks"
    decisions = page.evaluate("desk.exported(decidable())")
    with download(page) as archive:
        kept = np.asarray(Image.open(archive.open("coffee_mask.png"))) > 0
    page.click("#refit")
    page.wait_for_selector("#runs option[value='2']", state="attached", timeout=300_000)
    assert "steered by what was decided on 2 images" in page.inner_text("#how")
    # As in Python; all images are done again, also the one that the fit did without.
    (x, y, thing), (stroke,) = (
        decisions["images"][1]["clicks"][0],
        decisions["images"][0]["strokes"],
    )
    assert decisions["images"][2]["reason"] == "wrong thing"
    assert (x, y, thing) == (pytest.approx(48, abs=1), pytest.approx(36, abs=1), True)
    clicks = {photographs["chelsea.png"]: [(x, y, thing)]}
    strokes = {photographs["coffee.png"]: [(stroke["points"], stroke["radius"], stroke["thing"])]}
    unpainted, model = (
        us.fit(
            [photographs["coffee.png"], photographs["chelsea.png"]],
            examples={photographs["coffee.png"]: kept},
            clicks=marks,
            backbone=server.app.state.worker._backbone("tiny"),
            batch_size=4,
        )
        for marks in (clicks, clicks | strokes)
    )
    before, after = (
        one.segment(photographs["coffee.png"])[0].evidence[36, 24:72].mean()
        for one in (unpainted, model)
    )
    assert after > before + 0.1
    with download(page) as archive:
        assert "model.safetensors" in archive.namelist()
        for name in names:
            mask = np.asarray(Image.open(archive.open(f"{name}_mask.png"))) > 0
            expected = model.segment(photographs[f"{name}.png"])[0].mask
            np.testing.assert_array_equal(mask, expected)
    # The verdicts were on masks that are no longer shown; the marks stay.
    assert page.inner_text("#tally") == "0 kept, 0 rejected, 2 marks"
    assert cards.nth(0).locator("polyline").count() == 1
    assert cards.nth(1).locator(".mark").count() == 1


def test_a_bad_file_is_named_and_the_others_go_on(open_page, photographs, tmp_path):
    page = open_page()
    # A name that would run as a script if it were taken for HTML.
    bad = tmp_path / "<img src=x onerror=alert(1)>.png"
    bad.write_bytes(photographs["chelsea.png"].read_bytes()[:2000])
    large = tmp_path / "large.bmp"
    large.write_bytes(bytes(300_000))
    drop(page, photographs["chelsea.png"], bad, large)
    assert "most that this page takes" in page.inner_text("#list li.bad")
    segment(page)
    assert page.inner_text("#headline").endswith("1 failed")
    said = page.locator("#cards li").first.inner_text()
    assert said == "image _img src=x onerror=alert(1)_.png is truncated: copy or download it again."
    assert page.locator("#cards .open").count() == 1
    assert page.locator("img[src='x']").count() == 0


def test_two_users_at_once_see_their_own(open_page, photographs, server):
    first, second = open_page(), open_page(400, 800, "dark")
    drop(first, photographs["coffee.png"])
    drop(second, photographs["chelsea.png"], photographs["astronaut.png"])
    for page in (first, second):
        page.click("#advanced summary")
        page.select_option("#method", "vit-kmeans")
        page.select_option("#backbone", "tiny")
        page.click("#start")
    for page in (first, second):
        page.wait_for_selector("#output:not([hidden])")
    assert first.locator("#cards .name").all_inner_texts() == ["coffee.png"]
    assert second.locator("#cards .name").all_inner_texts() == ["chelsea.png", "astronaut.png"]
    with download(second) as archive:
        assert not any(name.startswith("coffee") for name in archive.namelist())
    # On a telephone nothing is wider than the screen, in the viewer neither.
    second.click("#cards .open >> nth=1")
    assert second.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert second.inner_text("#viewer-title") == "astronaut.png"
    second.keyboard.press("ArrowRight")
    assert second.inner_text("#viewer-title") == "chelsea.png"
    # Who leaves takes the pictures along.
    assert any(path.name == "coffee.png" for path in server.kept)
    first.goto("about:blank")
    for _ in range(100):
        if not any(path.name.startswith("coffee") for path in server.kept):
            break
        second.wait_for_timeout(200)
    assert not any(path.name.startswith("coffee") for path in server.kept)
    assert any(path.name == "chelsea.png" for path in server.kept)


def test_eight_images_behind_a_frame_are_fitted_by_auto(open_page, photographs, monkeypatch):
    monkeypatch.setattr("unseg_jax.collective.choosing.share_framed", lambda images: 1.0)
    page = open_page()
    for _ in range(2):  # names may be given twice
        drop(page, *photographs.values())
    page.wait_for_selector("#list li:nth-child(8)")
    page.wait_for_selector("#start:not([disabled])")
    segment(page, "auto")
    assert "A model was fitted on these 8 pictures." in page.inner_text("#how")
    assert "unseg-jax" not in page.inner_text("body")
    names = page.locator("#cards .name").all_inner_texts()
    assert len(set(names)) == 8
    assert "coffee (2).png" in names
    page.select_option("#order", "unsure")
    page.click("#cards .open >> nth=0")
    assert page.is_hidden("#loss")
    page.keyboard.press("Escape")
    with download(page) as archive:
        assert "model.safetensors" in archive.namelist()
        assert len([name for name in archive.namelist() if name.endswith("_mask.png")]) == 8


def test_what_is_in_a_picture_is_chosen_first(open_page, photographs, server):
    page = open_page(400)
    words = page.inner_text("body")
    assert "unseg-jax" not in words
    assert "--" not in words
    assert not page.is_visible("#method")
    drop(page, photographs["coffee.png"])
    page.check("[value=parts]")
    page.fill("#parts", "99")
    page.click("#start")
    assert page.is_hidden("#busy")  # the browser says which numbers may be
    page.check("[value=one]")
    with page.expect_request("**/run") as asked:
        segment(page, "spectral-ncut")
    assert asked.value.post_data_json["kind"] == "one"
    assert page.inner_text("#headline").startswith("1 image, 1 object")
    with page.expect_download() as waiting:
        page.click("#cards .save")
    assert waiting.value.suggested_filename == "coffee_cutout.png"
    with Image.open(waiting.value.path()) as picture:
        assert (picture.size, picture.mode) == ((96, 72), "RGBA")
    page.click("#cards .open")
    page.click("#kinds button:has-text('Mask')")
    with page.expect_download() as waiting:
        page.click("#kinds .save")
    assert waiting.value.suggested_filename == "coffee_mask.png"
    clip = "getComputedStyle(document.getElementById('photograph')).clipPath"
    assert page.evaluate(clip) == "inset(0px 0px 0px 100%)"
    page.fill("#slide", "30")
    assert page.evaluate(clip) == "inset(0px 0px 0px 30%)"
    boxes = [page.locator(name).bounding_box() for name in ("#large", "#photograph")]
    assert boxes[0] == boxes[1]
    page.click("#kinds button:has-text('Photograph')")
    assert page.is_hidden("#compare")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_text_is_legible_and_methods_are_grouped(open_page, luminance):
    inks, grounds = ("ink", "soft", "accent", "bad", "warn"), ("page", "card", "tint")
    pairs = [*itertools.product(inks, grounds), ("on-accent", "accent")]
    for scheme, width in (("light", 1280), ("dark", 400)):
        page = open_page(width, 800, scheme)
        for ink, ground in pairs:
            low, high = sorted([luminance(page, ink), luminance(page, ground)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
        assert (luminance(page, "page") < 0.2) == (scheme == "dark")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    options = page.locator("#method option").evaluate_all("all => all.map((one) => one.value)")
    assert options[0] == "auto"
    assert sorted(options[1:]) == sorted(us.list_methods())
    assert page.locator("#method optgroup").count() >= 4
    # Nothing to choose where it changes nothing.
    page.click("#advanced summary")
    page.select_option("#method", "spectral-ncut")
    assert page.is_disabled("#backbone")
    page.select_option("#method", "collective")
    assert page.is_disabled("#clusters")
    assert page.is_disabled("#start")
