"""The documentation site in a real browser: search, phones, both themes."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("", "folder/", "methods/", "methods/deepcut/", "results/", "api/", "reading-files/")


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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_pages_fit_the_screen_and_load_nothing_from_elsewhere(browser, site, width, scheme):
    with browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    ) as context:
        page = context.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        backgrounds = set()
        for path in PAGES:
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
