"""Makes docs/images/serve.webp: the page of `unseg-jax serve`, in Chromium by Playwright."""

import argparse
import io
import shutil
import subprocess
import sys

from PIL import Image

from benchmarks.measure.common import ROOT
from unseg_jax.demo import photographs

SERVE = [sys.executable, "-m", "unseg_jax", "serve", "--port", "0"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    from playwright.sync_api import sync_playwright

    with (
        subprocess.Popen(SERVE, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1200, "height": 900}, bypass_csp=True)
            page.goto(address)
            page.set_input_files("#files", [str(path) for path in photographs()])
            page.click("#start:not([disabled])")
            page.wait_for_selector("#output:not([hidden])", timeout=600_000)
            page.evaluate("for (const image of document.images) image.loading = 'eager'")
            page.wait_for_function("[...document.images].every((image) => image.complete)")
            shot = page.screenshot(full_page=True)
        finally:
            server.terminate()
    Image.open(io.BytesIO(shot)).save(ROOT / "docs/images/serve.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
