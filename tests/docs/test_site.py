"""The documentation site in a real browser: search, phones, both themes."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *(
        "",
        "folder/",
        "methods/",
        "methods/deepcut/",
        "methods/collective/",
        "api/",
        "reading-files/",
    ),
    *("results/", "results/quality/", "results/speed/", "alternatives/", "questions/"),
    *("notebooks/", "notebooks/quickstart/"),
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site: as `make docs` has built it, else built now."""
    folder = ROOT / "build" / "site"
    if not (folder / "index.html").is_file():
        pytest.importorskip("mkdocs")
        folder = tmp_path_factory.mktemp("site")
        command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    ("width", "scheme", "pages"), [(1280, "light", PAGES[:4]), (400, "dark", PAGES)]
)
def test_pages_fit_the_screen_and_load_nothing_from_elsewhere(browser, site, width, scheme, pages):
    with browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    ) as context:
        page = context.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        backgrounds = set()
        for path in pages:
            answer = page.goto(site + path)
            assert answer.status == 200, path
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert [url for url in requests if not url.startswith((site, "data:", "blob:"))] == []
        dark = max(map(int, backgrounds.pop().removeprefix("rgb(").rstrip(")").split(",")[:3])) < 80
        assert dark == (scheme == "dark")
        assert not backgrounds


def test_search_finds_a_method_and_a_function(browser, site):
    with browser.new_context() as context:
        page = context.new_page()
        for words, path in (("deepcut", "methods/deepcut/"), ("make_segment_fn", "api/")):
            page.goto(site)
            page.click("input.md-search__input")
            page.keyboard.type(words)
            page.wait_for_selector(f'a.md-search-result__link[href*="{path}"]')


def test_the_results_answer_on_one_screen(browser, site):
    with browser.new_context(viewport={"width": 1280, "height": 1000}) as context:
        page = context.new_page()
        page.goto(site + "results/")
        assert page.locator("figure.plot svg").count() == 2
        for plot in page.locator("figure.plot svg").all():
            box = plot.bounding_box()
            assert box["y"] + box["height"] < 1000
            assert plot.get_attribute("aria-label")
        assert page.locator("#what-to-distrust").bounding_box()["y"] < 1000
        # Plots follow the theme of the page, not only that of the system.
        colour = "getComputedStyle(document.querySelector('figure.plot text')).fill"
        light = page.evaluate(colour)
        page.locator("label[title='Dark']").click()
        page.wait_for_function(f"{colour} !== '{light}'")


def test_narrow_screens_cut_no_code_and_tables_show_that_they_scroll(browser, site):
    with browser.new_context(viewport={"width": 400, "height": 900}) as context:
        page = context.new_page()
        page.goto(site + "results/quality/")
        wide = "(e) => e.scrollWidth > e.clientWidth + 1"
        assert not any(code.evaluate(wide) for code in page.locator("pre > code").all())
        wraps = [one for one in page.locator(".md-typeset__scrollwrap").all() if one.evaluate(wide)]
        assert wraps
        shadow = "(e) => getComputedStyle(e).backgroundAttachment"
        assert all("local" in wrap.evaluate(shadow) for wrap in wraps)
        for path in ("folder/", "notebooks/"):
            page.goto(site + path)
            for name in page.locator("td code", has_text=".").all():
                assert name.evaluate("(e) => e.getClientRects().length") == 1, name.inner_text()
