"""The documentation site in a real browser: search, phones, both themes."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AUDIT = """async () => {
  const found = [], wide = innerWidth;
  const all = (selector) => [...document.querySelectorAll(`.md-content ${selector}`)];
  const say = (what, one) => found.push(`${what}: ${one.textContent.trim().slice(0, 50)}`);
  const style = (one) => getComputedStyle(one);
  const scrolls = (one) => /auto|scroll/.test(style(one).overflowX);
  const fits = (one) => one.getBoundingClientRect().right <= wide + 1;
  const inBox = (one) => one && (scrolls(one) && fits(one) || inBox(one.parentElement));
  // After a change of the width, the theme moves its drawer for a moment.
  const page = () => document.documentElement.scrollWidth;
  for (let tries = 0; page() > wide && tries < 40; tries += 1)
    await new Promise((done) => setTimeout(done, 50));
  if (page() > wide) found.push(`the page is ${page()} pixels wide`);
  for (const one of all("*")) {
    if (one.offsetHeight && !fits(one) && !inBox(one.parentElement)) say("cut off", one);
    if (!one.clientWidth || one.scrollWidth <= one.clientWidth + 1 || !scrolls(one)) continue;
    if (one.matches("pre > code") && !one.closest(".output")) say("code is cut", one);
    // A bar and a shadow say that there is more.
    const bar = style(one).scrollbarColor.split(") ")[0];
    const seen = style(one).backgroundAttachment.includes("local") && !/, 0[)]?$/.test(bar);
    if (!seen) say("scrolls unseen", one);
  }
  for (const row of all("tr"))
    if (row.offsetHeight > (wide < 500 ? 200 : 150)) say("a tall row", row);
  for (const name of all(":not(pre) > code"))
    if (/^(?=.{1,32}$)(-[^ ]+ )?[^ ]+$/.test(name.textContent) && name.getClientRects().length > 1)
      say("a broken name", name);
  return found;
}"""
"""What a reader of the page cannot see, or sees in pieces."""

WRAPPED = """() => !document.querySelector(".md-content table:not([class])")
  || document.querySelector(".md-typeset__scrollwrap")"""
"""The theme's script has put wide tables into boxes."""


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


def test_no_page_cuts_or_breaks_anything_or_loads_from_elsewhere(browser, site):
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.route("**/search_index.json", lambda route: route.abort())  # it takes a second a page
        index = page.request.get(site + "search/search_index.json").json()["docs"]
        paths = {entry["location"].partition("#")[0] for entry in index}
        assert {"", "methods/deepcut/", "notebooks/scores/", "results/speed/"} < paths
        for path in sorted(paths):
            assert page.goto(site + path, wait_until="domcontentloaded").status == 200, path
            page.wait_for_function(WRAPPED)
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate(AUDIT) == [], (path, width)
        assert [url for url in requests if not url.startswith((site, "data:", "blob:"))] == []


def test_notebooks_are_shown_and_can_be_downloaded(browser, site):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site + "notebooks/")
        links = page.locator("td a[href$='/']").evaluate_all("all => all.map((one) => one.href)")
        names = [Path(link).name for link in links]
        assert sorted(names) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
        page.goto(links[0])
        widths = "all => all.map((one) => one.naturalWidth)"
        images = page.locator(".md-content img").evaluate_all(widths)
        assert images
        assert all(images)
        assert page.locator(".output").count()
        with page.expect_download() as waiting:
            page.click("text=Download this notebook")
        notebook = ROOT / f"notebooks/{names[0]}.ipynb"
        assert waiting.value.path().read_bytes() == notebook.read_bytes()


def test_search_finds_a_method_and_a_function(browser, site):
    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(site)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, background.removeprefix("rgb(").rstrip(")").split(",")[:3])) < 80
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
